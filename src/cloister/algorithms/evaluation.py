"""Federated evaluation: metrics that are sums over sites' test rows, and nothing finer.

AUC comes from two histograms of predicted probabilities (of positives and of negatives): with 512 bins it is
within the share of pairs that fall into one bin of the exact AUC, and those count one half, as ties do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from cloister.vector import Block
from cloister.vector.layout import Floats, Noise

KINDS = ("binary", "multiclass", "regression")
SCORE_BINS = 512
ROW_LOSS_LIMIT = 64.0  # a row's loss is clipped here, so that a test set's sum of losses is bounded
MOST_ROWS = float(2**30)
NOISY_LOSS_LIMIT = 4.0  # where metrics get noise, which is in proportion to the largest loss that counts


def blocks(kind: str, model: str = "test") -> tuple[Block, ...]:
    """The blocks of an evaluation; `kind` is one of KINDS, `model` the prefix of their names."""

    def count(name: str, shape: tuple[int, ...] = (), bound: float = MOST_ROWS) -> Block:
        return Block(f"{model}/{name}", shape, bound=bound, wide=True)

    shared = (count("rows"), count("sites", bound=1.0), count("loss", bound=MOST_ROWS * ROW_LOSS_LIMIT))
    if kind == "regression":
        return (*shared, count("squared", bound=2.0**40), count("absolute", bound=2.0**40))
    labelled = (*shared, count("correct"), count("site_accuracy", bound=1.0))
    if kind == "multiclass":
        return labelled
    return (*labelled, count("positives", (SCORE_BINS,)), count("negatives", (SCORE_BINS,)))


def all_metrics(sums: Mapping[str, Floats], kind: str, models: Iterable[str]) -> dict[str, float | None]:
    """`metrics` of every evaluated model; those of another than "test" are named after it, "personal_loss" ..."""
    found: dict[str, float | None] = {}
    for model in models:
        prefix = "" if model == "test" else f"{model}_"
        found |= {f"{prefix}{name}": value for name, value in metrics(sums, kind, model).items()}
    return found


def metrics(sums: Mapping[str, Floats], kind: str, model: str = "test") -> dict[str, float | None]:
    """Metrics over all test rows of the survivors; None where they are undefined (no test row, one class only).

    Args: model: the prefix of the blocks' names.
    Returns: test_rows, loss, and accuracy, site_accuracy (plain mean over sites), auc (binary) or rmse, mae.
    """
    rows, sites = float(sums[f"{model}/rows"]), float(sums[f"{model}/sites"])

    def mean(name: str, over: float = rows) -> float | None:
        return float(sums[f"{model}/{name}"]) / over if over > 0 else None

    found: dict[str, float | None] = {"test_rows": rows, "loss": mean("loss")}
    if kind == "regression":
        squared = mean("squared")
        return {
            **found,
            "rmse": None if squared is None else float(np.sqrt(max(squared, 0.0))),
            "mae": mean("absolute"),
        }
    found |= {"accuracy": mean("correct"), "site_accuracy": mean("site_accuracy", sites)}
    if kind == "binary":
        found["auc"] = auc(sums[f"{model}/positives"], sums[f"{model}/negatives"])
    return found


def noisy_block(kind: str, noise: Noise | None) -> Block:
    """One vector of all that is measured under differential privacy: loss over NOISY_LOSS_LIMIT, share that is right.

    Of each row it holds at most 1 in each coordinate, so its length is at most `noisy_norm(kind)`.
    """
    shared = noise is not None and noise.shared
    bound, clip = (1.0, noisy_norm(kind)) if shared else (MOST_ROWS, None)
    return Block("test/noisy", (noisy_size(kind),), bound=bound, clip=clip, wide=True, noise=noise)


def noisy_size(kind: str) -> int:
    return 1 if kind == "regression" else 2


def noisy_norm(kind: str) -> float:
    return math.sqrt(noisy_size(kind))


def noisy_metrics(sums: Mapping[str, Floats], kind: str, count: float) -> dict[str, float | None]:
    """Metrics of a noisy sum over so many rows, or sites. What cannot be is moved to what can."""
    if count < 1:
        return {"loss": None, **({} if kind == "regression" else {"accuracy": None})}
    mean = np.clip(sums["test/noisy"] / count, 0.0, 1.0)
    found: dict[str, float | None] = {"loss": float(mean[0]) * NOISY_LOSS_LIMIT}
    return found if kind == "regression" else {**found, "accuracy": float(mean[1])}


def auc(positives: Floats, negatives: Floats) -> float | None:
    """Area under the ROC curve of two score histograms (bins in rising score); None with one class only.

    Mann-Whitney U over bins: P(score of a positive > of a negative) + half of the ties.
    """
    pairs = float(positives.sum() * negatives.sum())
    if pairs <= 0:
        return None
    below = np.cumsum(negatives) - negatives
    return float(np.sum(positives * (below + 0.5 * negatives)) / pairs)
