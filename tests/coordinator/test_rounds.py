"""One round at the coordinator without a network: uploads in parts, crashes between any two steps, lies."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from cloister.coordinator import init_coordinator
from cloister.coordinator.folder import read_key
from cloister.coordinator.hub import Hub, Patience
from cloister.coordinator.membership import current_roster
from cloister.coordinator.rounds import OpenRound, delete_parts
from cloister.coordinator.store import Round, Run
from cloister.coordinator.uploads import Uploads
from cloister.seal.client import SealClient
from cloister.seal.identity import SIGNATURE_BYTES, Identity
from cloister.seal.labels import ZERO32, fields
from cloister.seal.merkle import root, root_of
from cloister.seal.messages import PART_BYTES, Masked
from cloister.seal.plan import Plan
from cloister.seal.roster import Member, Roster, sign_roster
from cloister.seal.state import Phase
from cloister.seal.threshold import threshold
from cloister.vector import Block, Layout
from cloister.vector.errors import (
    BadUpload,
    ContextMismatch,
    EnvelopeReplayed,
    MalformedMessage,
    StorageFull,
    UnexpectedMessage,
)
from cloister.wire import Envelope

from .sites import Once

RUN = "0f" * 16
SITES = ("a", "b", "c")
LAYOUT = Layout((Block("delta", (PART_BYTES // 4 + 1000,), bound=1.0),))  # a little over one part


@dataclass
class Table:
    """The hub, the sites' machines, and the next envelope number."""

    hub: Hub
    run: Run
    row: Round
    round: OpenRound
    seals: dict[str, SealClient]
    seq: int = 0

    def restart(self) -> None:
        """What a killed coordinator finds."""
        folder = self.hub.folder
        self.hub.close()
        self.hub = Hub(folder, Patience())
        self.round = OpenRound(self.hub, self.run, self.row)

    def envelope(self, site: str, type: str, body: bytes) -> Envelope:
        self.seq += 1
        return Envelope(type, site, "coordinator", RUN, 0, self.seq, body)

    def mail(self, site: str) -> list[bytes]:
        mail = self.hub.store.run_tx("mail", lambda tx: tx.mail_after(site, 0))
        self.hub.store.run_tx("acknowledge", lambda tx: tx.acknowledge(site, 99))
        return [fields(data[:-SIGNATURE_BYTES])[1] for data in mail]

    async def reach(self, phase: Phase) -> None:
        """Honest answers until the round is in this phase."""
        names = {Phase.KEYS: "keys", Phase.SHARES: "shares", Phase.CONSISTENT: "consistent", Phase.UNMASK: "unmask"}
        while self.round.server.phase is not phase:
            now = self.round.server.phase
            for site, seal in self.seals.items():
                if now is Phase.KEYS:
                    seal.open(self.round.server.open())
                    body: bytes | None = seal.keys(self.round.plan.query)
                else:
                    (message,) = self.mail(site)
                    body = seal.receive(message)
                assert body is not None
                await self.round.take(self.envelope(site, names[now], body))
            await self.round._close()

    def masked(self, site: str, value: int) -> tuple[bytes, bytes]:
        for message in self.mail(site):
            self.seals[site].receive(message)
        words = np.full(self.round.plan.words, value, np.uint32)
        header, payload = self.seals[site].mask(words)
        return header, bytes(payload)

    async def announced(self, site: str) -> tuple[bytes, list[tuple[str, bytes]]]:
        """Up to a header whose parts nobody has put yet."""
        await self.reach(Phase.MASKED)
        header, payload = self.masked(site, 1)
        await self.round.announce(self.envelope(site, "masked", header))
        return header, cut(payload)

    async def put(self, site: str, name: str, data: bytes) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            for at in range(0, len(data), 1 << 16):
                yield data[at : at + (1 << 16)]

        ((_, length),) = [found for found in self.round.expecting(name) if found[0] == site]
        await self.hub.parts.put_stream(self.round.stored(name), name, length, chunks())
        await self.round.part_arrived(site)

    async def upload(self, site: str, value: int) -> None:
        header, payload = self.masked(site, value)
        for name in await self.round.announce(self.envelope(site, "masked", header)):
            await self.put(site, name, dict(cut(payload))[name])


