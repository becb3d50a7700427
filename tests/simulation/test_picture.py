"""How rows lie over sites, counted and drawn; and sites that are too slow for a round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

import cloister as cl
from cloister.cli.app import run as command
from cloister.simulation.data import shards_of
from cloister.simulation.picture import partition_of
from cloister.simulation.stragglers import Deadline
from cloister.vector.errors import RoundVoid, UsageError


def test_counts_are_those_of_the_tables(whole, make_job):
    job = make_job()
    tables = shards_of(job, whole, 4, "dirichlet:0.5")
    found = partition_of(job, tables)
    assert found is not None
    assert list(found.labels) == ["0", "1"]
    assert found.counts == {site: [(t["ill"] == 0).sum(), (t["ill"] == 1).sum()] for site, t in tables.items()}
    numbers = cl.Job(cl.Table("t", target="age"), cl.Torch(cl.nets.Linear(), "mse", cl.SGD(0.1)), cl.FedAvg(1))
    quarters = partition_of(numbers, shards_of(numbers, whole, 4, "iid"))
    assert quarters is not None
    assert list(quarters.labels) == ["quarter 1", "quarter 2", "quarter 3", "quarter 4"]
    assert np.sum(list(quarters.counts.values())) == 300


def test_a_million_clients_are_not_loaded_for_a_picture(make_job):
    class Lazy(Mapping[str, Any]):
        def __getitem__(self, site: str) -> Any:
            raise AssertionError("loaded")

        def __iter__(self) -> Iterator[str]:
            return (f"client-{at}" for at in range(1000))

        def __len__(self) -> int:
            return 1000

    assert partition_of(make_job(), Lazy()) is None
    job = cl.Job(cl.Arrays("a", (2,), 10), cl.Torch(cl.nets.Linear(), "cross_entropy", cl.SGD(0.1)), cl.FedAvg(1))
    many = partition_of(job, shards_of(job, (np.zeros((5000, 2)), np.arange(5000) % 10), 1000, "iid"))
    assert many is not None
    assert (len(many.counts), many.sites) == (200, 1000)


def test_the_report_draws_it_and_a_file_too(tmp_path, whole, make_job):
    result = cl.simulate(make_job(algorithm=cl.FedAvg(1)), whole, sites=5)
    page = result.report()
    assert "How the rows lie" in page
    assert page.count("<title>site-") >= 5
    for name in ("cut.svg", "cut.png"):
        result.conditions["partition"].save(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    with pytest.raises(UsageError, match=r"End it with .svg, .png"):
        result.conditions["partition"].save(tmp_path / "cut.gif")
    with pytest.raises(UsageError, match="there is no folder"):
        result.conditions["partition"].save(tmp_path / "nowhere" / "cut.svg")


def test_the_command_draws_before_it_trains(tmp_path, whole, capsys):
    whole.to_csv(tmp_path / "patients.csv", index=False)
    (tmp_path / "job.py").write_text(
        "import cloister as cl\n"
        "job = cl.Job(cl.Table('patients', target='ill'), cl.Torch(cl.nets.Linear(), 'bce', cl.SGD(0.1)),\n"
        "             cl.FedAvg(rounds=1), [cl.OneHot(), cl.Standardize()])\n"
    )
    given = ["simulate", str(tmp_path / "job.py"), "--data", str(tmp_path / "patients.csv"), "--json"]
    assert command([*given, "--plot-partition", str(tmp_path / "cut.svg")]) == 0
    assert (tmp_path / "cut.svg").exists()
    assert command([*given, "--plot-partition", str(tmp_path / "cut.bmp")]) == 2
    assert "cut.bmp names no picture" in capsys.readouterr().err


ROWS = {f"s{at}": pd.DataFrame({"x": range(100)}) for at in range(200)}


def test_the_late_are_the_slow_and_the_same_each_time():
    sites = list(ROWS)
    late = Deadline(2.0, 0, ROWS).late(sites, 3, 0)
    assert set(late) == set(Deadline(2.0, 0, ROWS).late(sites, 3, 0))
    assert 0.03 < len(late) / 200 < 0.2  # P(normal > log(2) / 0.52) is 0.09
    assert set(Deadline(4.0, 0, ROWS).late(sites, 3, 0)) < set(late)
    assert set(late) != set(Deadline(2.0, 1, ROWS).late(sites, 3, 0))
    again = set(Deadline(2.0, 0, ROWS).late(sites, 4, 0))
    assert again != set(late)  # a round has its own luck,
    assert len(again & set(late)) > len(late) / 2  # but the slow are slow
    large = {**ROWS, "s7": pd.DataFrame({"x": range(100_000)})}
    assert "s7" in Deadline(2.0, 0, large).late(sites, 3, 0)


def test_late_sites_drop_out_of_training_alone_and_every_engine_agrees(whole, make_job):
    job = make_job(algorithm=cl.FedAvg(rounds=4))
    results = [
        cl.simulate(job, whole, sites=12, partition="iid", deadline=1.7, engine=e) for e in ("serial", "processes")
    ]
    assert results[0].state.to_bytes() == results[1].state.to_bytes()
    rounds = [event for event in results[0].events if event["event"] == "round"]
    assert any(event["dropped"] for event in rounds if event["stage"] == "train")
    assert not any(event["dropped"] for event in rounds if event["stage"] != "train")
    with pytest.raises(RoundVoid, match="a later deadline"):
        cl.simulate(job, whole, sites=12, partition="iid", deadline=0.3)
    for deadline in (0.0, "soon"):
        with pytest.raises(UsageError, match="is not positive"):
            cl.simulate(job, whole, sites=12, deadline=deadline)
