"""A federation of real processes that are killed and started again, and what must hold whatever happened to it."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

import cloister as cl
from cloister.coordinator import admit, init_coordinator, invite
from cloister.coordinator.folder import open_folder
from cloister.coordinator.store import Round, Run, Store
from cloister.learn import Trainer, complete
from cloister.learn.tables import read_table
from cloister.round import Program, contribute
from cloister.seal.identity import Identity
from cloister.seal.labels import fields
from cloister.seal.plan import Plan
from cloister.seal.receipt import open_receipt
from cloister.seal.roster import Roster
from cloister.site.journal import Journal
from cloister.site.ledger import Ledger
from cloister.site.settings import SiteFolder
from cloister.vector import State, digest, open_total
from cloister.wire import CoordinatorClient, Invitation, enroll, fetch_certificate, fetch_roster

SITES = ("bern", "cork", "oslo", "pisa")
DATASET = "patients"
SECONDS = 90.0  # without any progress
Result = TypeVar("Result")


def make_job(rounds: int = 10_000) -> cl.Job:
    job = cl.Job(
        data=cl.Table(DATASET, target="ill", classes=2),
        task=cl.Torch(model=cl.nets.Linear(), loss="bce", optimizer=cl.SGD(lr=0.5), batch_size=8),
        algorithm=cl.FedAvg(rounds=rounds),
        evaluate=None,
    )
    return complete(job)


def write_table(path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(24, 2)).round(3)
    lines = [f"{age},{dose},{int(age + dose > 0)}" for age, dose in rows]
    path.write_text("\n".join(["age,dose,ill", *lines]) + "\n")


class World:
    """Founds a federation under `folder`. Attributes: run: of the job that was submitted last.

    Processes go by name: "coordinator", a site's id, or whatever `start` was told.
    """

    def __init__(self, folder: Path, sites: tuple[str, ...] = SITES) -> None:
        self.folder, self.sites, self.run = folder, sites, ""
        self._pids: dict[str, int] = {}
        self._ended: dict[int, int] = {}
        self._changed = threading.Condition()
        self._numbers = itertools.count(1)
        program = Path(__file__).with_name("nursery.py")
        self._nursery = subprocess.Popen(
            [sys.executable, program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        threading.Thread(target=self._listen, daemon=True).start()
        self._found()

    def _found(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.root = self.folder / "root.key"
        self.coordinator = init_coordinator(self.folder / "hub", "faults", port=port, root_path=self.root).path
        self.store: Store = open_folder(self.coordinator).store()
        invitations = [*invite(self.coordinator, self.sites), *invite(self.coordinator, ["lee"], "analyst")]
        self.serve()
        for seed, invitation in enumerate(invitations[:-1]):
            write_table(self.folder / f"{invitation.id}.csv", seed)
            self.join(invitation)
        self.identity = Identity.generate(os.urandom)
        self.certificate = asyncio.run(self._enrol(invitations[-1]))
        admit(self.coordinator, self.root)
        signed = asyncio.run(fetch_roster(open_folder(self.coordinator).url, self.certificate))
        self.roster = Roster.from_bytes(fields(signed)[0])

    async def _enrol(self, invitation: Invitation) -> str:
        certificate = await fetch_certificate(invitation)
        await enroll(invitation, self.identity, certificate)
        return certificate

    def close(self) -> None:
        for name in list(self._pids):
            self.kill(name)
        assert self._nursery.stdin is not None
        self._nursery.stdin.close()
        self._nursery.wait(20)
        self.store.close()

    # processes

    def _listen(self) -> None:
        assert self._nursery.stdout is not None
        for line in self._nursery.stdout:
            heard = json.loads(line)
            with self._changed:
                if "status" in heard:
                    self._ended[heard["pid"]] = heard["status"]
                else:
                    self._pids[heard["name"]] = heard["pid"]
                self._changed.notify_all()

    def start(self, name: str, *arguments: str, crash: str = "") -> None:
        """Starts a command. Args: crash: at which point it shall die."""
        assert self._nursery.stdin is not None
        self._pids.pop(name, None)
        order = {"name": name, "arguments": arguments, "crash": crash, "log": str(self.folder / f"{name}.log")}
        self._nursery.stdin.write(json.dumps(order) + "\n")
        with self._changed:
            assert self._changed.wait_for(lambda: name in self._pids, SECONDS)

    def serve(self, crash: str = "") -> None:
        self.start("coordinator", "coordinator", "serve", "--folder", str(self.coordinator), "--json", crash=crash)

    def site(self, site: str, crash: str = "") -> None:
        self.start(site, "site", "run", str(self.home(site).root), "--json", crash=crash)

    def join(self, invitation: Invitation, crash: str = "") -> int:
        """Returns: the exit status."""
        name, data = f"join-{invitation.id}", self.folder / f"{invitation.id}.csv"
        into = ("--folder", str(self.home(invitation.id).root))
        self.start(name, "site", "join", invitation.encode(), *into, "--data", f"{DATASET}={data}", crash=crash)
        return self.ended(name)

    def ended(self, name: str, why: str = "") -> int:
        """Waits for a process to end; returns its status as `waitpid` gives it."""
        pid = self._pids[name]
        with self._changed:
            if not self._changed.wait_for(lambda: pid in self._ended, SECONDS):
                raise AssertionError(f"{name} lives on {why}: {self.said(name)[-600:]}")
        del self._pids[name]
        return self._ended[pid]

    def dies(self, name: str, crash: str) -> None:
        """Waits until it died at its point."""
        status = self.ended(name, f"without passing {crash}")
        assert os.WIFSIGNALED(status), f"{crash}: {self.said(name)[-2000:]}"
        assert os.WTERMSIG(status) == signal.SIGKILL

    def lives(self, name: str) -> bool:
        return name in self._pids and self._pids[name] not in self._ended

    def kill(self, name: str) -> None:
        os.kill(self._pids[name], signal.SIGKILL)
        self.ended(name)

    def said(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def home(self, site: str) -> SiteFolder:
        return SiteFolder(self.folder / "sites" / site)

    def policy(self, site: str, **rules: int) -> None:
        """Changes rules of a site's policy, at once."""
        path = self.home(site).root / "policy.toml"
        text = path.read_text()
        for name, value in rules.items():
            text, count = re.subn(rf"^{name} = \d+", f"{name} = {value}", text, flags=re.MULTILINE)
            assert count == 1, name
        path.write_text(text)

    # runs

    def ask(self, question: Callable[[CoordinatorClient], Coroutine[Any, Any, Result]]) -> Result:
        async def asked() -> Result:
            async with CoordinatorClient(
                open_folder(self.coordinator).url,
                self.certificate,
                self.identity,
                "lee",
                lambda id: self.roster.key_of(id, "coordinator"),
                lambda: next(self._numbers),
                patience_seconds=SECONDS,
            ) as client:
                return await question(client)

        return asyncio.run(asked())

    def submit(self, job: cl.Job) -> None:
        self.run = self.ask(lambda client: client.submit(job.to_bytes()))

    def row(self) -> Run:
        return self.store.look(lambda tx: tx.run(self.run))

    def happened(self) -> list[str]:
        """The kinds of the run's events."""
        return [event["event"] for event in self.store.look(lambda tx: tx.events_after(self.run, 0))]

    def rounds(self, outcome: str = "") -> list[Round]:
        rows = self.store.look(lambda tx: tx.rounds(self.run))
        return [row for row in rows if outcome in ("", row.outcome)]

    def wait_for(self, done: Callable[[], bool], what: str) -> None:
        """Until `done`; fails when nothing was done for too long."""
        last, end = -1, time.monotonic() + SECONDS
        while not done():
            if (now := len(self.rounds())) != last:
                last, end = now, time.monotonic() + SECONDS
            assert time.monotonic() < end, f"{what}: {self.row()}\n{self.said('coordinator')[-3000:]}"
            time.sleep(0.05)

    def opens(self, more: int, by: int | None = None) -> None:
        """Waits for rounds that open. Args: by: with so many survivors."""
        before = len(self.rounds("done"))

        def opened() -> bool:
            assert self.row().status == "running", self.row().error
            rows = self.rounds("done")[before:]
            return len(rows if by is None else [row for row in rows if len(self.survivors(row)) == by]) >= more

        self.wait_for(opened, f"{more} more rounds")

    def stop(self) -> None:
        self.ask(lambda client: client.stop(self.run))
        self.wait_for(lambda: self.row().status != "running", "the run's end")

    def blob(self, name: str | None) -> bytes:
        assert name is not None
        return open_folder(self.coordinator).blobs().read(name)

    def survivors(self, row: Round) -> tuple[str, ...]:
        key = self.roster.key_of("coordinator", "coordinator")
        return open_receipt(self.blob(row.blob), key).u3

    # what must hold

    def check(self) -> State:
        """The run's rounds hold the sums of their survivors' true answers, word for word, and make its model; no site
        answered a round in two ways; no journal forgot. Returns: the model's state."""
        state = self._replayed()
        for site in self.sites:
            self._check_journal(site)
        return state

    def _replayed(self) -> State:
        one, key = self.row(), self.roster.key_of("coordinator", "coordinator")
        job = cl.Job.from_bytes(self.blob(one.job))
        assert one.columns is not None
        program = Program(job, one.columns)
        trainers = {site: Trainer(job, read_table(self.folder / f"{site}.csv"), site) for site in self.sites}
        state, rows = program.start(), self.rounds()
        assert {row.outcome for row in rows} <= {"done", "void"}
        for row in (row for row in rows if row.outcome == "done"):
            query, plan = program.ask(state), Plan.from_bytes(row.plan)
            assert query is not None
            assert plan.query == digest(query.to_bytes())
            receipt = open_receipt(self.blob(row.blob), key)
            total = np.zeros(plan.words, plan.coder.dtype)
            for site in receipt.u3:
                total += contribute(trainers[site].answer(query), query, plan.coder)
            assert total.tobytes() == self.blob(row.total), f"round {row.number} holds another sum"
            state = program.learn(state, open_total(query, plan.coder, total, len(receipt.u3)))
            assert digest(state.to_bytes()) == receipt.state, f"round {row.number} made another model"
        assert one.state == digest(state.to_bytes()).hex()
        return state

    def _check_journal(self, site: str) -> None:
        with closing(Journal(self.home(site).journal)) as journal:
            said: dict[tuple[str, int, str], set[str]] = defaultdict(set)
            for entry in journal.entries("answered"):  # the hash chain is checked on the way
                said[entry.facts["run"], entry.facts["round"], entry.facts["type"]].add(entry.facts["message"])
        twice = {key: messages for key, messages in said.items() if len(messages) > 1}
        assert not twice, f"{site} answered twice: {twice}"
        with closing(Ledger(self.home(site).ledger)) as ledger:
            charged = {(each.run, each.round) for each in ledger.entries()}
        free = {(run, round) for run, round, type in said if type == "masked"} - charged
        assert not free, f"{site} answered without a charge: {free}"
        rows = self.store.look(lambda tx: [tx.transcript(self.run, row.number) for row in tx.rounds(self.run)])
        for transcript in rows:
            heard = [(kind, of, data[:40]) for kind, of, data in transcript if kind == "message"]
            assert len(heard) == len(set(heard)), "the coordinator has two messages of one site in one phase"


