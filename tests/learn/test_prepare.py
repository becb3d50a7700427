"""Federated preparation against pandas on the pooled rows; splits and buckets against their definitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

import cloister as cl
from cloister import learn
from cloister.learn.prepare import Columns, bucket, design, split
from cloister.vector import State
from cloister.vector.errors import DataError, JobError

Federate = Callable[[cl.Job, dict[str, pd.DataFrame]], State]


def job(prepare: list[Any], table: cl.Table | None = None) -> cl.Job:
    task = cl.Torch(cl.nets.Linear(), "bce", cl.SGD(0.1))
    return cl.Job(table or cl.Table("t", "y"), task, cl.FedAvg(rounds=1), prepare=prepare, evaluate=None)


@pytest.fixture
def mixed() -> dict[str, pd.DataFrame]:
    """Three sites: numbers of very different size, with missing values, and categories that not all sites have."""
    rng = np.random.default_rng(5)
    frames = {}
    for at, (site, rows) in enumerate({"kent": 40, "lyon": 70, "oslo": 25}.items()):
        frames[site] = pd.DataFrame(
            {
                "big": rng.normal(1e6, 2e5, rows),
                "small": rng.normal(-3e-4, 1e-5, rows),
                "constant": np.full(rows, 12.5),
                "holes": np.where(rng.random(rows) < 0.3, np.nan, rng.normal(at, 1.0, rows)),
                "city": rng.choice(["a", "b", "c"][: at + 1], rows),
                "stage": rng.choice([1, 2, 3], rows),
                "y": rng.integers(0, 2, rows),
            }
        )
    frames["oslo"].loc[0, "city"] = None
    return frames


def test_fitted_statistics_are_those_of_the_pooled_rows(mixed: Any, federate: Federate) -> None:
    state = federate(job([cl.Impute(), cl.OneHot(), cl.Standardize()]), mixed)
    pooled = pd.concat(mixed.values())
    numeric = sorted(["big", "small", "constant", "holes", "stage"])
    filled = pooled[numeric].fillna(pooled[numeric].mean())
    np.testing.assert_allclose(state.tensors["fit/impute"], pooled[numeric].mean(), rtol=1e-9)
    expected = filled.std(ddof=0).replace(0.0, 1.0)
    np.testing.assert_allclose(state.tensors["fit/std"], expected, rtol=1e-5)
    assert state.tensors["fit/buckets/city"].size == 4  # a, b, c, and missing


def test_the_prepared_table_is_what_pandas_makes_of_it(mixed: Any, federate: Federate) -> None:
    table = cl.Table("t", "y", columns={"big": "number", "holes": "number", "stage": [1, 2, 3]})
    made = job([cl.Impute(), cl.OneHot(drop_first=True), cl.Standardize()], table)
    state = federate(made, mixed)
    pooled = pd.concat(mixed.values())
    frame = mixed["lyon"]
    holes = frame["holes"].fillna(pooled["holes"].mean())
    deviation = pooled["holes"].fillna(pooled["holes"].mean()).std(ddof=0)
    expected = np.column_stack(
        [
            (frame["big"] - pooled["big"].mean()) / pooled["big"].std(ddof=0),
            (holes - pooled["holes"].mean()) / deviation,
            frame["stage"] == 2,
            frame["stage"] == 3,
        ]
    )
    kinds = state.facts["columns"]
    x = design(made, Columns.of(made, kinds), state.tensors, frame, None, "lyon")
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, expected, atol=2e-5)
    assert learn.predict(made, state, frame.drop(columns="y")).shape == (70,)


def test_an_unseen_category_is_all_zeros(mixed: Any, federate: Federate) -> None:
    made = job([cl.OneHot()], cl.Table("t", "y", columns={"city": "category"}))
    state = federate(made, mixed)
    strange = pd.DataFrame({"city": ["elsewhere", "a"]})
    x = design(made, Columns.of(made, {"city": "category"}), state.tensors, strange, None, "")
    assert x[0].sum() == 0
    assert x[1].sum() == 1


def test_rare_categories_are_left_out_and_number_columns_can_be_categories(mixed: Any, federate: Federate) -> None:
    table = cl.Table("t", "y", ignore=["holes"])
    state = federate(job([cl.OneHot(min_rows=20, columns=["stage"])], table), mixed)
    counts = pd.concat(mixed.values())["city"].value_counts()
    assert state.tensors["fit/buckets/city"].size == (counts >= 20).sum()
    assert state.tensors["fit/buckets/stage"].size == 3


def test_standardize_by_site_uses_the_sites_own_training_rows(mixed: Any, federate: Federate) -> None:
    made = job([cl.Standardize(by="site")], cl.Table("t", "y", columns={"big": "number", "constant": "number"}))
    state = federate(made, mixed)
    assert not any(name in ("fit/mean", "fit/std") for name in state.tensors)
    train = np.arange(70) < 50
    columns = Columns.of(made, state.facts["columns"])
    x = design(made, columns, {}, mixed["lyon"], train, "lyon")
    big = mixed["lyon"]["big"]
    np.testing.assert_allclose(x[:, 0], (big - big[train].mean()) / big[train].std(ddof=1), rtol=1e-5)
    assert (x[:, 1] == 0).all()


def test_what_is_missing_needs_impute_and_what_is_text_needs_onehot(mixed: Any, federate: Federate) -> None:
    numbers = cl.Table("t", "y", columns={"holes": "number"})
    with pytest.raises(DataError, match=r"'holes' has \d+ missing values .*cl.Impute"):
        federate(job([cl.Standardize()], numbers), mixed)
    with pytest.raises(JobError, match=r"'city' holds categories.*cl.OneHot"):
        federate(job([cl.Impute()]), mixed)


def test_buckets_are_frozen() -> None:
    """Which feature a category becomes is part of what a digest stands for."""
    assert [bucket(text, "city") for text in ("", "a", "b")] == BUCKETS


BUCKETS = [11905, 8936, 7113]


def test_the_split_is_a_fixed_part_of_the_rows_and_differs_between_sites() -> None:
    frame = pd.DataFrame({"y": np.zeros(101)})
    made = cl.Job(cl.Table("t", "y"), cl.Torch(cl.nets.Linear(), "bce", cl.SGD(0.1)), cl.FedAvg(rounds=1))
    kent = split(made, frame, "kent")
    assert kent.sum() == 20
    assert (kent == split(made, frame, "kent")).all()
    assert (kent != split(made, frame, "lyon")).any()
