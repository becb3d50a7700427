"""Engines: who computes the sites' contributions, and where.

    serial      one site after the other, in this process
    processes   the same on every core: `processes.py`
    batched     many sites at once, for small nets: `batched.py`
    ray         on a Ray cluster: `ray.py`
    auto        processes where they pay, else serial

Contributions are integers, so neither their order nor the number of processes can change a sum. An engine hands over
sums of them as they come and keeps nothing of a site, except the prepared data of a limited number of sites.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cloister.job import Job
from cloister.learn import Trainer, Workshop
from cloister.learn.memory import SiteState
from cloister.learn.together import at_once, begin
from cloister.round import contribute
from cloister.round.loop import cores
from cloister.vector import Answer, FixedPoint, Query
from cloister.vector.errors import DataError, TaskError, UsageError
from cloister.vector.layout import Words

ENGINES = ("auto", "serial", "processes", "batched", "ray")
SLOW_SECONDS = 0.1  # a round of training: starting processes takes about as long
MOST_KEPT = 1024  # sites whose prepared data stay in memory from one round to the next ...
MOST_KEPT_BYTES = 1 << 28  # ... together no more than this
MOST_TOGETHER_BYTES = 1 << 26  # data of sites that are trained together, but for the last one's
LARGE_BYTES = (1 << 25) - (1 << 16)  # the most that glibc's malloc takes for a block that comes and goes


@dataclass(frozen=True)
class Part:
    """What an engine hands over: the sum of some sites' contributions, or why one site has none."""

    sites: Sequence[str]
    words: Words | None
    fault: TaskError | DataError | None = None


class Engine(Protocol):
    def parts(self, query: Query, coder: FixedPoint, sites: Sequence[str], *, apart: bool) -> Iterator[Part]:
        """All contributions to one sum; each site is in one part.

        Args: apart: a part holds one site, as a seal that masks needs it; else as many as can be.
        """
        ...

    def close(self) -> None:
        """Ends whatever the engine started."""
        ...


class SerialEngine:
    """One site after the other, in this thread. The first sites' trainers are kept, up to a limit."""

    def __init__(
        self, job: Job, data: Mapping[str, Any], memory: SiteState | None = None, reproducible: bool = False
    ) -> None:
        np.empty(LARGE_BYTES, np.uint8)  # seen to come and go, so malloc keeps as much at hand from now on
        self.job, self.data, self._workshop = job, data, Workshop(job, memory, reproducible=reproducible)
        self._kept: dict[str, Trainer] = {}
        self._kept_bytes = 0

    @classmethod
    def of(cls, job: Job, trainers: Mapping[str, Trainer]) -> SerialEngine:
        """An engine whose trainers are made already."""
        engine = cls(job, {})
        engine._kept.update(trainers)
        return engine

    def parts(self, query: Query, coder: FixedPoint, sites: Sequence[str], *, apart: bool) -> Iterator[Part]:
        total: Words | None = None
        summed: list[str] = []
        for part in self.each(query, coder, sites):
            if part.words is None or apart:
                yield part
                continue
            total = part.words if total is None else np.add(total, part.words, out=total)
            summed += part.sites
        if total is not None:
            yield Part(summed, total)

    def each(self, query: Query, coder: FixedPoint, sites: Sequence[str]) -> Iterator[Part]:
        """Every site's own contribution, or why it has none."""
        size = at_once(self.job, query)
        if hasattr(self.data, "ahead") and not self._kept.keys() >= set(sites):
            size = 1  # a site is trained while the next one's data are read
        for group in self._groups(sites, size):
            begun = (
                begin([trainer for _, trainer in group if isinstance(trainer, Trainer)], query) if size > 1 else {}
            )
            for site, trainer in group:
                try:
                    if not isinstance(trainer, Trainer):
                        raise trainer
                    answer, randomness = trainer.answer(query, begun.get(site)), trainer.randomness(query, "sum")
                    yield Part((site,), contribute(answer, query, coder, randomness))
                except (TaskError, DataError) as fault:
                    yield Part((site,), None, fault)

    def _groups(self, sites: Sequence[str], size: int) -> Iterator[list[tuple[str, Trainer | TaskError | DataError]]]:
        """So many sites at a time, fewer where their data are large, each with its trainer or why it has none."""
        group: list[tuple[str, Trainer | TaskError | DataError]] = []
        held = 0
        for site, trainer in self._trainers(sites):
            group.append((site, trainer))
            held += trainer.size_bytes if isinstance(trainer, Trainer) else 0
            if len(group) == size or held >= MOST_TOGETHER_BYTES:
                yield group
                group, held = [], 0
        if group:
            yield group

    def _trainers(self, sites: Sequence[str]) -> Iterator[tuple[str, Trainer | TaskError | DataError]]:
        """The next site's data are fetched while this one's trainer is used."""
        ahead = getattr(self.data, "ahead", None)
        for site, following in itertools.zip_longest(sites, sites[1:]):
            if ahead is not None and following is not None and following not in self._kept:
                ahead(following)
            try:
                yield site, self.trainer(site)
            except (TaskError, DataError) as fault:
                yield site, fault

    def answer(self, query: Query, site: str) -> Answer:
        return self.trainer(site).answer(query)

    def trainer(self, site: str) -> Trainer:
        kept = self._kept.get(site)
        if kept is not None:
            return kept
        made = Trainer(self.job, self.data[site], site, self._workshop)
        if len(self._kept) < MOST_KEPT and self._kept_bytes + made.size_bytes <= MOST_KEPT_BYTES:
            self._kept[site] = made
            self._kept_bytes += made.size_bytes
        return made

    def close(self) -> None:
        pass


