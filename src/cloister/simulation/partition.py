"""Cuts one table (or one pair of arrays) into sites that differ as real ones do.

    skewed          in label and in size, as hospitals do (the default)
    iid             in nothing: rows are dealt out at random
    dirichlet:0.5   in label shares: Hsu, Qi, Brown 2019, "Measuring the Effects of Non-Identical Data Distribution
                    for Federated Visual Classification" (https://arxiv.org/abs/1909.06335); smaller is more skewed
    shards:2        in labels: rows sorted by label, cut into shards, so many to a site: McMahan 2017, section 3
    sizes:1.0       in size alone, one Dirichlet draw: Li, Diao, Chen, He 2022, "Federated Learning on Non-IID Data
                    Silos" (https://arxiv.org/abs/2102.02079), "quantity skew"
    noise:0.5       in features: cut as iid, then site i of n has normal noise on its numbers, of i / n times so many
                    of their deviations: the same paper, "noise-based feature imbalance"
    sorted:age      in a feature: rows sorted by that column, cut into equal parts
    by:hospital     as they are: one site for each value of that column, which no model sees

Every row goes to exactly one site, and the same seed gives the same cut. Every site has rows, but in "shards", whose
sites are as the paper has them.
"""

from __future__ import annotations

import hashlib
import heapq
import math
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


FORMS = "skewed, iid, dirichlet:ALPHA, shards:NUMBER, sizes:ALPHA, noise:DEVIATIONS, sorted:COLUMN, by:COLUMN"
ALPHAS = ("dirichlet", "sizes")  # whose number is a concentration


def cut(partition: str, target: pd.Series[Any], sites: int, seed: int) -> list[Rows]:
    """Row positions of each site, rising.

    Args: partition: one of FORMS, but none with a COLUMN. target: each row's label.
    Raises: UsageError: an unknown partition, a number that makes no sense, more sites than rows.
    """
    name, _, number = partition.partition(":")
    if name == "skewed" and not number:
        return skewed(target, sites, seed)
    if (name == "iid" and not number) or name == "noise":
        return _dealt(np.full(sites, 1.0 / sites), len(target), sites, _generator(seed, sites))
    if name == "dirichlet":
        return _dirichlet(target, sites, seed, _positive(partition, number))
    if name == "shards":
        return _shards(target, sites, seed, _positive(partition, number))
    if name == "sizes":
        rng = _generator(seed, sites)
        return _dealt(rng.dirichlet(np.full(sites, _positive(partition, number))), len(target), sites, rng)
    raise UsageError(f"partition={partition!r} is not known.", mend=f"Use one of {FORMS}.")


def in_order(values: pd.Series[Any], sites: int) -> list[Rows]:
    """Row positions of each site, rising: the smallest values at the first site, missing ones at the last."""
    _enough(len(values), sites)
    ordered = np.argsort(values.rank(method="first", na_option="bottom").to_numpy(), kind="stable")
    return [np.sort(part).astype(np.int64) for part in np.array_split(ordered, sites)]


def noise(shape: tuple[int, ...], partition: str, site: int, sites: int, seed: int) -> npt.NDArray[np.float32]:
    """What "noise:SIGMA" adds to the numbers of site 1, 2 ... of `sites`, in their deviations."""
    _, _, number = partition.partition(":")
    material = hashlib.sha256(canonical([seed, sites, site, "noise"])).digest()
    drawn = np.random.default_rng(np.frombuffer(material, np.uint32)).standard_normal(shape, np.float32)
    return drawn * np.float32(_positive(partition, number) * site / sites)


def _positive(partition: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UsageError(f"partition={partition!r} needs a positive number.", mend=f"Use one of {FORMS}.")
    return value


def _dealt(shares: npt.NDArray[np.float64], rows: int, sites: int, rng: np.random.Generator) -> list[Rows]:
    """Rows at random, in these shares; nobody gets none."""
    _enough(rows, sites)
    ends = np.rint(np.cumsum(shares)[:-1] * (rows - sites)).astype(np.int64) + np.arange(1, sites)
    return [np.sort(part) for part in np.split(rng.permutation(rows), ends)]


def _dirichlet(target: pd.Series[Any], sites: int, seed: int, alpha: float) -> list[Rows]:
    rng = _generator(seed, sites)
    _enough(len(target), sites)
    parts: list[list[int]] = [[] for _ in range(sites)]
    labels = _labels(target)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        cuts = np.rint(np.cumsum(rng.dirichlet(np.full(sites, alpha)))[:-1] * len(rows)).astype(np.int64)
        for part, piece in zip(parts, np.split(rows, cuts), strict=True):
            part.extend(piece.tolist())
    _fill(parts, 1, rng)
    return [np.sort(np.array(part, np.int64)) for part in parts]


def _shards(target: pd.Series[Any], sites: int, seed: int, each: float) -> list[Rows]:
    count = int(each)
    if count != each:
        raise UsageError(f"partition='shards:{each:g}' needs a whole number.", mend="Two is the paper's.")
    _enough(len(target), sites * count)
    rng = _generator(seed, sites)
    ordered = np.argsort(_labels(target), kind="stable")
    shards = np.array_split(ordered, sites * count)
    drawn = rng.permutation(sites * count).reshape(sites, count)
    return [np.sort(np.concatenate([shards[at] for at in row])) for row in drawn]


def _enough(rows: int, parts: int) -> None:
    if parts > rows:
        raise UsageError(
            f"{rows} rows cannot make {parts} parts: each needs at least one.", mend=f"Use at most {rows} parts."
        )


def _generator(seed: int, sites: int) -> np.random.Generator:
    material = hashlib.sha256(canonical([seed, sites, "partition"])).digest()
    return np.random.default_rng(np.frombuffer(material, np.uint32))


def skewed(target: pd.Series[Any], sites: int, seed: int, *, alpha: float = LABEL_SKEW) -> list[Rows]:
    """Row positions of each site, rising; skewed in label and in size: one draw for each label, one for the sizes.

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
    rng = _generator(seed, sites)
    sizes = rng.dirichlet(np.full(sites, SIZE_SKEW))
    parts: list[list[int]] = [[] for _ in range(sites)]
    labels = _labels(target)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        # mean of the draw is `sizes`: a large site stays large for every label, and alpha sets the spread
        share = rng.dirichlet(np.maximum(alpha * sites * sizes, 1e-3))
        cuts = np.rint(np.cumsum(share)[:-1] * len(rows)).astype(np.int64)
        for part, piece in zip(parts, np.split(rows, cuts), strict=True):
            part.extend(piece.tolist())
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
