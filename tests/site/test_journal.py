"""The journal promises once, remembers after a kill at any moment, and notices a log that was altered."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.site.journal import Journal
from cloister.site.lock import FolderLock
from cloister.vector.errors import (
    EnvironmentFailure,
    RoundReplayed,
    StaleReceipt,
    StateLocked,
    StorageFull,
    SurvivorSetConflict,
)

RUN = bytes(16)

# Writes until it is killed, and says each promise only after the journal has returned.
WRITER = """
import sys
from pathlib import Path
from cloister.site.journal import Journal
journal = Journal(Path(sys.argv[1]))
start = int(sys.argv[2])
for number in range(start, start + 100000):
    journal.once(f"run/{number}/open", b"context %d" % number)
    sequence = journal.next_sequence()
    journal.log("answered", round=number)
    print(number, sequence, flush=True)
"""


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.db", now=lambda: "2030-01-01T00:00:00+00:00")


def test_a_slot_is_written_once(journal: Journal) -> None:
    journal.once("run/3/open", b"first")
    journal.once("run/3/open", b"first")
    assert journal.held("run/3/open") == b"first"
    assert journal.held("run/4/open") is None
    with pytest.raises(RoundReplayed):
        journal.once("run/3/open", b"second")
    assert journal.held("run/3/open") == b"first"


@pytest.mark.parametrize(
    ("slot", "error"),
    [
        ("run/3/open", RoundReplayed),
        ("run/3/unmask", RoundReplayed),
        ("run/3/survivors", SurvivorSetConflict),
        ("run/query/ab/survivors", SurvivorSetConflict),
    ],
)
def test_the_slot_says_which_promise_was_broken(journal: Journal, slot: str, error: type[Exception]) -> None:
    journal.once(slot, b"one")
    with pytest.raises(error):
        journal.once(slot, b"another")


def test_even_sql_cannot_change_a_promise_or_the_log(journal: Journal, tmp_path: Path) -> None:
    journal.once("run/3/survivors", b"one")
    journal.log("asked", round=3)
    database = sqlite3.connect(tmp_path / "journal.db")
    for statement in (
        "UPDATE slot SET value = x'00'",
        "DELETE FROM slot",
        "UPDATE log SET body = x''",
        "DELETE FROM log",
    ):
        with pytest.raises(sqlite3.IntegrityError):
            database.execute(statement)


def test_an_altered_log_is_noticed(journal: Journal, tmp_path: Path) -> None:
    for round in range(5):
        journal.log("asked", round=round)
    assert [entry.facts["round"] for entry in journal.entries("asked")] == [0, 1, 2, 3, 4]
    database = sqlite3.connect(tmp_path / "journal.db")
    database.execute("DROP TRIGGER log_once")
    database.execute(
        "UPDATE log SET body = cast(replace(body, '\"round\":2', '\"round\":9') AS BLOB) WHERE number = 3"
    )
    database.commit()
    with pytest.raises(EnvironmentFailure, match="entry 3"):
        list(journal.entries())


def test_receipts_form_one_chain(journal: Journal) -> None:
    assert journal.last_receipt(RUN) == (-1, bytes(32))
    journal.add_receipt(RUN, 0, b"a" * 32, b"body")
    journal.add_receipt(RUN, 0, b"a" * 32, b"body")
    journal.add_receipt(RUN, 2, b"c" * 32, b"body")
    assert journal.last_receipt(RUN) == (2, b"c" * 32)
    assert journal.last_receipt(b"\1" * 16) == (-1, bytes(32))
    with pytest.raises(StaleReceipt):
        journal.add_receipt(RUN, 0, b"b" * 32, b"body")


@settings(max_examples=15, deadline=None)  # each opens files that are synced to disk
@given(restarts=st.lists(st.integers(0, 600), min_size=1, max_size=4))
def test_numbers_only_grow_over_restarts(tmp_path_factory: pytest.TempPathFactory, restarts: list[int]) -> None:
    path = tmp_path_factory.mktemp("numbers") / "journal.db"
    numbers: list[int] = []
    for count in restarts:
        journal = Journal(path)
        numbers += [journal.next_sequence() for _ in range(count)]
        journal.close()
    assert numbers == sorted(set(numbers))
    assert all(number > 0 for number in numbers)


def test_counters_only_grow(journal: Journal) -> None:
    journal.raise_counter("mailbox", 7)
    journal.raise_counter("mailbox", 3)
    assert journal.counter("mailbox") == 7
    assert journal.counter("other") == 0


def test_a_full_disk_is_named_and_breaks_nothing(journal: Journal, tmp_path: Path) -> None:
    journal.once("run/0/open", b"kept")
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageFull, match="Free some space"):
        journal.once("run/1/open", bytes(100_000))
    assert journal.held("run/1/open") is None
    journal._db.execute("PRAGMA max_page_count = 1000000")
    journal.once("run/1000/open", b"after")
    assert journal.held("run/0/open") == b"kept"


def test_a_file_that_is_no_journal_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(EnvironmentFailure, match="cannot be used"):
        Journal(tmp_path / "journal.db")


@pytest.mark.processes
def test_what_was_promised_survives_sigkill(tmp_path: Path) -> None:
    path, said, last_sequence = tmp_path / "journal.db", set[int](), 0
    for kill_after in (1, 7, 40):
        start = str(max(said, default=-2) + 2)  # the next one may have been written without being said
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), start], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(kill_after)]
        process.send_signal(signal.SIGKILL)
        lines += [line for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        process.wait()
        said |= {int(line.split()[0]) for line in lines}
        assert int(lines[0].split()[1]) > last_sequence
        last_sequence = int(lines[-1].split()[1])
        journal = Journal(path)
        for number in said:
            assert journal.held(f"run/{number}/open") == b"context %d" % number
        with pytest.raises(RoundReplayed):
            journal.once(f"run/{max(said)}/open", b"another story")
        assert journal.next_sequence() > last_sequence
        assert {entry.facts["round"] for entry in journal.entries()} >= said
        journal.close()


def test_the_log_can_grow_beside_a_running_agent(journal: Journal, tmp_path: Path) -> None:
    journal.log("asked", round=0)
    other = Journal(tmp_path / "journal.db")
    other.log("approved", job="ab")
    journal.log("asked", round=1)
    assert [entry.number for entry in journal.entries()] == [1, 2, 3]


def test_one_agent_per_folder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with FolderLock(path), pytest.raises(StateLocked, match=str(os.getpid())), FolderLock(path):
        pass
    with FolderLock(path):
        pass


@pytest.mark.processes
def test_the_lock_of_a_killed_agent_is_free(tmp_path: Path) -> None:
    hold = (
        "import sys, time\nfrom pathlib import Path\nfrom cloister.site.lock import FolderLock\n"
        "with FolderLock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(StateLocked, match=str(process.pid)), FolderLock(tmp_path / "lock"):
        pass
    process.kill()
    process.wait()
    with FolderLock(tmp_path / "lock"):
        pass


def test_the_log_holds_json_for_people(journal: Journal, tmp_path: Path) -> None:
    journal.log("asked", round=3, task="train")
    body = sqlite3.connect(tmp_path / "journal.db").execute("SELECT body FROM log").fetchone()[0]
    assert json.loads(body) == {
        "number": 1,
        "at": "2030-01-01T00:00:00+00:00",
        "kind": "asked",
        "facts": {"round": 3, "task": "train"},
    }
