"""Stragglers: sites that answer after the deadline of a round, which turns them into dropouts.

A site takes as long as its rows take it: rows times a slowness of its own, log-normal over the sites, times one of
the round's. The deadline is counted in the median of the round's sites. No clock is read: who is late follows from
the job's seed, so a run repeats to the bit, on any machine and with any engine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from statistics import NormalDist, median
from typing import Any

from cloister.vector import canonical
from cloister.vector.errors import UsageError

SPREAD = 0.5  # deviation of the logarithm of a site's slowness: one of twenty takes 2.3 times the median or longer
JITTER = 0.15  # the same of one round


def nobody(sites: Sequence[str], step: int, attempt: int) -> Collection[str]:
    return ()


class Pace:
    """How long a site trains, in units of a row.

    Args: data: of the sites by name; a mapping that does not tell rows without loading them has equal sites.
    """

    def __init__(self, seed: int, data: Mapping[str, Any]) -> None:
        self._seed, self._data = seed, data

    def time(self, site: str, step: int, attempt: int) -> float:
        return self._rows(site) * self._slowness(site, step, attempt)

    def _rows(self, site: str) -> float:
        if hasattr(self._data, "rows"):
            return float(self._data.rows(site))
        if not isinstance(self._data, dict):
            return 1.0
        held = self._data[site]
        return float(len(held[0] if isinstance(held, tuple) else held))

    def _slowness(self, site: str, step: int, attempt: int) -> float:
        return math.exp(SPREAD * self._normal([site]) + JITTER * self._normal([site, step, attempt]))

    def _normal(self, what: Sequence[Any]) -> float:
        drawn = hashlib.sha256(canonical([self._seed, "slowness", *what])).digest()
        return NormalDist().inv_cdf((int.from_bytes(drawn[:6], "big") + 0.5) / 2**48)


class Deadline:
    """Args: deadline: of a round of training, in multiples of the time of its median site. seed, data: as `Pace`.
    Raises: UsageError: a deadline that is not positive.
    """

    def __init__(self, deadline: float, seed: int, data: Mapping[str, Any]) -> None:
        if not 0.0 < deadline < math.inf:
            raise UsageError(f"deadline={deadline} is no positive number.", mend="Try deadline=2, twice the median.")
        self._deadline, self._pace = deadline, Pace(seed, data)

    def late(self, sites: Sequence[str], step: int, attempt: int) -> Collection[str]:
        """Which of a round's sites are too late. Args: attempt: a round that was void is opened again."""
        times = {site: self._pace.time(site, step, attempt) for site in sites}
        limit = self._deadline * median(times.values())
        return {site for site, time in times.items() if time > limit}
