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

    Look, then make the waiter, with no `await` in between: then nothing is missed.
    """

    def __init__(self) -> None:
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self.closing = False

    def notify(self, topics: Iterable[str]) -> None:
        for topic in topics:
            for waiter in self._waiters.pop(topic, ()):
                if not waiter.done():
                    waiter.set_result(None)

    def close(self) -> None:
        """Wakes everybody, for good: the process is about to end."""
        self.closing = True
        self.notify(list(self._waiters))

    def waiter(self, topics: Iterable[str]) -> asyncio.Future[None]:
        """Done once one of the topics is touched. Cancel it when it is not needed any more."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waited = list(topics)
        for topic in waited:
            self._waiters.setdefault(topic, set()).add(waiter)
        waiter.add_done_callback(lambda done: self._forget(waited, done))
        if self.closing:
            waiter.set_result(None)
        return waiter

    def _forget(self, topics: list[str], waiter: asyncio.Future[None]) -> None:
        for topic in topics:
            if (waiters := self._waiters.get(topic)) is not None:
                waiters.discard(waiter)
                if not waiters:
                    del self._waiters[topic]

    async def wait(self, topics: Iterable[str], seconds: float) -> None:
        """Until one of the topics is touched, or `seconds` have passed."""
        waiter = self.waiter(topics)
        try:
            await asyncio.wait([waiter], timeout=None if seconds == float("inf") else max(seconds, 0.0))
        finally:
            waiter.cancel()


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
