"""Cuts one table into sites that differ as real ones do: in size and in how often each label occurs.

Label shares follow Hsu, Qi, Brown 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated
Visual Classification" (https://arxiv.org/abs/1909.06335): one Dirichlet draw for each label. Sizes are skewed by a
second draw. Every site gets rows, every row goes to exactly one site, and the same seed gives the same cut.
"""

from __future__ import annotations

import hashlib
import heapq
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cloister.vector import canonical
from cloister.vector.errors import UsageError

Rows = npt.NDArray[np.int64]
LABEL_SKEW = 1.0  # Dirichlet concentration of each label over the sites; smaller is more skewed
SIZE_SKEW = 4.0  # of the sites' sizes
MOST_LABELS = 20  # a numeric target with more values is cut into quantiles first
FEWEST_ROWS = 20  # of a site, where the table has enough


def skewed(target: pd.Series[Any], sites: int, seed: int, *, alpha: float = LABEL_SKEW) -> list[Rows]:
    """Row positions of each site, rising; skewed in label and in size.

    Args:
      target: the label of every row (or a number, which is cut at its quartiles).
      alpha: smaller is more skewed; 100 is nearly the same label shares everywhere.
    Raises: UsageError: more sites than rows.
    """
    if sites < 1:
        raise UsageError(f"sites={sites} is not at least 1.")
    if sites > len(target):
        raise UsageError(
            f"{sites} sites cannot share {len(target)} rows: each needs at least one.",
            mend=f"Use at most {len(target)} sites.",
        )
    seed_bytes = hashlib.sha256(canonical([seed, sites, "partition"])).digest()
    rng = np.random.default_rng(np.frombuffer(seed_bytes, np.uint32))
    sizes = rng.dirichlet(np.full(sites, SIZE_SKEW))
    parts: list[list[int]] = [[] for _ in range(sites)]
    labels = _labels(target)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        # mean of the draw is `sizes`: a large site stays large for every label, and alpha sets the spread
        share = rng.dirichlet(np.maximum(alpha * sites * sizes, 1e-3))
        cuts = np.rint(np.cumsum(share)[:-1] * len(rows)).astype(np.int64)
        for part, piece in zip(parts, np.split(rows, cuts), strict=True):
            part.extend(int(row) for row in piece)
    _fill(parts, min(FEWEST_ROWS, max(1, len(target) // (2 * sites))), rng)
    return [np.sort(np.array(part, np.int64)) for part in parts]


def _labels(target: pd.Series[Any]) -> npt.NDArray[np.int64]:
    """A small integer for each row's label; missing labels are one of their own."""
    if pd.api.types.is_numeric_dtype(target) and target.nunique() > MOST_LABELS:
        target = pd.qcut(target, 4, labels=False, duplicates="drop")
    codes, _ = pd.factorize(target, sort=True)
    return codes.astype(np.int64)


def _fill(parts: list[list[int]], fewest: int, rng: np.random.Generator) -> None:
    """Moves rows from the largest site until each has `fewest`; `fewest` is at most half of the mean size."""
    by_size = [(-len(part), index) for index, part in enumerate(parts)]
    heapq.heapify(by_size)
    for part in parts:
        while len(part) < fewest:
            negative, index = by_size[0]
            if -negative == len(parts[index]):
                part.append(parts[index].pop(int(rng.integers(len(parts[index])))))
            heapq.heapreplace(by_size, (-len(parts[index]), index))
