"""A site follows the log: each receipt's place is proven, and a log that does not only grow is refused."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloister.seal.identity import Identity
from cloister.seal.log import Log, open_checkpoint, origin_of
from cloister.seal.merkle import leaf_hash
from cloister.site.desk import Desk
from cloister.site.journal import VERSION, Journal
from cloister.vector import digest
from cloister.vector.errors import (
    BadSignature,
    CloisterError,
    EnvironmentFailure,
    MalformedMessage,
    StaleReceipt,
    Unreachable,
    UsageError,
)

COORDINATOR = Identity.from_bytes(b"c" * 32)
ORIGIN = origin_of("hearts")
RUN, OTHER = b"\1" * 16, b"\2" * 16


@dataclass
class Coordinator:
    """The log's side of `CoordinatorClient`. Attributes: asked: (receipt, since) of each request."""

    log: Log = field(default_factory=lambda: Log(ORIGIN))
    key: Identity = COORDINATOR
    asked: list[tuple[bytes, int]] = field(default_factory=list)
    receipts: list[bytes] = field(default_factory=list)

    def append(self, receipt: bytes) -> bytes:
        self.log.append(receipt)
        self.receipts.append(receipt)
        return receipt

    async def entry(self, receipt: bytes, since: int) -> bytes:
        self.asked.append((receipt, since))
        await asyncio.sleep(0)
        names = [digest(each) for each in self.receipts]
        if receipt not in names or since > len(names):
            raise UsageError("the log does not hold this one, or not so many.")
        return self.log.entry(names.index(receipt), since, self.key).to_bytes()


@pytest.fixture
def coordinator() -> Coordinator:
    return Coordinator()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.db")


def desk(journal: Journal, client: Any) -> Desk:
    rosters = SimpleNamespace(coordinator_key=lambda id: {"hub": COORDINATOR.public}[id])
    settings: Any = SimpleNamespace(id="kent", federation="hearts")
    nothing: Any = SimpleNamespace()
    return Desk(nothing, settings, nothing, journal, rosters, client, "hub", lambda event: None)  # type: ignore[arg-type]


def receipted(coordinator: Coordinator, journal: Journal, round: int, run: bytes = RUN) -> bytes:
    """A round that the site has verified the receipt of."""
    signed = coordinator.append(b"receipt %d of %s" % (round, run.hex().encode()))
    journal.add_receipt(run, round, digest(signed), signed)
    return signed


def follow(desk: Desk, run: bytes | None = None) -> None:
    asyncio.run(desk.follow_log(run))


def head(journal: Journal) -> tuple[int, bytes]:
    found = open_checkpoint(journal.head(), ORIGIN, COORDINATOR.public)
    return found.size, found.root


def refused(journal: Journal, client: Any, kind: type[CloisterError]) -> CloisterError:
    """What a lie is refused with; nothing is written down of it."""
    before = journal.head(), journal.unplaced()
    assert before[1], "a receipt waits for its place"
    with pytest.raises(kind) as caught:
        follow(desk(journal, client))
    assert (journal.head(), journal.unplaced()) == before
    return caught.value


def test_receipts_are_placed_and_the_head_moves_along(coordinator: Coordinator, journal: Journal) -> None:
    receipted(coordinator, journal, 0)
    follow(desk(journal, coordinator))
    assert head(journal) == (1, coordinator.log.checkpoint().root)
    coordinator.append(b"of another run, which this site took no part in")
    receipted(coordinator, journal, 1)
    receipted(coordinator, journal, 2)
    follow(desk(journal, coordinator))
    assert journal.unplaced() == []
    assert head(journal) == (4, coordinator.log.checkpoint().root)
    asked = len(coordinator.asked)
    follow(desk(journal, coordinator))
    assert len(coordinator.asked) == asked == 3  # what is proven is not asked again
    assert [since for _, since in coordinator.asked] == [0, 1, 4]


def test_one_run_or_all(coordinator: Coordinator, journal: Journal) -> None:
    receipted(coordinator, journal, 0)
    receipted(coordinator, journal, 0, OTHER)
    follow(desk(journal, coordinator), RUN)
    assert [run for run, _, _ in journal.unplaced()] == [OTHER]
    follow(desk(journal, coordinator))
    assert journal.unplaced() == []


def test_two_rounds_at_once_ask_once(coordinator: Coordinator, journal: Journal) -> None:
    receipted(coordinator, journal, 0)
    at = desk(journal, coordinator)

    async def both() -> None:
        await asyncio.gather(at.follow_log(RUN), at.follow_log())

    asyncio.run(both())
    assert len(coordinator.asked) == 1


def test_a_receipt_that_the_log_leaves_out(coordinator: Coordinator, journal: Journal) -> None:
    receipted(coordinator, journal, 0)
    follow(desk(journal, coordinator))
    journal.add_receipt(RUN, 1, b"1" * 32, b"shown to this site only")
    said = refused(journal, coordinator, StaleReceipt)
    assert "round 1" in said.message


