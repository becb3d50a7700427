"""Learning curves as a matplotlib figure; no window, no global state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cloister.vector.errors import UsageError

if TYPE_CHECKING:
    from cloister.learn.result import Result

SHOWN = ("loss", "accuracy", "auc", "rmse", "mae")
FEDERATED, LOCAL, POOLED, TRAINING = "#2f5bd8", "#b8651b", "#23835f", "#8a93a3"


def learning_curves(result: Result, metrics: tuple[str, ...] = ()) -> Figure:
    """One panel for each metric over the rounds, with local-only and pooled as levels where they are known.

    Args: metrics: columns of the result's history; by default those that were measured on test rows.
    Raises: UsageError: no such column.
    """
    history = result.history
    measured = [str(name) for name in history if name not in ("round", "sites")]
    for name in metrics:
        if name not in measured:
            raise UsageError(f"the history has no {name!r}.", mend=f"It has: {', '.join(measured)}.")
    chosen = (
        metrics
        or [name for name in SHOWN if name in history]
        or [name for name in ("train_loss",) if name in history]
    )
    figure = Figure(figsize=(4.2 * max(len(chosen), 1), 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, max(len(chosen), 1), squeeze=False)[0], chosen, strict=False):
        if name == "loss" and "train_loss" in history:
            training = history.dropna(subset=["train_loss"])
            axes.plot(training["round"], training["train_loss"], color=TRAINING, lw=1.2, label="training")
        seen = history.dropna(subset=[name])
        axes.plot(seen["round"], seen[name], color=FEDERATED, lw=1.8, label="federated")
        if result.comparison is not None:
            levels = (("local-only", result.comparison.local_mean(name), LOCAL),
                      ("pooled", result.comparison.pooled.get(name), POOLED))  # fmt: skip
            for label, value, colour in levels:
                if value is not None:
                    axes.axhline(value, color=colour, lw=1.2, ls="--", label=label)
        axes.set(title=name.replace("_", " "), xlabel="round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize="small")
    return figure
