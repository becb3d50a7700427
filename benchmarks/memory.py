"""How much memory a coordinator takes for a round of many large uploads.

    python benchmarks/memory.py [--quick] [--sites N] [--words N] [--json]

A real coordinator (`cloister coordinator serve`, a process of its own, TLS on loopback) and sites in miniature: the
real client and seal machine, without a worker. What counts is the kernel's high-water mark of the coordinator's
resident memory, set back once all shares are exchanged: so the baseline is a coordinator that holds the model and
waits for masked vectors. `opened` is the mark when the sum is open, `learnt` when the round's end is on disk.

Each site lays on its own mask only: those of pairs cancel, and the coordinator cannot tell, so time goes into what is
measured. The sum must open to the true one.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

import cloister as cl
from cloister import learn
from cloister.cli.loopback import free_port
from cloister.coordinator import admit, init_coordinator, invite
from cloister.job.data import ARRAY
from cloister.round import contribute
from cloister.seal import client as seal_client
from cloister.seal.client import SealClient
from cloister.seal.identity import Identity
from cloister.seal.labels import ZERO32, fields
from cloister.seal.masks import Seed, apply_masks
from cloister.seal.receipt import open_receipt
from cloister.seal.roster import Roster
from cloister.site.agent import ANSWER_FIRST_SECONDS
from cloister.vector import Answer, Query, State
from cloister.vector.layout import Words
from cloister.vector.query import ROWS
from cloister.wire import CoordinatorClient, Envelope, Invitation, enroll, fetch_certificate, fetch_roster

INPUTS, CLASSES, STEP = 1000, 10, 0.5  # STEP: what each site's training moves every parameter by
REPLIES = {"keylist": "shares", "survivors": "consistent", "consistency": "unmask"}
UPLOADS_AT_ONCE = 8
BAR = 3.0  # of one upload's bytes, above the baseline
LOOK_SECONDS = 0.001


@dataclass(frozen=True)
class Memory:
    """Bytes of resident memory. baseline: waiting for masked vectors. opened, learnt: the most until then."""

    sites: int
    upload_bytes: int
    idle: int
    baseline: int
    opened: int
    learnt: int
    seconds: float
    right: bool

    @property
    def uploads_above(self) -> float:
        """The peak until the sum is open above the baseline, in uploads."""
        return (self.opened - self.baseline) / self.upload_bytes

    @property
    def met(self) -> bool:
        return self.right and self.uploads_above < BAR


def make_job(words: int, rounds: int = 1) -> cl.Job:
    """So many rounds of a perceptron of about so many parameters."""
    hidden = words // (INPUTS + CLASSES + 1)
    task = cl.Torch(cl.nets.MLP([hidden]), "cross_entropy", cl.SGD(lr=0.1))
    return learn.complete(
        cl.Job(cl.Arrays("numbers", (INPUTS,), CLASSES), task, cl.FedAvg(rounds=rounds), evaluate=None)
    )


@dataclass
class Member:
    """A site or the analyst: its key, its numbers, and a client of the coordinator once it is in the roster."""

    invitation: Invitation
    identity: Identity = field(default_factory=lambda: Identity.generate(os.urandom))
    numbers: Any = field(default_factory=lambda: itertools.count(1))
    certificate: str = ""

    async def enroll(self) -> None:
        self.certificate = await fetch_certificate(self.invitation)
        await enroll(self.invitation, self.identity, self.certificate)

    async def client(self) -> CoordinatorClient:
        self.roster = Roster.from_bytes(fields(await fetch_roster(self.invitation.url, self.certificate))[0])
        key = self.roster.key_of("coordinator", "coordinator")
        return CoordinatorClient(
            self.invitation.url,
            self.certificate,
            self.identity,
            self.invitation.id,
            lambda _: key,
            lambda: next(self.numbers),
        )


class Once:
    """A journal that forgets."""

    def once(self, slot: str, value: bytes) -> None:
        pass


class Sites:
    """All sites, in one thread.

    Args:
      begin: called when all have shared, and nobody has uploaded yet.
      training_seconds: what a site waits with the model in its hands, as if it trained; the fetching, the encoding
        and the waiting are then each site's own. Else all sites hand in the same words, made once.
    """

    def __init__(
        self, members: list[Member], begin: Callable[[], None] | None = None, training_seconds: float = 0.0
    ) -> None:
        self._members, self._begin, self._training_seconds = members, begin, training_seconds
        self._slots = asyncio.Semaphore(UPLOADS_AT_ONCE)
        self._shared = 0
        self._all_shared = asyncio.Event()
        self._words: dict[bytes, Words] = {}  # a query's digest -> the newest contribution

    async def live(self) -> None:
        async with asyncio.TaskGroup() as sites:
            for member in self._members:
                sites.create_task(self._live(member))

    async def _live(self, member: Member) -> None:
        async with await member.client() as client:
            await client.catalogue({"numbers": {"x": ARRAY, "y": "number"}})
            mail: asyncio.Queue[Envelope] = asyncio.Queue()
            polling = asyncio.create_task(poll(client, mail))  # also while it uploads: so the site is there
            try:
                await self._answer(member, client, mail)
            finally:
                polling.cancel()

    async def _answer(self, member: Member, client: CoordinatorClient, letters: asyncio.Queue[Envelope]) -> None:
        seal, last, words = None, (-1, ZERO32), None
        while (mail := await letters.get()).type != "done":
            run, number = mail.run, mail.round
            if mail.type == "open":
                seal = self._seal(member, last)
                query = seal.open(mail.body).query
                asked = await self._asked(client, query)  # a site reads what it is asked before it says a word
                words = asyncio.create_task(self._trained(seal, query, asked))  # while keys and shares go round
                await client.send("keys", seal.keys(query), run, number)
            elif mail.type == "receipt":
                receipt = open_receipt(mail.body, member.roster.key_of("coordinator", "coordinator"))
                last = (number, receipt.digest)
            elif seal is not None and mail.type in (*REPLIES, "ciphertexts"):
                reply = seal.receive(mail.body)
                if mail.type == "ciphertexts":
                    assert words is not None
                    if self._training_seconds:
                        await asyncio.to_thread(seal.lay)
                    await self._upload(client, seal, await words, run, number)
                elif reply is not None:
                    await client.send(REPLIES[mail.type], reply, run, number)

    def _seal(self, member: Member, last: tuple[int, bytes]) -> SealClient:
        key = member.roster.key_of("coordinator", "coordinator")
        return SealClient(
            member.invitation.id,
            member.identity,
            member.roster,
            key,
            journal=Once(),
            randomness=os.urandom,
            last_round=last[0],
            last_receipt=last[1],
        )

    async def _asked(self, client: CoordinatorClient, query: bytes) -> Query | None:
        if query in self._words and not self._training_seconds:
            return None
        return Query.from_bytes(await client.fetch(query))

    async def _trained(self, seal: SealClient, query: bytes, asked: Query | None) -> Words:
        if asked is not None:
            await asyncio.sleep(self._training_seconds)
            self._words = {query: await asyncio.to_thread(answer, asked, seal)}
        return self._words[query]

    async def _upload(self, client: CoordinatorClient, seal: SealClient, words: Words, run: str, number: int) -> None:
        if self._begin is not None:
            await self._all(self._begin)
        async with self._slots:
            header, payload = await asyncio.to_thread(seal.mask, words)
            await client.upload(header, payload, run, number)
        self._all_shared.clear()

    async def _all(self, begin: Callable[[], None]) -> None:
        """Waits until every site is here."""
        self._shared += 1
        if self._shared == len(self._members):
            await asyncio.sleep(0.5)  # what the last message left behind is collected
            begin()
            self._shared = 0
            self._all_shared.set()
        await self._all_shared.wait()


async def poll(client: CoordinatorClient, mail: asyncio.Queue[Envelope]) -> None:
    after = 0
    while True:
        for envelope in await client.poll(after):
            after = envelope.seq
            mail.put_nowait(envelope)
        await asyncio.sleep(ANSWER_FIRST_SECONDS)


def answer(query: Query, seal: SealClient) -> Words:
    """The contribution to a query: ten rows, and every number STEP where it is trained, else zero."""
    values = {}
    for block in query.layout.blocks:
        value = STEP if query.task == "train" else 0.0
        values[block.name] = np.full(block.shape, value, np.float32)
    if "rows" in values:
        values[ROWS] = np.float32(10)
    return contribute(Answer(10, values), query, seal.plan.coder)


class Marks:
    """Reads the coordinator's memory. The mark `opened` is taken by a thread."""

    def __init__(self, process: int, blobs: Path, upload_bytes: int) -> None:
        self._process, self._blobs, self._bytes = process, blobs, upload_bytes
        self.baseline = self.opened = 0
        self._over = threading.Event()
        self._watching: threading.Thread | None = None

    def read(self, name: str) -> int:
        status = Path(f"/proc/{self._process}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith(name)).split()[1]) * 1024

    def begin(self) -> None:
        self.end()
        Path(f"/proc/{self._process}/clear_refs").write_text("5")  # sets the high-water mark back
        self.baseline, self.opened = self.read("VmRSS"), 0
        self._over.clear()
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    def _watch(self) -> None:
        """The sum is open once its bytes are being written, and before it is decoded."""
        incoming = self._blobs / "incoming"
        while not self._over.is_set() and not any(size_of(path) > self._bytes // 2 for path in incoming.iterdir()):
            time.sleep(LOOK_SECONDS)
        self.opened = self.read("VmHWM")

    def end(self) -> None:
        self._over.set()
        if self._watching is not None:
            self._watching.join()


Run = Callable[[int, Path, list[Member], Member], Awaitable[None]]


async def served(folder: Path, sites: int, run: Run) -> None:
    """A coordinator in a process of its own, with sites and an analyst who are admitted.

    Args: run: awaited with the process's id, the coordinator's folder, the sites and the analyst.
    """
    folder.mkdir(exist_ok=True)
    made = init_coordinator(folder / "hub", "memory", port=free_port(), root_path=folder / "root.key")
    invited = [*invite(made.path, [f"site-{at:03d}" for at in range(sites)], "site")]
    members, analyst = [Member(each) for each in invited], Member(invite(made.path, ["ann"], "analyst")[0])
    serving = [sys.executable, "-m", "cloister.cli", "coordinator", "serve", "--folder", str(made.path), "--json"]
    with (folder / "log").open("wb") as log, subprocess.Popen(serving, stdout=log, stderr=log) as process:
        try:
            await until(lambda: b"ready" in (folder / "log").read_bytes())
            for each in (*members, analyst):
                await each.enroll()
            await asyncio.to_thread(admit, made.path, folder / "root.key", None)
            await run(process.pid, made.path, members, analyst)
        finally:
            process.terminate()


async def measure(folder: Path, sites: int, words: int) -> Memory:
    found: list[Memory] = []

    async def run(process: int, hub: Path, members: list[Member], analyst: Member) -> None:
        found.append(await _run(Marks(process, hub / "blobs", words * 4), members, analyst, words))

    await served(folder, sites, run)
    return found[0]


async def _run(marks: Marks, members: list[Member], analyst: Member, words: int) -> Memory:
    job, idle = make_job(words), marks.read("VmRSS")
    async with await analyst.client() as client:
        living = asyncio.create_task(Sites(members, marks.begin).live())
        began = time.perf_counter()
        run = await client.submit(job.to_bytes())
        await living
        seconds = time.perf_counter() - began
        marks.end()
        learnt = marks.read("VmHWM")
        result = await client.result(run)
        state = State.from_bytes(await client.fetch(bytes.fromhex(result["state"])))
        start = job.initial_model(INPUTS)[1]
        before = np.concatenate([np.asarray(start[name]).reshape(-1) for name, _ in state.facts["shapes"]])
        right = bool(np.allclose(state.tensors["model"] - before, STEP, atol=1e-4))
    return Memory(len(members), words * 4, idle, marks.baseline, marks.opened, learnt, seconds, right)


def own_mask_only(words: Words, seeds: Sequence[Seed]) -> None:
    """In the place of `apply_masks`: the first seed is a site's own."""
    apply_masks(words, seeds[:1])


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


async def until(true: Any) -> None:
    for _ in range(3000):
        if true():
            return
        await asyncio.sleep(0.02)
    raise TimeoutError("the coordinator did not start")


def main(
    quick: Annotated[bool, typer.Option(help="20 uploads of 16 MB.")] = False,
    sites: Annotated[int, typer.Option(help="How many upload.")] = 100,
    words: Annotated[int, typer.Option(help="Of each upload, about; 4 bytes each.")] = 10_000_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measures a coordinator's memory; exits 1 where the bar is missed."""
    if quick:
        sites, words = 20, 4_000_000
    seal_client.apply_masks = own_mask_only
    with tempfile.TemporaryDirectory(prefix="cloister-") as folder:
        found = asyncio.run(measure(Path(folder), sites, words))
    if as_json:
        print(json.dumps({**asdict(found), "uploads_above": found.uploads_above, "met": found.met}))
    else:
        show(found)
    raise typer.Exit(0 if found.met else 1)


def show(found: Memory) -> None:
    mega = {name: f"{getattr(found, name) / 1e6:.0f} MB" for name in ("idle", "baseline", "opened", "learnt")}
    Console().print(
        f"{found.sites} uploads of {found.upload_bytes / 1e6:.0f} MB in {found.seconds:.1f} s, the sum is "
        f"{'right' if found.right else 'WRONG'}: the coordinator took {mega['idle']} before the run, "
        f"{mega['baseline']} waiting for the uploads, at most {mega['opened']} until the sum was open "
        f"({found.uploads_above:.2f} uploads more; bar: {BAR:.0f}), {mega['learnt']} until the round was saved."
    )


if __name__ == "__main__":
    typer.run(main)
