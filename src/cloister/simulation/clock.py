"""A virtual clock for asynchronous runs: which sites are ready first, and how old the models are that they trained.

A part of the sites trains at any time. One that is ready waits for its sum, and another that idles starts in its
place, from the newest model. As soon as `buffer` are ready their sum opens, and the model has a new version. A site
is in a sum once at most. No clock is read: how long a site takes follows from its rows and the seed
(`stragglers.Pace`), so a run repeats to the bit on any engine, and goes on after an interruption.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cloister.algorithms import FedBuff
from cloister.simulation.stragglers import Pace
from cloister.vector import canonical
from cloister.vector.errors import UsageError


@dataclass(frozen=True)
class Arrivals:
    """One buffer. Attributes: staleness: of each site in it, in versions. time: when it was full."""

    staleness: Mapping[str, int]
    time: float


class Clock:
    """Args: sites: of the federation. seed: of who starts when.
    Raises: UsageError: the buffer holds more than all sites.
    """

    def __init__(self, algorithm: FedBuff, sites: Sequence[str], seed: int, pace: Pace) -> None:
        if algorithm.buffer > len(sites):
            raise UsageError(
                f"a buffer of {algorithm.buffer} sites is never full: there are {len(sites)}.",
                mend=f"FedBuff(buffer={len(sites)}) or fewer.",
            )
        self._algorithm, self._sites, self._seed, self._pace = algorithm, sorted(sites), seed, pace
        self._concurrency = max(1, round(algorithm.cohort * len(sites)))
        self._begin()

    def arrivals(self, version: int) -> Arrivals:
        """Whose updates make version + 1 of the model. Versions are asked for in order, any of them again."""
        if version < self._version - 1:
            self._begin()
        while self._version <= version:
            self._last = self._fill()
        return self._last

    def _begin(self) -> None:
        self._version, self._started, self._now = 0, 0, 0.0
        self._idle = list(self._sites)
        self._training: list[tuple[float, str, int]] = []  # a heap: when it is ready, site, version
        self._start()

    def _start(self) -> None:
        """Sites that idle start, as many as there is room for."""
        while self._idle and len(self._training) < self._concurrency:
            self._started += 1
            drawn = int.from_bytes(hashlib.sha256(canonical([self._seed, self._started, "start"])).digest(), "big")
            at = drawn % len(self._idle)
            self._idle[at], self._idle[-1] = self._idle[-1], self._idle[at]
            site = self._idle.pop()
            ready = self._now + self._pace.time(site, self._version, self._started)
            heapq.heappush(self._training, (ready, site, self._version))

    def _fill(self) -> Arrivals:
        buffer: dict[str, int] = {}
        while len(buffer) < self._algorithm.buffer:
            self._now, site, version = heapq.heappop(self._training)
            if self._version - version <= self._algorithm.max_staleness:
                buffer[site] = self._version - version
            else:
                self._idle.append(site)
            self._start()
        self._version += 1
        self._idle += buffer
        self._start()
        return Arrivals(buffer, self._now)
