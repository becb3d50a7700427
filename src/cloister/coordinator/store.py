"""The coordinator's database: every change of state is one transaction, `store.run_tx(name, fn)`; `look` only reads.

SQLite in WAL mode: nothing committed is lost when the process is killed. A transition that others build on (a plan,
the end of a phase, a checkpoint, a membership) is also on disk before it is told, and with it all that was committed
before; what only fills a phase (a message, an envelope's number) may be lost with the machine's power, and counts as
never said. `fn` gets a `Tx`, the verbs on the tables; it may run twice (a lock that was taken, after Janus' run_tx),
so it changes nothing else.
"""

from __future__ import annotations

import errno
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import alembic.command
import alembic.config
from sqlalchemy import Connection, Engine, Row, create_engine, delete, event, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import OperationalError

from cloister.coordinator import tables as t
from cloister.vector.crash import durable
from cloister.vector.errors import StateLocked, StorageFull, UsageError
from cloister.wire import ReplayWindow

BUSY_SECONDS = 10.0  # how long a statement waits for another process's transaction (`admit` beside `serve`)
ATTEMPTS = 3
MAIL_AT_ONCE = 64  # messages handed out in one poll

Result = TypeVar("Result")


class Hot:
    """What happens for every message, in SQL: to have a statement built and bound takes SQLAlchemy ten times as long
    as SQLite takes to run it."""

    sender = "SELECT highest, seen FROM sender WHERE id = :id"
    accept = (
        "INSERT INTO sender (id, highest, seen) VALUES (:id, :highest, :seen)"
        " ON CONFLICT (id) DO UPDATE SET highest = excluded.highest, seen = excluded.seen"
    )
    next = (
        "INSERT INTO mailbox_head (site, number) VALUES (:site, 1)"
        " ON CONFLICT (site) DO UPDATE SET number = number + 1"
    )
    head = "SELECT number FROM mailbox_head WHERE site = :site"
    mail = "INSERT INTO mailbox (site, number, data) VALUES (:site, :number, :data)"
    acknowledge = "DELETE FROM mailbox WHERE site = :site AND number <= :number"
    mail_after = (
        f"SELECT data FROM mailbox WHERE site = :site AND number > :number ORDER BY number LIMIT {MAIL_AT_ONCE}"
    )
    said = "SELECT number FROM transcript WHERE run = :run AND round = :round AND site = :site AND data = :data"
    append = (
        "INSERT INTO transcript (run, round, number, kind, site, data)"
        " SELECT :run, :round, coalesce(max(number), 0) + 1, :kind, :site, :data"
        " FROM transcript WHERE run = :run AND round = :round"
    )
    announce = (
        "INSERT INTO upload (run, round, site, header) VALUES (:run, :round, :site, :header)"
        " ON CONFLICT (run, round, site) DO UPDATE SET header = excluded.header"
    )
    upload = "SELECT header FROM upload WHERE run = :run AND round = :round AND site = :site"
    event = (
        "INSERT INTO event (run, number, at, body)"
        " SELECT :run, coalesce(max(number), 0) + 1, :at, :body FROM event WHERE run = :run"
    )


@dataclass(frozen=True)
class Run:
    """A submitted job. job, submission, state: digests (hex). columns: the features, once they are settled."""

    id: str
    job: str
    name: str
    analyst: str
    submission: str
    roster: int
    submitted: float
    status: str
    stopping: bool
    columns: Mapping[str, str] | None
    state: str | None
    error: Mapping[str, str] | None

    @classmethod
    def of(cls, row: Row[Any]) -> Run:
        data = dict(row._mapping)
        for name in ("columns", "error"):
            data[name] = None if data[name] is None else json.loads(data[name])
        return cls(**data)