def cut(payload: bytes) -> list[tuple[str, bytes]]:
    parts = [payload[at : at + PART_BYTES] for at in range(0, len(payload), PART_BYTES)]
    return [(root_of(part).hex(), part) for part in parts]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    folder = init_coordinator(tmp_path / "federation", "heart", root_path=tmp_path / "root.key")
    identities = {site: Identity.generate(os.urandom) for site in SITES}
    store = folder.store()
    first = current_roster(store)
    members = tuple(Member(site, identities[site].public) for site in SITES)
    roster = Roster("heart", 2, first.digest, first.roots, 1, first.coordinators, members)
    store.add_roster(2, sign_roster(roster, [read_key(tmp_path / "root.key")]))
    store.close()
    hub = Hub(folder, Patience())
    plan = Plan(
        "heart", bytes.fromhex(RUN), 0, 0, bytes(32), bytes(32), "fedavg", 32, LAYOUT, 10, SITES, threshold(3), 3
    )
    run = Run(RUN, "00" * 32, "heart", "lee", "00" * 32, 2, 0.0, "running", False, None, None, None)
    row = Round(RUN, 0, plan.to_bytes(), ZERO32.hex(), "open", None, None, 0.0)
    hub.store.run_tx("plan", lambda tx: (tx.add_run(run), tx.add_round(row)))
    key = roster.coordinators[0].key
    seals = {
        site: SealClient(site, identities[site], roster, key, journal=Once(), randomness=os.urandom) for site in SITES
    }
    return Table(hub, run, row, OpenRound(hub, run, row), seals)


def test_parts_come_in_any_order_and_the_sum_opens(table: Table) -> None:
    async def act() -> None:
        await table.reach(Phase.MASKED)
        header, payload = table.masked("a", 1)
        (first, one), (second, two) = cut(payload)
        announced = table.envelope("a", "masked", header)
        assert await table.round.announce(announced) == [first, second]
        await table.put("a", second, two)
        assert table.round.server.answered() == set()
        assert await table.round.announce(table.envelope("a", "masked", header)) == [first]  # resumed
        table.restart()
        assert list(table.round.expecting(first)) == [("a", PART_BYTES)]  # the announcement is remembered
        await table.put("a", first, one)
        assert table.round.server.answered() == {"a"}
        assert await table.round.announce(table.envelope("a", "masked", header)) == []
        assert list(table.round.expecting(first)) == []
        for site, value in (("b", 2), ("c", 4)):
            await table.upload(site, value)
        await table.round._close()
        await table.reach(Phase.OPEN)
        words, root = table.round.total()
        np.testing.assert_array_equal(words, 7)
        table.restart()
        assert table.round.server.phase is Phase.OPEN  # a crash after the opening opens the same sum again
        again, same = table.round.total()
        np.testing.assert_array_equal(again, words)
        assert same == root

    asyncio.run(act())


def test_uploads_that_overlap_are_added_up(table: Table) -> None:
    async def act() -> None:
        await table.reach(Phase.MASKED)
        sent = {site: table.masked(site, value) for site, value in zip(SITES, (1, 2, 4), strict=True)}
        for site, (header, _) in sent.items():
            await table.round.announce(table.envelope(site, "masked", header))
        parts = [(site, *part) for site, (_, payload) in sent.items() for part in cut(payload)]
        await asyncio.gather(*(table.put(site, name, data) for site, name, data in reversed(parts)))
        assert table.round.server.answered() == set(SITES)
        await table.round._close()
        await table.reach(Phase.OPEN)
        np.testing.assert_array_equal(table.round.total()[0], 7)

    asyncio.run(act())


