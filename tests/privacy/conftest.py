"""Small private jobs, and a table of two clouds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import cloister as cl

RANGES = {"a": (-4.0, 4.0), "b": (-4.0, 4.0)}


@pytest.fixture(scope="session")
def clouds() -> pd.DataFrame:
    """600 rows of 150 people, two features, label y."""
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, 600)
    x = rng.normal(size=(600, 2)) + np.where(y, 1.0, -1.0)[:, None]
    return pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": y, "person": np.arange(600) % 150})


def make_job(privacy: object, **changes: object) -> cl.Job:
    settings = {
        "data": cl.Table("clouds", target="y", ignore=["person"]),
        "prepare": [cl.Standardize(ranges=RANGES)],
        "task": cl.Torch(cl.nets.MLP([4]), loss="bce", optimizer=cl.SGD(lr=0.5), batch_size=30),
        "algorithm": cl.FedAvg(rounds=3),
        "privacy": privacy,
    }
    return cl.Job(**(settings | changes))