@dataclass(frozen=True)
class Round:
    """One round of a run. outcome: "open", "done" or "void". The rest once it is done: receipt, and as blobs (digests
    in hex) the signed receipt, the total, messages 2 and 8; opening: the graph and the secrets that were rebuilt.
    survivors: a JSON list of ids, once message 6 was sent."""

    run: str
    number: int
    plan: bytes
    previous: str
    outcome: str
    receipt: str | None
    blob: str | None
    started: float
    total: str | None = None
    keylist: str | None = None
    consistency: str | None = None
    opening: bytes | None = None
    survivors: str | None = None


def raw(connection: Connection) -> sqlite3.Connection:
    """SQLite's own connection beneath one of SQLAlchemy."""
    beneath = connection.connection.driver_connection
    assert isinstance(beneath, sqlite3.Connection)
    return beneath


class Tx:
    """The verbs on the tables, inside one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._run, self._hot = connection.execute, raw(connection).execute
        self.touched: set[str] = set()  # topics whose waiters are woken once this is committed

    # rosters and members

    def rosters_after(self, version: int) -> list[bytes]:
        rows = self._run(select(t.roster.c.signed).where(t.roster.c.version > version).order_by(t.roster.c.version))
        return [row.signed for row in rows]

    def roster(self, version: int | None) -> bytes | None:
        """The signed bytes of one version, or of the newest."""
        query = select(t.roster.c.signed).order_by(t.roster.c.version.desc()).limit(1)
        return self._run(query if version is None else query.where(t.roster.c.version == version)).scalar()

    def add_roster(self, version: int, signed: bytes) -> None:
        self._run(insert(t.roster).values(version=version, signed=signed))

    def add_invitation(self, token: str, id: str, role: str, expires: float) -> None:
        self._run(insert(t.invitation).values(token=token, id=id, role=role, expires=expires, spent=False))

    def invitation(self, token: str) -> Row[Any] | None:
        return self._run(select(t.invitation).where(t.invitation.c.token == token)).first()

    def spend(self, token: str) -> None:
        self._run(update(t.invitation).where(t.invitation.c.token == token).values(spent=True))

    def add_enrolment(self, id: str, role: str, key: bytes) -> None:
        row = {"id": id, "role": role, "key": key}
        self._run(upsert(t.enrolment).values(row).on_conflict_do_update(["id"], set_=row))

    def enrolments(self) -> Sequence[Row[Any]]:
        return self._run(select(t.enrolment).order_by(t.enrolment.c.id)).all()

    def drop_enrolment(self, id: str) -> None:
        self._run(delete(t.enrolment).where(t.enrolment.c.id == id))

    # envelopes

    def accept_number(self, sender: str, seq: int) -> None:
        """Raises: EnvelopeReplayed."""
        row = self._hot(Hot.sender, {"id": sender}).fetchone()
        window = ReplayWindow(row[0], int(row[1], 16)) if row else ReplayWindow()
        window = window.accept(seq, sender)
        self._hot(Hot.accept, {"id": sender, "highest": window.highest, "seen": f"{window.seen:x}"})

    def charges(self) -> dict[bytes, int]:
        """By the public key of a site, the least number that it may say next for a charge of its ledger."""
        return {row.key: row.least for row in self._run(select(t.charge))}

    def raise_charges(self, charges: Mapping[bytes, int]) -> None:
        """Keeps what a round showed of the sites' ledgers; smaller numbers change nothing."""
        rows = [{"key": key, "least": number} for key, number in charges.items()]
        if rows:
            raised = upsert(t.charge)
            larger = raised.excluded.least > t.charge.c.least
            raised = raised.on_conflict_do_update(["key"], set_={"least": raised.excluded.least}, where=larger)
            self._run(raised, rows)

    def mail(self, site: str, make: Callable[[int], bytes], *, wake: bool = True) -> None:
        """Puts a message into a site's mailbox. Args: make: the envelope, given its number. wake: whether a poll that
        waits is answered at once; else the site reads it with the next message, or when it polls again."""
        self._hot(Hot.next, {"site": site})
        number = self._hot(Hot.head, {"site": site}).fetchone()[0]
        self._hot(Hot.mail, {"site": site, "number": number, "data": make(number)})
        if wake:
            self.touched.add(f"mail/{site}")

    def acknowledge(self, site: str, number: int) -> None:
        self._hot(Hot.acknowledge, {"site": site, "number": number})

    def mail_after(self, site: str, number: int) -> list[bytes]:
        return [data for (data,) in self._hot(Hot.mail_after, {"site": site, "number": number})]

    def set_catalogue(self, site: str, body: bytes) -> None:
        row = {"site": site, "body": body}
        self._run(upsert(t.catalogue).values(row).on_conflict_do_update(["site"], set_=row))

    def catalogues(self) -> dict[str, bytes]:
        return {row.site: row.body for row in self._run(select(t.catalogue))}

    # runs

    def add_run(self, run: Run) -> None:
        self._run(insert(t.run).values({**run.__dict__, "columns": None, "error": None}))

    def runs(self, status: str | None = None) -> list[Run]:
        query = select(t.run).order_by(t.run.c.submitted)
        return [Run.of(row) for row in self._run(query if status is None else query.where(t.run.c.status == status))]

    def run(self, id: str) -> Run:
        """Raises: UsageError: there is none."""
        row = self._run(select(t.run).where(t.run.c.id == id)).first()
        if row is None:
            raise UsageError(f"there is no run {id!r}.", mend="`cloister status` lists them.")
        return Run.of(row)

    def set_run(self, id: str, **values: Any) -> None:
        """Args: values: columns of the row; mappings are stored as JSON."""
        stored = {name: json.dumps(value) if isinstance(value, Mapping) else value for name, value in values.items()}
        self._run(update(t.run).where(t.run.c.id == id).values(stored))

    def refuse_run(self, run: str, site: str, body: str) -> None:
        row = {"run": run, "site": site, "body": body}
        self._run(upsert(t.run_refusal).values(row).on_conflict_do_update(["run", "site"], set_=row))
        self.touched.add(f"run/{run}")

    def lift_refusal(self, run: str, site: str) -> None:
        self._run(delete(t.run_refusal).where(t.run_refusal.c.run == run, t.run_refusal.c.site == site))
        self.touched.add(f"run/{run}")

    def run_refusals(self, run: str) -> dict[str, dict[str, str]]:
        rows = self._run(select(t.run_refusal).where(t.run_refusal.c.run == run))
        return {row.site: json.loads(row.body) for row in rows}

    # rounds

    def add_round(self, round: Round) -> None:
        self._run(insert(t.round).values(round.__dict__))

    def set_round(self, run: str, number: int, **values: Any) -> None:
        self._run(update(t.round).where(t.round.c.run == run, t.round.c.number == number).values(values))

    def rounds(self, run: str) -> list[Round]:
        rows = self._run(select(t.round).where(t.round.c.run == run).order_by(t.round.c.number))
        return [Round(**row._mapping) for row in rows]

    def last_round(self, run: str, outcome: str | None = None) -> Round | None:
        query = select(t.round).where(t.round.c.run == run).order_by(t.round.c.number.desc()).limit(1)
        row = self._run(query if outcome is None else query.where(t.round.c.outcome == outcome)).first()
        return None if row is None else Round(**row._mapping)

    def bound(self, run: str) -> tuple[str, ...]:
        """Over whom the run's next sum must be: the survivors of a void round since its last receipt; () for whoever
        survives."""
        open_since: list[str | None] = []
        for row in self.rounds(run):
            open_since = [] if row.outcome == "done" else [*open_since, row.survivors]
        told = [json.loads(survivors) for survivors in open_since if survivors is not None]
        return tuple(told[0]) if told else ()

    def append(self, run: str, round: int, kind: str, site: str, data: bytes) -> None:
        """One more thing that the round's seal machine was told; a message that is there already is kept once."""
        row = {"run": run, "round": round, "kind": kind, "site": site, "data": data}
        if kind == "message" and self._hot(Hot.said, row).fetchone():
            return
        self._hot(Hot.append, row)
        self.touched.add(f"run/{run}")

    def transcript(self, run: str, round: int) -> list[tuple[str, str, bytes]]:
        """(kind, site, data) in order."""
        where = (t.transcript.c.run == run, t.transcript.c.round == round)
        rows = self._run(select(t.transcript).where(*where).order_by(t.transcript.c.number))
        return [(row.kind, row.site, row.data) for row in rows]

    def announce(self, run: str, round: int, site: str, header: bytes) -> None:
        self._hot(Hot.announce, {"run": run, "round": round, "site": site, "header": header})

    def upload(self, run: str, round: int, site: str) -> bytes:
        """The header that the site announced its masked vector with."""
        return bytes(self._hot(Hot.upload, {"run": run, "round": round, "site": site}).fetchone()[0])

    def uploads(self, run: str, round: int) -> dict[str, bytes]:
        rows = self._run(select(t.upload).where(t.upload.c.run == run, t.upload.c.round == round))
        return {row.site: row.header for row in rows}

    def rounds_with_uploads(self, run: str) -> set[int]:
        return set(self._run(select(t.upload.c.round).where(t.upload.c.run == run)).scalars())

    def drop_rounds(self, run: str, keep: int) -> list[bytes]:
        """Forgets the uploads of a run's done rounds but the newest `keep`, and their transcripts.

        Returns: the headers of these uploads.
        """
        done = select(t.round.c.number).where(t.round.c.run == run, t.round.c.outcome == "done")
        numbers = list(self._run(done.order_by(t.round.c.number.desc()).limit(keep)).scalars())
        if not numbers:
            return []
        self._run(delete(t.transcript).where(t.transcript.c.run == run, t.transcript.c.round <= numbers[0]))
        return self._drop_uploads(t.upload.c.run == run, t.upload.c.round < numbers[-1])

    def drop_round(self, run: str, number: int) -> list[bytes]:
        """Forgets transcript and uploads of one round; returns the headers of the uploads."""
        self._run(delete(t.transcript).where(t.transcript.c.run == run, t.transcript.c.round == number))
        return self._drop_uploads(t.upload.c.run == run, t.upload.c.round == number)

    def _drop_uploads(self, *where: Any) -> list[bytes]:
        headers = [row.header for row in self._run(select(t.upload.c.header).where(*where))]
        self._run(delete(t.upload).where(*where))
        return headers

    # the log of receipts

    def append_to_log(self, leaf: bytes, receipt: str) -> None:
        """Args: leaf: hash of a signed receipt. receipt: its digest, hex."""
        place = self._run(select(func.count()).select_from(t.log)).scalar() or 0
        self._run(insert(t.log).values(place=place, leaf=leaf, receipt=receipt))

    def log_after(self, size: int) -> list[bytes]:
        """The leaves from this place on."""
        return list(self._run(select(t.log.c.leaf).where(t.log.c.place >= size).order_by(t.log.c.place)).scalars())

    def place_in_log(self, receipt: str) -> int | None:
        return self._run(select(t.log.c.place).where(t.log.c.receipt == receipt)).scalar()

    # events

    def add_event(self, run: str, body: Mapping[str, Any]) -> None:
        self._hot(Hot.event, {"run": run, "at": time.time(), "body": json.dumps(body)})
        self.touched.add(f"events/{run}")

    def events_after(self, run: str, number: int) -> list[dict[str, Any]]:
        where = (t.event.c.run == run, t.event.c.number > number)
        rows = self._run(select(t.event).where(*where).order_by(t.event.c.number))
        return [{"number": row.number, "at": row.at, **json.loads(row.body)} for row in rows]


