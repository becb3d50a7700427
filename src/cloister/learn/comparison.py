"""Is it worth federating? Each site alone, the federation, and all rows in one place, on the same test rows.

Whoever holds the rows can compute it: a simulation, a demonstration, or one site for itself. A real federation's
coordinator cannot, and a result that came from one has no comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cloister.algorithms.evaluation import ROW_LOSS_LIMIT

Scores = Mapping[str, float | None]
HIGHER_IS_BETTER = {"accuracy": True, "auc": True, "loss": False, "rmse": False, "mae": False}


@dataclass(frozen=True)
class Comparison:
    """Exact metrics on the union of all sites' test rows.

    Attributes:
      federated, pooled: metric -> value; pooled is empty where that model could not be trained.
      local: for each site the model that it gets from its own rows; empty where it could not be trained.
      train_rows: of each site. test_rows: of all sites together.
    """

    federated: Scores
    pooled: Scores
    local: Mapping[str, Scores]
    train_rows: Mapping[str, int]
    test_rows: int

    def local_values(self, metric: str) -> dict[str, float]:
        """The metric of each site's own model, for those sites that have it."""
        values = ((site, scores.get(metric)) for site, scores in self.local.items())
        return {site: value for site, value in values if value is not None}

    def local_mean(self, metric: str) -> float | None:
        values = self.local_values(metric)
        return float(np.mean(list(values.values()))) if values else None

    def against_local(self, metric: str) -> tuple[int, int, int]:
        """At how many sites the federated model is better than the site's own, as good, and worse."""
        ours = self.federated.get(metric)
        if ours is None:
            return 0, 0, 0
        sign = 1.0 if HIGHER_IS_BETTER[metric] else -1.0
        gains = [sign * (ours - value) for value in self.local_values(metric).values()]
        return sum(gain > 0 for gain in gains), sum(gain == 0 for gain in gains), sum(gain < 0 for gain in gains)

    def table(self) -> pd.DataFrame:
        """Rows local-only (the mean over sites), federated, pooled; one column for each metric."""
        metrics = list(self.federated)
        rows = {
            "local-only": [self.local_mean(metric) for metric in metrics],
            "federated": [self.federated[metric] for metric in metrics],
            "pooled": [self.pooled.get(metric) for metric in metrics],
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=metrics, dtype=np.float64)

    def as_json(self) -> dict[str, Any]:
        return {
            "federated": dict(self.federated),
            "pooled": dict(self.pooled),
            "local": {site: dict(scores) for site, scores in self.local.items()},
            "local_mean": {metric: self.local_mean(metric) for metric in self.federated},
            "train_rows": dict(self.train_rows),
            "test_rows": self.test_rows,
        }


def measure(kind: str, labels: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> dict[str, float | None]:
    """Exact metrics over rows.

    Args:
      kind: "binary", "multiclass" or "regression".
      labels: [rows]: 0 or 1; the class's number; or the value.
      predicted: [rows] probability of 1; [rows, classes] probabilities; or [rows] values.
    Returns: accuracy, auc (binary; None with one class only) and loss, the mean cross-entropy with a row's loss
      clipped as in the federation's own evaluation; or rmse, mae and loss (the mean square).
    """
    labels, predicted = np.asarray(labels, np.float64), np.asarray(predicted, np.float64)
    if kind == "regression":
        wrong = predicted.reshape(-1) - labels
        square = float(np.mean(wrong**2))
        return {"rmse": float(np.sqrt(square)), "mae": float(np.mean(np.abs(wrong))), "loss": square}
    if kind == "multiclass":
        own = predicted[np.arange(len(labels)), labels.astype(np.int64)]
        right = predicted.argmax(axis=1) == labels
        return {"accuracy": float(np.mean(right)), "loss": _cross_entropy(own)}
    score = predicted.reshape(-1)
    own = np.where(labels > 0, score, 1.0 - score)
    right = (score >= 0.5) == (labels > 0)
    return {"accuracy": float(np.mean(right)), "auc": _auc(labels > 0, score), "loss": _cross_entropy(own)}


def _cross_entropy(own: npt.NDArray[np.float64]) -> float:
    """Mean of -log of the probability given to the true class."""
    with np.errstate(divide="ignore"):
        return float(np.mean(np.minimum(-np.log(own), ROW_LOSS_LIMIT)))


def _auc(positive: npt.NDArray[np.bool_], score: npt.NDArray[np.float64]) -> float | None:
    """Area under the ROC curve by the rank sum (Mann, Whitney 1947); ties count one half."""
    positives = int(positive.sum())
    negatives = positive.size - positives
    if not positives or not negatives:
        return None
    ranks = pd.Series(score).rank(method="average").to_numpy()
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))