class AutoEngine:
    """Serial until a round takes longer than it takes to start processes; on every core from then on.

    Nothing shows of the change: both give the same integers.
    """

    def __init__(self, serial: SerialEngine, count: int) -> None:
        self._engine: Engine = serial
        self._serial, self._count = serial, count

    def parts(self, query: Query, coder: FixedPoint, sites: Sequence[str], *, apart: bool) -> Iterator[Part]:
        began = time.perf_counter()
        yield from self._engine.parts(query, coder, sites, apart=apart)
        slow = time.perf_counter() - began > SLOW_SECONDS and query.task == "train"
        if slow and self._engine is self._serial and self._count > 1 and len(sites) > 1:
            self._engine = _processes(self._serial, self._count)

    def close(self) -> None:
        self._engine.close()


def make_engine(
    name: str,
    job: Job,
    data: Mapping[str, Any],
    processes: int | None = None,
    memory: SiteState | None = None,
    reproducible: bool = False,
) -> Engine:
    """Args:
      name: one of ENGINES.
      processes: how many, by default one for each core.
      memory: what sites keep between rounds, where the algorithm has them do so.
      reproducible: see `simulate`.

    Raises: UsageError: an unknown name, a number of processes without sense.
    """
    if name not in ENGINES:
        raise UsageError(f"engine={name!r} is not one of {', '.join(ENGINES)}.")
    if processes is not None and (processes < 1 or name in ("serial", "batched")):
        raise UsageError(
            f"processes={processes} makes no sense with engine={name!r}.", mend="Use engine='processes'."
        )
    if name == "batched":
        from cloister.simulation.batched import BatchedEngine

        return BatchedEngine(job, data, memory).check()
    if name == "ray":
        from cloister.simulation.ray import RayEngine

        return RayEngine(job, (data, memory, reproducible), processes)
    serial = SerialEngine(job, data, memory, reproducible)
    if name == "processes":
        return _processes(serial, processes or cores())
    if name == "auto" and hasattr(os, "fork"):
        return AutoEngine(serial, processes or cores())
    return serial


def _processes(serial: SerialEngine, count: int) -> Engine:
    from cloister.simulation.processes import ProcessEngine

    return ProcessEngine(serial, count)
