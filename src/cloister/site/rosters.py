"""The rosters this site has verified, version by version, each kept as its root signed it.

A run is bound to the roster version that was current when it began, so older versions stay at hand.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from cloister.seal.labels import fields
from cloister.seal.roster import Roster, TrustedRoster
from cloister.site.settings import write_private
from cloister.vector.errors import EnvironmentFailure, NotInRoster, PeerError, RosterRefused

Fetch = Callable[[int | str], Awaitable[bytes]]


class Rosters:
    """Args: folder: made if absent. root_key: pinned at joining. fetch: the signed bytes of a version or "latest".

    Raises: EnvironmentFailure: a kept roster was damaged.
    """

    def __init__(self, folder: Path, root_key: bytes, federation: str, fetch: Fetch) -> None:
        folder.mkdir(exist_ok=True, mode=0o700)
        self._folder, self._fetch = folder, fetch
        self._trusted = TrustedRoster([root_key], federation=federation)
        self._known: dict[int, Roster] = {}
        try:
            for path in sorted(folder.glob("*.signed"), key=lambda path: int(path.stem)):
                signed = path.read_bytes()
                roster = Roster.from_bytes((fields(signed) or [b""])[0])
                self._known[roster.version] = roster
                self._trusted.update(signed)  # the oldest is judged by the pinned root, each later by the one before
        except (PeerError, ValueError) as fault:
            raise EnvironmentFailure(
                f"the rosters kept in {folder} are damaged: {fault}.",
                mend="Delete that folder: they are fetched and judged by the pinned root key again.",
            ) from None

    @property
    def current(self) -> Roster | None:
        return self._trusted.current

    async def follow_latest(self) -> Roster:
        """Fetches and verifies what is new. Raises: RosterRefused; what the coordinator answers; Unreachable."""
        signed = await self._fetch("latest")
        latest = Roster.from_bytes((fields(signed) or [b""])[0]).version
        if self.current is None:
            return self._accept(signed)
        if latest < self.current.version:
            raise RosterRefused(
                f"the coordinator's latest roster is version {latest}, this site has seen {self.current.version}.",
                mend="The coordinator was set back or is another one: ask its operator.",
            )
        return await self._follow_to(latest)

    async def at(self, version: int) -> Roster:
        """The roster of this version, fetched if it is newer than all known. Raises: NotInRoster: older than all."""
        if version not in self._known and self.current is not None and version > self.current.version:
            await self._follow_to(version)
        if version not in self._known:
            raise NotInRoster(f"roster version {version} is older than this site's first.")
        return self._known[version]

    def coordinator_key(self, id: str) -> bytes:
        """The key that `id` signs with as a coordinator now. Raises: NotInRoster."""
        if self.current is None:
            raise NotInRoster("this site has no roster yet.")
        return self.current.key_of(id, "coordinator")

    async def _follow_to(self, version: int) -> Roster:
        assert self.current is not None
        while self.current.version < version:
            self._accept(await self._fetch(self.current.version + 1))
        return self.current

    def _accept(self, signed: bytes) -> Roster:
        roster = self._trusted.update(signed)
        write_private(self._folder / f"{roster.version}.signed", signed)
        self._known[roster.version] = roster
        return roster
