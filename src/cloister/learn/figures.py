"""Learning curves, sweeps and partitions as matplotlib figures; no window, no global state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cloister.vector.errors import UsageError

if TYPE_CHECKING:
    from cloister.learn.partition import Partition
    from cloister.learn.result import Result
    from cloister.learn.sweep import Sweep

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


def by_setting(found: Sweep) -> Figure:
    """The headline metric by the setting with the most values, a line for each combination of the others.

    Raises: UsageError: nothing was measured.
    """
    metric, rows = found.headline, found.summary
    if metric is None:
        raise UsageError("no cell measured anything.", mend="Add evaluate=cl.Evaluate() to the job.")
    across = max(found.axes, key=lambda name: rows[name].nunique())
    places = list(dict.fromkeys(rows[across]))
    others = [name for name in found.axes if name != across]
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for key, part in rows.groupby(others, sort=False) if others else [((), rows)]:
        keys = key if isinstance(key, tuple) else (key,)
        label = ", ".join(f"{name}={value}" for name, value in zip(others, keys, strict=True))
        at = [places.index(value) for value in part[across]]
        spread = part.get(f"{metric}_std")
        axes.errorbar(at, part[metric], yerr=spread, marker="o", lw=1.6, ms=4, capsize=3, label=label or None)
    axes.set_xticks(range(len(places)), places)
    axes.set(xlabel=across, ylabel=metric.replace("_", " "))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if others:
        axes.legend(frameon=False, fontsize="small")
    return figure


def bubbles(found: Partition) -> Figure:
    """Sites across, labels up; the area of each bubble is a number of rows."""
    sites, most = list(found.counts), max((max(row) for row in found.counts.values()), default=1)
    figure = Figure(
        figsize=(min(14.0, 2.0 + 0.28 * len(sites)), 1.6 + 0.32 * len(found.labels)), layout="constrained"
    )
    axes = figure.subplots()
    for at, label in enumerate(found.labels):
        rows = [found.counts[site][at] for site in sites]
        area = [220.0 * count / max(most, 1) for count in rows]
        axes.scatter(range(len(sites)), [at] * len(sites), s=area, color=FEDERATED, alpha=0.75, lw=0, label=label)
    axes.set_yticks(range(len(found.labels)), list(found.labels))
    axes.set(ylim=(-0.7, len(found.labels) - 0.3), xlabel=f"sites ({len(sites)} of {found.sites})", ylabel="label")
    if len(sites) <= 40:
        axes.set_xticks(range(len(sites)), sites, rotation=90, fontsize="x-small")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.15)
    return figure
