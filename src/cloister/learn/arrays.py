"""One site's examples as arrays: reading them, whether they fulfil the contract, and as numbers for a model.

As for tables, no error of this module holds a value of the data.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.algorithms.preparation import EXPONENTS
from cloister.job import Arrays, Job, Torch
from cloister.job.data import ARRAY, text
from cloister.job.nets import Code
from cloister.learn.prepare import Bools, Inputs, held_out
from cloister.learn.tables import Frame, read_parquet, read_table
from cloister.learn.tables import schema as schema_of_table
from cloister.vector import Query
from cloister.vector.bundle import Array
from cloister.vector.errors import DataError, TaskError

SUFFIX = ".npz"


@dataclass(frozen=True)
class Examples:
    """Attributes: x: [rows, *shape], uint8 pixels or real numbers. y: [rows]. test: bool [rows], or None."""

    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    test: Bools | None = None

    @classmethod
    def of(cls, arrays: Any, site: str = "") -> Examples:
        """From a pair (x, y), a triple (x, y, test) or a mapping of these names. Raises DataError: anything else."""
        if isinstance(arrays, Examples):
            return arrays
        if isinstance(arrays, Mapping) and {"x", "y"} <= set(arrays) <= {"x", "y", "test"}:
            return cls(**{name: np.asarray(value) for name, value in arrays.items()})
        if isinstance(arrays, tuple) and len(arrays) in (2, 3):
            return cls(*(np.asarray(value) for value in arrays))
        raise DataError(
            f"the contract asks for arrays, the data is a {type(arrays).__name__}.",
            mend="Give a pair (x, y), or (x, y, test).",
            site=site,
        )

    def __len__(self) -> int:
        return len(self.y)


def read_arrays(path: Path) -> Examples:
    """An .npz file with x, y and perhaps test. Raises: DataError: no such file, or other arrays in it."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return Examples.of({name: stored[name] for name in stored.files})
    except OSError as fault:
        raise DataError(
            f"the arrays cannot be read: {fault.strerror}.", mend="Check the path.", local_detail=str(path)
        ) from None
    except (ValueError, KeyError, zipfile.BadZipFile):
        raise DataError(
            "the file holds no arrays x and y.",
            mend="Write it with np.savez(path, x=x, y=y).",
            local_detail=str(path),
        ) from None


def read_data(path: str | Path) -> Examples | Frame:
    """What a file holds: arrays (.npz), or a table (.parquet, or else CSV). Raises DataError."""
    path = Path(path)
    if path.suffix.lower() == SUFFIX:
        return read_arrays(path)
    return read_parquet(path) if path.suffix.lower() == ".parquet" else read_table(path)


def schema(data: Any) -> dict[str, str]:
    """All of a site's data that may be told: a table's columns and their types, or that it is arrays."""
    if isinstance(data, Frame):
        return schema_of_table(data)
    return {"x": ARRAY, "y": ARRAY}


class ArrayData:
    """One site's arrays under a job's contract.

    Attributes:
      features, labels: x and y as they were given. test: bool[rows].
      y: what the model learns, float32 or int64 class.
      warnings: for the steward, one line each.
    Raises: DataError: shapes, types or labels that the contract does not name.
    """

    def __init__(self, job: Job, arrays: Any, site: str) -> None:
        assert isinstance(job.data, Arrays)
        self._job, examples = job, Examples.of(arrays, site)
        self.warnings: list[str] = []
        _check(job.data, examples, site)
        self.features, self.labels = examples.x, examples.y
        self.units: npt.NDArray[np.str_] | None = None  # there is no column that could say
        self.y = _targets(job, examples.y, site)
        self.test = held_out(job, len(examples), site) if examples.test is None else examples.test

    @property
    def size_bytes(self) -> int:
        return self.features.nbytes + 4 * self.features.size

    def profile(self, query: Query) -> dict[str, Array]:
        values: dict[str, Array] = {"missing": np.zeros(0), "exponents": np.zeros((0, EXPONENTS))}
        if self._job.classes:
            values["classes"] = np.bincount(self.y[~self.test], minlength=self._job.classes)
        return values

    def moments(self, query: Query) -> dict[str, Array]:
        raise TaskError("arrays have no columns whose moments could be asked.")

    def design(self, query: Query) -> Inputs:
        return as_inputs(self._job, self.features)


def as_inputs(job: Job, x: npt.NDArray[Any]) -> Inputs:
    """float32[rows, *shape] for a model of the user's own, [rows, inputs] for others; pixels in [0, 1]."""
    found = x.astype(np.float32)
    if x.dtype == np.uint8:
        found *= np.float32(1 / 255)
    own = isinstance(job.task, Torch) and isinstance(job.task.model, Code)
    return found if own else found.reshape(len(found), -1)


def _check(contract: Arrays, examples: Examples, site: str) -> None:
    x, y, test = examples.x, examples.y, examples.test
    check_features(contract, x, site)
    if y.shape != (len(x),):
        raise DataError(f"x has {len(x)} rows and y the shape {y.shape}.", mend="Give one label per row.", site=site)
    if test is not None and (test.shape != y.shape or test.dtype != np.bool_):
        raise DataError("test is no bool for each row.", mend="Give True for each row of the test set.", site=site)
    if not len(y):
        raise DataError("the arrays have no row.", mend="Add rows, or leave the site out.", site=site)
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        rows = int((~np.isfinite(x.reshape(len(x), -1)).all(axis=1)).sum())
        raise DataError(
            f"x has {rows} rows with NaN or infinity.",
            mend="Fill or drop them: arrays are not imputed.",
            site=site,
        )


def check_features(contract: Arrays, x: npt.NDArray[Any], site: str = "") -> None:
    """Raises DataError: another shape or type than the contract's."""
    if x.shape[1:] != contract.shape:
        raise DataError(
            f"x has the shape {x.shape}, the contract asks for [rows, {', '.join(map(str, contract.shape))}].",
            mend="Reshape x, or change the contract's shape.",
            site=site,
        )
    if x.dtype.kind != "f" and x.dtype != np.uint8:
        raise DataError(f"x holds {x.dtype}.", mend="Give uint8 pixels, or x.astype('float32').", site=site)


def _targets(job: Job, y: npt.NDArray[Any], site: str) -> npt.NDArray[Any]:
    """Numbers, or each label's place in the contract. Raises DataError: labels that it does not name."""
    if job.kind == "regression":
        if y.dtype.kind not in "fiu" or not np.isfinite(y).all():
            raise DataError("y holds values that are no finite numbers.", site=site)
        return y.astype(np.float32)
    if y.dtype.kind in "iu" and job.labels == tuple(map(str, range(job.classes))):  # the label is its own place
        codes = y.astype(np.int64)
        codes[(codes < 0) | (codes >= job.classes)] = -1
    else:
        place = {label: at for at, label in enumerate(job.labels)}
        found, inverse = np.unique(y, return_inverse=True)
        codes = np.array([place.get(text(label), -1) for label in found.tolist()], np.int64)[inverse]
    if (codes < 0).any():
        known = ", ".join(job.labels[:8]) + (", ..." if job.classes > 8 else "")
        raise DataError(
            f"y has {int((codes < 0).sum())} rows with a label that the contract does not name.",
            mend=f"It names {known}; others are declared with Arrays(..., classes=[...]).",
            site=site,
        )
    return codes
