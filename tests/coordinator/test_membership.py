"""Founding, inviting, enrolling, admitting: over real TLS, and every way it must not work."""

from __future__ import annotations

import asyncio
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from cloister.coordinator import admit, init_coordinator, invite, pending
from cloister.coordinator.folder import open_folder
from cloister.coordinator.membership import INVITATION_SECONDS
from cloister.coordinator.store import Store
from cloister.seal.identity import Identity, fingerprint_words
from cloister.vector.errors import BadSignature, InvitationError, NotInRoster, RosterRefused, Unreachable, UsageError
from cloister.wire import enroll, fetch_roster

from .conftest import Federation


def test_init_writes_keys_that_only_the_owner_reads(tmp_path: Path) -> None:
    root = tmp_path / "offline" / "root.key"
    folder = init_coordinator(tmp_path / "f", "heart", root_path=root)
    for path in (root, folder.path / "coordinator.key", folder.certificate_key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert open_folder(folder.path) == folder
    assert root.read_text() not in "".join(
        path.read_text(errors="replace") for path in folder.path.rglob("*") if path.is_file()
    )


def test_init_never_overwrites(tmp_path: Path) -> None:
    init_coordinator(tmp_path / "f", "heart", root_path=tmp_path / "root.key")
    with pytest.raises(UsageError, match="holds a coordinator"):
        init_coordinator(tmp_path / "f", "heart", root_path=tmp_path / "other.key")
    with pytest.raises(UsageError, match="never overwritten"):
        init_coordinator(tmp_path / "g", "heart", root_path=tmp_path / "root.key")
    with pytest.raises(RosterRefused):
        init_coordinator(tmp_path / "h", "No Name", root_path=tmp_path / "third.key")
    with pytest.raises(UsageError, match="no coordinator's folder"):
        open_folder(tmp_path / "nothing")


def test_a_member_joins(federation: Federation) -> None:
    (kent,) = federation.invite("kent")
    asyncio.run(kent.enroll())
    asyncio.run(kent.enroll())  # the answer was lost: the same key may ask again
    (waiting,) = pending(federation.folder)
    assert (waiting.id, waiting.role, waiting.words) == ("kent", "site", fingerprint_words(kent.identity.public))
    with pytest.raises(NotInRoster):
        asyncio.run(_poll(kent))
    roster = admit(federation.folder, federation.root)
    assert roster.version == 2
    assert asyncio.run(kent.roster()) == roster  # the running coordinator takes it up at once
    asyncio.run(_poll(kent))
    assert pending(federation.folder) == []
    with pytest.raises(UsageError, match="member already"):
        invite(federation.folder, ["kent"])


async def _poll(member: object, after: int = 0) -> None:
    async with await member.client() as client:  # type: ignore[attr-defined]
        assert await client.poll(after, hold_seconds=0) == []


def test_wrong_spent_expired_and_stolen_invitations(federation: Federation) -> None:
    kent, lyon = federation.invite("kent", "lyon")
    asyncio.run(kent.enroll())
    thief = replace(kent, identity=Identity.generate(os.urandom))
    with pytest.raises(InvitationError, match="used before"):
        asyncio.run(thief.enroll())
    invented = replace(lyon, invitation=replace(lyon.invitation, token=b"x" * 16))
    with pytest.raises(InvitationError, match="does not know"):
        asyncio.run(invented.enroll())
    for_another = replace(lyon, invitation=replace(lyon.invitation, id="oslo"))
    with pytest.raises(InvitationError, match="does not know"):
        asyncio.run(for_another.enroll())
    (late,) = invite(federation.folder, ["late"], now=lambda: 1000.0 - INVITATION_SECONDS)
    with pytest.raises(InvitationError, match="expired"):
        asyncio.run(replace(lyon, invitation=replace(late, url=federation.url)).enroll())


def test_a_key_must_be_proven(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    (kent,) = federation.invite("kent")
    monkeypatch.setattr(Identity, "sign", lambda self, label, body: bytes(64))
    with pytest.raises(BadSignature):
        asyncio.run(kent.enroll())


def test_another_certificate_or_nobody_at_the_address(federation: Federation) -> None:
    (kent,) = federation.invite("kent")
    with pytest.raises(InvitationError, match="certificate"):
        asyncio.run(replace(kent, invitation=replace(kent.invitation, certificate=bytes(32))).enroll())
    with pytest.raises(Unreachable):
        asyncio.run(replace(kent, invitation=replace(kent.invitation, url="https://127.0.0.1:1")).enroll())


def test_only_the_pinned_certificate_is_spoken_to(federation: Federation, tmp_path: Path) -> None:
    (kent,) = federation.invite("kent")
    asyncio.run(kent.enroll())
    other = init_coordinator(tmp_path / "other", "heart", root_path=tmp_path / "other.key")
    with pytest.raises(Unreachable):
        asyncio.run(enroll(kent.invitation, kent.identity, other.certificate.read_text()))


def test_admit_needs_the_root_key_and_someone_who_waits(federation: Federation, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nobody waits"):
        admit(federation.folder, federation.root)
    with pytest.raises(UsageError, match="does not wait"):
        admit(federation.folder, federation.root, ["kent"])
    init_coordinator(tmp_path / "other", "heart", root_path=tmp_path / "other.key")
    with pytest.raises(UsageError, match="not the root key"):
        admit(federation.folder, tmp_path / "other.key")
    (tmp_path / "junk.key").write_text("not hex")
    with pytest.raises(UsageError, match="holds no key"):
        admit(federation.folder, tmp_path / "junk.key")


def test_rosters_are_handed_out_by_version(federation: Federation) -> None:
    (kent,) = federation.admit("kent")

    async def act() -> None:
        first = await fetch_roster(federation.url, kent.certificate, 1)
        assert first != await fetch_roster(federation.url, kent.certificate, "latest")
        for wrong in ("3", "0", "x", "1e9", "9" * 30):
            with pytest.raises(UsageError):
                await fetch_roster(federation.url, kent.certificate, wrong)

    asyncio.run(act())


def test_the_database_survives_being_opened_again(tmp_path: Path) -> None:
    for _ in range(2):
        store = Store(tmp_path / "cloister.db")
        store.close()
