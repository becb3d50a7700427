"""What one site computes: answers to the questions of a job, on its own table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.algorithms.preparation import BUCKETS, EXPONENT_ZERO, EXPONENTS
from cloister.job import Job
from cloister.learn.metrics import blocks
from cloister.learn.models import Model, back_end
from cloister.learn.prepare import Columns, Rows, buckets, design, generator, matrix, split, targets
from cloister.learn.tables import Frame, check
from cloister.vector import Answer, Query, digest, pack
from cloister.vector.bundle import Array
from cloister.vector.errors import DataError, TaskError


class Trainer:
    """Answers queries. Everything random in it comes from the job's seed, the site's name and the round.

    Args:
      job: what is computed.
      frame: the site's table.
      site: its name.
    Attributes: warnings: for the steward, one line each.
    Raises: DataError: the table lacks target, split or feature columns, has unknown labels or no row to train on.
    """

    def __init__(self, job: Job, frame: Frame, site: str) -> None:
        self.job, self.site, frame = job, site, frame.rename(columns=str)
        self.warnings = check(job.data, frame, site, dict.fromkeys(job.data.columns or {}, "any"))
        self.frame = frame[frame[job.data.target].notna()].reset_index(drop=True)
        self.y = targets(job, self.frame, site)
        self.test = split(job, self.frame, site)
        self.rows = int((~self.test).sum())
        if self.rows == 0:
            raise DataError("no row is left to train on.", mend="Check target and split column.", site=site)
        if job.classes and len(np.unique(self.y[~self.test])) == 1:
            self.warnings.append("the training rows have one class only; the site takes part nevertheless.")
        self._prepared: tuple[bytes, Model, Rows, Rows] | None = None

    def answer(self, query: Query) -> Answer:
        """The site's answer: an array for each block of the query's layout.

        Raises: TaskError: a task that is not known here, training that diverged, the job's code. DataError.
        """
        if query.task not in _TASKS:
            raise TaskError(f"the task {query.task!r} is not known here.", mend="Update cloister at this site.")
        values = _TASKS[query.task](self, query)
        names = [block.name for block in query.layout.blocks]
        if unknown := sorted(set(names) - set(values)):
            raise TaskError(f"the query asks for {unknown}, which {query.task!r} does not give.")
        return Answer(self.rows, {name: np.asarray(values[name]) for name in names})

    # --- statistics of the training rows

    def _profile(self, query: Query) -> dict[str, Array]:
        kinds = self._kinds(query)
        self.warnings += [line for line in self._check(kinds) if line not in self.warnings]
        columns, train = Columns.of(self.job, kinds), self._train_frame
        values: dict[str, Array] = {
            "missing": np.array([train[name].isna().sum() for name in kinds], np.float64),
            "exponents": _exponents(matrix(train, columns, self.site)),
        }
        for name in columns.encoded:
            declared = self.job.data.categories(name)
            size = BUCKETS if declared is None else len(declared) + 1
            values[f"categories/{name}"] = np.bincount(buckets(self.job, train, name), minlength=size)
        if self.job.classes:
            values["classes"] = np.bincount(self.y[~self.test], minlength=self.job.classes)
        return values

    def _kinds(self, query: Query) -> dict[str, str]:
        """The features that the query names. Raises TaskError: one that the job's contract does not allow it."""
        kinds = dict(query.config["columns"])
        contract = self.job.data
        allowed = set(self.frame.columns if contract.columns is None else contract.columns)
        if strange := sorted(set(kinds) - (allowed - {contract.target, contract.split, *contract.ignore})):
            raise TaskError(f"the query names {strange}, which the job's contract does not give it.")
        return kinds

    def _check(self, kinds: Mapping[str, str]) -> list[str]:
        encoded = self.job.encoded(kinds)
        read = {name: "category" if name in encoded else kind for name, kind in kinds.items()}
        return check(self.job.data, self.frame, self.site, read)

    def _moments(self, query: Query) -> dict[str, Array]:
        """Sums over present values of z = (x - center) / scale and of z**2, over the number of all sites' rows."""
        x = matrix(self._train_frame, Columns.of(self.job, self._kinds(query)), self.site)
        z = np.nan_to_num((x - query.tensors["center"]) / query.tensors["scale"], nan=0.0)
        rows = query.config["rows"]
        return {"power1": z.sum(axis=0) / rows, "power2": np.square(z).sum(axis=0) / rows}

    @property
    def _train_frame(self) -> Frame:
        return self.frame[~self.test]

    # --- the model

    def _train(self, query: Query) -> dict[str, Array]:
        model, train, test = self._ready(query)
        flat, round_ = _flat(query), query.config["round"]
        values = self._evaluation(model, flat, test) if query.config.get("evaluate") else {}
        seed = int(generator(self.job.seed, self.site, round_).integers(2**63))
        delta, loss = model.train(flat, train, seed, round_)
        if not (np.isfinite(loss) and np.isfinite(delta).all()):
            raise TaskError(
                f"round {round_}: the local model diverged: its loss or weights are not finite.",
                mend="Lower the learning rate, or add cl.Standardize() to prepare.",
            )
        return {**values, "delta": delta, "train_loss": np.asarray(loss)}

    def _evaluate(self, query: Query) -> dict[str, Array]:
        model, _, test = self._ready(query)
        return self._evaluation(model, _flat(query), test)

    def _evaluation(self, model: Model, flat: npt.NDArray[np.float32], test: Rows) -> dict[str, Array]:
        said = model.assess(flat, test)
        if not (np.isfinite(said.scores).all() and np.isfinite(said.losses).all()):
            raise TaskError("the broadcast model's predictions are not finite.", mend="Lower the learning rate.")
        return dict(blocks(self.job.kind, said, test.y))

    def _ready(self, query: Query) -> tuple[Model, Rows, Rows]:
        """The model and the prepared rows; made once for as long as the fitted statistics stay the same."""
        fitted = {name: tensor for name, tensor in query.tensors.items() if name.startswith("fit/")}
        known = digest(pack({"columns": query.config["columns"], "shapes": query.config["shapes"]}, fitted))
        if self._prepared is None or self._prepared[0] != known:
            columns = Columns.of(self.job, self._kinds(query))
            x = design(self.job, columns, fitted, self.frame, ~self.test, self.site)
            model = back_end(self.job, query.config["shapes"], x.shape[1])
            train = Rows(np.ascontiguousarray(x[~self.test]), self.y[~self.test])
            self._prepared = (known, model, train, Rows(np.ascontiguousarray(x[self.test]), self.y[self.test]))
        return self._prepared[1:]


_TASKS: Mapping[str, Any] = {
    "profile": Trainer._profile,
    "moments": Trainer._moments,
    "train": Trainer._train,
    "evaluate": Trainer._evaluate,
}


def _flat(query: Query) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(query.tensors["model"], np.float32)


def _exponents(x: npt.NDArray[np.float64]) -> Array:
    """Counts of magnitudes by power of two: float64[columns, EXPONENTS]; missing values are left out."""
    _, exponents = np.frexp(x)
    bins = np.clip(exponents, -EXPONENT_ZERO, EXPONENTS - 1 - EXPONENT_ZERO) + EXPONENT_ZERO
    bins[x == 0] = 0
    counts = [np.bincount(bins[~np.isnan(x[:, at]), at], minlength=EXPONENTS) for at in range(x.shape[1])]
    return np.array(counts, np.float64).reshape(x.shape[1], EXPONENTS)
