"""Preparation of tables, fitted over the whole federation by sealed sums (or, where asked, at each site)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from cloister.job.spec import Name, Names, as_tuple, spec
from cloister.vector.errors import JobError


def _pairs(value: Any) -> Any:
    return {name: as_tuple(pair) for name, pair in value.items()} if isinstance(value, Mapping) else value


Ranges = Annotated[dict[Name, tuple[float, float]], BeforeValidator(_pairs)]
DEVIATIONS = 4.0  # a declared range is taken to be so many standard deviations wide


@spec
class Impute:
    """Fills missing numbers with the federation's mean. A missing category is a category of its own."""

    strategy: Literal["mean"] = "mean"


@spec
class OneHot:
    """Turns each category column into one 0/1 column for each category.

    Attributes:
      drop_first: leave out each column's first category (it is all zeros then).
      min_rows: leave out categories that fewer rows of the whole federation have.
      columns: number columns that are to be categories as well.
    """

    drop_first: bool = False
    min_rows: Annotated[int, Field(ge=0, le=10**9)] = 0
    columns: Names = ()


@spec
class Standardize:
    """Number columns to mean 0 and deviation 1.

    Attributes:
      by: "federation" uses the whole federation's mean and deviation (sealed sums); "site" each site's own
        training rows, which nobody else learns, and with which a model only fits tables of whole sites.
      ranges: instead of measured ones: column -> (low, high) as publicly known (a scale's ends, what is plausible).
        The middle becomes 0, a quarter of the width 1; Impute fills with the middle. Costs no privacy.
    """

    by: Literal["federation", "site"] = "federation"
    ranges: Ranges | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in (self.ranges or {}).items():
            if not (math.isfinite(high - low) and low < high):
                raise JobError(f"Standardize: the range of {name!r} is not from a low to a higher number.")
        if self.ranges is not None and self.by == "site":
            raise JobError("Standardize: ranges are the whole federation's.", mend='Leave out by="site".')

    def declared(self, columns: list[str]) -> tuple[list[float], list[float]]:
        """Means and deviations of these columns, from their ranges. Raises JobError: a column has none."""
        ranges = self.ranges or {}
        if missing := [name for name in columns if name not in ranges]:
            raise JobError(
                f"Standardize: there is no range for {', '.join(missing[:5])}.",
                mend="Name a (low, high) for each number column, or ignore the column in the contract.",
            )
        pairs = [ranges[name] for name in columns]
        return [(low + high) / 2 for low, high in pairs], [(high - low) / DEVIATIONS for low, high in pairs]
