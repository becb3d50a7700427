"""The engine of a Ray cluster: the workers of `processes.py`, on many machines (`pip install cloister[ray]`).

It joins the cluster that `ray.init` or RAY_ADDRESS names, else it starts one of this machine. A worker is an actor:
it gets the job as bytes (code of a job file travels as its source), the data once, and each round's question once;
then some sites at a time, the largest first, and answers with the sum of their integers. A worker that dies, with its
machine or alone, loses no more than what it had in hand: these sites are asked again.

A lazy mapping of sites is sent as it is, and read where its sites are asked. What sites keep between rounds
(SCAFFOLD ...) lies in a folder, so all machines must see one file system for such algorithms.
"""

from __future__ import annotations

import os
import pickle
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloister.job import Job
from cloister.simulation.engine import Part, SerialEngine
from cloister.vector import FixedPoint, Query
from cloister.vector.errors import DataError, EnvironmentFailure, TaskError, UsageError, WorkerDied
from cloister.vector.layout import Words

MOST_AT_ONCE = 64  # sites handed to a worker in one message
AHEAD = 2  # messages that a worker has to do: the next waits while one is computed
MOST_DEATHS = 2  # of workers at one site alone, before it is the site's fault
ROOM_SECONDS = 120.0  # until a cluster that starts no worker is called full

Fault = tuple[str, TaskError | DataError]


@dataclass
class Worker:
    """Attributes: busy: futures in the order they were given, and their sites."""

    actor: Any
    busy: deque[tuple[Any, list[str]]] = field(default_factory=deque)