class Promises(NamedTuple):
    """What a site holds for ever. Attributes: entries: of its log. charges: hashes of its privacy ledger's rows."""

    slots: dict[str, bytes]
    counters: dict[str, int]
    entries: int
    charges: list[str]


def promises(world: World) -> dict[str, Promises]:
    """By site; read beside its agent."""

    def read(site: str) -> Promises:
        home = world.home(site)
        with closing(Journal(home.journal)) as journal, closing(Ledger(home.ledger)) as ledger:
            slots = dict(journal._db.execute("SELECT name, value FROM slot"))
            counters = dict(journal._db.execute("SELECT name, value FROM counter"))
            entries = journal._db.execute("SELECT count(*) FROM log").fetchone()[0]
            return Promises(slots, counters, entries, [each.hash for each in ledger.entries()])

    return {site: read(site) for site in world.sites}


def kept(before: dict[str, Promises], after: dict[str, Promises]) -> Iterator[str]:
    """Nothing is refunded: says what a site has less of than before."""
    for site, had in before.items():
        now = after[site]
        if not had.slots.items() <= now.slots.items():
            yield f"{site} lost a promise"
        if any(now.counters[name] < value for name, value in had.counters.items()):
            yield f"{site} counts again"
        if now.entries < had.entries:
            yield f"{site} forgot what it did"
        if now.charges[: len(had.charges)] != had.charges:
            yield f"{site} was refunded"
