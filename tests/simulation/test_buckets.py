"""A cohort cut into buckets: the parts are the same groups' sums, the whole is as ever, few sites are refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cloister.round import Program
from cloister.seal.buckets import partition
from cloister.simulation import LocalCohort, shards
from cloister.simulation.engine import SerialEngine
from cloister.simulation.sealing import Ideal, Masks
from cloister.vector import Query, Total, digest
from cloister.vector.errors import RoundVoid, TooFewSites


class Federation:
    """A cohort and the first question of its job."""

    def __init__(self, whole: Any, job: Any, sites: int, **settings: Any) -> None:
        tables = shards(whole, target="ill", sites=sites)
        self.engine = SerialEngine(job, tables)
        program = Program(job, {"age": "number", "dose": "number", "kind": "category", "level": "number"})
        query = program.ask(program.start())
        assert query is not None
        self.query, self.sites = query, tuple(sorted(tables))
        self.job, self.settings = job, settings

    def total(self, buckets: int, seal: Any = None) -> tuple[Query, Total]:
        asked = dataclasses.replace(self.query, buckets=buckets)
        cohort = LocalCohort(self.job, self.engine, self.sites, seal or Ideal(), **self.settings)
        return asked, cohort.sum(asked)


def test_the_parts_are_the_totals_of_the_public_groups(whole: Any, make_job: Any) -> None:
    federation = Federation(whole, make_job(), 11)
    asked, total = federation.total(2)
    groups = partition(digest(asked.to_bytes()), federation.sites, 2)
    assert [part.sites for part in total.parts] == [len(group) for group in groups] == [6, 5]
    for group, part in zip(groups, total.parts, strict=True):
        alone = LocalCohort(federation.job, federation.engine, group, Ideal(), required=lambda sites: 1)
        expected = alone.sum(federation.query)
        assert part.rows == expected.rows
        for name, values in expected.sums.items():
            assert np.allclose(part.sums[name], values)  # encoded for another number of sites


def test_the_whole_is_that_of_one_sum(whole: Any, make_job: Any) -> None:
    federation = Federation(whole, make_job(), 11)
    _, one = federation.total(1)
    _, cut = federation.total(2)
    assert one.parts == (one,)
    assert (cut.rows, cut.sites, cut.clipped) == (one.rows, one.sites, one.clipped)
    assert all(np.array_equal(cut.sums[name], one.sums[name]) for name in one.sums)


def test_masks_open_the_same_parts(whole: Any, make_job: Any) -> None:
    federation = Federation(whole, make_job(), 15, dropouts={0: ["site-3"]})
    _, ideal = federation.total(2)
    _, masked = federation.total(2, Masks(federation.job, federation.sites))
    assert [part.sites for part in masked.parts] == [part.sites for part in ideal.parts]
    for one, other in zip((ideal, *ideal.parts), (masked, *masked.parts), strict=True):
        assert all(np.array_equal(one.sums[name], other.sums[name]) for name in one.sums)


def test_masks_of_many_sites_on_the_sparse_graph_open_the_same_sum(whole: Any, make_job: Any) -> None:
    gone = [f"site-{number}" for number in range(7, 150, 15)]
    federation = Federation(pd.concat([whole] * 3, ignore_index=True), make_job(), 150, dropouts={0: gone})
    _, ideal = federation.total(1)
    _, masked = federation.total(1, Masks(federation.job, federation.sites))
    assert masked.sites == ideal.sites == 140
    assert all(np.array_equal(ideal.sums[name], masked.sums[name]) for name in ideal.sums)


def test_too_few_sites_for_so_many_buckets(whole: Any, make_job: Any) -> None:
    with pytest.raises(TooFewSites, match="Use at most 2 buckets"):
        Federation(whole, make_job(), 11).total(3)


def test_a_bucket_that_loses_too_many_opens_nothing(whole: Any, make_job: Any) -> None:
    federation = Federation(whole, make_job(), 11)
    asked = dataclasses.replace(federation.query, buckets=2)
    small = partition(digest(asked.to_bytes()), federation.sites, 2)[1]
    federation.settings = {"dropouts": {0: small[:2]}}
    assert federation.total(2)[1].parts[1].sites == 3
    federation.settings = {"dropouts": {0: small[:3]}}
    with pytest.raises(RoundVoid, match="2 sites of a bucket answered, its sum takes 3"):
        federation.total(2)