class RayEngine:
    """Args:
      settings: what a `SerialEngine` takes besides the job; the data first.
      count: how many workers; one for each processor of the cluster if None.
    Raises: EnvironmentFailure: Ray is not installed. UsageError: the data cannot be sent.
    """

    def __init__(self, job: Job, settings: tuple[Any, ...], count: int | None = None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a simulation tells nobody
        try:
            import ray
        except ImportError:
            raise EnvironmentFailure("Ray is not installed here.", mend="pip install 'cloister[ray]'") from None
        self._ray, self._owned = ray, not ray.is_initialized()
        if self._owned:
            ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
        self._count = count or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._rows = getattr(settings[0], "rows", None)
        self._sent = self._put(job, settings)
        self._workers: list[Worker] = []
        self._starting: dict[Any, Worker] = {}

    def _put(self, job: Job, settings: tuple[Any, ...]) -> Any:
        """The data and the job, once for all workers of a machine."""
        try:
            return self._ray.put((job.to_bytes(), settings))
        except (TypeError, AttributeError, pickle.PicklingError):  # whose text may show the data
            raise UsageError(
                f"the data cannot be sent to Ray: a {type(settings[0]).__name__} that cannot be pickled.",
                mend="Give a folder, arrays or a class at the top level of a module, or use engine='processes'.",
            ) from None

    # --- one sum

    def parts(self, query: Query, coder: FixedPoint, sites: Sequence[str], *, apart: bool) -> Iterator[Part]:
        asked = self._ray.put((query, coder.sites, coder.bits, apart))
        queue = deque(sorted(sites, key=self._rows, reverse=True) if self._rows else sites)
        deaths: Counter[str] = Counter()
        for worker in [*self._workers, *self._starting.values()]:
            worker.actor.ask.remote([asked])
        while queue or any(worker.busy for worker in self._workers):
            while len(self._workers) + len(self._starting) < self._count:
                self._start(asked)
            for worker in self._workers:
                while queue and len(worker.busy) < AHEAD:
                    self._give(worker, queue)
            for future in self._ready():
                if future in self._starting:
                    self._started(future)
                    continue
                worker = next(each for each in self._workers if any(future == given for given, _ in each.busy))
                done = self._done(worker, future, queue, deaths)
                if done is not None:
                    yield from self._parts(*done)

    def _parts(self, sites: list[str], words: list[Words], faults: list[Fault]) -> Iterator[Part]:
        """Args: words: of each site, or one sum of all. sites: that have an answer."""
        for site, fault in faults:
            yield Part((site,), None, fault)
        if len(words) == len(sites):
            yield from (Part((site,), each.copy()) for site, each in zip(sites, words, strict=True))
        elif sites:
            yield Part(sites, words[0].copy())

    def _ready(self) -> list[Any]:
        """Something that came: a worker, or an answer."""
        waiting = [given for worker in self._workers for given, _ in worker.busy] + list(self._starting)
        ready, _ = self._ray.wait(waiting, num_returns=1, timeout=None if self._workers else ROOM_SECONDS)
        if not ready:
            raise WorkerDied(
                f"the Ray cluster started no worker within {ROOM_SECONDS:.0f} s.",
                mend="Look at `ray status`: it may have no free processor.",
            )
        return list(ready)

    def _give(self, worker: Worker, queue: deque[str]) -> None:
        some = min(MOST_AT_ONCE, max(1, len(queue) // (4 * self._count)))
        chunk = [queue.popleft() for _ in range(some)]
        worker.busy.append((worker.actor.compute.remote(chunk), chunk))

    def _done(
        self, worker: Worker, future: Any, queue: deque[str], deaths: Counter[str]
    ) -> tuple[list[str], list[Words], list[Fault]] | None:
        try:
            done: tuple[list[str], list[Words], list[Fault]] = self._ray.get(future)
        except self._ray.exceptions.RayTaskError as fault:
            kind = type(fault.cause).__name__ if fault.cause else "an error"
            raise WorkerDied(f"a worker failed with {kind}.") from fault
        except self._ray.exceptions.RayError:  # it is gone, with all that it had to do
            self._lost(worker, queue, deaths)
            return None
        worker.busy.remove(next(given for given in worker.busy if given[0] == future))
        return done

    def _lost(self, worker: Worker, queue: deque[str], deaths: Counter[str]) -> None:
        """Its sites are asked again; those that it was at, one by one, so that a further death is one site's."""
        self._workers.remove(worker)
        _, suspects = worker.busy[0]
        if len(suspects) == 1:
            deaths[suspects[0]] += 1
            if deaths[suspects[0]] >= MOST_DEATHS:
                raise WorkerDied(
                    f"a worker was killed {MOST_DEATHS} times at this site.",
                    mend="Give it more memory: fewer workers, smaller batches.",
                    site=suspects[0],
                )
        queue.extend(site for _, chunk in worker.busy for site in chunk)

    # --- workers

    def _start(self, asked: Any) -> None:
        actor = self._ray.remote(num_cpus=1)(RayWorker).remote(self._sent)
        self._starting[actor.ask.remote([asked])] = Worker(actor)

    def _started(self, future: Any) -> None:
        worker = self._starting.pop(future)
        try:
            self._ray.get(future)
        except self._ray.exceptions.RayTaskError as fault:
            raise WorkerDied("a worker could not begin.", mend="Its trace says why.") from fault
        except self._ray.exceptions.RayError as fault:
            told = " ".join(str(fault).split())[:300]
            raise WorkerDied(f"a worker could not start: {told}", mend="Look at `ray status`.") from None
        self._workers.append(worker)

    def close(self) -> None:
        for worker in [*self._workers, *self._starting.values()]:
            self._ray.kill(worker.actor)
        self._workers, self._starting = [], {}
        if self._owned:
            self._ray.shutdown()


class RayWorker:
    """What runs in a worker. Args: sent: the job's bytes, and what a `SerialEngine` takes besides."""

    def __init__(self, sent: tuple[bytes, tuple[Any, ...]]) -> None:
        job, settings = sent
        self._engine = SerialEngine(Job.from_bytes(job), *settings)

    def ask(self, asked: list[Any]) -> None:
        """A round's question. Args: asked: one reference, in a list so that it is fetched here and once."""
        import ray

        self._query, sites, bits, self._apart = ray.get(asked[0])
        self._coder = FixedPoint(self._query.sealed_layout, sites, bits)

    def compute(self, sites: list[str]) -> tuple[list[str], list[Words], list[Fault]]:
        """Which sites have an answer, the words of each (or their sum), and who has none."""
        done: list[str] = []
        words: list[Words] = []
        faults: list[Fault] = []
        for part in self._engine.parts(self._query, self._coder, sites, apart=self._apart):
            if part.words is None:
                assert part.fault is not None, "a part without words says why"
                part.fault.__cause__ = None  # of the job's own code: it may not be sent
                faults.append((part.sites[0], part.fault))
                continue
            done += part.sites
            words.append(part.words)
        return done, words, faults
