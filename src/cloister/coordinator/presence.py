"""Who is there, how much went over the wire, and how waiters are woken: the coordinator's volatile knowledge."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from cloister.wire.api import GRACE_SECONDS


class Signals:
    """Wakes whoever waits for a topic: "mail/SITE", "events/RUN", "run/RUN", "presence". For the event loop only.

    Look, then wait, with no other `await` in between: then nothing is missed.
    """

    def __init__(self) -> None:
        self._waiters: dict[str, set[asyncio.Event]] = {}
        self.closing = False

    def notify(self, topics: Iterable[str]) -> None:
        for topic in topics:
            for event in self._waiters.get(topic, ()):
                event.set()

    def close(self) -> None:
        """Wakes everybody, for good: the process is about to end."""
        self.closing = True
        self.notify(list(self._waiters))

    async def wait(self, topics: Iterable[str], seconds: float) -> None:
        """Until one of the topics is touched, or `seconds` have passed."""
        if self.closing or seconds <= 0:
            return
        event, waited = asyncio.Event(), list(topics)
        for topic in waited:
            self._waiters.setdefault(topic, set()).add(event)
        try:
            async with asyncio.timeout(None if seconds == float("inf") else seconds):
                await event.wait()
        except TimeoutError:
            pass
        finally:
            for topic in waited:
                self._waiters[topic].discard(event)
                if not self._waiters[topic]:
                    del self._waiters[topic]


class Presence:
    """A site is there while it polls, and for a grace after its last sign of life.

    A killed process closes its connection, which is noticed at once; the grace lets an honest one reconnect.

    Args: signals: "presence" is touched whenever a poll begins or ends.
    """

    def __init__(self, signals: Signals, grace_seconds: float = GRACE_SECONDS) -> None:
        self._signals, self._grace = signals, grace_seconds
        self._polls: Counter[str] = Counter()
        self._until: dict[str, float] = {}

    def heard(self, site: str, extra_seconds: float = 0.0) -> None:
        """The site gave a sign of life. Args: extra_seconds: of grace, after a restart of the coordinator."""
        until = time.monotonic() + self._grace + extra_seconds
        self._until[site] = max(until, self._until.get(site, 0.0))

    @contextmanager
    def polling(self, site: str) -> Iterator[None]:
        self._polls[site] += 1
        self._signals.notify(["presence"])
        try:
            yield
        finally:
            self._polls[site] -= 1
            self.heard(site)
            self._signals.notify(["presence"])

    def until(self, site: str) -> float:
        """When the site stops being there unless it is heard of again, by time.monotonic(); inf while it polls."""
        return float("inf") if self._polls[site] > 0 else self._until.get(site, 0.0)

    def is_live(self, site: str) -> bool:
        return self.until(site) > time.monotonic()


class Traffic:
    """Bytes of bodies from and to each member since the process began."""

    def __init__(self) -> None:
        self.up: Counter[str] = Counter()
        self.down: Counter[str] = Counter()

    def snapshot(self) -> tuple[Counter[str], Counter[str]]:
        return Counter(self.up), Counter(self.down)
