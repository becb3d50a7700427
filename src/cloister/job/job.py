"""The job: what to compute, on which data contract, by which algorithm. Immutable, named by its digest."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field

from cloister.algorithms import Algorithm
from cloister.algorithms.local import NEEDS
from cloister.job import manifest
from cloister.job.data import Arrays, Table
from cloister.job.nets import Code, Shapes
from cloister.job.prepare import Impute, OneHot, Standardize
from cloister.job.privacy import RowDP, SiteDP
from cloister.job.spec import Count, Name, as_tuple, spec, unwritten
from cloister.job.task import Sklearn, Torch
from cloister.vector.bundle import Array, digest
from cloister.vector.errors import JobError

PRIVATE = ("FedAdagrad", "FedAdam", "FedAvg", "FedAvgM", "FedProx", "FedYogi")  # all that is learnt is one mean delta
Step = TypeVar("Step", Impute, OneHot, Standardize)


@spec
class Evaluate:
    """When and how the model is measured, by sealed sums over the sites' test rows.

    Attributes:
      every: rounds between two evaluations; the final model is always evaluated. None: each round, but only the
        final model where the job asks for differential privacy, for each evaluation costs some.
      holdout: fraction of a site's rows that is its test set, where the contract names no split column.
    """

    every: Count | None = None
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.2


@spec
class Job:
    """A piece of work for a federation.

    Attributes:
      data: the contract: `Table(...)` or `Arrays(...)`.
      task: what a site computes: `Torch(...)` or `Sklearn(...)`.
      algorithm: how the sums become a model: `FedAvg(...)`.
      prepare: preparation of the table, in the order Impute, OneHot, Standardize.
      evaluate: how it is measured; None does not, and holds out no test rows.
      privacy: `RowDP(...)` or `SiteDP(...)`; None opens exact sums, which differential privacy does not bound.
      seed: of the initial model, the shuffling and the split into train and test.
      name: for people; the data's name if not given.
      bits: of one coordinate of the sealed sum.
      source: text of the job file, if the task names code in it.
    """

    data: Table | Arrays
    task: Torch | Sklearn
    algorithm: Algorithm
    prepare: Annotated[tuple[Impute | OneHot | Standardize, ...], BeforeValidator(as_tuple)] = ()
    evaluate: Evaluate | None = Evaluate()
    privacy: RowDP | SiteDP | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    name: Name | None = None
    bits: Literal[16, 20, 24, 32, 64] = 32
    source: str | None = unwritten(default=None)

    def __post_init__(self) -> None:
        self._check_prepare()
        self._check_classes()
        self._check_algorithm()
        if self.privacy is not None:
            self._check_privacy(self.privacy)
        if self.source is None and self.ships_code:
            object.__setattr__(self, "source", _source_of(self.task.codes))

    def _check_prepare(self) -> None:
        if isinstance(self.data, Arrays):
            if self.prepare:
                raise JobError(
                    "Job: prepare is for tables; arrays reach the model as they are.", mend="Leave it out."
                )
            if isinstance(self.task, Sklearn) and len(self.data.shape) > 1:
                raise JobError(f"scikit-learn takes rows of numbers, not arrays of shape {self.data.shape}.")
        order = [Impute, OneHot, Standardize]
        places = [order.index(type(step)) for step in self.prepare]
        if places != sorted(set(places)):
            raise JobError("Job: prepare lists each of Impute, OneHot, Standardize at most once, in this order.")

    def _check_classes(self) -> None:
        declared = self.data.classes
        if isinstance(self.task, Torch):
            if self.task.loss == "cross_entropy" and declared is None:
                raise JobError(
                    "the loss cross_entropy needs the labels.", mend="Say classes=[...] in the data contract."
                )
            if self.task.loss == "bce" and declared is not None and len(declared) != 2:
                raise JobError(f"the loss bce knows two classes, not {len(declared)}.", mend="Use cross_entropy.")
        if declared is not None and self.kind == "regression":
            raise JobError("the task predicts a number, but the contract names classes.", mend="Leave classes out.")

    def _check_algorithm(self) -> None:
        algorithm = self.algorithm
        for need in sorted(algorithm.needs - self.task.offers):
            raise JobError(f"{algorithm.name} does not work with this task.", mend=NEEDS[need])
        if algorithm.patience is not None and self.evaluate is None:
            raise JobError(f"{algorithm.name}: patience waits for an evaluation.", mend="Add evaluate=cl.Evaluate().")

    def _check_privacy(self, privacy: RowDP | SiteDP) -> None:
        """Raises JobError: what no noise covers."""
        name, algorithm = type(privacy).__name__, self.algorithm
        if algorithm.name not in PRIVATE or getattr(algorithm, "aggregate", None) is not None:
            raise JobError(f"{name} goes with means of deltas only.", mend=f"Use one of {', '.join(PRIVATE)}.")
        standardize, one_hot = self.step(Standardize), self.step(OneHot)
        measured = standardize is None if self.step(Impute) else False
        if measured or (standardize is not None and standardize.ranges is None):
            raise JobError(
                f"{name}: statistics of the data would leave without noise.",
                mend="Declare what is known: cl.Standardize(ranges={column: (low, high)}).",
            )
        if one_hot is not None and one_hot.min_rows:
            raise JobError(f"{name}: OneHot(min_rows) counts rows without noise.", mend="Leave min_rows out.")
        if isinstance(privacy, RowDP):
            self._check_rows(privacy)

    def _check_rows(self, privacy: RowDP) -> None:
        if not isinstance(self.task, Torch):
            raise JobError(
                "RowDP makes every step of the training noisy, which this task has none of.",
                mend="Use cl.Torch(...); cl.nets.Linear() with bce is logistic regression.",
            )
        unit = privacy.unit
        if unit is None:
            return
        if isinstance(self.data, Arrays):
            raise JobError("RowDP: arrays have no column that could be the unit.", mend="Use cl.Table(...).")
        used = self.data.columns is None or unit in self.data.columns
        if unit in (self.data.target, self.data.split) or (used and unit not in self.data.ignore):
            raise JobError(
                f"RowDP: the unit {unit!r} would be a feature.", mend=f"Add ignore=[{unit!r}] to the data contract."
            )

    def evaluates(self, round_: int) -> bool:
        """Whether the model after so many rounds is measured, besides the final one."""
        if self.evaluate is None:
            return False
        every = self.evaluate.every or (None if self.privacy else 1)
        return every is not None and round_ % every == 0

    @property
    def kind(self) -> str:
        """What is predicted: "binary", "multiclass" or "regression"."""
        return self.task.kind(len(self.data.classes or ()))

    @property
    def labels(self) -> tuple[str, ...]:
        """The target's labels in order, as text; ("0", "1") if two need no names; () for a regression."""
        return () if self.kind == "regression" else self.data.classes or ("0", "1")

    @property
    def classes(self) -> int:
        """How many labels there are; 0 for a regression."""
        return len(self.labels)

    @property
    def outputs(self) -> int:
        """Width of the model's output."""
        return self.task.outputs(self.classes)

    def step(self, kind: type[Step]) -> Step | None:
        """The preparation step of this class, if the job has it."""
        return next((step for step in self.prepare if isinstance(step, kind)), None)

    def encoded(self, columns: Mapping[str, str]) -> list[str]:
        """The feature columns that become one-hot: categories, and what OneHot names. Args: columns: name -> kind."""
        named = {name for step in self.prepare if isinstance(step, OneHot) for name in step.columns}
        return [name for name, kind in columns.items() if kind == "category" or name in named]

    @property
    def initial(self) -> Mapping[str, Array] | None:
        """Initial tensors of a model of one's own; None while unknown and for declarative models."""
        return self.task.model.initial if isinstance(self.task, Torch) and isinstance(self.task.model, Code) else None

    def initial_model(self, inputs: int) -> tuple[Shapes, dict[str, Array]]:
        """Shapes in the order of the flat model, and the float32 tensors that all sites start from.

        Args: inputs: columns of the prepared table.
        """
        return self.task.parameters(inputs, self.outputs, self.seed)

    @property
    def ships_code(self) -> bool:
        """Whether sites would run code of the job file. A declarative job ships none."""
        return bool(self.task.codes)

    def manifest(self) -> dict[str, Any]:
        """What job.json holds: everything that the digest names, as JSON."""
        return manifest.describe(self)

    def to_bytes(self) -> bytes:
        """The bundle: manifest, source, initial tensors; the same bytes on every machine.

        Raises: JobError: the job names code whose file is not known.
        """
        if self.ships_code and self.source is None:
            raise JobError(
                f"the source of {self.task.codes[0].name!r} is in no file, so no site could run it.",
                mend="Write the job into a file of its own.",
            )
        return self._bundle

    @cached_property
    def _bundle(self) -> bytes:
        return manifest.write(self)

    @property
    def digest(self) -> bytes:
        """32 bytes that name this job: SHA-256 of the bundle."""
        return digest(self._bundle)

    @classmethod
    def from_bytes(cls, data: bytes) -> Job:
        """Raises: MalformedMessage: no bundle. JobError: not the canonical bundle of a job."""
        return manifest.read(data, cls)


def _source_of(codes: tuple[Any, ...]) -> str | None:
    """The text of the file in which the code was defined; None in a notebook or an interactive session."""
    module = inspect.getmodule(codes[0].function) if codes[0].function else None
    try:
        return inspect.getsource(module).replace("\r\n", "\n") if module else None
    except (OSError, TypeError):
        return None
