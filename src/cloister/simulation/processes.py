"""The engine of many processes: every core computes contributions and adds them up in memory that all share.

    this process                                 each worker (forked: it has the data, the job and its code already)
    model into shared memory, HEADER      ->     makes the query and its coder
    some sites, and more as each is done  ->     contributions, added to its own sum
                                          <-     done; who has no answer, and why
    adds up the workers' sums

Who is asked next is decided as workers come free, the largest sites first, so none waits long at the end of a round.
A worker that is killed loses its sum: its sites are asked again, by another in its place.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import multiprocessing
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from cloister.simulation.engine import Part, SerialEngine
from cloister.vector import FixedPoint, Query
from cloister.vector.errors import DataError, TaskError, UsageError, WorkerDied
from cloister.vector.layout import Words

MOST_AT_ONCE = 64  # sites handed to a worker in one message
AHEAD = 2  # messages that a worker has to do: the next waits while one is computed
ALIGNED = 64  # bytes: tensors start where torch's own would

Fault = tuple[str, TaskError | DataError, str]  # site, why, and the traceback of the job's own code


@dataclass(frozen=True)
class Header:
    """A query without its tensors, and where they lie in the shared memory: name, dtype, shape, offset."""

    query: Query
    tensors: list[tuple[str, str, tuple[int, ...], int]]
    sites: int
    bits: int
    apart: bool


@dataclass(frozen=True)
class Done:
    """A worker's report of one message: faults, and the contributions themselves where they are kept apart."""

    faults: list[Fault]
    words: list[tuple[str, bytes]]


@dataclass(frozen=True)
class Broken:
    """Something that is nobody's fault but ours, or the machine's."""

    kind: str
    told: str


class Remote(Exception):
    """A traceback from a worker, as the cause of an error that is raised here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass
class Worker:
    """Attributes: busy: what it has been given and not reported. claimed: all that its sum holds or will hold."""

    process: Any
    connection: Connection
    busy: deque[list[str]] = field(default_factory=deque)
    claimed: list[list[str]] = field(default_factory=list)


class ProcessEngine:
    """Args:
      serial: what each worker is a copy of.
      count: how many workers.
    Raises: UsageError: this system cannot fork.
    """

    def __init__(self, serial: SerialEngine, count: int) -> None:
        if "fork" not in multiprocessing.get_all_start_methods():
            raise UsageError("engine='processes' needs a system that can fork.", mend="Use engine='serial'.")
        self._serial, self._count = serial, count
        self._workers: list[Worker] = []
        self._broadcast, self._sums = mmap.mmap(-1, 1), mmap.mmap(-1, 1)

    # --- one sum

    def parts(self, query: Query, coder: FixedPoint, sites: Sequence[str], *, apart: bool) -> Iterator[Part]:
        try:
            yield from self._parts(query, coder, sites, apart)
        except BaseException:  # left in the middle: workers would go on adding to a sum that nobody wants
            self.close()
            raise

    def _parts(self, query: Query, coder: FixedPoint, sites: Sequence[str], apart: bool) -> Iterator[Part]:
        header = self._begin(query, coder, apart)
        queue = deque(self._by_size(sites))
        faults: dict[str, Fault] = {}
        killed_at: set[str] = set()
        while True:
            for worker in self._workers:
                while queue and len(worker.busy) < AHEAD:
                    self._give(worker, queue)
            busy = [worker for worker in self._workers if worker.busy]
            if not busy:
                break
            ready = wait([each for worker in busy for each in (worker.connection, worker.process.sentinel)])
            for worker in busy:
                done: Done | Broken | None = None
                if worker.connection in ready:
                    done = _received(worker.connection)
                elif worker.process.sentinel not in ready:
                    continue
                if done is None:
                    self._replace(worker, header, queue, killed_at)
                    continue
                if isinstance(done, Broken):
                    raise WorkerDied(f"a training process failed with {done.kind}.") from Remote(done.told)
                worker.busy.popleft()
                faults.update({fault[0]: fault for fault in done.faults})
                for site, words in done.words:
                    yield Part((site,), np.frombuffer(words, coder.dtype).copy())
        yield from self._end(coder, sites, faults, apart)

    def _begin(self, query: Query, coder: FixedPoint, apart: bool) -> Header:
        tensors, end = [], 0
        for name, array in query.tensors.items():
            tensors.append((name, array.dtype.str, array.shape, end))
            end += -(-array.nbytes // ALIGNED) * ALIGNED
        sum_bytes = self._count * coder.size * coder.dtype.itemsize
        if not self._workers or end > len(self._broadcast) or sum_bytes > len(self._sums):
            self.close()  # the memory that is shared is fixed when a worker is forked
            self._broadcast, self._sums = mmap.mmap(-1, max(end, 1)), mmap.mmap(-1, sum_bytes)
            self._workers = [self._start(at) for at in range(self._count)]
        for (_, dtype, shape, at), array in zip(tensors, query.tensors.values(), strict=True):
            np.frombuffer(self._broadcast, dtype, math.prod(shape), at).reshape(shape)[...] = array
        header = Header(replace(query, tensors={}), tensors, coder.sites, coder.bits, apart)
        for at, worker in enumerate(self._workers):
            _sum_of(self._sums, at, coder)[...] = 0
            worker.claimed.clear()
            _send(worker.connection, header)
        return header

    def _end(self, coder: FixedPoint, sites: Sequence[str], faults: dict[str, Fault], apart: bool) -> Iterator[Part]:
        for site, fault, told in faults.values():
            if told:
                fault.__cause__ = Remote(told)
            yield Part((site,), None, fault)
        summed = [site for site in sites if site not in faults]
        if summed and not apart:
            sums = [_sum_of(self._sums, at, coder) for at in range(self._count)]
            yield Part(summed, np.add.reduce(sums, axis=0, dtype=coder.dtype))

    def _by_size(self, sites: Sequence[str]) -> list[str]:
        """The largest first, where the data tell sizes before they are loaded."""
        rows = getattr(self._serial.data, "rows", None)
        return sorted(sites, key=rows, reverse=True) if rows else list(sites)

    def _give(self, worker: Worker, queue: deque[str]) -> None:
        some = min(MOST_AT_ONCE, max(1, len(queue) // (4 * self._count)))
        chunk = [queue.popleft() for _ in range(some)]
        worker.busy.append(chunk)
        worker.claimed.append(chunk)
        _send(worker.connection, chunk)

    # --- workers

    def _start(self, at: int) -> Worker:
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        others = [worker.connection for worker in self._workers] + [here]
        memory = (self._broadcast, self._sums, at)
        process = context.Process(target=_work, args=(self._serial, there, others, memory), daemon=True)
        with _interrupts_held():
            process.start()
        there.close()
        return Worker(process, here)

    def _replace(self, worker: Worker, header: Header, queue: deque[str], killed_at: set[str]) -> None:
        """Another in the place of one that was killed; its sites are asked again, those it had in hand one by one."""
        at = self._workers.index(worker)
        worker.process.join()
        suspects = worker.busy[0] if worker.busy else []
        if len(suspects) == 1 and suspects[0] in killed_at:
            raise WorkerDied(
                f"a training process was killed twice at this site ({_ending(worker.process.exitcode)}).",
                mend="Give it more memory: fewer processes, smaller batches.",
                site=suspects[0],
            )
        killed_at.update(suspects)
        lost = list(worker.busy) if header.apart else worker.claimed
        queue.extendleft(site for chunk in lost for site in chunk)
        worker.connection.close()
        self._workers.remove(worker)
        self._workers.insert(at, self._start(at))
        coder = FixedPoint(header.query.sealed_layout, header.sites, header.bits)
        _sum_of(self._sums, at, coder)[...] = 0
        self._workers[at].connection.send(header)
        for site in suspects:  # alone, so that a second death is one site's
            if len(suspects) > 1 and site in queue:
                queue.remove(site)
                self._workers[at].busy.append([site])
                self._workers[at].claimed.append([site])
                self._workers[at].connection.send([site])

    def close(self) -> None:
        for worker in self._workers:
            worker.connection.close()
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()
        self._workers = []


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the fork is over: Python swallows what is raised in the callbacks around it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are handled in the main thread alone
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        signal.raise_signal(signal.SIGINT)


def _received(connection: Connection) -> Done | Broken | None:
    """A worker's report; None if it died."""
    try:
        report: Done | Broken = connection.recv()
    except (EOFError, OSError):
        return None
    return report


