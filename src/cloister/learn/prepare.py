"""From a site's table to the numbers that a model learns from, with statistics fitted over the federation.

Numeric features come first, in the job's canonical order, then the one-hot columns of each category feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.algorithms.preparation import BUCKETS
from cloister.job import Impute, Job, RowDP, Standardize
from cloister.job.data import missing_column
from cloister.learn.tables import Floats, Frame, numbers, texts
from cloister.vector import canonical, digest
from cloister.vector.bundle import Array
from cloister.vector.errors import DataError

Bools = npt.NDArray[np.bool_]
Inputs = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """Rows ready for a model.

    Attributes:
      x: float32[rows, inputs], or [rows, *shape] of arrays.
      y: [rows]: float32 in {0, 1} (binary) or any (regression), int64 class.
      units: int64[rows], whose row it is, from 0 on; None: every row is a unit of its own.
    """

    x: Inputs
    y: npt.NDArray[Any]
    units: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.y)

    @cached_property
    def products(self) -> npt.NDArray[np.float32]:
        """Of each two rows of [rows, inputs]: float32[rows, rows], kept as long as the rows are."""
        products: npt.NDArray[np.float32] = np.matmul(self.x, self.x.T)
        return products


@dataclass(frozen=True)
class Columns:
    """The feature columns of a job by use: `numeric` and `encoded`, both in the canonical order."""

    numeric: list[str]
    encoded: list[str]

    @classmethod
    def of(cls, job: Job, columns: Mapping[str, str]) -> Columns:
        encoded = job.encoded(columns)
        return cls([name for name in columns if name not in encoded], encoded)


def matrix(frame: Frame, columns: Columns, site: str) -> Floats:
    """The numeric features as float64[rows, numeric], NaN where missing. Raises DataError."""
    found = [numbers(frame, name, site) for name in columns.numeric]
    return np.stack(found, axis=1) if found else np.empty((len(frame), 0))


def bucket(spelling: str, column: str) -> int:
    """The bucket that a category falls into when the contract declares none: a hash, so no value is spelled out."""
    parts = b"".join(len(part).to_bytes(8, "big") + part for part in (column.encode(), spelling.encode()))
    return int.from_bytes(digest(parts)[:8], "big") % BUCKETS


def buckets(job: Job, frame: Frame, column: str) -> npt.NDArray[np.int64]:
    """Each row's bucket: its place among the declared categories (one behind the last: any other), or its hash."""
    codes, spelled = texts(frame, column)
    declared = job.data.categories(column)
    if declared is None:
        places = [bucket(spelling, column) for spelling in spelled]
    else:
        known = {spelling: at for at, spelling in enumerate(declared)}
        places = [known.get(spelling, len(declared)) for spelling in spelled]
    return np.array(places, np.int64)[codes]


def design(
    job: Job, columns: Columns, fitted: Mapping[str, Array], frame: Frame, fit_rows: Bools | None, site: str
) -> Inputs:
    """The prepared table.

    Args:
      fitted: "fit/impute", "fit/mean", "fit/std", "fit/buckets/<column>" as far as the job asks for them.
      fit_rows: the rows that Standardize(by="site") takes its statistics from; None: all.
    Returns: float32[rows, inputs].
    Raises: DataError: a value is missing and nothing fills it.
    """
    x = matrix(frame, columns, site)
    missing = np.isnan(x)
    if job.step(Impute):
        x = np.where(missing, fitted["fit/impute"], x) if missing.any() else x
    elif missing.any():
        name = columns.numeric[int(np.argmax(missing.any(axis=0)))]
        raise DataError(
            f"column {name!r} has missing values.", mend="Add cl.Impute() to prepare, or drop the rows.", site=site
        )
    standardize = job.step(Standardize)
    if standardize and standardize.by == "site":
        x = _by_site(x, fit_rows)
    elif standardize and columns.numeric:
        x = (x - fitted["fit/mean"]) / fitted["fit/std"]
    encoded = [
        (buckets(job, frame, name)[:, None] == fitted[f"fit/buckets/{name}"][None, :]) for name in columns.encoded
    ]
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and training says so
        return np.ascontiguousarray(np.concatenate([x, *encoded], axis=1), np.float32)


