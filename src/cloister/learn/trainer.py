"""What one site computes: answers to the questions of a job, on its own data."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cloister.job import Arrays, Job, RowDP, SiteDP
from cloister.learn.arrays import ArrayData
from cloister.learn.local import Begun, LocalSite
from cloister.learn.memory import InMemory, SiteState
from cloister.learn.metrics import blocks, noisy
from cloister.learn.models import Model, back_end
from cloister.learn.prepare import Rows, seed_of
from cloister.learn.table_data import TableData
from cloister.privacy import l2_norm
from cloister.privacy.noise import Randomness, Stream
from cloister.vector import Answer, Query, canonical, digest, pack
from cloister.vector.bundle import Array
from cloister.vector.errors import DataError, TaskError


class SiteData(Protocol):
    """One site's data under a job's contract: `TableData` or `ArrayData`.

    Attributes: features: what a trained model predicts from. y: the target as a model needs it. test: bool[rows].
    """

    features: Any
    y: npt.NDArray[Any]
    test: npt.NDArray[np.bool_]
    units: npt.NDArray[np.str_] | None
    warnings: list[str]

    @property
    def size_bytes(self) -> int:
        """Memory that is taken, prepared rows included, roughly."""
        ...

    def profile(self, query: Query) -> dict[str, Array]: ...

    def moments(self, query: Query) -> dict[str, Array]: ...

    def design(self, query: Query) -> npt.NDArray[np.float32]: ...


class Workshop:
    """What the trainers of one process share: the back end of the model, and what the newest query says to all.

    Args: reproducible: noise is drawn from the job's seed, so the same run gives the same bits, and hides nobody.

    A back end is loaded anew for each use, so one serves any number of sites: a simulation of 100,000 has one model.

    Attributes: memory: what sites keep from round to round, where the algorithm has them do so.
    """

    def __init__(self, job: Job, memory: SiteState | None = None, *, reproducible: bool = False) -> None:
        self._job, self.memory, self._reproducible = job, memory or InMemory(), reproducible
        self._query: Query | None = None
        self._model: tuple[object, Model] | None = None

    def read(self, query: Query) -> None:
        """Works out what a query about the model says, once for all sites."""
        if query is self._query:
            return
        fitted = {name: tensor for name, tensor in query.tensors.items() if name.startswith("fit/")}
        self.fitted = digest(pack({"columns": query.config["columns"], "shapes": query.config["shapes"]}, fitted))
        self.flat = np.ascontiguousarray(query.tensors["model"], np.float32)
        self._query = query

    def randomness(self, site: str, query: Query, use: str) -> Randomness:
        """Of noise: the operating system's, unless a simulation wants to be repeated and claims nothing."""
        if not self._reproducible:
            return os.urandom
        material = canonical([self._job.seed, site, query.config["step"], use])
        return lambda count: digest(material)[:count]

    def model(self, query: Query, inputs: int) -> Model:
        made_for = (query.config["shapes"], inputs)
        if self._model is None or self._model[0] != made_for:
            self._model = (made_for, back_end(self._job, query.config["shapes"], inputs))
        return self._model[1]