def test_a_restart_in_any_phase_changes_nothing(table: Table) -> None:
    async def act() -> None:
        for phase in (Phase.SHARES, Phase.MASKED):
            await table.reach(phase)
            opened = table.round.server.open()
            table.restart()
            assert (table.round.server.phase, table.round.server.open()) == (phase, opened)
        for site in SITES:
            await table.upload(site, 1)
            table.restart()
            assert site in table.round.server.answered()
        await table.round._close()
        for phase in (Phase.UNMASK, Phase.OPEN):
            await table.reach(phase)
            table.restart()
            assert table.round.server.phase is phase
        np.testing.assert_array_equal(table.round.total()[0], 3)

    asyncio.run(act())


def test_who_will_not_answer_is_remembered(table: Table) -> None:
    table.hub.store.run_tx("refuse", lambda tx: table.round.drop(tx, "b"))
    table.hub.store.run_tx("refuse", lambda tx: table.round.drop(tx, "stranger"))
    assert table.round.gone == {"b"}
    table.restart()
    assert table.round.gone == {"b"}


def test_bytes_that_are_not_those_signed_for(table: Table) -> None:
    async def act() -> None:
        header, ((first, one), (second, two)) = await table.announced("a")
        for wrong in (one[:-1] + bytes([one[-1] ^ 1]), one + b"x", one[:-1], two):
            with pytest.raises(BadUpload):
                await table.put("a", first, wrong)
        assert not table.hub.parts.has(table.round.stored(first))
        assert await table.round.announce(table.envelope("a", "masked", header)) == [first, second]
        with pytest.raises(UnexpectedMessage):
            await table.round.announce(table.envelope("b", "masked", header))  # of another site
        assert table.round.server.answered() == set()

    asyncio.run(act())


def test_a_header_whose_parts_do_not_make_its_root(table: Table) -> None:
    async def act() -> None:
        await table.reach(Phase.MASKED)
        message, seal = Masked.from_bytes(table.masked("a", 1)[0]), table.seals["a"]
        swapped = replace(message, parts=message.parts[::-1]).signed(seal._identity)
        with pytest.raises(MalformedMessage):
            await table.round.announce(table.envelope("a", "masked", swapped.to_bytes()))
        assert table.round.parts_of("a") == []

    asyncio.run(act())


def test_a_part_of_another_length_than_it_stands_for(table: Table) -> None:
    """Two names of a short part make a root, and both are on the disk at once."""

    async def act() -> None:
        await table.reach(Phase.MASKED)
        header, payload = table.masked("a", 1)
        message, seal = Masked.from_bytes(header), table.seals["a"]
        _, (short, data) = cut(payload)
        parts = (bytes.fromhex(short), bytes.fromhex(short))
        upload = replace(message.upload, root=root(parts)).signed(seal._identity)
        await table.round.announce(table.envelope("a", "masked", header))
        await table.put("a", short, data)
        twice = replace(message, upload=upload, parts=parts).signed(seal._identity).to_bytes()
        with pytest.raises(BadUpload):
            await table.round.announce(table.envelope("a", "masked", twice))
        assert table.round.server.answered() == set()

    asyncio.run(act())


def test_a_header_of_another_round_names_no_part_of_this_one(table: Table) -> None:
    """Else it would take those of the other round with it when its own are deleted."""

    async def act() -> None:
        header, parts = await table.announced("a")
        for name, data in parts:
            await table.put("a", name, data)
        message, seal = Masked.from_bytes(table.masked("b", 1)[0]), table.seals["b"]
        upload = replace(message.upload, context=bytes(32)).signed(seal._identity)
        strange = replace(message, context=bytes(32), upload=upload).signed(seal._identity).to_bytes()
        with pytest.raises(ContextMismatch):
            await table.round.announce(table.envelope("b", "masked", strange))
        copied = Masked.from_bytes(header)
        elsewhere = replace(copied, context=bytes(32), upload=replace(copied.upload, context=bytes(32)))
        delete_parts(table.hub, [elsewhere.to_bytes()])
        assert all(table.hub.parts.has(table.round.stored(name)) for name, _ in parts)
        delete_parts(table.hub, [header])
        assert not any(table.hub.parts.has(table.round.stored(name)) for name, _ in parts)

    asyncio.run(act())


