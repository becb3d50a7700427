"""Linear scikit-learn estimators: local training from broadcast coefficients, and predictions from them.

The flat model is "coef" [k, inputs] then "intercept" [k], with k = 1 for two classes or a regression.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.algorithms import Curvature, Terms, Trained
from cloister.job import Job, Sklearn
from cloister.learn.metrics import Predictions, log_loss
from cloister.learn.prepare import Inputs, Rows
from cloister.learn.private import NoisySteps
from cloister.vector import unflatten
from cloister.vector.bundle import Array
from cloister.vector.errors import TaskError

Flat = npt.NDArray[np.float32]
Shapes = dict[str, tuple[int, ...]]


class SklearnModel:
    """Implements the same four verbs as TorchModel: `train`, `predict`, `assess`, `export`."""

    def __init__(self, job: Job, shapes: Shapes) -> None:
        assert isinstance(job.task, Sklearn)
        self.job, self.task, self.shapes = job, job.task, shapes

    def train(self, flat: Flat, rows: Rows, seed: int, round_: int, terms: Terms = Terms()) -> Trained:
        """The loss is that of the local model; a step is one row's."""
        assert not terms.change_steps, "a job with such an algorithm has another task"
        epochs = terms.epochs or self.task.epochs
        if self.task.estimator.name == "LogisticRegression":
            local, steps = self._solve(flat, rows, seed), 1
        else:
            local, steps = self._steps(flat, rows, seed, round_, epochs), epochs * len(rows)
        return Trained(local - flat, float(self.assess(local, rows).losses.mean()), steps)

    def _steps(self, flat: Flat, rows: Rows, seed: int, round_: int, epochs: int) -> Flat:
        """`epochs` passes of partial_fit; the step counter goes on from the rounds before, as its schedule wants."""
        estimator = self._estimator(random_state=seed % 2**32)
        x = rows.x.astype(np.float64)
        self._load(estimator, flat)
        estimator.t_ = 1.0 + (round_ - 1) * epochs * len(rows)
        for _ in range(epochs):
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

    def train_privately(self, flat: Array, rows: Rows, noisy: NoisySteps, round_: int, terms: Terms) -> Trained:
        raise TaskError("scikit-learn has no noisy steps.", mend="Use cl.Torch(...).")

    def curvature(self, flat: Flat, rows: Rows, all_rows: int) -> Curvature:
        """Of the mean over rows of the log loss + |coef|**2 / (2 * C * all_rows): scikit-learn's problem, scaled.

        Softmax regression (Böhning 1992, "Multinomial logistic regression algorithm") with K rows of parameters, or
        one for two classes. The penalty spares the intercept, which stays zero without fit_intercept.
        """
        params = self.task.estimator.params
        weights = {name: value.astype(np.float64) for name, value in unflatten(flat, self.shapes).items()}
        x = np.column_stack([rows.x.astype(np.float64), np.ones(len(rows))])
        p, y = self.predict(flat, rows.x), rows.y.astype(np.int64)
        if p.ndim == 1:
            p, right = p[:, None], y[:, None].astype(np.float64)
        else:
            right = np.eye(p.shape[1])[y]
        outputs, inputs = p.shape[1], x.shape[1]
        ridge = np.full((outputs, inputs), 0.0 if "penalty" in params and params["penalty"] is None else 1.0)
        ridge[:, -1] = 0.0
        ridge /= float(params.get("C", 1.0)) * all_rows  # type: ignore[arg-type]
        w = np.column_stack([weights["coef"], weights["intercept"]])
        gradient = (p - right).T @ x / len(rows) + ridge * w
        hessian = np.empty((outputs, inputs, outputs, inputs))
        for one in range(outputs):
            for other in range(outputs):
                spread = p[:, one] * ((one == other) - p[:, other])
                hessian[one, :, other] = (x * spread[:, None]).T @ x / len(rows)
            hessian[one, :, one] += np.diag(ridge[one])
        if not params.get("fit_intercept", True):
            gradient[:, -1], hessian[:, -1], hessian[..., -1] = 0.0, 0.0, 0.0
        order = np.arange(outputs * inputs).reshape(outputs, inputs)  # the flat model has all intercepts last
        place = np.concatenate([order[:, :-1].reshape(-1), order[:, -1]])
        loss = float(log_loss(p[:, 0] if outputs == 1 else p, rows.y).mean() + 0.5 * (ridge * w * w).sum())
        flat_hessian = hessian.reshape(outputs * inputs, outputs * inputs)[np.ix_(place, place)]
        return Curvature(loss, gradient.reshape(-1)[place], flat_hessian)

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