class Store:
    """The database in one file; safe to use from several threads and processes.

    Attributes: on_commit: told the topics that a transaction touched, once it is durable.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.on_commit: Callable[[set[str]], None] = lambda topics: None
        self._read: dict[str, int] = {}  # what sites acknowledged since the last transaction
        self._kept = threading.local()  # this thread's connections: to take one from the pool costs a quarter of a tx
        self._engines = {synchronous: self._engine(synchronous) for synchronous in ("FULL", "NORMAL")}
        self._engines["reads"] = self._engine("NORMAL", reads=True)
        with self._translated(), self._engines["FULL"].connect() as connection:
            config = alembic.config.Config()
            config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, "head")
            connection.commit()

    def _engine(self, synchronous: str, *, reads: bool = False) -> Engine:
        engine = create_engine(f"sqlite:///{self._path}", connect_args={"timeout": BUSY_SECONDS})

        def connected(connection: sqlite3.Connection, record: object) -> None:
            connection.isolation_level = None  # SQLAlchemy says BEGIN IMMEDIATE itself
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA synchronous={synchronous}")
            connection.execute(f"PRAGMA query_only={reads}")

        begin = "BEGIN" if reads else "BEGIN IMMEDIATE"
        event.listen(engine, "connect", connected)
        event.listen(engine, "begin", lambda connection: raw(connection).execute(begin))
        return engine

    def close(self) -> None:
        for name, engine in self._engines.items():
            if (kept := getattr(self._kept, name, None)) is not None:
                kept.close()
            engine.dispose()

    def _connection(self, name: str) -> Connection:
        kept: Connection | None = getattr(self._kept, name, None)
        if kept is None or kept.closed or kept.invalidated:
            kept = self._engines[name].connect()
            setattr(self._kept, name, kept)
        return kept

    def look(self, fn: Callable[[Tx], Result]) -> Result:
        """Returns what `fn` reads, all of one moment; a write in it is an error. Raises: StateLocked, as `run_tx`."""
        with self._translated("look"):
            connection = self._connection("reads")
            with connection.begin():
                return fn(Tx(connection))

    def run_tx(self, name: str, fn: Callable[[Tx], Result], *, flush: bool = True) -> Result:
        """Runs `fn` in one transaction and returns what it returns.

        Args: name: of the transition, for messages. flush: whether it waits for the disk, and so survives a loss of
          power; without, it survives the death of the process only, and costs a tenth.
        Raises: StorageFull: the disk is full; nothing was changed. StateLocked: another process held it too long.
        """
        for attempt in range(ATTEMPTS):
            try:
                with self._translated(name):
                    connection, read = self._connection("FULL" if flush else "NORMAL"), dict(self._read)
                    tx = Tx(connection)
                    with connection.begin() as transaction:
                        for site, number in read.items():
                            tx.acknowledge(site, number)
                        result = fn(tx)
                        with durable(f"coordinator.tx.{name}"):
                            transaction.commit()
                self._read = {site: number for site, number in self._read.items() if read.get(site) != number}
                self.on_commit(tx.touched)
                return result
            except StateLocked:
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def acknowledge(self, site: str, number: int) -> None:
        """Forgets a site's mail up to `number`, in the next transaction: one of its own is not worth its time."""
        self._read[site] = max(number, self._read.get(site, 0))

    def add_roster(self, version: int, signed: bytes) -> None:
        self.run_tx("roster", lambda tx: tx.add_roster(version, signed))

    @contextmanager
    def _translated(self, name: str = "open") -> Iterator[None]:
        """SQLite's own words in ours."""
        try:
            yield
        except (OperationalError, sqlite3.OperationalError) as fault:
            code = getattr(getattr(fault, "orig", fault), "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
                mend = "Free some space; the coordinator goes on where it was."
                raise StorageFull(f"the disk of {self._path} is full ({name}).", mend=mend) from fault
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise StateLocked(f"another process holds {self._path} ({name}).", mend="Try again.") from fault
            raise


def storage_full(fault: OSError, what: str) -> StorageFull | OSError:
    """`fault` in our words if it says that a disk is full, else itself."""
    if fault.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"the disk is full ({what}).", mend="Free some space; nothing computed is lost.")
    return fault
