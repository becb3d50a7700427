"""One site in one round, as the algorithm's half that runs there sees it: the port `algorithms.Site` over a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.algorithms import Curvature, Terms, Trained
from cloister.job import SGD, Job, RowDP, Torch
from cloister.learn.memory import Kept
from cloister.learn.models import Model
from cloister.learn.prepare import Rows
from cloister.learn.private import NoisySteps
from cloister.privacy.noise import Stream
from cloister.vector import Query
from cloister.vector.bundle import Array
from cloister.vector.errors import TaskError

Begun = Callable[[], Trained]  # gives a local training that was begun before, together with other sites'


class LocalSite:
    """Args:
    model: the back end. flat: the broadcast, float32[d]. rows: to train on.
    seed: of the round's first local training, second ...
    kept: what this site kept of the steps before. staleness: see the port.
    stream: of the coins and noise of steps, where the job protects rows.
    begun: the first local training, where it is plain.
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
        stream: Stream | None = None,
        staleness: int = 0,
        begun: Begun | None = None,
    ) -> None:
        self.query, self.model = query, flat
        self.shapes: list[tuple[str, tuple[int, ...]]] = [
            (name, tuple(shape)) for name, shape in query.config["shapes"]
        ]
        self.optimizer = _settings(job)
        self.memory: dict[str, Array] = dict(kept)
        self.staleness = staleness
        self._job, self._model, self._rows, self._seed, self._trainings = job, model, rows, seed, 0
        self._stream, self._begun = stream, begun

    def train(self, start: Array | None = None, terms: Terms = Terms()) -> Trained:
        flat = self.model if start is None else np.ascontiguousarray(start, np.float32)
        self._trainings += 1
        if isinstance(self._job.privacy, RowDP):
            return self._train_privately(flat, terms)
        if self._begun is not None:
            return self._begun()
        return self._model.train(flat, self._rows, self._seed(self._trainings), self.query.config["round"], terms)

    def _train_privately(self, flat: npt.NDArray[np.float32], terms: Terms) -> Trained:
        """One training a round is what is accounted for, of as many steps as the query says."""
        if self._trainings > 1 or terms.epochs is not None or self._stream is None:
            raise TaskError("the algorithm trains more than the job's privacy accounts for.")
        noisy = NoisySteps.of(self._job, self.query, self._rows, flat.size, self._stream)
        return self._model.train_privately(flat, self._rows, noisy, self.query.config["round"], terms)

    def curvature(self) -> Curvature:
        return self._model.curvature(self.model, self._rows, self.query.max_rows)


def _settings(job: Job) -> Mapping[str, Any]:
    task = job.task
    if isinstance(task, Torch) and isinstance(task.optimizer, SGD):
        chosen = task.optimizer
        return {"lr": chosen.lr, "momentum": chosen.momentum, "weight_decay": chosen.weight_decay}
    return {}
