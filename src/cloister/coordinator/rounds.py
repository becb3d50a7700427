"""One sealed round under way: the seal machine, its durable transcript, the uploads, and the driving of its phases.

Whatever the machine is told is in the transcript before anybody is answered, so after a crash `OpenRound` is made
anew from it and goes on. A phase ends when every site that is awaited and still there has answered.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from cloister.coordinator.hub import Hub, Stopping
from cloister.coordinator.store import Round, Run, Tx
from cloister.coordinator.uploads import Uploads, stored
from cloister.job import Job
from cloister.round.loop import cores
from cloister.seal.masks import packed_bytes
from cloister.seal.merkle import root_of
from cloister.seal.messages import Masked, MaskedHeader, label_of, masked_header
from cloister.seal.plan import Plan
from cloister.seal.server import SealServer
from cloister.seal.state import Phase
from cloister.vector import CloisterError
from cloister.vector.errors import (
    BadUpload,
    ContextMismatch,
    EnvironmentFailure,
    RoundVoid,
    TooFewSurvivors,
    UnexpectedMessage,
)
from cloister.vector.layout import Words
from cloister.wire import Envelope, api

MAIL = {  # what the machine's close() sends goes into mailboxes under these names
    Phase.KEYS: "keylist",
    Phase.SHARES: "ciphertexts",
    Phase.MASKED: "survivors",
    Phase.CONSISTENT: "consistency",
}
SHOWN = (Phase.KEYS, Phase.CONSISTENT)  # what closes these is the same for all sites, and evidence afterwards
Result = TypeVar("Result")


class OpenRound:
    """Args: enough: how many masked vectors end the wait for them; None: those of all sites.

    Attributes: plan. server: the seal machine. gone: sites that will not answer any more in this round, refused or
    restarted. seconds: how long each closed phase took. shown: messages 2 and 8, by the phase that they closed."""

    def __init__(self, hub: Hub, run: Run, row: Round, enough: int | None = None) -> None:
        self._hub, self.run, self.number = hub, run.id, row.number
        self.plan = Plan.from_bytes(row.plan)
        self._previous = bytes.fromhex(row.previous)
        self._roster = hub.members.at(run.roster)
        self._bound, self._charges = hub.store.look(lambda tx: (tx.bound(run.id), tx.charges()))
        self._enough = enough
        self._lock = asyncio.Lock()  # close() works in another thread; no message may come in between
        self._headers: dict[str, MaskedHeader] = {}
        self.gone: set[str] = set()
        self.seconds: dict[str, float] = {}
        self.shown: dict[Phase, bytes] = {}
        self._traffic = hub.traffic.snapshot()
        self.server = self._replayed()

    def _replayed(self) -> SealServer:
        """The machine as the transcript says it is."""
        key = (self.run, self.number)
        transcript, uploads = self._hub.store.look(lambda tx: (tx.transcript(*key), tx.uploads(*key)))
        if transcript:  # what was taken was held against the charges before it
            self._charges = {}
        server = self._hub.seal_server(self.plan, self._roster, self._previous, self._charges)
        for kind, site, data in transcript:
            if kind == "close":
                self._remember(server.phase, server.close(data))
            elif kind == "gone":
                self.gone.add(site)
            else:
                server.receive(site, data)
        self._headers = {site: masked_header(data) for site, data in uploads.items()}
        for site in server.u3 or (server.answered() if server.phase is Phase.MASKED else ()):
            self._check_upload(self._headers[site])
        return server

    def _check_upload(self, header: MaskedHeader) -> None:
        """Raises: BadUpload: what lies on disk is not what the site signed for."""
        tree, length = Uploads(self._hub.parts, {header.site: header}).hashed(header.site)
        header.check(tree.root(), length)

    def _remember(self, closed: Phase, outgoing: Mapping[str, bytes]) -> None:
        if closed in SHOWN:
            self.shown[closed] = next(iter(outgoing.values()))

    def _commit(self, name: str, write: Callable[[Tx], Result], *, flush: bool) -> Result:
        """A transaction that moves the machine too: if it cannot be committed, the machine goes back."""
        try:
            return self._hub.store.run_tx(name, write, flush=flush)
        except EnvironmentFailure:
            self.server = self._replayed()
            raise

    # what sites send

    async def take(self, envelope: Envelope) -> None:
        """Keys, shares, consistent, unmask. Raises: what `SealServer.receive` does; nothing has changed then."""
        if label_of(envelope.body).rpartition("/")[2] != envelope.type:
            raise UnexpectedMessage(f"an envelope {envelope.type!r} around another message", site=envelope.sender)
        async with self._lock:
            self._receive(envelope.sender, envelope.body, envelope.seq)

    def _receive(self, site: str, data: bytes, seq: int | None) -> None:
        def write(tx: Tx) -> None:
            if seq is not None:
                tx.accept_number(site, seq)
            self.server.receive(site, data)
            tx.append(self.run, self.number, "message", site, data)

        self._commit("message", write, flush=False)

    async def announce(self, envelope: Envelope) -> list[str]:
        """The header of a masked vector. Returns: the names of its parts that are still to be put."""
        site, header = envelope.sender, masked_header(envelope.body)
        size = packed_bytes(self.plan.words, self.plan.bits)
        if header.site != site or self.server.phase is not Phase.MASKED or site not in self.server.awaited():
            raise UnexpectedMessage("no masked vector is awaited from this site", site=site)
        if header.context != self.server.context:
            raise ContextMismatch("a masked vector of another round", site=site)
        if header.payload_bytes != size:
            raise BadUpload(f"a masked vector of {header.payload_bytes} bytes where {size} are planned", site=site)

        def write(tx: Tx) -> None:
            tx.accept_number(site, envelope.seq)
            if site not in self.server.answered():
                tx.announce(self.run, self.number, site, envelope.body)

        self._hub.store.run_tx("announce", write, flush=False)
        if site in self.server.answered():
            async with self._lock:
                self.server.receive(site, envelope.body)  # the same again is no event, another one is refused
            return []
        self._headers[site] = header
        missing = [name for name, _ in self.parts_of(site) if not self._hub.parts.has(self.stored(name))]
        if not missing:
            await self._complete(site)
        return missing

    def parts_of(self, site: str) -> list[tuple[str, int]]:
        """(Merkle root in hex, length) of each part that the site announced."""
        header = self._headers.get(site)
        return [(root.hex(), length) for root, length in header.parts] if header else []

    def stored(self, part: str) -> str:
        """The name under which a part of this round lies in the folder of parts."""
        return stored(self.server.context, part)

    def expecting(self, part: str) -> Iterator[tuple[str, int]]:
        """The sites that announced this part and whose upload is not complete, with its length."""
        if self.server.phase is Phase.MASKED:
            for site in self._headers.keys() - self.server.answered():
                yield from ((site, length) for name, length in self.parts_of(site) if name == part)

    def announced(self, part: str) -> bool:
        """Whether a site's masked vector has this part."""
        return any(part == name for site in self._headers for name, _ in self.parts_of(site))

    async def part_arrived(self, site: str) -> None:
        """Accepts the site's masked vector once all its parts are here. Raises: BadUpload: they are not as signed."""
        if all(self._hub.parts.has(self.stored(name)) for name, _ in self.parts_of(site)):
            await self._complete(site)

    async def _complete(self, site: str) -> None:
        header = self._headers[site]
        parts = self.parts_of(site)
        if not all(self._hub.parts.took(self.stored(name), length) for name, length in parts):  # put before a restart
            await asyncio.to_thread(self._check_upload, header)
        async with self._lock:
            if self._headers[site] is not header:
                return  # it announced another one meanwhile, of which nothing is known yet
            self._receive(site, self._hub.store.look(lambda tx: tx.upload(self.run, self.number, site)), None)
            uploads = Uploads(self._hub.parts, {site: header})
            await asyncio.to_thread(self.server.add, site, uploads.read)

    def drop(self, tx: Tx, site: str) -> None:
        """The site will not answer any more in this round: it refused, or lost its secrets."""
        if site in self.plan.sites:
            tx.append(self.run, self.number, "gone", site, b"")
            self.gone.add(site)

    # the driving

    async def drive(self) -> None:
        """Takes the round through its phases until the sum can be opened.

        Raises: TooFewSurvivors, BadShare: the round is void; nothing was opened. StorageFull: try again later.
        """
        while self.server.phase is not Phase.OPEN:
            if self.server.phase is Phase.VOID:
                raise RoundVoid(f"round {self.number} was void already.")
            started, phase = time.monotonic(), self.server.phase
            await self._answers()
            self._check_bound()
            await self._close()
            self.seconds[phase.value] = time.monotonic() - started

    async def _answers(self) -> None:
        """Returns when every awaited site has answered, is gone or not there any more, or at the deadline."""
        patience, presence = self._hub.patience, self._hub.presence
        allowed = patience.training if self.server.phase is Phase.MASKED else patience.answer
        deadline = time.monotonic() + allowed
        while not self._hub.signals.closing:
            waiting = self.server.awaited() - self.server.answered() - self.gone
            live = [site for site in waiting if presence.is_live(site)]
            now = time.monotonic()
            if not live or now >= deadline or self._full():
                return
            horizon = min(deadline, *(presence.until(site) for site in live))
            await self._hub.signals.wait([f"run/{self.run}", "presence"], horizon - now)
        raise Stopping("the coordinator stops.")

    def _full(self) -> bool:
        """Whether those that were ready first are enough. After a void round its sites alone would do."""
        waits = self._enough is not None and self.server.phase is Phase.MASKED and not self._bound
        return waits and len(self.server.answered()) >= (self._enough or 0)

    def _check_bound(self) -> None:
        """Raises: TooFewSurvivors: the sites would refuse a survivor set other than that of the void round before."""
        if self.server.phase is Phase.MASKED and self._bound:
            lost = sorted(set(self._bound) - self.server.answered())
            if lost:
                raise TooFewSurvivors(
                    f"round {self.number}: {', '.join(lost)} did not answer, and a sum can only be opened with them.",
                    mend=f"The sites signed the survivors of a void round, {', '.join(self._bound)}.",
                )

    async def _close(self) -> None:
        async with self._lock:
            phase, answered, awaited = self.server.phase, self.server.answered(), self.server.awaited()
            agreement = b""
            if phase is Phase.KEYS:
                agreement = self._hub.log.agreement(self.server.checkpoints().values())
            outgoing = await asyncio.to_thread(self.server.close, agreement)
            self._remember(phase, outgoing)

            def write(tx: Tx) -> None:
                tx.append(self.run, self.number, "close", "", agreement)
                if phase is Phase.MASKED:
                    tx.set_round(self.run, self.number, survivors=json.dumps(self.server.u3))
                if phase in (Phase.KEYS, Phase.MASKED):
                    tx.raise_charges(self.server.charges())
                for site, body in outgoing.items():
                    tx.mail(site, self._hub.letter(MAIL[phase], site, self.run, self.number, body))
                missing = sorted(awaited - answered)
                happened = {"event": "phase", "round": self.number, "closed": phase.value}
                tx.add_event(self.run, {**happened, "phase": self.server.phase.value, "missing": missing})

            self._commit("close", write, flush=True)

    # the sum

    def total(self) -> tuple[Words, list[bytes]]:
        """The sum of each bucket, [buckets, words], and its Merkle root; read from disk in pieces."""
        started = time.monotonic()
        uploads = Uploads(self._hub.parts, {site: self._headers[site] for site in self.server.u3})
        words = self.server.total(uploads.read, threads=cores())
        roots = [root_of(little_endian(part)) for part in words]
        self.seconds["open"] = time.monotonic() - started
        return words, roots

    def traffic(self) -> dict[str, dict[str, int]]:
        """Bytes up and down of each site since the round began."""
        up, down = self._hub.traffic.snapshot()
        before_up, before_down = self._traffic

        def since(after: Counter[str], before: Counter[str]) -> dict[str, int]:
            return {site: after[site] - before[site] for site in self.plan.sites}

        return {"bytes_up": since(up, before_up), "bytes_down": since(down, before_down)}


