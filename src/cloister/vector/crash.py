"""Named points around every durable write, at which a test has the process kill itself.

    CLOISTER_CRASH_AT=coordinator.tx.save:before      SIGKILL before the write is durable
    CLOISTER_CRASH_AT=site.slot.survivors:after:2     SIGKILL once the second such write is, before anybody is told

Read once, where a command starts (`cli`). Unset, a point costs a comparison; set, it does to the process what any
user with the right to set it could do with `kill -9`. `tests/faults` enumerates the points and dies at each.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from cloister.vector.errors import UsageError

VARIABLE = "CLOISTER_CRASH_AT"
_FORM = re.compile(r"([a-z0-9._-]+):(before|after)(?::([1-9][0-9]*))?")
_armed: tuple[str, str] | None = None
_left = 0  # how often the point is still passed unharmed, plus one


def arm(wish: str) -> None:
    """Args: wish: the variable's value; "" for none. Raises: UsageError: it does not parse."""
    global _armed, _left
    if not wish:
        _armed = None
        return
    found = _FORM.fullmatch(wish)
    if found is None:
        raise UsageError(f"{VARIABLE}={wish!r} is no point.", mend="Write NAME:before or NAME:after, with :COUNT.")
    _armed, _left = (found[1], found[2]), int(found[3] or 1)


@contextmanager
def durable(name: str) -> Iterator[None]:
    """Around one durable write: what it ends with is on the disk. A write that fails passes no point "after"."""
    _pass(name, "before")
    yield
    _pass(name, "after")


def _pass(name: str, when: str) -> None:
    global _left
    if _armed is None or _armed != (name, when):
        return
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
