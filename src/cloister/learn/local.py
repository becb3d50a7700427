"""One site in one round, as the algorithm's half that runs there sees it: the port `algorithms.Site` over a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.algorithms import Curvature, Terms, Trained
from cloister.job import SGD, Job, Torch
from cloister.learn.memory import Kept
from cloister.learn.models import Model
from cloister.learn.prepare import Rows
from cloister.vector import Query
from cloister.vector.bundle import Array


class LocalSite:
    """Args:
    model: the back end. flat: the broadcast, float32[d]. rows: to train on.
    seed: of the round's first local training, second ...
    kept: what this site kept of the steps before.
    """

    def __init__(
        self,
        job: Job,
        query: Query,
        model: Model,
        flat: npt.NDArray[np.float32],
        rows: Rows,
        seed: Callable[[int], int],
        kept: Kept,
    ) -> None:
        self.query, self.model = query, flat
        self.shapes: list[tuple[str, tuple[int, ...]]] = [
            (name, tuple(shape)) for name, shape in query.config["shapes"]
        ]
        self.optimizer = _settings(job)
        self.memory: dict[str, Array] = dict(kept)
        self._model, self._rows, self._seed, self._trainings = model, rows, seed, 0

    def train(self, start: Array | None = None, terms: Terms = Terms()) -> Trained:
        flat = self.model if start is None else np.ascontiguousarray(start, np.float32)
        self._trainings += 1
        return self._model.train(flat, self._rows, self._seed(self._trainings), self.query.config["round"], terms)

    def curvature(self) -> Curvature:
        return self._model.curvature(self.model, self._rows, self.query.max_rows)


def _settings(job: Job) -> Mapping[str, Any]:
    task = job.task
    if isinstance(task, Torch) and isinstance(task.optimizer, SGD):
        chosen = task.optimizer
        return {"lr": chosen.lr, "momentum": chosen.momentum, "weight_decay": chosen.weight_decay}
    return {}