def enough_for(job: Job, task: str, asked: int) -> int:
    """How many answers to a question of this task a round waits for, of so many sites."""
    return job.algorithm.enough(asked) if task == "train" else asked


def little_endian(words: Words) -> memoryview:
    """The words as the protocol writes them; no copy on most machines."""
    return words.reshape(-1).astype(words.dtype.newbyteorder("<"), copy=False).view("u1").data


def void_round(hub: Hub, run: str, number: int, plan: Plan, fault: CloisterError) -> None:
    """Ends a round without a sum and tells its sites. Its masked vectors are deleted: nobody can open them."""
    body = api.Void(reason=str(fault)).to_bytes()

    def write(tx: Tx) -> list[bytes]:
        tx.set_round(run, number, outcome="void")
        for site in plan.sites:
            tx.mail(site, hub.letter("void", site, run, number, body))
        tx.add_event(run, {"event": "void", "round": number, **fault.as_json()})
        return tx.drop_round(run, number)

    delete_parts(hub, hub.store.run_tx("void", write))


def delete_parts(hub: Hub, headers: list[bytes]) -> None:
    """Deletes the masked vectors that these headers announced."""
    messages = map(Masked.from_bytes, headers)
    hub.parts.delete(stored(message.context, part.hex()) for message in messages for part in message.parts)