class Trainer:
    """Answers queries. Everything random in it comes from the job's seed, the site's name and the round.

    Args:
      job: what is computed.
      data: the site's table (DataFrame), or for a contract of arrays (x, y) or (x, y, test).
      site: its name.
      workshop: shared with other trainers of this process; its own if not given.
    Attributes: data. rows: to train on (units, where the job has one). warnings: for the steward, one line each.
    Raises: DataError: the data does not fulfil the contract, or has no row to train on.
    """

    def __init__(self, job: Job, data: Any, site: str, workshop: Workshop | None = None) -> None:
        self.job, self.site, self._workshop = job, site, workshop or Workshop(job)
        holds = ArrayData if isinstance(job.data, Arrays) else TableData
        self.data: SiteData = holds(job, data, site)
        self.y, self.test, self.warnings = self.data.y, self.data.test, self.data.warnings
        self.rows = int((~self.test).sum())  # to train on
        self._seeded = canonical([job.seed, site])[:-1]  # what all of its seeds are drawn from begins so
        if self.data.units is not None:
            self.rows = len(np.unique(self.data.units[~self.test]))
        if self.rows == 0:
            raise DataError("no row is left to train on.", mend="Check target and split column.", site=site)
        if job.classes and len(np.unique(self.y[~self.test])) == 1:
            self.warnings.append("the training rows have one class only; the site takes part nevertheless.")
        self._prepared: tuple[bytes, Rows, Rows] | None = None

    @property
    def size_bytes(self) -> int:
        return self.data.size_bytes

    def answer(self, query: Query, begun: Begun | None = None) -> Answer:
        """The site's answer: an array for each block of the query's layout.

        Args: begun: its training, where `together` has begun it.
        Raises: TaskError: a task that is not known here, training that diverged, the job's code. DataError.
        """
        if query.task not in _TASKS:
            raise TaskError(f"the task {query.task!r} is not known here.", mend="Update cloister at this site.")
        values = _TASKS[query.task](self, query) if begun is None else self._train(query, begun)
        if unknown := sorted(block.name for block in query.layout.blocks if block.name not in values):
            raise TaskError(f"the query asks for {unknown}, which {query.task!r} does not give.")
        rows = 1 if isinstance(self.job.privacy, SiteDP) else self.rows  # a site counts once, however large
        return Answer(rows, {block.name: np.asarray(values[block.name]) for block in query.layout.blocks})

    def _profile(self, query: Query) -> dict[str, Array]:
        return {**self.data.profile(query), "sites": np.asarray(1.0)}

    def _moments(self, query: Query) -> dict[str, Array]:
        return self.data.moments(query)

    def _train(self, query: Query, begun: Begun | None = None) -> dict[str, Array]:
        model, train, test = self.ready(query)
        here = self._site(query, model, train, begun)
        values = self._evaluation(here, model, test) if query.config.get("evaluate") else {}
        answer = self.job.algorithm.local(here)
        if not all(map(_finite, answer.values())) or not all(map(_finite, here.memory.values())):
            raise diverged(query)
        if self.job.algorithm.stateful:
            self._workshop.memory.save(self.site, query.config["step"], here.memory)
        if isinstance(self.job.privacy, SiteDP) and "clip" in query.config:
            within = l2_norm(answer["delta"]) <= float.fromhex(query.config["clip"])
            values["below"] = np.array([0.5 if within else -0.5])
        return {**values, **answer}

    def _evaluate(self, query: Query) -> dict[str, Array]:
        model, train, test = self.ready(query)
        return self._evaluation(self._site(query, model, train), model, test)

    def _evaluation(self, here: LocalSite, model: Model, test: Rows) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for name, flat in self.job.algorithm.models(here).items():
            said = model.assess(flat, test)
            if not (np.isfinite(said.scores).all() and np.isfinite(said.losses).all()):
                raise unfinite()
            found |= blocks(self.job.kind, said, test.y, name)
            if self.job.privacy is not None:
                found |= noisy(self.job.kind, said, test.y, mean=isinstance(self.job.privacy, SiteDP))
        return found

    def _site(self, query: Query, model: Model, train: Rows, begun: Begun | None = None) -> LocalSite:
        stateful = self.job.algorithm.stateful
        kept = self._workshop.memory.load(self.site, query.config["step"]) if stateful else {}

        def seed(training: int) -> int:
            return self.seed(query.config["round"], training)

        stream = Stream(self.randomness(query, "steps")) if isinstance(self.job.privacy, RowDP) else None
        stale = query.config.get("staleness", {}).get(self.site, 0)
        return LocalSite(self.job, query, model, self._workshop.flat, train, seed, kept, stream, stale, begun)

    def randomness(self, query: Query, use: str) -> Randomness:
        """Of this site's noise. Args: use: what for; each has its own."""
        return self._workshop.randomness(self.site, query, use)

    def seed(self, round_: int, training: int = 1) -> int:
        """Of everything random in one round's training here, or in its second, third ... training."""
        further = "" if training == 1 else f",{training}"
        return seed_of(self._seeded + f",{round_}{further}]".encode())

    def ready(self, query: Query) -> tuple[Model, Rows, Rows]:
        """The model, and the prepared rows to train and to test on, made once while the statistics stay the same."""
        self._workshop.read(query)
        if self._prepared is None or self._prepared[0] != self._workshop.fitted:
            x = self.data.design(query)
            train = Rows(np.ascontiguousarray(x[~self.test]), self.y[~self.test], self._train_units())
            test = Rows(np.ascontiguousarray(x[self.test]), self.y[self.test])
            self._prepared = (self._workshop.fitted, train, test)
        _, train, test = self._prepared
        return self._workshop.model(query, math.prod(train.x.shape[1:])), train, test

    def _train_units(self) -> npt.NDArray[np.int64] | None:
        if self.data.units is None:
            return None
        return np.unique(self.data.units[~self.test], return_inverse=True)[1].astype(np.int64)


def _finite(values: Array) -> bool:
    """NaN and infinity are in the sum of squares too, which is one quick pass."""
    values = np.asarray(values)
    if values.size < 2:
        return all(map(math.isfinite, values.flat))
    flat = values.reshape(-1)
    with np.errstate(all="ignore"):
        squares = np.dot(flat, flat)
    return math.isfinite(squares) or bool(np.isfinite(values).all())  # finite values may have infinite squares


def diverged(query: Query) -> TaskError:
    return TaskError(
        f"round {query.config['round']}: the local model diverged: its loss or weights are not finite.",
        mend="Lower the learning rate, or add cl.Standardize() to prepare.",
    )


def unfinite() -> TaskError:
    return TaskError("the broadcast model's predictions are not finite.", mend="Lower the learning rate.")


_TASKS: Mapping[str, Any] = {
    "profile": Trainer._profile,
    "moments": Trainer._moments,
    "train": Trainer._train,
    "evaluate": Trainer._evaluate,
}
