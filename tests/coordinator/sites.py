"""Sites in miniature: the real client, seal machine and training, without policy, durable journal or worker."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

import cloister as cl
from cloister.learn import Trainer, schema
from cloister.round import contribute
from cloister.seal.client import SealClient
from cloister.seal.labels import ZERO32
from cloister.seal.receipt import open_receipt
from cloister.vector import Query, digest
from cloister.vector.errors import CloisterError, PeerError
from cloister.wire import CoordinatorClient, Envelope, api

from .conftest import Member

REPLIES = {"keylist": "shares", "survivors": "consistent", "consistency": "unmask"}


def table(seed: int, rows: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 2))
    return pd.DataFrame({"age": x[:, 0], "dose": x[:, 1], "ill": (x[:, 0] + 0.5 * x[:, 1] > 0) * 1})


def job(rounds: int = 2, **changes: Any) -> cl.Job:
    settings: dict[str, Any] = {
        "data": cl.Table("heart", target="ill", classes=2),
        "task": cl.Torch(model=cl.nets.Linear(), loss="bce", optimizer=cl.SGD(lr=0.5), batch_size=16),
        "algorithm": cl.FedAvg(rounds=rounds),
    }
    return cl.Job(**{**settings, **changes})


class Once:
    """A journal in memory."""

    def __init__(self) -> None:
        self.slots: dict[str, bytes] = {}

    def once(self, slot: str, value: bytes) -> None:
        if self.slots.setdefault(slot, value) != value:
            raise PeerError(f"{slot} holds another value")


class MiniSite:
    """Args: before: awaited with each mail's type and round; what it raises ends the site, as a crash would."""

    def __init__(
        self, member: Member, frame: pd.DataFrame, before: Callable[[str, int], Any] = lambda type, round: None
    ) -> None:
        self.member, self.frame, self.before = member, frame, before
        self.receipts: list[bytes] = []
        self._journal = Once()
        self._last: tuple[int, bytes] = (-1, ZERO32)
        self._seal: SealClient | None = None
        self._round = -1
        self._trainer: Trainer | None = None
        self._query: Query | None = None

    async def live(self) -> None:
        """Until "done"."""
        self._roster = await self.member.roster()
        async with await self.member.client(patience_seconds=30.0) as client:
            await client.catalogue({"heart": schema(self.frame)})
            mail: asyncio.Queue[Envelope] = asyncio.Queue()
            working = asyncio.create_task(self._work(client, mail))
            polling = asyncio.create_task(self._poll(client, mail))  # also while it trains: so the site is there
            try:
                await asyncio.wait({working, polling}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (working, polling):
                    task.cancel()
            for fault in await asyncio.gather(working, polling, return_exceptions=True):
                if isinstance(fault, Exception):
                    raise fault

    async def _poll(self, client: CoordinatorClient, mail: asyncio.Queue[Envelope]) -> None:
        after = 0
        while True:
            for envelope in await client.poll(after, hold_seconds=20):
                after = envelope.seq
                mail.put_nowait(envelope)

    async def _work(self, client: CoordinatorClient, mail: asyncio.Queue[Envelope]) -> None:
        while (envelope := await mail.get()).type != "done":
            await self._guarded(client, envelope)

    async def _guarded(self, client: CoordinatorClient, envelope: Envelope) -> None:
        try:
            await self._step(client, envelope)
        except CloisterError as fault:
            refusal = api.Refusal(error=fault.name, message=fault.message)
            await client.refuse(refusal, envelope.run, envelope.round)

    async def _step(self, client: CoordinatorClient, envelope: Envelope) -> None:
        if (pause := self.before(envelope.type, envelope.round)) is not None:
            await pause
        run, round, kind = envelope.run, envelope.round, envelope.type
        if kind == "job":
            notice = api.JobNotice.from_bytes(envelope.body)
            received = cl.Job.from_bytes(await client.fetch(bytes.fromhex(notice.job)))
            self._trainer = Trainer(received, self.frame, self.member.id)
        elif kind == "open":
            await self._open(client, envelope)
        elif kind == "receipt":
            receipt = open_receipt(envelope.body, self._roster.key_of("coordinator", "coordinator"))
            receipt.check_follows(bytes.fromhex(run), *self._last)
            self._last = (round, receipt.digest)
            self.receipts.append(envelope.body)
        elif kind == "void":
            self._seal = None
        elif self._seal is not None and round == self._round:
            reply = self._seal.receive(envelope.body)
            if kind == "ciphertexts":
                assert self._query is not None
                assert self._trainer is not None
                answer = await asyncio.to_thread(self._trainer.answer, self._query)
                header, payload = self._seal.mask(contribute(answer, self._query, self._seal.plan.coder))
                await client.upload(header, payload, run, round)
            elif reply is not None:
                await client.send(REPLIES[kind], reply, run, round)

    async def _open(self, client: CoordinatorClient, envelope: Envelope) -> None:
        seal = SealClient(
            self.member.id,
            self.member.identity,
            self._roster,
            self._roster.key_of("coordinator", "coordinator"),
            journal=self._journal,
            randomness=os.urandom,
            last_round=self._last[0],
            last_receipt=self._last[1],
        )
        plan = seal.open(envelope.body)
        data = await client.fetch(plan.query)
        self._query, self._seal, self._round = Query.from_bytes(data), seal, envelope.round
        await client.send("keys", seal.keys(digest(data)), envelope.run, envelope.round)
