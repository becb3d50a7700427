"""The engine of many processes: every core computes contributions and adds them up in memory that all share.

    this process                                 each worker (forked: it has the data, the job and its code already)
    model into shared memory
    tickets into a pipe for each worker   ->     takes one when it is free: some sites, and fewer towards the end;
                                                 where its own are used up, another's
    Header, once                          ->     contributions, added to its own sum, until no ticket is left
                                          <-     Done, once: whose they are; who has no answer, and why
    adds up the workers' sums

Nobody hands out work while it is done: a ticket is one read of eight bytes. A site is at home with one worker, which
has its data prepared from the last time; the largest come first, so that none waits long at the end of a round. A
worker that is killed loses its sum, and another takes its place; sites that are in nobody's sum when the tickets are
used up are dealt out again.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import multiprocessing
import os
import signal
import struct
import threading
import traceback
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.learn.together import at_once
from cloister.simulation.engine import Part, SerialEngine
from cloister.vector import FixedPoint, Query
from cloister.vector.errors import DataError, TaskError, UsageError, WorkerDied
from cloister.vector.layout import Words

TICKET = struct.Struct("<II")  # sites of the header's list, from and up to: read as a whole or not at all
MOST_TICKETS = 4096  # what any system's pipe holds; what is not dealt is dealt next
SHARES = 4  # into how many parts what a worker has left is cut: stealing costs little, waiting more
ALIGNED = 64  # bytes: tensors start where torch's own would
MOST_DEATHS, MOST_DEATHS_ELSEWHERE = 2, 10  # of workers in one sum: at one site; between sites

Fault = tuple[str, TaskError | DataError, str]  # site, why, and the traceback of the job's own code


@dataclass(frozen=True)
class Header:
    """A query without its tensors, and where they lie in the shared memory: name, dtype, shape, offset."""

    query: Query
    tensors: list[tuple[str, str, tuple[int, ...], int]]
    coded_sites: int
    bits: int
    apart: bool
    sites: list[str]


@dataclass(frozen=True)
class Done:
    """Whose contributions a worker's sum holds now, who has none, and whether it found no ticket any more.

    Attributes: words: the contribution itself, of one site, where they are kept apart.
    """

    sites: list[str]
    faults: list[Fault]
    words: bytes | None = None
    last: bool = True


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
    """Attributes: summed: sites that it has reported, whose contributions are in its sum (or have none)."""

    process: Any
    connection: Connection
    summed: set[str] = field(default_factory=set)


class Shared:
    """What this process and its workers all have: memory fixed before they are forked, and the pipes of tickets.

    Args: workers: how many. broadcast_bytes: of a query's tensors. sum_bytes: of one worker's sum.
    Attributes: hands: int32[workers]: which of the header's sites a worker is at, counted from 1; 0: none.
    """

    def __init__(self, workers: int, broadcast_bytes: int, sum_bytes: int) -> None:
        self.broadcast = mmap.mmap(-1, max(broadcast_bytes, 1))
        self._sums, self._sum_bytes = mmap.mmap(-1, max(workers * sum_bytes, 1)), sum_bytes
        self.hands: npt.NDArray[np.int32] = np.frombuffer(mmap.mmap(-1, 4 * workers), np.int32)
        self._pipes = [os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) for _ in range(workers)]

    def fits(self, broadcast_bytes: int, sum_bytes: int) -> bool:
        return broadcast_bytes <= len(self.broadcast) and sum_bytes <= self._sum_bytes

    def sum_of(self, at: int, coder: FixedPoint) -> Words:
        words: Words = np.frombuffer(self._sums, coder.dtype, coder.size, at * self._sum_bytes)
        return words

    def deal(self, at: int, tickets: list[tuple[int, int]]) -> None:
        os.write(self._pipes[at][1], b"".join(TICKET.pack(*ticket) for ticket in tickets[:MOST_TICKETS]))

    def take(self, at: int) -> tuple[int, int] | None:
        """The worker's own next ticket, or the next one's that has any left; None: nobody has."""
        for readable, _ in self._pipes[at:] + self._pipes[:at]:
            with contextlib.suppress(BlockingIOError):
                start, stop = TICKET.unpack(os.read(readable, TICKET.size))
                return start, stop
        return None

    def close(self) -> None:
        for ends in self._pipes:
            for end in ends:
                os.close(end)


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
        self._shared: Shared | None = None

    # --- one sum

    def parts(self, query: Query, coder: FixedPoint, sites: Sequence[str], *, apart: bool) -> Iterator[Part]:
        try:
            yield from self._parts(query, coder, sites, apart)
        except BaseException:  # left in the middle: workers would go on adding to a sum that nobody wants
            self.close()
            raise

    def _parts(self, query: Query, coder: FixedPoint, sites: Sequence[str], apart: bool) -> Iterator[Part]:
        shared, header = self._begin(query, coder, apart)
        missing = self._by_size(sites)
        faults: dict[str, Fault] = {}
        deaths: Counter[str] = Counter()
        while missing:
            answered: set[str] = set()
            for done in self._deal(shared, replace(header, sites=missing), coder, deaths):
                faults.update({fault[0]: fault for fault in done.faults})
                if done.words is not None:
                    yield Part(done.sites, np.frombuffer(done.words, coder.dtype).copy())
                if apart:  # it is out of the worker's hands
                    answered.update(done.sites)
            if apart:
                missing = [site for site in missing if site not in answered]
            else:
                answered.update(*(worker.summed for worker in self._workers))
                missing = [site for site in self._by_size(sites) if site not in answered]
        for site, fault, told in faults.values():
            if told:
                fault.__cause__ = Remote(told)
            yield Part((site,), None, fault)
        summed = [site for site in sites if site not in faults]
        if summed and not apart:
            total = shared.sum_of(0, coder)
            for at in range(1, self._count):
                total += shared.sum_of(at, coder)
            yield Part(summed, total)  # good until the next sum begins: whoever takes it adds it up at once

    def _begin(self, query: Query, coder: FixedPoint, apart: bool) -> tuple[Shared, Header]:
        """The query's tensors into shared memory, empty sums, and workers if there are none that could use them."""
        tensors, end = [], 0
        for name, array in query.tensors.items():
            tensors.append((name, array.dtype.str, array.shape, end))
            end += -(-array.nbytes // ALIGNED) * ALIGNED
        sum_bytes = -(-coder.size * coder.dtype.itemsize // ALIGNED) * ALIGNED
        shared = self._shared
        if shared is None or not shared.fits(end, sum_bytes):
            self.close()
            self._shared = shared = Shared(self._count, end, sum_bytes)
            for at in range(self._count):
                self._workers.append(self._start(at, shared))
        for (_, dtype, shape, start), array in zip(tensors, query.tensors.values(), strict=True):
            np.frombuffer(shared.broadcast, dtype, math.prod(shape), start).reshape(shape)[...] = array
        for at, worker in enumerate(self._workers):
            shared.sum_of(at, coder)[...] = 0
            worker.summed.clear()
        return shared, Header(replace(query, tensors={}), tensors, coder.sites, coder.bits, apart, [])

    def _deal(self, shared: Shared, header: Header, coder: FixedPoint, deaths: Counter[str]) -> Iterator[Done]:
        """Has the header's sites computed, except those that a worker had when it was killed."""
        together = at_once(self._serial.job, header.query)
        homes = self._homes(header.sites, even=together > 1)
        header, begin = replace(header, sites=[site for home in homes for site in home]), 0
        for at, home in enumerate(homes):
            # whose fault a death was shows when each is alone
            tickets = [(one, one + 1) for one in range(len(home))] if deaths else self._tickets(home, together)
            shared.deal(at, [(begin + start, begin + stop) for start, stop in tickets])
            begin += len(home)
        told = ForkingPickler.dumps(header)
        for worker in self._workers:
            _send(worker.connection, told)
        waiting = list(self._workers)
        while waiting:
            ready = wait([each for worker in waiting for each in (worker.connection, worker.process.sentinel)])
            for worker in list(waiting):
                done: Done | Broken | None = None
                if worker.connection in ready:
                    done = _received(worker.connection)
                elif worker.process.sentinel not in ready:
                    continue
                if isinstance(done, Broken):
                    raise WorkerDied(f"a training process failed with {done.kind}.") from Remote(done.told)
                if done is None:
                    waiting[waiting.index(worker)] = self._replace(worker, shared, header, coder, deaths)
                    continue
                worker.summed.update(done.sites)
                if done.last:
                    waiting.remove(worker)
                yield done

    def _rows(self, site: str) -> int:
        """Of a site, where the data tell before they are loaded; else all are alike."""
        rows = getattr(self._serial.data, "rows", None)
        return rows(site) if rows else 1

    def _by_size(self, sites: Sequence[str]) -> list[str]:
        """The largest first."""
        return sorted(sites, key=self._rows, reverse=True)

    def _homes(self, sites: Sequence[str], *, even: bool) -> list[list[str]]:
        """Each worker's sites, always the same; where it is to be even, others take what one has too many."""
        homes: list[list[str]] = [[] for _ in range(self._count)]
        load, spare, fair = [0] * self._count, list[str](), sum(map(self._rows, sites)) / self._count

        def give(site: str, at: int) -> None:
            homes[at].append(site)
            load[at] += self._rows(site)

        for site in sites:
            at = zlib.crc32(site.encode()) % self._count
            if even and load[at] and load[at] + self._rows(site) > fair:
                spare.append(site)
            else:
                give(site, at)
        for site in spare:
            give(site, load.index(min(load)))
        return homes

    def _tickets(self, sites: Sequence[str], together: int) -> list[tuple[int, int]]:
        """By rows, a fraction of what is left: guided self-scheduling (Polychronopoulos, Kuck 1987).

        Args: together: so many sites cost less in one ticket than in several.
        """
        sizes = [self._rows(site) for site in sites]
        tickets, start, left = [], 0, sum(sizes)
        while start < len(sites):
            stop, taken = start + 1, sizes[start]
            while stop < len(sites) and (stop - start < together or taken + sizes[stop] <= left / SHARES):
                taken += sizes[stop]
                stop += 1
            tickets.append((start, stop))
            start, left = stop, left - taken
        return tickets

    # --- workers

    def _start(self, at: int, shared: Shared) -> Worker:
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        others = [worker.connection for worker in self._workers] + [here]
        process = context.Process(target=_work, args=(self._serial, there, others, shared, at), daemon=True)
        with _interrupts_held():
            process.start()
        there.close()
        return Worker(process, here)

    def _replace(
        self, worker: Worker, shared: Shared, header: Header, coder: FixedPoint, deaths: Counter[str]
    ) -> Worker:
        """Another in the place of one that was killed, with an empty sum; it takes tickets as all do."""
        at = self._workers.index(worker)
        worker.process.join()
        hand = int(shared.hands[at])
        site = header.sites[hand - 1] if hand else ""
        deaths[site] += 1
        if deaths[site] == (MOST_DEATHS if site else MOST_DEATHS_ELSEWHERE):
            raise WorkerDied(
                f"a training process was killed {'twice' if site else 'again and again'}"
                f"{' at this site' if site else ''} ({_ending(worker.process.exitcode)}).",
                mend="Give it more memory: fewer processes, smaller batches.",
                site=site,
            )
        worker.connection.close()
        shared.sum_of(at, coder)[...] = 0
        shared.hands[at] = 0
        self._workers.remove(worker)
        self._workers.insert(at, self._start(at, shared))
        _send(self._workers[at].connection, ForkingPickler.dumps(header))
        return self._workers[at]

    def close(self) -> None:
        for worker in self._workers:
            worker.connection.close()
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()
        self._workers = []
        if self._shared is not None:
            self._shared.close()
            self._shared = None


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


def _send(connection: Connection, message: Any) -> None:
    """Args: message: pickled."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died; whoever waits for it will see
        connection.send_bytes(message)


def _ending(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


# --- in a worker


def _work(serial: SerialEngine, connection: Connection, others: list[Connection], shared: Shared, at: int) -> None:
    """A worker's life: until the other end of its pipe is gone, whatever became of that process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who asks
    if hasattr(os, "SCHED_BATCH"):  # woken, it lets the one who asks wake the others too, whatever core that is on
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    for other in others:
        other.close()
    try:
        while True:
            header: Header = connection.recv()
            for done in _computed(serial, header, shared, at):
                connection.send(done)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    except Exception as fault:
        _send(connection, ForkingPickler.dumps(Broken(type(fault).__name__, traceback.format_exc())))


def _computed(serial: SerialEngine, header: Header, shared: Shared, at: int) -> Iterator[Done]:
    """What there are tickets for: each contribution by itself where they are kept apart, else one report of all."""
    query = _query(header, shared.broadcast)
    coder = FixedPoint(query.sealed_layout, header.coded_sites, header.bits)
    total, summed, faults = shared.sum_of(at, coder), list[str](), list[Fault]()
    while ticket := shared.take(at):
        each = serial.each(query, coder, header.sites[slice(*ticket)])
        for place in range(*ticket):
            shared.hands[at] = place + 1
            part = next(each)
            if part.words is not None and header.apart:
                yield Done(list(part.sites), [], part.words.tobytes(), last=False)
                continue
            if part.words is None:
                faults.append(_told(part))
            else:
                total += part.words
            summed += part.sites
        shared.hands[at] = 0
    yield Done(summed, faults)


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
