"""One site's part of a federated evaluation: sums over its test rows, which only add up with other sites'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.algorithms.evaluation import NOISY_LOSS_LIMIT, ROW_LOSS_LIMIT, SCORE_BINS
from cloister.learn.tables import Floats


@dataclass(frozen=True)
class Predictions:
    """What a model says of some rows.

    Attributes:
      scores: float64[rows] probability of the second class (binary) or value (regression), [rows, K] probabilities.
      losses: float64[rows], each row's loss.
    """

    scores: Floats
    losses: Floats


def blocks(kind: str, said: Predictions, y: npt.NDArray[Any], model: str = "test") -> dict[str, Floats]:
    """The evaluation blocks of `algorithms.evaluation.blocks(kind, model)`, over these rows (which may be none)."""
    rows = len(y)
    sums: dict[str, Any] = {
        "rows": rows,
        "sites": float(rows > 0),
        "loss": np.minimum(said.losses, ROW_LOSS_LIMIT).sum(),
    }
    if kind == "regression":
        error = said.scores - y
        sums |= {"squared": np.square(error).sum(), "absolute": np.abs(error).sum()}
    else:
        right = _right(kind, said, y)
        sums |= {"correct": right.sum(), "site_accuracy": right.mean() if rows else 0.0}
    if kind == "binary":
        bins = np.minimum((said.scores * SCORE_BINS).astype(np.int64), SCORE_BINS - 1)
        sums["positives"] = np.bincount(bins[y == 1], minlength=SCORE_BINS)
        sums["negatives"] = np.bincount(bins[y != 1], minlength=SCORE_BINS)
    return {f"{model}/{name}": np.asarray(value, np.float64) for name, value in sums.items()}


def noisy(kind: str, said: Predictions, y: npt.NDArray[Any], *, mean: bool) -> dict[str, Floats]:
    """What is measured under differential privacy, before its noise; see `algorithms.evaluation.noisy_block`.

    Args: mean: over the rows, for privacy of sites; else the sum, of which each row is at most 1.
    """
    sums = [float((np.clip(said.losses, 0.0, NOISY_LOSS_LIMIT) / NOISY_LOSS_LIMIT).sum())]
    if kind != "regression":
        sums.append(float(_right(kind, said, y).sum()))
    found = np.array(sums) / max(len(y), 1) if mean else np.array(sums)
    return {"test/noisy": found, "test/rows": np.asarray(float(len(y)))}


def _right(kind: str, said: Predictions, y: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """bool[rows]: whether the predicted label is the row's own."""
    return np.asarray((said.scores >= 0.5) == (y == 1) if kind == "binary" else said.scores.argmax(axis=1) == y)


def log_loss(probabilities: Floats, y: npt.NDArray[Any]) -> Floats:
    """Each row's -log of its own class's probability. Args: probabilities: [rows] of class 1, or [rows, K]."""
    if probabilities.ndim == 1:
        own = np.where(y == 1, probabilities, 1.0 - probabilities)
    else:
        own = probabilities[np.arange(len(y)), y.astype(np.int64)]
    return -np.log(np.maximum(own, np.finfo(np.float64).tiny))
