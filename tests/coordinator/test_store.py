"""The database and the blobs: migrations equal the tables, transactions are all or nothing, full disks are named."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError

from cloister.coordinator.blobs import BlobFolder
from cloister.coordinator.store import Round, Run, Store, Tx, raw
from cloister.coordinator.tables import metadata
from cloister.seal.merkle import root_of
from cloister.vector.errors import BadUpload, EnvelopeReplayed, StorageFull, UsageError

RUN = Run("0f" * 16, "ab" * 32, "heart", "lee", "cd" * 32, 2, 0.0, "running", False, None, None, None)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cloister.db")


def test_the_migrations_make_exactly_the_tables(store: Store) -> None:
    with store._engines["FULL"].connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_transaction_is_all_or_nothing(store: Store) -> None:
    topics: list[set[str]] = []
    store.on_commit = topics.append

    def half(tx: Tx) -> None:
        tx.add_run(RUN)
        tx.mail("kent", lambda number: b"%d" % number)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.run_tx("half", half)
    assert store.run_tx("look", lambda tx: (tx.runs(), tx.mail_after("kent", 0))) == ([], [])
    assert topics == [set()]  # of the look: nobody was woken for what did not happen


def test_mailboxes_number_on_after_acknowledgement(store: Store) -> None:
    def send(tx: Tx) -> None:
        tx.mail("kent", lambda number: b"%d" % number)

    for _ in range(3):
        store.run_tx("mail", send)
    store.run_tx("acknowledge", lambda tx: tx.acknowledge("kent", 3))
    store.run_tx("mail", send)
    assert store.run_tx("look", lambda tx: tx.mail_after("kent", 0)) == [b"4"]
    assert store.run_tx("look", lambda tx: tx.mail_after("lyon", 0)) == []


def test_numbers_are_remembered_over_a_restart(tmp_path: Path) -> None:
    for expected in (None, EnvelopeReplayed):
        store = Store(tmp_path / "cloister.db")
        if expected is None:
            store.run_tx("number", lambda tx: tx.accept_number("kent", 7))
        else:
            with pytest.raises(expected):
                store.run_tx("number", lambda tx: tx.accept_number("kent", 7))
        store.close()


def test_transcripts_keep_a_repeated_message_once(store: Store) -> None:
    def write(tx: Tx) -> None:
        for kind, site, data in (
            ("message", "a", b"x"),
            ("message", "a", b"x"),
            ("close", "", b""),
            ("close", "", b""),
        ):
            tx.append(RUN.id, 0, kind, site, data)

    store.run_tx("append", write)
    kinds = [kind for kind, _, _ in store.run_tx("look", lambda tx: tx.transcript(RUN.id, 0))]
    assert kinds == ["message", "close", "close"]


def test_rounds_are_forgotten_with_their_uploads(store: Store) -> None:
    def write(tx: Tx) -> list[bytes]:
        for number in range(5):
            outcome = "open" if number == 4 else "done"
            tx.add_round(Round(RUN.id, number, b"", "00" * 32, outcome, None, None, 0.0))
            tx.announce(RUN.id, number, "kent", b"%d" % number)
            tx.append(RUN.id, number, "close", "", b"")
        return tx.drop_rounds(RUN.id, keep=2)

    assert sorted(store.run_tx("drop", write)) == [b"0", b"1"]
    assert store.run_tx("look", lambda tx: (tx.transcript(RUN.id, 3), tx.uploads(RUN.id, 2))) == ([], {"kent": b"2"})
    assert store.run_tx("look", lambda tx: len(tx.transcript(RUN.id, 4))) == 1
    assert store.run_tx("drop", lambda tx: tx.drop_round(RUN.id, 4)) == [b"4"]
    assert store.run_tx("none", lambda tx: tx.drop_rounds("00" * 16, keep=2)) == []


def test_the_log_only_grows(store: Store) -> None:
    for place in range(3):
        store.run_tx("append", lambda tx, place=place: tx.append_to_log(bytes([place]) * 32, f"{place:064x}"))
    with pytest.raises(IntegrityError):
        store.run_tx("append", lambda tx: tx.append_to_log(bytes(32), f"{1:064x}"))
    assert store.run_tx("look", lambda tx: tx.log_after(1)) == [b"\x01" * 32, b"\x02" * 32]
    assert store.run_tx("look", lambda tx: (tx.place_in_log(f"{2:064x}"), tx.place_in_log("ff"))) == (2, None)


def test_runs_keep_their_json(store: Store) -> None:
    def write(tx: Tx) -> Run:
        tx.add_run(RUN)
        tx.set_run(RUN.id, columns={"age": "number"}, status="failed", error={"error": "X"})
        return tx.run(RUN.id)

    run = store.run_tx("write", write)
    assert (run.columns, run.error, run.status) == ({"age": "number"}, {"error": "X"}, "failed")
    with pytest.raises(UsageError):
        store.run_tx("none", lambda tx: tx.run("00" * 16))


def test_a_full_disk_is_named_and_changes_nothing(store: Store) -> None:
    store.run_tx("run", lambda tx: tx.add_run(RUN))
    connection = raw(store._connection("FULL"))
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")  # what SQLite meets on a full disk
    with pytest.raises(StorageFull, match="full"):
        store.run_tx("big", lambda tx: tx.mail("kent", lambda number: bytes(1 << 20)))
    assert store.run_tx("look", lambda tx: tx.mail_after("kent", 0)) == []


def stream(data: bytes, cut: int) -> AsyncIterator[bytes]:
    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(data), cut):
            yield data[at : at + cut]

    return chunks()


@settings(max_examples=30)
@given(st.binary(max_size=300), st.integers(1, 100))
def test_streams_become_blobs(tmp_path_factory: pytest.TempPathFactory, data: bytes, cut: int) -> None:
    blobs = BlobFolder(tmp_path_factory.mktemp("blobs"))
    name = root_of(data).hex()
    asyncio.run(blobs.put_stream(name, name, len(data), stream(data, cut)))
    assert blobs.has(name)
    assert blobs.took(name, len(data))
    assert not blobs.took(name, len(data) + 1)
    assert blobs.read(name) == data
    blobs.delete([name])
    assert not blobs.has(name)
    assert not blobs.took(name, len(data))


def test_another_process_took_nothing_of_what_lies_there(tmp_path: Path) -> None:
    name = root_of(b"abc").hex()
    asyncio.run(BlobFolder(tmp_path).put_stream(name, name, 3, stream(b"abc", 2)))
    assert BlobFolder(tmp_path).has(name)
    assert not BlobFolder(tmp_path).took(name, 3)


@pytest.mark.parametrize("length", [2, 3, 4])
def test_another_stream_than_announced_leaves_nothing(tmp_path: Path, length: int) -> None:
    blobs = BlobFolder(tmp_path)
    name = root_of(b"abd").hex()
    with pytest.raises(BadUpload):
        asyncio.run(blobs.put_stream(name, name, length, stream(b"abc", 2)))
    assert not blobs.took(name, length)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_a_kill_left_behind_is_cleared(tmp_path: Path) -> None:
    BlobFolder(tmp_path)
    (tmp_path / "incoming" / "half").write_bytes(b"x")
    BlobFolder(tmp_path).clear_incoming()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_full_disk_under_the_blobs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = BlobFolder(tmp_path)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageFull):
        blobs.put(b"abc")
    with pytest.raises(StorageFull):
        asyncio.run(blobs.put_stream("name", root_of(b"abc").hex(), 3, stream(b"abc", 2)))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_missing_blob(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no blob"):
        BlobFolder(tmp_path).read("00" * 32)
