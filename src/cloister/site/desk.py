"""What all runs of one site share: who it is, its journal, and its voice towards the coordinator."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cloister.seal.identity import Identity
from cloister.seal.log import Entry, LogView, origin_of
from cloister.site.journal import Journal
from cloister.site.ledger import Ledger
from cloister.site.rosters import Rosters
from cloister.site.settings import SiteFolder, SiteSettings
from cloister.vector import CloisterError, digest
from cloister.vector.errors import (
    ContextMismatch,
    EnvironmentFailure,
    LedgerRolledBack,
    StaleReceipt,
    StorageFull,
    Unreachable,
)
from cloister.wire import CoordinatorClient
from cloister.wire.api import Refusal, Scope

Event = Mapping[str, Any]
MAX_TEXT = 2000  # of a refusal's message, as the wire allows


class TurnedAway(Exception):
    """The coordinator did not take a message: it comes too late, or its round is over. Nobody's fault."""


@contextlib.contextmanager
def _turned_away() -> Iterator[None]:
    try:
        yield
    except (Unreachable, ContextMismatch, LedgerRolledBack):
        raise
    except CloisterError as answer:
        raise TurnedAway(str(answer)) from None


@dataclass
class Desk:
    """Attributes: coordinator: its id in the roster. on_event: told what happens, for people; no data values.

    Every method that asks the coordinator raises Unreachable when that has been away for too long, and TurnedAway
    when it says no.
    """

    folder: SiteFolder
    settings: SiteSettings
    identity: Identity = field(repr=False)
    journal: Journal
    rosters: Rosters
    client: CoordinatorClient
    coordinator: str
    on_event: Callable[[Event], None]
    _following: asyncio.Lock = field(default_factory=asyncio.Lock, init=False, repr=False)

    @property
    def site(self) -> str:
        return self.settings.id

    @cached_property
    def ledger(self) -> Ledger:
        """Raises: EnvironmentFailure: an older copy of it was put in its place."""
        ledger = Ledger(self.folder.ledger)
        noted = list(self.journal.entries("charged"))
        if noted and not ledger.holds(noted[-1].facts["charge"]):
            raise EnvironmentFailure(
                "the privacy ledger lacks a charge that the journal knows of: an older copy was put in its place.",
                mend="Put the newest copy back, or `cloister site budget FOLDER --lost 0` takes what is missing for"
                " spent; until then this site answers no round.",
            )
        return ledger

    def tell(self, event: str, **facts: Any) -> None:
        self.on_event({"event": event, **facts, "site": self.site})

    def note(self, kind: str, **facts: Any) -> None:
        """Appends to the log; a full disk is told, and stops only what must be written down before it is sent."""
        try:
            self.journal.log(kind, **facts)
        except StorageFull as fault:
            self.tell("warning", message=str(fault))

    def crashed(self, fault: BaseException) -> None:
        """An error of our own: its text stays at the site."""
        self.note("crashed", error=type(fault).__name__)
        text = "".join(traceback.format_exception(fault))
        self.tell("warning", message=f"an error inside the agent: {text}")

    async def send(self, type: str, body: bytes, run: str, round: int) -> None:
        with _turned_away():
            await self.client.send(type, body, run, round)

    async def upload(self, header: bytes, payload: bytes | memoryview, run: str, round: int) -> None:
        with _turned_away():
            await self.client.upload(header, payload, run, round)

    async def fetch(self, name: bytes) -> bytes:
        """The bytes that this digest names. Raises: ContextMismatch: the coordinator sent others."""
        with _turned_away():
            return await self.client.fetch(name)

    async def follow_log(self, run: bytes | None = None) -> None:
        """Has the coordinator prove that every receipt held here is in its one log, of one run or of all.

        Raises: StaleReceipt: it cannot; the log was forked or rolled back, or leaves the receipt out.
        """
        async with self._following:
            for of, round, body in self.journal.unplaced(run):
                key = self.rosters.coordinator_key(self.coordinator)
                view = LogView.resume(origin_of(self.settings.federation), key, self.journal.head())
                try:
                    with _turned_away():
                        shown = await self.client.entry(digest(body), view.size)
                except TurnedAway as answer:
                    raise StaleReceipt(
                        f"the coordinator shows no place in its log for round {round}: {answer}"
                    ) from None
                entry = Entry.from_bytes(shown)
                view = view.accept(body, entry)
                self.journal.set_place(of, round, entry.index, view.note)

    async def refuse(self, fault: CloisterError, run: str, round: int | None, *, whole_run: bool) -> None:
        """Writes a refusal down, shows it to the steward, and sends it signed, without data values."""
        fields = {**fault.as_json(), "site": self.site}
        self.note("refused", run=run, round=round, whole_run=whole_run, **fields)
        self.tell("refused", run=run, round=round, **fields)
        await self.stand(fault, run, round, "run" if whole_run else "round")

    async def stand(self, fault: CloisterError, run: str, round: int | None, scope: Scope) -> None:
        """Tells the coordinator how this site stands to a run. Args: scope: see `wire.api.Refusal`."""
        refusal = Refusal(
            error=fault.name,
            message=fault.message[:MAX_TEXT],
            mend=fault.mend[:MAX_TEXT],
            site=self.site,
            rule=getattr(fault, "rule", ""),
            scope=scope,
        )
        with contextlib.suppress(TurnedAway), _turned_away():
            await self.client.refuse(refusal, run, round or 0)
