"""Linear scikit-learn estimators: local training from broadcast coefficients, and predictions from them.

The flat model is "coef" [k, inputs] then "intercept" [k], with k = 1 for two classes or a regression.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.job import Job, Sklearn
from cloister.learn.metrics import Predictions, log_loss
from cloister.learn.prepare import Inputs, Rows
from cloister.vector import unflatten
from cloister.vector.bundle import Array

Flat = npt.NDArray[np.float32]
Shapes = dict[str, tuple[int, ...]]


class SklearnModel:
    """Implements the same four verbs as TorchModel: `train`, `predict`, `assess`, `export`."""

    def __init__(self, job: Job, shapes: Shapes) -> None:
        assert isinstance(job.task, Sklearn)
        self.job, self.task, self.shapes = job, job.task, shapes

    def train(self, flat: Flat, rows: Rows, seed: int, round_: int) -> tuple[Flat, float]:
        """Returns: delta (local minus broadcast) float32[d], and the mean training loss of the local model."""
        if self.task.estimator.name == "LogisticRegression":
            local = self._solve(flat, rows, seed)
        else:
            local = self._steps(flat, rows, seed, round_)
        return local - flat, float(self.assess(local, rows).losses.mean())

    def _steps(self, flat: Flat, rows: Rows, seed: int, round_: int) -> Flat:
        """`epochs` passes of partial_fit; the step counter goes on from the rounds before, as its schedule wants."""
        estimator = self._estimator(random_state=seed % 2**32)
        x = rows.x.astype(np.float64)
        self._load(estimator, flat)
        estimator.t_ = 1.0 + (round_ - 1) * self.task.epochs * len(rows)
        for _ in range(self.task.epochs):
            with np.errstate(over="ignore", invalid="ignore"):
                estimator.partial_fit(x, rows.y)
        return self._flat(estimator)

    def _solve(self, flat: Flat, rows: Rows, seed: int) -> Flat:
        """The local optimum, started from the broadcast; a site with one class only keeps the broadcast."""
        if len(np.unique(rows.y)) < max(self.job.classes, 2):
            return flat
        from sklearn.exceptions import ConvergenceWarning

        estimator = self._estimator(warm_start=True, random_state=seed % 2**32)
        self._load(estimator, flat)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # max_iter is the job's to choose
            estimator.fit(rows.x.astype(np.float64), rows.y)
        return self._flat(estimator)

    def _estimator(self, **settings: Any) -> Any:
        from sklearn import linear_model

        return getattr(linear_model, self.task.estimator.name)(**self.task.estimator.params, **settings)

    def _load(self, estimator: Any, flat: Flat) -> None:
        tensors = {name: value.astype(np.float64) for name, value in unflatten(flat, self.shapes).items()}
        estimator.coef_, estimator.intercept_ = tensors["coef"], tensors["intercept"]
        estimator.n_features_in_ = self.shapes["coef"][1]
        if self.job.kind == "regression":
            estimator.coef_ = tensors["coef"][0]
        else:
            estimator.classes_ = np.arange(self.job.classes)

    @staticmethod
    def _flat(estimator: Any) -> Flat:
        with np.errstate(over="ignore"):
            return np.concatenate([estimator.coef_.reshape(-1), estimator.intercept_.reshape(-1)]).astype(np.float32)

    def predict(self, flat: Flat, x: Inputs) -> Array:
        """Probabilities or values: float64[rows] or [rows, K]."""
        tensors = unflatten(flat, self.shapes)
        with np.errstate(over="ignore", invalid="ignore"):
            z = x.astype(np.float64) @ tensors["coef"].astype(np.float64).T + tensors["intercept"]
        if self.job.kind == "regression":
            return np.asarray(z[:, 0])
        if self.job.kind == "binary":
            return sigmoid(z[:, 0])
        if self.task.estimator.name == "LogisticRegression":
            raised = np.exp(z - z.max(axis=1, keepdims=True))
            return np.asarray(raised / raised.sum(axis=1, keepdims=True))
        each = sigmoid(z)  # one against the rest, scaled to one as scikit-learn does it
        return np.asarray(each / np.maximum(each.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny))

    def assess(self, flat: Flat, rows: Rows) -> Predictions:
        scores = self.predict(flat, rows.x)
        if self.job.kind == "regression":
            return Predictions(scores, np.square(scores - rows.y))
        return Predictions(scores, log_loss(scores, rows.y))

    def export(self, flat: Flat) -> Any:
        """A fitted estimator with the user's labels as its classes."""
        estimator = self._estimator()
        self._load(estimator, flat)
        if self.job.labels:
            labels = np.array(self.job.labels)
            whole = all(label.lstrip("-").isdigit() for label in self.job.labels)
            estimator.classes_ = labels.astype(np.int64) if whole else labels
        return estimator


def sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z)) without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * z)))
