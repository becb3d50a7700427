"""A federation in a few lines: real tables, the real program, plain integer sums."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer

import cloister as cl
from cloister import learn
from cloister.round import Program, contribute, run
from cloister.vector import FixedPoint, Query, State, Total, open_total

Frames = dict[str, pd.DataFrame]


class Sums:
    """A cohort that adds the integers of all sites in the clear."""

    def __init__(self, job: cl.Job, frames: Frames) -> None:
        self.trainers = {site: learn.Trainer(job, frame, site) for site, frame in frames.items()}

    def sum(self, query: Query) -> Total:
        coder = FixedPoint(query.sealed_layout, len(self.trainers), 32)
        words = [contribute(trainer.answer(query), query, coder) for trainer in self.trainers.values()]
        return open_total(query, coder, np.sum(words, axis=0, dtype=coder.dtype), len(words))


@pytest.fixture(scope="session")
def federate() -> Callable[[cl.Job, Frames], State]:
    def train(job: cl.Job, frames: Frames) -> State:
        columns = job.data.resolve({site: learn.schema(frame) for site, frame in frames.items()})
        return run(Program(job, columns), Sums(job, frames))

    return train


@pytest.fixture(scope="session")
def cancer() -> pd.DataFrame:
    """scikit-learn's bundled table: 569 rows, 30 numeric features, target "target"."""
    frame: pd.DataFrame = load_breast_cancer(as_frame=True).frame
    return frame


@pytest.fixture(scope="session")
def five(cancer: pd.DataFrame) -> Frames:
    return {f"site-{at}": cancer.iloc[at::5].reset_index(drop=True) for at in range(5)}
