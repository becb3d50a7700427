"""An analyst's folder, and the coordinator as an analyst sees it: submit, watch, fetch.

analyst.json   id, federation, the coordinator's address and pinned certificate, the proxy on the way
identity.key   the analyst's Ed25519 key, readable by its owner only
rosters/       the rosters accepted, as signed by the root
sequence       the number of the last envelope
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloister.seal.identity import Identity, fingerprint_words
from cloister.seal.roster import Roster
from cloister.site.reach import read_proxy
from cloister.site.rosters import Rosters
from cloister.site.settings import write_private
from cloister.vector.errors import NotInRoster, UsageError
from cloister.wire import CoordinatorClient, Invitation, Proxy, enroll, fetch_certificate, fetch_roster
from cloister.wire.api import revive

ADMISSION_SECONDS = 600.0  # a person compares words meanwhile
ADMISSION_POLL_SECONDS = 1.0
PATIENCE_SECONDS = 60.0
ENDS = ("failed", "stopped")

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Analyst:
    """One analyst's membership. Attributes: words: the six that the operator compares before admitting."""

    folder: Path
    id: str
    federation: str
    url: str
    certificate: str
    root: bytes
    proxy: Proxy = field(default_factory=Proxy)

    @classmethod
    async def join(cls, code: str, folder: Path, proxy_url: str = "", proxy_ca: Path | None = None) -> Analyst:
        """Makes the key, here, and enrols it. Joining again with the same folder is a no-op.

        Args: proxy_url, proxy_ca: of a proxy on the way out, as `wire.Proxy` has them; kept in analyst.json.
        Raises: InvitationError; UsageError: the folder belongs to another member; Unreachable. RosterRefused: who
          answers shows a roster that the invitation's root key did not sign.
        """
        invitation = Invitation.decode(code)
        if invitation.role != "analyst":
            raise UsageError(
                f"this invitation is for the site {invitation.id!r}.", mend="Use it with `cloister site join`."
            )
        if (folder / "analyst.json").exists():
            held = cls.open(folder)
            if (held.id, held.federation) != (invitation.id, invitation.federation):
                raise UsageError(f"{folder} belongs to {held.id!r} of {held.federation!r}.", mend="Choose --folder.")
            return held
        proxy = read_proxy(proxy_url, proxy_ca)
        certificate = await fetch_certificate(invitation, proxy)
        folder.mkdir(parents=True, exist_ok=True)
        known = (folder, invitation.id, invitation.federation, invitation.url, certificate, invitation.root, proxy)
        await cls(*known).rosters().follow_latest()
        identity = Identity.generate(os.urandom)
        await enroll(invitation, identity, certificate, proxy)
        write_private(folder / "identity.key", identity.to_bytes())
        facts = {
            "id": invitation.id,
            "federation": invitation.federation,
            "url": invitation.url,
            "certificate": certificate,
            "root": invitation.root.hex(),
            "proxy": proxy_url,
            "proxy_ca": "" if proxy_ca is None else str(proxy_ca.resolve()),
        }
        write_private(folder / "analyst.json", json.dumps(facts, indent=2).encode())
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> Analyst:
        """Raises: UsageError: no analyst's folder."""
        try:
            facts = json.loads((folder / "analyst.json").read_text())
            root, ca = bytes.fromhex(facts["root"]), facts.get("proxy_ca")
            proxy = read_proxy(facts.get("proxy", ""), Path(ca) if ca else None)
            return cls(folder, facts["id"], facts["federation"], facts["url"], facts["certificate"], root, proxy)
        except (OSError, ValueError, KeyError):
            raise UsageError(
                f"{folder} is no analyst's folder.",
                mend="The first time, give the invitation: `cloister submit job.py --invitation CODE`.",
            ) from None

    @property
    def identity(self) -> Identity:
        return Identity.from_bytes((self.folder / "identity.key").read_bytes())

    @property
    def words(self) -> str:
        return fingerprint_words(self.identity.public)

    def rosters(self) -> Rosters:
        """The rosters verified so far, from the pinned root onwards."""

        async def fetch(version: int | str) -> bytes:
            return await fetch_roster(self.url, self.certificate, version, PATIENCE_SECONDS, self.proxy)

        return Rosters(self.folder / "rosters", self.root, self.federation, fetch)

    async def admitted(self, notify: Notify) -> Roster:
        """The roster once this analyst is in it. Raises: NotInRoster: not admitted within ten minutes."""
        rosters, waited = self.rosters(), 0.0
        while True:
            roster = await rosters.follow_latest()
            try:
                roster.key_of(self.id, "analyst")
                return roster
            except NotInRoster:
                if waited >= ADMISSION_SECONDS:
                    raise
            if waited == 0:
                notify(f"waiting for the operator to admit {self.id!r}; read out these words: {self.words}")
            await asyncio.sleep(ADMISSION_POLL_SECONDS)
            waited += ADMISSION_POLL_SECONDS

    @asynccontextmanager
    async def connect(self, notify: Notify) -> AsyncIterator[CoordinatorClient]:
        """A client of the coordinator, once this analyst is in the roster."""
        roster = await self.admitted(notify)
        client = CoordinatorClient(
            self.url,
            self.certificate,
            self.identity,
            self.id,
            lambda id: roster.key_of(id, "coordinator"),
            self.next_sequence,
            coordinator=roster.coordinators[0].id,
            patience_seconds=PATIENCE_SECONDS,
            on_retry=notify,
            proxy=self.proxy,
        )
        async with client:
            yield client

    def next_sequence(self) -> int:
        """A number larger than any that this folder ever gave, over commands that run side by side too."""
        with open(self.folder / "sequence", "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            number = int(file.read() or 0) + 1
            file.truncate(0)
            file.write(str(number))
        return number


async def follow(client: CoordinatorClient, run: str, after: int = 0) -> AsyncIterator[dict[str, Any]]:
    """The events of a run as they happen, until it ends. Raises: what ended it, unless it is done."""
    while True:
        for event in await client.events(run, after):
            after = event["number"]
            yield event
            if event["event"] in ENDS:
                error = event.get("error", "")
                raise revive(
                    error,
                    event.get("message", f"the run {event['event']}."),
                    event.get("mend", ""),
                    event.get("site", ""),
                )
            if event["event"] == "done":
                return
