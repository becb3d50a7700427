"""A real coordinator on loopback: uvicorn with TLS in a thread of the test's process, or a process of its own."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from cloister.coordinator import admit, init_coordinator, invite
from cloister.coordinator import serve as serving
from cloister.coordinator.folder import Folder
from cloister.coordinator.hub import Patience
from cloister.seal.identity import Identity
from cloister.seal.labels import fields
from cloister.seal.roster import Roster
from cloister.wire import CoordinatorClient, Invitation, enroll, fetch_certificate, fetch_roster

QUICK = Patience(answer=20.0, training=20.0, gather=3.0, cohort=20.0, restart=3.0, again=0.1)


@dataclass
class Member:
    """A member's key and numbers, and a client of the coordinator."""

    invitation: Invitation
    url: str
    identity: Identity = field(default_factory=lambda: Identity.generate(os.urandom))
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    certificate: str = ""

    @property
    def id(self) -> str:
        return self.invitation.id

    async def enroll(self) -> None:
        self.certificate = await fetch_certificate(self.invitation)
        await enroll(self.invitation, self.identity, self.certificate)

    async def roster(self) -> Roster:
        return Roster.from_bytes(fields(await fetch_roster(self.url, self.certificate))[0])

    async def client(self, **settings: Any) -> CoordinatorClient:
        roster = await self.roster()
        return CoordinatorClient(
            self.url,
            self.certificate,
            self.identity,
            self.id,
            lambda id: roster.key_of(id, "coordinator"),
            lambda: next(self.numbers),
            **settings,
        )


class Federation:
    """A served folder. Attributes: url; members by id, enrolled and admitted."""

    def __init__(self, folder: Path, root: Path, url: str) -> None:
        self.folder, self.root, self.url = folder, root, url
        self.members: dict[str, Member] = {}

    def invite(self, *ids: str, role: str = "site") -> list[Member]:
        """Invitations name the port of the settings, which here is whichever was free."""
        made = invite(self.folder, ids, role)
        return [Member(Invitation(**{**each.__dict__, "url": self.url}), self.url) for each in made]

    def admit(self, *ids: str, role: str = "site") -> list[Member]:
        members = self.invite(*ids, role=role)
        for member in members:
            asyncio.run(member.enroll())
            self.members[member.id] = member
        admit(self.folder, self.root, ids)
        return members


@pytest.fixture
def serve_in_thread(tmp_path: Path) -> Iterator[Callable[[Folder], str]]:
    """Starts `serve` for a folder on a free port, in a thread; all are stopped at the end."""
    servers: list[uvicorn.Server] = []
    threads: list[threading.Thread] = []
    startup = serving.__globals__["_Server"].startup

    async def remembered(self: uvicorn.Server, sockets: Any = None) -> None:
        servers.append(self)
        await startup(self, sockets)

    serving.__globals__["_Server"].startup = remembered

    def start(folder: Folder) -> str:
        urls: list[str] = []
        ready = threading.Event()

        def tell(url: str) -> None:
            urls.append(url)
            ready.set()

        thread = threading.Thread(target=serving, args=(folder.path, None, 0, tell, QUICK), daemon=True)
        thread.start()
        threads.append(thread)
        assert ready.wait(20), "the coordinator did not start"
        return urls[0]

    yield start
    serving.__globals__["_Server"].startup = startup
    for server in servers:
        server.handle_exit(2, None)
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive(), "the coordinator did not stop"


@pytest.fixture
def federation(tmp_path: Path, serve_in_thread: Callable[[Folder], str]) -> Federation:
    root = tmp_path / "root.key"
    folder = init_coordinator(tmp_path / "federation", "heart", root_path=root)
    return Federation(folder.path, root, serve_in_thread(folder))


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
