"""A small table whose label a linear model can learn, and a job over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

import cloister as cl


def table(rows: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3)) * [1.0, 10.0, 0.1] + [0.0, 50.0, -1.0]
    score = x[:, 0] + 0.2 * (x[:, 1] - 50.0) + rng.normal(scale=0.3, size=rows)
    kind = np.where(rng.random(rows) < 0.5, "a", "b")
    return pd.DataFrame({"age": x[:, 1], "dose": x[:, 0], "kind": kind, "level": x[:, 2], "ill": (score > 0) * 1})


@pytest.fixture(scope="session")
def whole() -> pd.DataFrame:
    return table(300)


@pytest.fixture(scope="session")
def make_job() -> Callable[..., cl.Job]:
    def make(**changes: Any) -> cl.Job:
        settings: dict[str, Any] = {
            "data": cl.Table("patients", target="ill"),
            "prepare": [cl.Impute(), cl.OneHot(), cl.Standardize()],
            "task": cl.Torch(model=cl.nets.MLP([4]), loss="bce", optimizer=cl.SGD(lr=0.2), batch_size=16),
            "algorithm": cl.FedAvg(rounds=3),
        }
        return cl.Job(**{**settings, **changes})

    return make
