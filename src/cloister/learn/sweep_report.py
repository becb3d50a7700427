"""A sweep's report.html: which setting is best, by how much, and how each learned. As `report.py` makes it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from cloister.learn.charts import Series, heat, lines, number
from cloister.learn.comparison import HIGHER_IS_BETTER
from cloister.learn.report import LABELS, MOST_LISTED, better, duration, template
from cloister.learn.sweep import REPETITION, Outcome, Sweep, shown

MOST_LINES = 6  # that can be told apart


def render(found: Sweep) -> str:
    """The whole page."""
    failed = sum(bool(cell.error) for cell in found.outcomes)
    repeated = REPETITION in found.names and found.axes != [REPETITION]
    facts = [("Cells", f"{len(found.outcomes):,}"), *([("Failed", f"{failed:,}")] if failed else [])]
    facts += [("Computing time", duration(sum(cell.seconds for cell in found.outcomes)))]
    page = {
        "title": found.job.name or found.job.data.name,
        "digest": found.job.digest.hex(),
        "names": list(found.names),
        "cells": f"{len(found.outcomes):,}",
        "best": _best(found),
        "told": _told(found, failed),
        "facts": facts,
        "repeated": repeated,
        "manifest": json.dumps(found.job.manifest(), indent=2, sort_keys=True),
        **_heats(found),
        **_curves(found),
        **_table(found, repeated),
        **_listing(found),
    }
    return template("sweep.html.j2").render(page)


def _best(found: Sweep) -> str:
    best, name = found.best, found.headline
    if best is None or name is None:
        return ""
    settings = ", ".join(f"{axis} = {best[axis]}" for axis in found.axes)
    return f"{LABELS[name]} {number(best[name])} with {settings}."


def _told(found: Sweep, failed: int) -> str:
    texts = []
    if found.headline:
        texts.append(
            "Measured on held-out rows that have now chosen the settings: on rows never seen, expect a little less."
        )
    if failed:
        first = next(cell for cell in found.outcomes if cell.error)
        texts.append(f"{failed} of {len(found.outcomes)} cells failed; cell {first.cell}: {first.error}")
    return " ".join(texts)


def _heats(found: Sweep) -> dict[str, Any]:
    """Every metric by the first two settings; the best over any further ones."""
    if len(found.axes) < 2:
        return {"heats": [], "heat_told": ""}
    down, across = found.axes[:2]
    summary = found.summary
    rows, columns = list(dict.fromkeys(summary[down])), list(dict.fromkeys(summary[across]))
    charts = []
    for metric in found.metrics:
        best = max if HIGHER_IS_BETTER[metric] else min
        values: list[list[float | None]] = []
        for row in rows:
            here = summary[summary[down] == row]
            cells = [
                [v for v in here[here[across] == column][metric] if v is not None and math.isfinite(v)]
                for column in columns
            ]
            values.append([best(cell) if cell else None for cell in cells])
        svg = heat(rows, columns, values, label=f"{LABELS[metric]} by {down} and {across}")
        charts.append({"label": LABELS[metric], "better": better(metric, "darker", "lighter"), "svg": svg})
    told = f"{down} from top to bottom, {across} from left to right"
    told += "; the best over the other settings." if len(found.axes) > 2 else "."
    return {"heats": charts, "heat_told": told}


def _curves(found: Sweep) -> dict[str, Any]:
    """Learning curves of the best combinations, seeds averaged."""
    name = found.headline
    if name is None:
        return {"curves": [], "curves_told": ""}
    summary, sign = found.summary, -1.0 if HIGHER_IS_BETTER[name] else 1.0
    order = [
        at for at in (sign * summary[name].astype(float)).sort_values(kind="stable").index if _is(summary[name][at])
    ]
    groups = list(found.groups.items())
    chosen = [groups[at] for at in order[:MOST_LINES]]
    charts = []
    for metric in dict.fromkeys((name, "loss")):
        rounds = sorted({row["round"] for _, cells in chosen for cell in cells for row in cell.history})
        series = [
            Series(", ".join(key), f"l{at}", [_mean(cells, metric, round_) for round_ in rounds])
            for at, (key, cells) in enumerate(chosen)
        ]
        if svg := lines(rounds, series) if rounds else None:
            legend = [(line.name, line.role, number(_last(line.values))) for line in series]
            charts.append({"label": LABELS[metric], "legend": legend, "svg": svg})
    told = f"{', '.join(found.axes)} beside each line, with the last value"
    told += f"; the best {MOST_LINES} of {len(groups)}." if len(groups) > MOST_LINES else "."
    return {"curves": charts, "curves_told": told}


def _table(found: Sweep, repeated: bool) -> dict[str, Any]:
    rows = []
    for row in found.summary.to_dict("records"):
        values = [_spread(row, name) for name in found.metrics]
        rows.append([*(row[name] for name in found.axes), *values, f"{row['failed']} of {row['cells']}"])
    return {"columns": [*found.axes, *(LABELS[name] for name in found.metrics), "failed"], "rows": rows}


def _listing(found: Sweep) -> dict[str, Any]:
    name = found.headline
    cells = [
        {
            "number": cell.cell,
            "settings": [shown(cell.settings[axis]) for axis in found.names],
            "outcome": f"{LABELS[name]} {number(cell.metrics.get(name))}" if name else "finished",
            "error": cell.error,
            "seconds": f"{cell.seconds:.1f}",
        }
        for cell in found.outcomes[:MOST_LISTED]
    ]
    return {"listing": cells, "more": max(0, len(found.outcomes) - MOST_LISTED)}


def _spread(row: dict[Any, Any], name: str) -> str:
    deviation = row.get(f"{name}_std")
    told = number(row[name]) if _is(row[name]) else "–"
    return f"{told} ± {number(deviation)}" if _is(deviation) else told


def _mean(cells: Sequence[Outcome], metric: str, round_: int) -> float | None:
    values = [row.get(metric) for cell in cells for row in cell.history if row["round"] == round_]
    present = [float(value) for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _last(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)


def _is(value: Any) -> bool:
    return value is not None and math.isfinite(value)
