"""What the half of an algorithm that runs at a site can use there: the `Site` port, and what it gives back.

An algorithm's `local` runs in the process that trains, beside the data; the learn room implements the port.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cloister.vector import Query
from cloister.vector.bundle import Array

# what an algorithm may need of a task, and how a job's author gets it
NEEDS = {
    "gradients": "Use cl.Torch(...), whose every step it can change.",
    "steps": "Use cl.Torch(...), or an estimator that takes epochs.",
    "sgd": "Use cl.Torch(..., optimizer=cl.SGD(lr)).",
    "plain_sgd": "Use cl.Torch(..., optimizer=cl.SGD(lr)) without momentum.",
    "curvature": "Use cl.Sklearn(LogisticRegression(C=...)) with an L2 penalty or none, and without class_weight.",
}


@dataclass(frozen=True)
class Trained:
    """One local training. Attributes: delta: local minus start, float32[d]. loss: mean over rows seen. steps."""

    delta: Array
    loss: float
    steps: int

    @property
    def answer(self) -> dict[str, Array]:
        """The blocks that plain averaging asks for."""
        return {"delta": self.delta, "train_loss": np.asarray(self.loss)}


@dataclass(frozen=True)
class Curvature:
    """The training loss at a model: mean over rows, float64[d] gradient and float64[d, d] Hessian.

    Attributes: loss, gradient, hessian: of the rows' losses plus the penalty's share; see `Site.curvature`.
    """

    loss: float
    gradient: Array
    hessian: Array


@dataclass(frozen=True)
class Terms:
    """What an algorithm adds to the gradient of every local step: correction + proximal * (weights - anchor).

    Attributes:
      correction: float32[d] or None.
      proximal: strength of the pull to `anchor`, float32[d]; None is the start.
      only: bool[d]: the coordinates that are trained; the others keep their values. None: all.
      epochs: instead of the task's own epochs or steps.
    """

    correction: Array | None = None
    proximal: float = 0.0
    anchor: Array | None = None
    only: npt.NDArray[np.bool_] | None = None
    epochs: int | None = None

    @property
    def change_steps(self) -> bool:
        return self.correction is not None or self.proximal > 0.0 or self.only is not None


class Site(Protocol):
    """One site in one round.

    Attributes:
      query: as broadcast. model: the broadcast model, float32[d].
      shapes: name and shape of the model's tensors, in the flat model's order.
      optimizer: the task's local settings: "lr", "momentum", "weight_decay", where it is SGD.
      staleness: how many versions the model that this site trains from is behind the broadcast one: 0 but in an
        asynchronous run.
      memory: what this site keeps of the job from round to round. It stays at the site, and what a round put into
        it counts only if that round's sum was opened with this site in it.
    """

    query: Query
    model: Array
    shapes: list[tuple[str, tuple[int, ...]]]
    optimizer: Mapping[str, Any]
    staleness: int
    memory: dict[str, Array]

    def train(self, start: Array | None = None, terms: Terms = Terms()) -> Trained:
        """The task's local training, on this site's rows. Args: start: float32[d]; None is the broadcast."""
        ...

    def curvature(self) -> Curvature:
        """Loss, gradient and Hessian of a logistic regression at the broadcast model.

        The estimator's penalty is in each site's mean, divided by all sites' rows, so that the row-weighted mean over
        the sites is the pooled problem.
        """
        ...
