"""The site's memory: what it has promised, said and refused. One SQLite file, durable before a call returns.

    slot        write-once values: one context per round, one survivor set per round for ever (protocol 2.2, 2.4)
    log         append-only and hash-chained: everything asked, answered, refused and approved
    receipt     verified receipts, one chain per run; place: in the coordinator's log, once it has proven that
    head        the newest head of that log that this site has verified
    counter     the sequence number of the last envelope, how far the mailbox was read, and of each site's key the
                least number that it may say for a charge of its ledger (`seal.charges`)

Promises and receipts are on the disk when the call returns (synchronous=FULL), so a site that is killed at any moment
signs nothing twice. The log is safe from a kill at once, and from a power failure with the next promise. Triggers
refuse to alter or delete slots and log entries.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from cloister.vector.bundle import canonical, digest
from cloister.vector.crash import durable
from cloister.vector.errors import (
    EnvironmentFailure,
    PeerError,
    RoundReplayed,
    StaleReceipt,
    StorageFull,
    SurvivorSetConflict,
)

VERSION = 2
ZERO = bytes(32)
SEQUENCE_BLOCK = 256  # numbers reserved by one write; a restart skips what is left of the block
Synchronous = Literal["FULL", "NORMAL"]  # NORMAL: written, and on the disk with the next FULL transaction (WAL)
SLOTS: dict[str, type[PeerError]] = {  # by the word that says what a slot guards: the refusal of a second value
    "distrust": RoundReplayed,
    "notice": RoundReplayed,
    "open": RoundReplayed,
    "survivors": SurvivorSetConflict,
    "unmask": RoundReplayed,
}
COUNTERS = ("charges", "mailbox", "rounds", "sequence")
SCHEMA = """
CREATE TABLE slot (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE log (number INTEGER PRIMARY KEY, body BLOB NOT NULL, hash BLOB NOT NULL);
CREATE TABLE receipt (
    run BLOB NOT NULL, round INTEGER NOT NULL, digest BLOB NOT NULL, body BLOB NOT NULL, PRIMARY KEY (run, round)
) WITHOUT ROWID;
CREATE TRIGGER slot_once BEFORE UPDATE ON slot BEGIN SELECT RAISE(ABORT, 'a slot is written once'); END;
CREATE TRIGGER slot_kept BEFORE DELETE ON slot BEGIN SELECT RAISE(ABORT, 'a slot is kept'); END;
CREATE TRIGGER log_once BEFORE UPDATE ON log BEGIN SELECT RAISE(ABORT, 'the log only grows'); END;
CREATE TRIGGER log_kept BEFORE DELETE ON log BEGIN SELECT RAISE(ABORT, 'the log only grows'); END;
"""
SECOND = """
ALTER TABLE receipt ADD COLUMN place INTEGER;
UPDATE receipt SET place = -1;
CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), note BLOB NOT NULL);
"""
STEPS = (SCHEMA, SECOND)  # from each version to the next


@dataclass(frozen=True)
class Entry:
    """One line of the log. Attributes: at: ISO 8601, UTC. kind: what happened. facts: JSON, no data values."""

    number: int
    at: str
    kind: str
    facts: dict[str, Any]


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Journal:
    """Args: path: of the SQLite file, made if absent. now: the clock, ISO 8601.

    Raises: StorageFull: by any call that writes, when the disk is full. EnvironmentFailure: an unreadable file.
    """

    def __init__(self, path: Path, now: Callable[[], str] = _utc_now) -> None:
        self._path, self._now = path, now
        self._lock = threading.Lock()  # masking runs in a thread beside the event loop
        self._next_sequence = self._reserved = 0
        with self._translated():
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
            self._db.execute("PRAGMA journal_mode = WAL")
            path.chmod(0o600)
        with self._transaction("made"):
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found > VERSION:
                raise EnvironmentFailure(
                    f"the journal {path} was written by a newer cloister.", mend="Run that version, or a newer one."
                )
            for step in STEPS[found:]:
                for statement in step.strip().split(";\n"):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {VERSION}")

    def close(self) -> None:
        self._db.close()

    # --- write-once slots: the port `seal.Journal` ---

    def once(self, slot: str, value: bytes) -> None:
        """Writes `value` into `slot` for ever; on the disk before it returns. The same value again is a no-op.

        Raises: SurvivorSetConflict, RoundReplayed: the slot holds another value.
        """
        with self._transaction(f"slot.{guarded(slot)}"):
            self._db.execute("INSERT INTO slot VALUES (?, ?) ON CONFLICT (name) DO NOTHING", (slot, value))
            held = self._db.execute("SELECT value FROM slot WHERE name = ?", (slot,)).fetchone()[0]
        if held != value:
            raise SLOTS[guarded(slot)](
                f"{slot}: this site has already answered, and differently; it never answers twice.",
                mend="Nothing was sent. The round goes on without this site.",
            )

    def held(self, slot: str) -> bytes | None:
        """What `slot` holds, if anything."""
        row = self._read("SELECT value FROM slot WHERE name = ?", slot)
        return None if row is None else bytes(row[0])

    # --- the log ---

    def log(self, kind: str, **facts: Any) -> None:
        """Appends one entry. `facts` are JSON values and never a data value of a row."""
        with self._transaction(f"log.{kind}", "NORMAL"):
            last = self._db.execute("SELECT number, hash FROM log ORDER BY number DESC LIMIT 1").fetchone()
            number, previous = (last[0] + 1, last[1]) if last else (1, ZERO)
            body = canonical({"number": number, "at": self._now(), "kind": kind, "facts": facts})
            self._db.execute("INSERT INTO log VALUES (?, ?, ?)", (number, body, digest(previous + body)))

    def entries(self, kind: str | None = None) -> Iterator[Entry]:
        """The log, oldest first, each entry checked against the hash chain.

        Raises: EnvironmentFailure: an entry was altered or removed outside the journal.
        """
        with self._lock, self._translated():
            rows = self._db.execute("SELECT number, body, hash FROM log ORDER BY number").fetchall()
        previous = ZERO
        for expected, (number, body, chained) in enumerate(rows, start=1):
            whole = isinstance(body, bytes) and number == expected and chained == digest(previous + body)
            if not whole:
                raise EnvironmentFailure(
                    f"the log of {self._path} is broken at entry {expected}: it was altered.",
                    mend="Compare it with a backup before this site runs again.",
                )
            previous = chained
            fields = json.loads(body)
            if kind is None or fields["kind"] == kind:
                yield Entry(number, fields["at"], fields["kind"], fields["facts"])

    # --- receipts ---

    def add_receipt(self, run: bytes, round_number: int, name: bytes, body: bytes) -> None:
        """Keeps one verified receipt. Raises: StaleReceipt: another one is held for that round."""
        with self._transaction("receipt"):
            self._db.execute(
                "INSERT INTO receipt (run, round, digest, body) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (run, round_number, name, body),
            )
            held = self._db.execute(
                "SELECT digest FROM receipt WHERE run = ? AND round = ?", (run, round_number)
            ).fetchone()[0]
        if held != name:
            raise StaleReceipt(f"round {round_number} has two different receipts.")

    def last_receipt(self, run: bytes) -> tuple[int, bytes]:
        """Round and digest of the run's newest receipt; (-1, 32 zero bytes) before the first."""
        row = self._read("SELECT round, digest FROM receipt WHERE run = ? ORDER BY round DESC LIMIT 1", run)
        return (-1, ZERO) if row is None else (row[0], bytes(row[1]))

    def unplaced(self, run: bytes | None = None) -> list[tuple[bytes, int, bytes]]:
        """(run, round, signed receipt) of those whose place in the log is not proven yet, of one run or of all."""
        which = "" if run is None else "AND run = ? "
        with self._lock, self._translated():
            question = f"SELECT run, round, body FROM receipt WHERE place IS NULL {which}ORDER BY run, round"
            return list(self._db.execute(question, () if run is None else (run,)).fetchall())

    def set_place(self, run: bytes, round_number: int, place: int, note: bytes) -> None:
        """Writes down that a receipt's place in the log was proven, with the head that it was proven under."""
        with self._transaction("place"):
            self._db.execute("UPDATE receipt SET place = ? WHERE run = ? AND round = ?", (place, run, round_number))
            self._db.execute("INSERT INTO head VALUES (1, ?) ON CONFLICT DO UPDATE SET note = excluded.note", (note,))

    def head(self) -> bytes:
        """The newest verified head of the log, as a note; b"" before the first."""
        row = self._read("SELECT note FROM head")
        return b"" if row is None else bytes(row[0])

    # --- counters ---

    def skip_sequence(self) -> None:
        """Leaves the rest of the reserved numbers out: a journal that was put back to an older copy repeats them."""
        self._next_sequence = self._reserved

    def next_sequence(self) -> int:
        """A number larger than any this site ever used, over restarts too."""
        if self._next_sequence >= self._reserved:
            with self._transaction("counter.sequence"):
                self._next_sequence = self._counter("sequence")
                self._reserved = self._next_sequence + SEQUENCE_BLOCK
                self._set_counter("sequence", self._reserved)
        self._next_sequence += 1
        return self._next_sequence

    def counter(self, name: str) -> int:
        """The counter's value, 0 before it was first raised."""
        with self._lock, self._translated():
            return self._counter(name)

    def raise_counter(self, name: str, value: int, synchronous: Synchronous = "FULL") -> None:
        """Sets a counter that only grows; a smaller value changes nothing."""
        with self._transaction(f"counter.{_counted(name)}", synchronous):
            if value > self._counter(name):
                self._set_counter(name, value)

    def charges(self) -> dict[bytes, int]:
        """By the public key of a site, the least number that it may say for a charge of its ledger."""
        with self._lock, self._translated():
            rows = self._db.execute("SELECT name, value FROM counter WHERE name GLOB '*/charges'").fetchall()
        return {bytes.fromhex(name.partition("/")[0]): value for name, value in rows}

    def raise_charges(self, charges: Mapping[bytes, int]) -> None:
        """Writes down what a round showed of the sites' ledgers; smaller numbers change nothing."""
        with self._transaction("counter.charges", "NORMAL"):
            for key, number in charges.items():
                if number > self._counter(name := f"{key.hex()}/charges"):
                    self._set_counter(name, number)

    def _counter(self, name: str) -> int:
        row = self._db.execute("SELECT value FROM counter WHERE name = ?", (name,)).fetchone()
        return row[0] if row else 0

    def _set_counter(self, name: str, value: int) -> None:
        self._db.execute(
            "INSERT INTO counter VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (name, value)
        )

    def _read(self, question: str, *values: Any) -> Any:
        with self._lock, self._translated():
            return self._db.execute(question, values).fetchone()

    @contextmanager
    def _transaction(self, point: str, synchronous: Synchronous = "FULL") -> Iterator[None]:
        """Args: point: what is written, for `crash.durable`."""
        with self._lock, self._translated():
            self._db.execute(f"PRAGMA synchronous = {synchronous}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                with durable(f"site.{point}"):
                    self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as fault:
            if getattr(fault, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise StorageFull(
                    f"no room is left for {self._path}; nothing was sent that is not written down.",
                    mend="Free some space and start the site again.",
                ) from None
            raise EnvironmentFailure(f"the journal {self._path} cannot be used: {fault}.") from None


def guarded(slot: str) -> str:
    """What a slot guards, a key of SLOTS: the last part of its name, or the first where a digest ends it."""
    first, _, rest = slot.partition("/")
    word = first if len(rest) == 64 else slot.rpartition("/")[2]
    if word not in SLOTS:
        raise ValueError(f"{slot!r} is no slot of the journal")
    return word


def _counted(name: str) -> str:
    word = name.rpartition("/")[2]
    if word not in COUNTERS:
        raise ValueError(f"{name!r} is no counter of the journal")
    return word
