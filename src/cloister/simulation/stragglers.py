"""Stragglers: sites that answer after the deadline of a round, which turns them into dropouts; and sites that are not
there when a round begins, so that its cohort is drawn from the others.

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

from cloister.seal.threshold import MIN_SITES
from cloister.vector import canonical
from cloister.vector.errors import RoundVoid, UsageError

SPREAD = 0.5  # deviation of the logarithm of a site's slowness: one of twenty takes 2.3 times the median or longer
MOST_WAITS = 1000  # draws of who is there, before a round is given up
JITTER = 0.15  # the same of one round


def nobody(sites: Sequence[str], step: int, attempt: int) -> Collection[str]:
    return ()


def everybody(sites: Sequence[str], step: int) -> Sequence[str]:
    return sites


def _drawn(what: Sequence[Any]) -> int:
    """48 bits that follow from this."""
    return int.from_bytes(hashlib.sha256(canonical(what)).digest()[:6], "big")


class Availability:
    """Args: chance: with which a site is there when a round of training begins, or of each site, by name; others are.
    Raises: UsageError: no chance, or an unknown site.
    """

    def __init__(self, chance: float | Mapping[str, float], seed: int, sites: Collection[str]) -> None:
        self._chance, self._seed = chance, seed
        given = chance if isinstance(chance, Mapping) else {"": chance}
        if unknown := sorted(set(given) - set(sites) - {""}):
            known = ", ".join(sorted(sites)[:20])
            raise UsageError(f"availability names {unknown[0]!r}.", mend=f"The sites are: {known}.")
        if not all(isinstance(each, int | float) and 0.0 < each <= 1.0 for each in given.values()):
            raise UsageError(f"availability={chance!r} is no chance above 0.", mend="Try availability=0.6.")

    def there(self, sites: Sequence[str], step: int) -> list[str]:
        """Of these sites. Until three are there nobody begins, so there are three wherever so many can be."""
        for attempt in range(MOST_WAITS):
            found = [site for site in sites if self._draw(site, step, attempt) < self._of(site)]
            if len(found) >= min(MIN_SITES, len(sites)):
                return found
        raise RoundVoid(
            f"in step {step} fewer than {MIN_SITES} sites are there at a time.", mend="More availability."
        )

    def _of(self, site: str) -> float:
        return self._chance.get(site, 1.0) if isinstance(self._chance, Mapping) else self._chance

    def _draw(self, site: str, step: int, attempt: int) -> float:
        return _drawn([self._seed, "there", site, step, attempt]) / 2**48


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
        return NormalDist().inv_cdf((_drawn([self._seed, "slowness", *what]) + 0.5) / 2**48)


class Deadline:
    """Args: deadline: of a round of training, in multiples of the time of its median site. seed, data: as `Pace`.
    Raises: UsageError: a deadline that is not positive.
    """

    def __init__(self, deadline: float, seed: int, data: Mapping[str, Any]) -> None:
        if not isinstance(deadline, int | float) or not 0.0 < deadline < math.inf:
            raise UsageError(f"deadline={deadline!r} is not positive.", mend="Try deadline=2, twice the median.")
        self._deadline, self._pace = deadline, Pace(seed, data)

    def late(self, sites: Sequence[str], step: int, attempt: int) -> Collection[str]:
        """Which of a round's sites are too late. Args: attempt: a round that was void is opened again."""
        times = {site: self._pace.time(site, step, attempt) for site in sites}
        limit = self._deadline * median(times.values())
        return {site for site, time in times.items() if time > limit}
