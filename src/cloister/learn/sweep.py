"""What a sweep gives back: an outcome for each cell of its grid, as a table, a figure and a page.

found = cl.sweep(job, data, {"algorithm.lr": [0.01, 0.1], "seed": [0, 1, 2]})
found.table, found.summary, found.best
found.save("results")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cloister.job import Job
from cloister.learn.comparison import HIGHER_IS_BETTER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPETITION = "seed"
HEADLINE = ("accuracy", "rmse", "loss")  # the first that was measured says which cell is best


@dataclass(frozen=True)
class Outcome:
    """One cell. Attributes: metrics: of the final model. history: a row a round. error: why it has none, or ""."""

    cell: int
    settings: Mapping[str, Any]
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    seconds: float = 0.0
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "cell": self.cell,
            "settings": dict(self.settings),
            "metrics": dict(self.metrics),
            "history": list(self.history),
            "seconds": self.seconds,
            "error": self.error,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        return cls(**data)


@dataclass(frozen=True)
class Sweep:
    """A finished grid. Attributes: names: that were varied, the last fastest. outcomes: of all cells, in order."""

    job: Job
    names: Sequence[str]
    outcomes: Sequence[Outcome]

    @property
    def metrics(self) -> list[str]:
        """What was measured in any cell."""
        return [name for name in HIGHER_IS_BETTER if any(_finite(cell.metrics.get(name)) for cell in self.outcomes)]

    @property
    def headline(self) -> str | None:
        return next((name for name in HEADLINE if name in self.metrics), None)

    @property
    def axes(self) -> list[str]:
        """The names that are no repetition; `seed` itself where nothing else is varied."""
        return [name for name in self.names if name != REPETITION] or list(self.names)

    @property
    def table(self) -> pd.DataFrame:
        """One row a cell: settings, metrics, seconds, error."""
        rows = [
            {
                **{name: shown(value) for name, value in cell.settings.items()},
                **{name: cell.metrics.get(name) for name in self.metrics},
                "seconds": cell.seconds,
                "error": cell.error,
            }
            for cell in self.outcomes
        ]
        return pd.DataFrame(rows, index=pd.Index([cell.cell for cell in self.outcomes], name="cell"))

    @property
    def summary(self) -> pd.DataFrame:
        """One row for each combination of `axes`: mean over the seeds, deviation (`..._std`), cells, failed ones."""
        rows = []
        for key, cells in self.groups.items():
            row: dict[str, Any] = dict(zip(self.axes, key, strict=True))
            for name in self.metrics:
                values = [float(cell.metrics[name]) for cell in cells if _finite(cell.metrics.get(name))]  # type: ignore[arg-type]
                row[name] = float(np.mean(values)) if values else None
                if REPETITION in self.names and self.axes != [REPETITION]:
                    row[f"{name}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
            rows.append({**row, "cells": len(cells), "failed": sum(bool(cell.error) for cell in cells)})
        return pd.DataFrame(rows)

    @property
    def groups(self) -> dict[tuple[str, ...], list[Outcome]]:
        """The cells of each combination of `axes`, seeds together."""
        found: dict[tuple[str, ...], list[Outcome]] = {}
        for cell in self.outcomes:
            found.setdefault(tuple(shown(cell.settings[name]) for name in self.axes), []).append(cell)
        return found

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of the summary with the best headline metric, of those that never failed if there are any.

        Returns: None where nothing was measured.
        """
        name, rows = self.headline, self.summary
        if name is None:
            return None
        measured = [row for row in rows.to_dict("records") if _finite(row[name])]
        whole = [row for row in measured if not row["failed"]] or measured
        best = (max if HIGHER_IS_BETTER[name] else min)(whole, key=lambda row: row[name])
        return {str(key): None if value != value else value for key, value in best.items()}  # NaN is no JSON

    def plot(self) -> Figure:
        """The headline metric by the first setting, a line for each combination of the others."""
        from cloister.learn.figures import by_setting

        return by_setting(self)

    def report(self) -> str:
        """The page that report.html holds: one self-contained file."""
        from cloister.learn.sweep_report import render

        return render(self)

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints; histories are in the cells' folders."""
        cells = [{key: value for key, value in cell.as_json().items() if key != "history"} for cell in self.outcomes]
        return {"job": self.job.digest.hex(), "names": list(self.names), "best": self.best, "cells": cells}

    def save(self, folder: str | Path) -> Path:
        """Writes cells.csv, summary.csv, sweep.svg and report.html. Returns: the folder."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        self.table.to_csv(path / "cells.csv")
        self.summary.to_csv(path / "summary.csv", index=False)
        if self.headline:
            self.plot().savefig(path / "sweep.svg", metadata={"Date": None})
        (path / "report.html").write_text(self.report(), "utf-8")
        return path


def shown(value: Any) -> str:
    """A setting for people: 0.1, 1e+08, [16, 8], dirichlet:0.5, none."""
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _finite(value: float | None) -> bool:
    return value is not None and bool(np.isfinite(value))