def _by_site(x: Floats, fit_rows: Bools | None) -> Floats:
    """Mean 0 and (n - 1) deviation 1 over the given rows; a column that is constant there is only centred."""
    basis = x if fit_rows is None else x[fit_rows]
    if len(basis) < 2:
        return x - (basis.mean(axis=0) if len(basis) else 0.0)
    deviation = basis.std(axis=0, ddof=1)
    flat = deviation <= 1e-12 * np.abs(basis).max(axis=0, initial=0.0)
    return np.asarray((x - basis.mean(axis=0)) / np.where(flat, 1.0, deviation))


def targets(job: Job, frame: Frame, site: str) -> npt.NDArray[Any]:
    """The target as a model needs it. Raises DataError: labels that the contract does not name; counts them."""
    name = job.data.target
    if job.kind == "regression":
        return numbers(frame, name, site).astype(np.float32)
    codes, spelled = texts(frame, name)
    place = {label: at for at, label in enumerate(job.labels)}
    classes = np.array([place.get(spelling, -1) for spelling in spelled], np.int64)[codes]
    if (classes < 0).any():
        known = ", ".join(job.labels[:8]) + (", ..." if job.classes > 8 else "")
        raise DataError(
            f"target {name!r} has {int((classes < 0).sum())} rows with a label that the contract does not name.",
            mend=f"It names {known}; others are declared with Table(..., classes=[...]).",
            site=site,
            local_detail=f"first at row {int(np.argmax(classes < 0)) + 1}",
        )
    return classes


def split(job: Job, frame: Frame, site: str) -> Bools:
    """Which rows are for testing: by the contract's split column, else a held-out part drawn from the job's seed."""
    if job.data.split is not None:
        codes, spelled = texts(frame, job.data.split)
        if strange := [spelling for spelling in spelled if spelling not in ("train", "test")]:
            raise DataError(
                f"split column {job.data.split!r} has {len(strange)} values besides 'train' and 'test'.", site=site
            )
        test = np.array([spelling == "test" for spelling in spelled], bool)[codes]
        if unit_of(job) is not None and _on_both_sides(units(job, frame, site), test):
            raise DataError(
                f"one {unit_of(job)!r} has rows for training and for testing.",
                mend=f"Put all of them on one side in column {job.data.split!r}.",
                site=site,
            )
        return test
    if unit_of(job) is not None:
        _, codes = np.unique(units(job, frame, site), return_inverse=True)
        return held_out(job, int(codes.max(initial=-1)) + 1, site)[codes]
    return held_out(job, len(frame), site)


def _on_both_sides(whose: npt.NDArray[np.str_], test: Bools) -> bool:
    return bool(np.intersect1d(whose[test], whose[~test]).size)


def unit_of(job: Job) -> str | None:
    """The column that says whose row it is, where the job protects persons with several rows."""
    return job.privacy.unit if isinstance(job.privacy, RowDP) else None


def units(job: Job, frame: Frame, site: str) -> npt.NDArray[np.str_]:
    """Whose row it is, as text. Raises DataError: the column is not there, or says nothing."""
    name = unit_of(job)
    assert name is not None
    if name not in frame.columns:
        raise missing_column(name, [str(column) for column in frame.columns], site)
    codes, spelled = texts(frame, name)
    if "" in spelled:
        raise DataError(f"rows have no value in {name!r}: nobody knows whose they are.", mend="Fill it.", site=site)
    return np.array(spelled, np.str_)[codes]


def held_out(job: Job, rows: int, site: str) -> Bools:
    """A test set drawn from the job's seed: `Evaluate.holdout` of the rows, none without evaluation."""
    test = np.zeros(rows, bool)
    if job.evaluate and (held := round(job.evaluate.holdout * rows)):
        test[generator(job.seed, site, "split").permutation(rows)[:held]] = True
    return test


def seed_of(material: bytes) -> int:
    """A seed of 63 bits from public material, canonical JSON of a list, without the cost of a generator."""
    return int.from_bytes(digest(material)[:8], "big") >> 1


def generator(*material: int | str) -> np.random.Generator:
    """A generator from public material (the job's seed, the site, the round): equal in simulation and at a site."""
    return np.random.default_rng(int.from_bytes(digest(canonical(list(material))), "big"))
