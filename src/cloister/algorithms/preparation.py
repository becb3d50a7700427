"""Federated preparation of tables: missing values, means, standard deviations and categories by sealed sums.

Three questions, each answered with sums over sites:
  profile   counts of rows, missing values, labels; of magnitudes by power of two (which bounds the next sums
            without anybody naming a range); of categories, hashed into buckets so that no value is spelled out
  mean      sum of x / 2**e over present values
  variance  sum of ((x - mean) / 2**(e + 1))**2
The two-pass variance has no cancellation (Chan, Golub, LeVeque 1983, "Algorithms for computing the sample
variance", section 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cloister.vector import Block, Layout, Query, Total
from cloister.vector.bundle import Array
from cloister.vector.errors import DataError, TaskError

BUCKETS = 2**14  # two of m categories share a bucket (and are then one feature) with chance about m*m / 2**15
EXPONENTS = 128
EXPONENT_ZERO = 63  # bin of |x| in [1/2, 1): bin = clip(frexp exponent, -63, 64) + 63
MOST_ROWS = 2**30


@dataclass(frozen=True)
class Preparation:
    """What is to be fitted.

    Attributes:
      columns: features in canonical order, name -> "number" or "category".
      categories: the columns that become one-hot, with their declared categories' number, or None if undeclared.
      impute, standardize: numeric means fill missing values; mean and deviation come from the federation.
      declared: means and deviations are in the job: nothing of them is measured.
      drop_first, min_rows: of the one-hot encoding: leave out the first category; those with fewer rows than this.
      classes: labels the contract names; 0 for regression.
    """

    columns: Mapping[str, str]
    categories: Mapping[str, int | None]
    impute: bool = False
    standardize: bool = False
    declared: bool = False
    drop_first: bool = False
    min_rows: int = 0
    classes: int = 0

    @property
    def numeric(self) -> list[str]:
        return [name for name in self.columns if name not in self.categories]

    @property
    def needs_mean(self) -> bool:
        return bool(self.numeric) and (self.impute or self.standardize) and not self.declared

    @property
    def needs_variance(self) -> bool:
        return bool(self.numeric) and self.standardize and not self.declared

    # --- profile

    def profile(self) -> Query:
        def count(name: str, shape: tuple[int, ...]) -> Block:
            return Block(name, shape, bound=float(MOST_ROWS), wide=True)

        blocks = [count("missing", (len(self.columns),)), count("exponents", (len(self.numeric), EXPONENTS))]
        for name, declared in self.categories.items():
            blocks.append(count(f"categories/{name}", (BUCKETS if declared is None else declared + 1,)))
        if self.classes:
            blocks.append(count("classes", (self.classes,)))
        return Query("profile", Layout(tuple(blocks)), max_rows=MOST_ROWS, config=self._config())

    def learn_profile(self, total: Total) -> tuple[int, dict[str, Array]]:
        """Returns: training rows of all sites, and the tensors "fit/scale" and "fit/buckets/<column>".

        Raises: TaskError: no rows. DataError: values are missing and nothing fills them; an unknown category only.
        """
        rows = round(total.rows)
        if rows < 1:
            raise TaskError("no site has a training row.", mend="Check the contract's split and target.")
        self._check_missing(total)
        fitted: dict[str, Array] = {"fit/scale": self._scale(np.rint(total.sums["exponents"]))}
        for name, declared in self.categories.items():
            counts = np.rint(total.sums[f"categories/{name}"])
            kept = np.flatnonzero(counts >= max(1, self.min_rows)) if declared is None else np.arange(declared)
            fitted[f"fit/buckets/{name}"] = kept[1 if self.drop_first else 0 :].astype(np.int64)
        return rows, fitted

    def _check_missing(self, total: Total) -> None:
        if self.impute:
            return
        for name, missing in zip(self.columns, np.rint(total.sums["missing"]), strict=True):
            if missing > 0 and name not in self.categories:
                raise DataError(
                    f"column {name!r} has {int(missing)} missing values (all sites together).",
                    mend="Add cl.Impute() to the job's prepare list.",
                )

    @staticmethod
    def _scale(exponents: Array) -> Array:
        """For each column the smallest power of two that no magnitude reaches; 1 where there is no value."""
        seen = exponents > 0
        highest = EXPONENTS - 1 - np.argmax(seen[:, ::-1], axis=1) if seen.size else np.zeros(0, np.int64)
        power = np.where(seen.any(axis=1), highest - EXPONENT_ZERO, 0)
        return np.ldexp(1.0, power.astype(np.int32))

    # --- moments

    def mean(self, rows: int, fitted: Mapping[str, Array]) -> Query:
        return self._moments(rows, np.zeros(len(self.numeric)), fitted["fit/scale"])

    def learn_mean(self, total: Total, rows: int, missing: Array, fitted: Mapping[str, Array]) -> dict[str, Array]:
        """Args: missing: float64[n features], counts of the profile. Returns "fit/impute" (and "fit/mean")."""
        present = np.maximum(rows - self._of_numeric(missing), 1)
        mean = total.sums["power1"] * fitted["fit/scale"] * (rows / present)
        found: dict[str, Array] = {"fit/center": mean}
        if self.impute:
            found["fit/impute"] = mean
        if self.standardize:
            found["fit/mean"] = mean
        return found

    def variance(self, rows: int, fitted: Mapping[str, Array]) -> Query:
        return self._moments(rows, fitted["fit/center"], 2.0 * fitted["fit/scale"])

    def learn_variance(self, total: Total, fitted: Mapping[str, Array]) -> dict[str, Array]:
        """Deviation over all rows (a filled value sits at the mean); a constant column gets 1."""
        deviation = np.sqrt(np.maximum(total.sums["power2"], 0.0)) * 2.0 * fitted["fit/scale"]
        # below the sums' rounding step a deviation is noise of the encoding, not of the data
        return {"fit/std": np.where(deviation > 2.0**-20 * fitted["fit/scale"], deviation, 1.0)}

    def _moments(self, rows: int, center: Array, scale: Array) -> Query:
        shape = (len(self.numeric),)
        layout = Layout((Block("power1", shape, bound=1.0, wide=True), Block("power2", shape, bound=1.0, wide=True)))
        config = {**self._config(), "rows": rows}
        return Query("moments", layout, max_rows=rows, tensors={"center": center, "scale": scale}, config=config)

    def _of_numeric(self, per_column: Array) -> Array:
        return np.array(
            [value for name, value in zip(self.columns, per_column, strict=True) if name not in self.categories]
        )

    def _config(self) -> dict[str, object]:
        return {"round": 0, "columns": [[name, kind] for name, kind in self.columns.items()]}

    def inputs(self, fitted: Mapping[str, Array]) -> int:
        """Width of the prepared table: numeric columns, then one for each kept category."""
        return len(self.numeric) + sum(fitted[f"fit/buckets/{name}"].size for name in self.categories)