def test_another_header_while_the_parts_of_one_are_read(table: Table) -> None:
    async def act() -> None:
        header, ((first, one), (second, two)) = await table.announced("a")
        await table.put("a", second, two)
        table.restart()
        message, seal = Masked.from_bytes(header), table.seals["a"]
        parts = (bytes(32), message.parts[1])
        upload = replace(message.upload, root=root(parts)).signed(seal._identity)
        other = replace(message, upload=upload, parts=parts).signed(seal._identity).to_bytes()
        putting = asyncio.create_task(table.put("a", first, one))
        async with table.round._lock:
            while not table.hub.parts.has(table.round.stored(first)):
                await asyncio.sleep(0)
            assert await table.round.announce(table.envelope("a", "masked", other)) == ["00" * 32]
        await putting
        assert table.round.server.answered() == set()

    asyncio.run(act())


def test_what_this_process_took_is_not_read_again(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> None:
        raise AssertionError("an upload was hashed a second time")

    async def act() -> None:
        await table.reach(Phase.MASKED)
        await table.upload("a", 1)
        assert table.round.server.answered() == {"a"}

    monkeypatch.setattr(Uploads, "hashed", read)
    asyncio.run(act())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def tear(path: Path) -> None:
    path.write_bytes(bytes(4000))  # as a file system may after a loss of power


@pytest.mark.parametrize("harm", [flip, tear])
@pytest.mark.parametrize("closed", [False, True])
def test_parts_that_the_disk_lost_are_found_out_after_a_restart(
    table: Table, harm: Callable[[Path], None], closed: bool
) -> None:
    async def act() -> None:
        await table.reach(Phase.MASKED)
        for site in SITES:
            await table.upload(site, 1)
        if closed:
            await table.round._close()
        name, _ = table.round.parts_of("b")[1]
        harm(table.hub.parts.path(table.round.stored(name)))
        with pytest.raises(BadUpload):
            table.restart()

    asyncio.run(act())


@pytest.mark.parametrize("harm", [flip, tear])
def test_a_part_from_before_a_restart_is_read_before_the_upload_is_taken(
    table: Table, harm: Callable[[Path], None]
) -> None:
    async def act() -> None:
        _, ((first, one), (second, two)) = await table.announced("a")
        await table.put("a", second, two)
        harm(table.hub.parts.path(table.round.stored(second)))
        table.restart()
        with pytest.raises(BadUpload):
            await table.put("a", first, one)
        assert table.round.server.answered() == set()

    asyncio.run(act())


def test_a_message_that_cannot_be_stored_was_never_said(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act() -> None:
        seal = table.seals["a"]
        seal.open(table.round.server.open())
        keys = seal.keys(table.round.plan.query)
        with monkeypatch.context() as patch:
            patch.setattr("cloister.coordinator.store.Tx.append", full)
            with pytest.raises(StorageFull):
                await table.round.take(table.envelope("a", "keys", keys))
        assert table.round.server.answered() == set()
        await table.round.take(again := table.envelope("a", "keys", keys))
        assert table.round.server.answered() == {"a"}
        with pytest.raises(EnvelopeReplayed):
            await table.round.take(again)
        with pytest.raises(UnexpectedMessage):
            await table.round.take(table.envelope("b", "shares", keys))  # labelled as something else

    def full(*arguments: object) -> None:
        raise StorageFull("the disk is full.")

    asyncio.run(act())