def test_the_place_of_another_receipt(coordinator: Coordinator, journal: Journal) -> None:
    signed = receipted(coordinator, journal, 0)
    coordinator.append(b"another")
    coordinator.receipts = [b"another", signed]  # the two places are exchanged
    refused(journal, coordinator, StaleReceipt)


def test_a_log_that_was_rolled_back(coordinator: Coordinator, journal: Journal) -> None:
    for round in range(3):
        receipted(coordinator, journal, round)
    follow(desk(journal, coordinator))
    shorter = Coordinator(Log(ORIGIN, coordinator.log.leaves[:1]), receipts=coordinator.receipts[:1])
    receipted(shorter, journal, 3)
    shorter.entry = lambda receipt, since: Coordinator.entry(shorter, receipt, 0)  # type: ignore[method-assign]
    assert "2 receipts, 3 were shown before" in refused(journal, shorter, StaleReceipt).message


@pytest.mark.parametrize("more", [0, 1, 5])
def test_a_log_that_was_forked(coordinator: Coordinator, journal: Journal, more: int) -> None:
    for round in range(2):
        receipted(coordinator, journal, round)
    follow(desk(journal, coordinator))
    fork = Coordinator(Log(ORIGIN, [leaf_hash(b"another first"), *coordinator.log.leaves[1:]]), receipts=[b"", b""])
    receipted(fork, journal, 2)
    for number in range(more):
        fork.append(b"more %d" % number)
    assert "split" in refused(journal, fork, StaleReceipt).message


def test_a_head_by_another_key_and_junk(coordinator: Coordinator, journal: Journal) -> None:
    receipted(coordinator, journal, 0)
    stranger = Coordinator(coordinator.log, Identity.from_bytes(b"x" * 32), receipts=coordinator.receipts)
    refused(journal, stranger, BadSignature)

    async def junk(receipt: bytes, since: int) -> bytes:
        return b"junk"

    refused(journal, SimpleNamespace(entry=junk), MalformedMessage)


def test_a_coordinator_that_is_away_is_no_liar(coordinator: Coordinator, journal: Journal) -> None:
    receipted(coordinator, journal, 0)

    async def away(receipt: bytes, since: int) -> bytes:
        raise Unreachable("no answer.")

    refused(journal, SimpleNamespace(entry=away), Unreachable)
    follow(desk(journal, coordinator))
    assert journal.unplaced() == []


# The journal of a site that ran before there was a log -----------------------------------------------------------

FIRST = """
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
INSERT INTO slot VALUES ('run/0/open', x'01');
INSERT INTO counter VALUES ('sequence', 256);
INSERT INTO receipt VALUES (x'01010101010101010101010101010101', 0, x'aa', x'bb');
PRAGMA user_version = 1;
"""


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A journal of version 1, as it lay on a site's disk."""
    path = tmp_path / "old.db"
    database = sqlite3.connect(path)
    database.executescript(FIRST)
    database.close()
    return path


def version(path: Path) -> int:
    database = sqlite3.connect(path)
    try:
        return int(database.execute("PRAGMA user_version").fetchone()[0])
    finally:
        database.close()


def test_a_journal_of_the_first_version_is_brought_up(first: Path, coordinator: Coordinator) -> None:
    """Promises, numbers and the chain stay; receipts from before there was a log are not looked for in it."""
    for _ in range(2):  # and opening it again changes nothing
        journal = Journal(first)
        assert journal.held("run/0/open") == b"\1"
        assert journal.last_receipt(RUN) == (0, b"\xaa")
        assert journal.head() == b""
        assert journal.unplaced() == []
        assert journal.next_sequence() > 256
        journal.close()
        assert version(first) == VERSION
    journal = Journal(first)
    receipted(coordinator, journal, 1)
    follow(desk(journal, coordinator))
    assert journal.unplaced() == []
    assert head(journal)[0] == 1


def test_an_upgrade_that_fails_half_way_leaves_the_old_journal(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cloister.site import journal as module

    monkeypatch.setattr(module, "STEPS", (*module.STEPS[:1], module.SECOND + "CREATE TABLE slot (oops);\n"))
    with pytest.raises(EnvironmentFailure):
        Journal(first)
    assert version(first) == 1
    monkeypatch.undo()
    assert Journal(first).held("run/0/open") == b"\1"


def test_a_journal_of_a_newer_version_is_not_touched(first: Path) -> None:
    Journal(first).close()
    database = sqlite3.connect(first)
    database.execute(f"PRAGMA user_version = {VERSION + 1}")
    database.close()
    with pytest.raises(EnvironmentFailure, match="newer"):
        Journal(first)
    assert version(first) == VERSION + 1
