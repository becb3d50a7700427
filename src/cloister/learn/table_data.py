"""One site's table under a job's contract: its training rows' statistics, and its rows as numbers for a model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from cloister.algorithms.preparation import BUCKETS, EXPONENT_ZERO, EXPONENTS
from cloister.job import Job, Table
from cloister.learn.prepare import Columns, Inputs, buckets, design, matrix, split, targets, unit_of, units
from cloister.learn.tables import Frame, check
from cloister.vector import Query
from cloister.vector.bundle import Array
from cloister.vector.errors import DataError, TaskError


class TableData:
    """Attributes:
      features: the rows that have a target. y: the target as a model needs it. test: bool[rows].
      units: whose row each is, as text; None where every row is a unit of its own.
      warnings: for the steward, one line each.
    Raises: DataError: the table lacks target, split or feature columns, or has unknown labels.
    """

    def __init__(self, job: Job, frame: Frame, site: str) -> None:
        if not isinstance(frame, Frame):
            mend = "Give a pandas DataFrame, or use cl.Arrays(...)."
            raise DataError(
                f"the contract asks for a table, the data is a {type(frame).__name__}.", mend=mend, site=site
            )
        assert isinstance(job.data, Table)
        self._job, self._site, self._contract, frame = job, site, job.data, frame.rename(columns=str)
        self.warnings = check(job.data, frame, site, dict.fromkeys(job.data.columns or {}, "any"))
        self.features = frame[frame[job.data.target].notna()].reset_index(drop=True)
        self.y = targets(job, self.features, site)
        self.test = split(job, self.features, site)
        self.units = units(job, self.features, site) if unit_of(job) is not None else None

    @property
    def size_bytes(self) -> int:
        return 2 * int(self.features.memory_usage(deep=True).sum())

    def profile(self, query: Query) -> dict[str, Array]:
        kinds = self._kinds(query)
        self.warnings += [line for line in self._check(kinds) if line not in self.warnings]
        columns, train = Columns.of(self._job, kinds), self._train_frame
        values: dict[str, Array] = {
            "missing": np.array([train[name].isna().sum() for name in kinds], np.float64),
            "exponents": _exponents(matrix(train, columns, self._site)),
        }
        for name in columns.encoded:
            declared = self._contract.categories(name)
            size = BUCKETS if declared is None else len(declared) + 1
            values[f"categories/{name}"] = np.bincount(buckets(self._job, train, name), minlength=size)
        if self._job.classes:
            values["classes"] = np.bincount(self.y[~self.test], minlength=self._job.classes)
        return values

    def moments(self, query: Query) -> dict[str, Array]:
        """Sums over present values of z = (x - center) / scale and of z**2, over the number of all sites' rows."""
        x = matrix(self._train_frame, Columns.of(self._job, self._kinds(query)), self._site)
        z = np.nan_to_num((x - query.tensors["center"]) / query.tensors["scale"], nan=0.0)
        rows = query.config["rows"]
        return {"power1": z.sum(axis=0) / rows, "power2": np.square(z).sum(axis=0) / rows}

    def design(self, query: Query) -> Inputs:
        """float32[rows, inputs], with the statistics that the query broadcasts. Raises DataError: missing values."""
        columns = Columns.of(self._job, self._kinds(query))
        return design(self._job, columns, query.tensors, self.features, ~self.test, self._site)

    def _kinds(self, query: Query) -> dict[str, str]:
        """The features that the query names. Raises TaskError: one that the job's contract does not allow it."""
        kinds, contract = dict(query.config["columns"]), self._contract
        allowed = set(self.features.columns if contract.columns is None else contract.columns)
        if strange := sorted(set(kinds) - (allowed - {contract.target, contract.split, *contract.ignore})):
            raise TaskError(f"the query names {strange}, which the job's contract does not give it.")
        return kinds

    def _check(self, kinds: Mapping[str, str]) -> list[str]:
        encoded = self._job.encoded(kinds)
        read = {name: "category" if name in encoded else kind for name, kind in kinds.items()}
        return check(self._contract, self.features, self._site, read)

    @property
    def _train_frame(self) -> Frame:
        return self.features[~self.test]


def _exponents(x: npt.NDArray[np.float64]) -> Array:
    """Counts of magnitudes by power of two: float64[columns, EXPONENTS]; missing values are left out."""
    _, exponents = np.frexp(x)
    bins = np.clip(exponents, -EXPONENT_ZERO, EXPONENTS - 1 - EXPONENT_ZERO) + EXPONENT_ZERO
    bins[x == 0] = 0
    counts = [np.bincount(bins[~np.isnan(x[:, at]), at], minlength=EXPONENTS) for at in range(x.shape[1])]
    return np.array(counts, np.float64).reshape(x.shape[1], EXPONENTS)