def _send(connection: Connection, message: object) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died; whoever waits for it will see
        connection.send(message)


def _ending(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _sum_of(memory: mmap.mmap, at: int, coder: FixedPoint) -> Words:
    words: Words = np.frombuffer(memory, coder.dtype, coder.size, at * coder.size * coder.dtype.itemsize)
    return words


# --- in a worker


def _work(
    serial: SerialEngine, connection: Connection, others: list[Connection], memory: tuple[mmap.mmap, mmap.mmap, int]
) -> None:
    """A worker's life: until the other end of its pipe is gone, whatever became of that process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who asks
    for other in others:
        other.close()
    try:
        _serve(serial, connection, memory)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    except Exception as fault:
        _send(connection, Broken(type(fault).__name__, traceback.format_exc()))


def _serve(serial: SerialEngine, connection: Connection, memory: tuple[mmap.mmap, mmap.mmap, int]) -> None:
    broadcast, sums, at = memory
    while True:
        message: Header | list[str] = connection.recv()
        if isinstance(message, Header):
            apart = message.apart
            query = _query(message, broadcast)
            coder = FixedPoint(query.sealed_layout, message.sites, message.bits)
            total = _sum_of(sums, at, coder)
            continue
        done = Done([], [])
        for part in serial.each(query, coder, message):
            if part.words is None:
                done.faults.append(_told(part))
            elif apart:
                done.words.append((part.sites[0], part.words.tobytes()))
            else:
                total += part.words
        connection.send(done)


def _query(header: Header, broadcast: mmap.mmap) -> Query:
    tensors = {}
    for name, dtype, shape, at in header.tensors:
        tensors[name] = np.frombuffer(broadcast, dtype, math.prod(shape), at).reshape(shape)
    return replace(header.query, tensors=tensors)


def _told(part: Part) -> Fault:
    fault = part.fault
    assert fault is not None
    cause = "".join(traceback.format_exception(fault.__cause__)) if fault.__cause__ else ""
    return part.sites[0], fault, cause
