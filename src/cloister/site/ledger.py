"""The privacy ledger of a site: what every dataset has spent, whoever asked. One SQLite file, append-only.

A round is charged before it is answered: reserve, commit, be on the disk, then send. Nothing is ever given back,
neither for a void round nor for a crash between the charge and the answer. The ledger keeps privacy events, never an
epsilon: that is computed anew from all events of the dataset, over all jobs and coordinators, each time.

Rows are chained by their hashes. The journal notes each one's hash too, so that a ledger which was put back to an
older copy is noticed; if the whole folder was, the federation notices by the number of its charges that the site says
in its keys (`seal.charges`). Where a folder has several federations' agents beside each other, `ledger` in site.toml
shares one file.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloister.privacy.accounting import Event, epsilon, events_as_json, events_from_json
from cloister.vector import canonical, digest
from cloister.vector.crash import durable
from cloister.vector.errors import EnvironmentFailure, PolicyRefused, StorageFull

ZERO = bytes(32)
SCHEMA = """
CREATE TABLE IF NOT EXISTS charge (number INTEGER PRIMARY KEY, body BLOB NOT NULL, hash BLOB NOT NULL);
CREATE TRIGGER IF NOT EXISTS charge_once BEFORE UPDATE ON charge
    BEGIN SELECT RAISE(ABORT, 'a ledger only grows'); END;
CREATE TRIGGER IF NOT EXISTS charge_kept BEFORE DELETE ON charge
    BEGIN SELECT RAISE(ABORT, 'a ledger only grows'); END;
"""


@dataclass(frozen=True)
class Limit:
    """What a dataset may spend. line: of policy.toml, 0 if unknown."""

    epsilon: float
    delta: float
    rounds_a_day: int | None = None
    line: int = 0


@dataclass(frozen=True)
class Charge:
    """One answered round.

    Attributes:
      dataset: the key of the ledger, see `dataset_key`. name: as the job calls it.
      unit: whose presence the events are about: "rows", "sites" or "none".
      events: what the answer released; None: an exact sum, which no event bounds.
      run, round: hex id and number. job: digest, hex. federation: whose round it was.
      counts: how many of that federation's charges this one is: 1, or those that a restored ledger lacked.
      at: ISO 8601, UTC. number, hash: its place in the chain. All three are the ledger's own.
    """

    dataset: str
    name: str
    unit: str
    events: tuple[Event, ...] | None
    run: str
    round: int
    job: str
    federation: str = ""
    counts: int = 1
    at: str = ""
    number: int = 0
    hash: str = ""

    def body(self, number: int, at: str) -> bytes:
        events = None if self.events is None else events_as_json(self.events)
        told = {"number": number, "at": at, "dataset": self.dataset, "name": self.name, "unit": self.unit}
        told |= {"events": events, "run": self.run, "round": self.round, "job": self.job}
        return canonical({**told, "federation": self.federation, "counts": self.counts})


@dataclass(frozen=True)
class Spent:
    """A dataset's account. exact: rounds that were answered without noise. today: rounds of this UTC day."""

    dataset: str
    name: str
    rounds: int
    exact: int
    today: int
    events: tuple[Event, ...]

    def epsilon(self, delta: float) -> float:
        """Of all events together; exact rounds are not bounded by it."""
        return epsilon(self.events, delta)


