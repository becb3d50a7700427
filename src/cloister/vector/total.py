"""What a sealed sum opens to, where it is opened: at the coordinator or an auditor, in a simulation. No site does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cloister.vector.bundle import Array
from cloister.vector.errors import BoundError, LayoutError, TaskError
from cloister.vector.layout import SHARES, FixedPoint, Floats, Words
from cloister.vector.query import CLIPPED, ROWS, Query


@dataclass(frozen=True)
class Total:
    """What a sealed sum opened to: sums over the survivors, never one site's part.

    Attributes:
      sums: float64 array for each block (a weighted block's is the sum of rows / max_rows * value).
      rows: of all survivors together. clipped: coordinates clipped, all sites together.
      max_rows: the query's. sites: how many survivors.
      buckets: the same of each bucket, in their order, where the query asked for several.
    """

    sums: Mapping[str, Floats]
    rows: float
    clipped: float
    max_rows: int
    sites: int
    buckets: tuple[Total, ...] = ()

    @property
    def parts(self) -> tuple[Total, ...]:
        """One total for each bucket; of one bucket, this one."""
        return self.buckets or (self,)

    def mean(self, name: str) -> Floats:
        """The row-weighted mean of a weighted block. Raises TaskError when no site had a row."""
        if self.rows <= 0:
            raise TaskError("no surviving site had a row to train on.", mend="Check the contract's split and target.")
        return self.sums[name] * (self.max_rows / self.rows)


def open_total(query: Query, coder: FixedPoint, words: Words, sites: int) -> Total:
    """Decodes the opened words of `query` (summed over `sites` survivors).

    Raises: BoundError: the sites together say they have so many rows that weighted sums may have wrapped.
    """
    sums = coder.decode(words)
    rows, clipped = float(sums.pop(ROWS)), float(sums.pop(CLIPPED))
    if rows > SHARES * query.max_rows and sites > SHARES:
        raise BoundError(
            f"{sites} sites say they have {rows:,.0f} rows; {query.max_rows:,} were counted at the start.",
            mend="Submit the job again, so that they are counted anew; if that does not help, a site lies.",
        )
    return Total(sums, rows=rows, clipped=clipped, max_rows=query.max_rows, sites=sites)


def open_buckets(query: Query, coder: FixedPoint, words: Words, sites: Sequence[int]) -> Total:
    """The total of a cohort whose sum was opened in buckets, or in one.

    Args: words: [buckets, coder.size]. sites: how many survivors each bucket has.
    """
    parts = tuple(open_total(query, coder, part, count) for part, count in zip(words, sites, strict=True))
    if len(parts) == 1:
        return parts[0]
    whole = words.sum(axis=0, dtype=words.dtype)  # the coder has room for all sites, so this wraps as each part does
    return replace(open_total(query, coder, whole, sum(sites)), buckets=parts)


def flatten(tensors: Mapping[str, Array], names: list[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Concatenates named tensors, in this order, into one contiguous float32 vector."""
    return np.concatenate([np.asarray(tensors[name], np.float32).reshape(-1) for name in names])


def unflatten(flat: Array, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Cuts one vector into named views of it, in the mapping's order. Raises LayoutError on another length."""
    sizes = [int(np.prod(shape, dtype=np.int64)) for shape in shapes.values()]
    if flat.shape != (sum(sizes),):
        raise LayoutError(f"a vector of shape {flat.shape} for tensors of {sum(sizes)} values together")
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
