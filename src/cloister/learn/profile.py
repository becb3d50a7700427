"""What a steward may know of a table at the site itself: kinds, missing cells, ranges. None of it leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cloister.learn.arrays import Examples, schema
from cloister.learn.tables import Frame


def profile(data: Examples | Frame) -> dict[str, Any]:
    """{"rows": int, "columns": {name: {"kind", "missing", "distinct", "least", "most"}}}; JSON values."""
    kinds = schema(data)
    if not isinstance(data, Frame):
        return {"rows": len(data), "columns": {name: {"kind": kind} for name, kind in kinds.items()}}
    return {"rows": len(data), "columns": {str(name): _column(data[name], kinds[str(name)]) for name in data.columns}}


def _column(column: pd.Series[Any], kind: str) -> dict[str, Any]:
    told: dict[str, Any] = {"kind": kind, "missing": int(column.isna().sum()), "distinct": int(column.nunique())}
    if kind == "number":
        numbers = column.to_numpy(np.float64, na_value=np.nan)
        finite = numbers[np.isfinite(numbers)]
        if finite.size:
            told |= {"least": float(finite.min()), "most": float(finite.max())}
    return told