def dataset_key(where: str, unit: str) -> str:
    """Names a dataset by what it is, so that it has one account under all its names. Args: where: file, or query."""
    return digest(canonical({"where": where, "unit": unit})).hex()


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Ledger:
    """Args: path: of the SQLite file, made if absent. now: the clock, ISO 8601 in UTC.

    Raises: StorageFull, EnvironmentFailure: by any call; a ledger that cannot be read or written answers no round.
    """

    def __init__(self, path: Path, now: Callable[[], str] = utc_now) -> None:
        self._path, self._now, self._lock = path, now, threading.Lock()
        self._known: list[Charge] = []  # read and checked before; the file only grows
        with self._translated():
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=60)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(SCHEMA)
            path.chmod(0o600)

    def close(self) -> None:
        self._db.close()

    def charge(self, wanted: Charge, limit: Limit | None) -> Charge:
        """Writes one answer down, on the disk when it returns. Only then may the answer be sent.

        Returns: the charge with its time and its place. Raises: PolicyRefused: it would overdraw the limit.
        """
        with self._lock, self._translated():
            self._db.execute("BEGIN IMMEDIATE")  # another agent on the same ledger waits here
            try:
                at, before = self._now(), self._entries()
                _within(wanted, limit, before, at)
                number, previous = len(before) + 1, bytes.fromhex(before[-1].hash) if before else ZERO
                body = wanted.body(number, at)
                chained = digest(previous + body)
                self._db.execute("INSERT INTO charge VALUES (?, ?, ?)", (number, body, chained))
                with durable("site.ledger"):
                    self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        return _read(number, body, chained)

    def require(self, wanted: Charge, limit: Limit | None) -> None:
        """The same question without writing, before work is spent on an answer. Raises: PolicyRefused."""
        _within(wanted, limit, self.entries(), self._now())

    def entries(self) -> list[Charge]:
        """Every charge, oldest first, checked against the chain. Raises: EnvironmentFailure: it was altered."""
        with self._lock, self._translated():
            return list(self._entries())

    def _entries(self) -> list[Charge]:
        known = self._known
        count, last = self._db.execute(
            "SELECT count(*), max(CASE WHEN number = ?1 THEN hash END) FROM charge WHERE number <= ?1", (len(known),)
        ).fetchone()
        if known and (count, last) != (len(known), bytes.fromhex(known[-1].hash)):
            self._read_on([])  # says where, if it was altered
            raise EnvironmentFailure(
                f"the ledger {self._path} lacks charges that it held before: an older copy was put in its place.",
                mend="Put the newest copy back, and start the site again.",
            )
        self._known = self._read_on(known)
        return self._known

    def _read_on(self, known: list[Charge]) -> list[Charge]:
        """`known` and what was added since. Raises: EnvironmentFailure: that does not follow."""
        question = "SELECT number, body, hash FROM charge WHERE number > ? ORDER BY number"
        rows, found = self._db.execute(question, (len(known),)).fetchall(), list(known)
        previous = bytes.fromhex(known[-1].hash) if known else ZERO
        for expected, (number, body, chained) in enumerate(rows, start=len(known) + 1):
            if number != expected or chained != digest(previous + body):
                raise EnvironmentFailure(
                    f"the ledger {self._path} is broken at entry {expected}: it was altered.",
                    mend="Compare it with a backup before this site answers again.",
                )
            previous = chained
            found.append(_read(number, body, chained))
        return found

    def head(self) -> str:
        """The hash of the newest charge, hex; 64 zeros before the first."""
        entries = self.entries()
        return entries[-1].hash if entries else ZERO.hex()

    def charges(self, federation: str) -> int:
        """How many rounds of this federation were paid, those included that are known by their number alone."""
        return sum(each.counts for each in self.entries() if each.federation == federation)

    def holds(self, hash: str) -> bool:
        """Whether a charge with this hash is in the ledger: if it was and is not, the ledger was put back."""
        return hash == ZERO.hex() or any(each.hash == hash for each in self.entries())

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as fault:
            if fault.sqlite_errorname == "SQLITE_FULL":
                raise StorageFull(f"no room is left for {self._path}.", mend="Free some space.") from None
            raise EnvironmentFailure(f"the ledger {self._path} cannot be used: {fault}.") from None


def accounts(entries: Sequence[Charge], today: str = "") -> list[Spent]:
    """What each dataset has spent, by name. Args: today: ISO 8601, of which day rounds are counted."""
    found: dict[str, list[Charge]] = {}
    for each in entries:
        found.setdefault(each.dataset, []).append(each)
    spent = []
    for dataset, charges in found.items():
        events = tuple(event for each in charges for event in each.events or ())
        exact = sum(each.events is None for each in charges)
        day = sum(each.at[:10] == today[:10] for each in charges)
        spent.append(Spent(dataset, charges[-1].name, len(charges), exact, day, events))
    return sorted(spent, key=lambda account: account.name)


def _within(wanted: Charge, limit: Limit | None, entries: Sequence[Charge], at: str) -> None:
    """Raises: PolicyRefused: names the rule of the policy, what is spent and what would be."""
    if limit is None:
        return
    rule, line = f"budget.{wanted.name}", f"policy.toml, line {limit.line}" if limit.line else "policy.toml"
    if wanted.events is None:
        raise PolicyRefused(
            f"{wanted.name!r} has a privacy budget, the job has no differential privacy ({rule}; {line}).",
            rule=rule,
            mend="Add privacy=cl.RowDP(...) to the job, say.",
        )
    mine = [each for each in entries if each.dataset == wanted.dataset]
    today = sum(each.at[:10] == at[:10] for each in mine)
    if limit.rounds_a_day is not None and today >= limit.rounds_a_day:
        raise PolicyRefused(
            f"{wanted.name!r} has answered {today} rounds today, {limit.rounds_a_day} are allowed"
            f" ({rule}.rounds_a_day; {line}).",
            rule=f"{rule}.rounds_a_day",
            mend="Go on tomorrow (UTC).",
        )
    spent = [event for each in mine for event in each.events or ()]
    after = epsilon([*spent, *wanted.events], limit.delta) if wanted.events else 0.0
    if after > limit.epsilon:
        raise PolicyRefused(
            f"the budget of {wanted.name!r} is epsilon {limit.epsilon:g} at delta {limit.delta:g};"
            f" {epsilon(spent, limit.delta):.3g} is spent, this round would make it {after:.3g} ({rule}; {line}).",
            rule=rule,
            mend="A job with more noise or fewer rounds may fit; what is spent never comes back.",
        )


def _read(number: int, body: bytes, chained: bytes) -> Charge:
    """Raises: EnvironmentFailure: a body that this version did not write."""
    try:
        data: dict[str, Any] = json.loads(body)
        events = None if data["events"] is None else tuple(events_from_json(data["events"]))
        told = {key: data[key] for key in ("dataset", "name", "unit", "run", "round", "job", "at", "number")}
        of, counts = data.get("federation", ""), data.get("counts", 1)  # the first ledgers did not say
        return Charge(events=events, hash=chained.hex(), federation=of, counts=counts, **told)
    except (ValueError, KeyError, TypeError, RecursionError) as fault:
        raise EnvironmentFailure(f"entry {number} of the ledger does not parse: {type(fault).__name__}.") from None
