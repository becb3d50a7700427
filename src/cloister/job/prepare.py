"""Preparation of tables, fitted over the whole federation by sealed sums (or, where asked, at each site)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cloister.job.spec import Names, spec


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
    """

    by: Literal["federation", "site"] = "federation"
