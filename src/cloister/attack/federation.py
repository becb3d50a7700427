"""A real federation on loopback for the attacks: a coordinator that can lie in this process, each site in its own.

The sites are the product, unmodified: `cloister site run FOLDER` over small synthetic tables. The coordinator is the
product's too, over TLS, but for its hub (`liar.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cloister.algorithms import FedAvg
from cloister.attack.liar import LyingHub, Script
from cloister.attack.record import View
from cloister.coordinator import admit, init_coordinator, invite
from cloister.coordinator.folder import Folder
from cloister.coordinator.hub import Patience
from cloister.coordinator.runs import Runs
from cloister.coordinator.serve import make_server
from cloister.job import Job, Sklearn, Table
from cloister.job.task import Estimator
from cloister.learn import Trainer
from cloister.learn.tables import read_table
from cloister.round import contribute
from cloister.seal.identity import Identity
from cloister.seal.labels import fields
from cloister.seal.roster import Roster
from cloister.site import join
from cloister.site.journal import Entry, Journal
from cloister.site.settings import SiteFolder
from cloister.vector import Answer, Query
from cloister.vector.errors import EnvironmentFailure
from cloister.vector.layout import Words
from cloister.wire import CoordinatorClient, Invitation, enroll, fetch_certificate, fetch_roster

SITES = ("ghent", "jena", "kent", "lyon", "oslo")
DATASET = "synthetic"
FEATURES, CLASSES, ROWS = 100, 10, 60  # so that a model has about a thousand words, enough to tell noise from a leak
COLLUDERS = 2  # that the sites' policy assumes: five sites tolerate that many
AGENT = (sys.executable, "-m", "cloister.cli", "site", "run")
PATIENCE = Patience(answer=15.0, training=30.0, gather=20.0, cohort=20.0, again=0.0)
PROGRESS_SECONDS = 60.0  # without a sign of progress; a site starts in three
STOP_SECONDS = 10.0
LOOK_SECONDS = 0.02
Result = TypeVar("Result")


def make_job(**changes: Any) -> Job:
    """A linear model of ten classes; far more rounds than there are lies."""
    settings: dict[str, Any] = {
        "data": Table(DATASET, target="y", classes=tuple(map(str, range(CLASSES)))),
        "task": Sklearn(Estimator("SGDClassifier", {"loss": "log_loss"})),
        "algorithm": FedAvg(rounds=10_000),
        "evaluate": None,
    }
    return Job(**{**settings, **changes})


def write_tables(folder: Path) -> dict[str, Path]:
    """A table for each site, of random numbers and labels."""
    folder.mkdir(parents=True)
    paths = {site: folder / f"{site}.csv" for site in SITES}
    for seed, path in enumerate(paths.values()):
        random = np.random.default_rng(seed)
        labels = random.permutation(np.arange(ROWS) % CLASSES)
        table = np.column_stack([random.normal(size=(ROWS, FEATURES)), labels])
        names = [*(f"x{at}" for at in range(FEATURES)), "y"]
        formats = ["%.6f"] * FEATURES + ["%d"]
        np.savetxt(path, table, delimiter=",", header=",".join(names), comments="", fmt=formats)
    return paths


class Federation:
    """Founds a federation under `folder`, and starts everything; a context manager that ends it.

    Args: agent: the command that runs a site, before the site's folder.
    Attributes: script: which lies the coordinator tells. hub, runs: the coordinator's own, for reading.
    """

    def __init__(self, folder: Path, agent: Sequence[str] = AGENT) -> None:
        self.folder, self._agent = folder, tuple(agent)
        self.script = Script()
        self.hub: LyingHub
        self.runs: Runs
        self._sites: dict[str, subprocess.Popen[bytes]] = {}
        self._thread: threading.Thread
        self._stop: Callable[[], None] = lambda: None
        self._numbers = itertools.count(1)

    def __enter__(self) -> Federation:
        try:
            self._found()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *details: object) -> None:
        for process in self._sites.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._sites.values():
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._stop()

    # founding

    def _found(self) -> None:
        self.tables = write_tables(self.folder / "data")
        listening = socket.create_server(("127.0.0.1", 0))
        port, root = listening.getsockname()[1], self.folder / "root.key"
        made = init_coordinator(self.folder / "coordinator", "attacked", port=port, root_path=root)
        invitations = [*invite(made.path, SITES), *invite(made.path, ["analyst"], "analyst")]
        self._serve(made, listening)
        for invitation in invitations[:-1]:
            folder = self.site(invitation.id).root
            join(invitation, folder, {DATASET: self.tables[invitation.id]})
        self.assume_colluders(COLLUDERS, before=0)
        self.identity = Identity.generate(os.urandom)
        self.certificate = asyncio.run(self._enrol(invitations[-1]))
        admit(made.path, root)
        self.roster = Roster.from_bytes(fields(asyncio.run(fetch_roster(made.url, self.certificate)))[0])
        for site in SITES:
            self.start_site(site)
        self.wait_for(lambda: set(self.hub.catalogues(DATASET)) == set(SITES))

    async def _enrol(self, invitation: Invitation) -> str:
        certificate = await fetch_certificate(invitation)
        await enroll(invitation, self.identity, certificate)
        return certificate

    def _serve(self, folder: Folder, listening: socket.socket) -> None:
        """Serves in a thread of its own, until `_stop`."""
        ready = threading.Event()

        async def main() -> None:
            self.hub = LyingHub(folder, PATIENCE, self.script)
            self.runs = Runs(self.hub)
            server = make_server(self.hub, self.runs, ready.set)
            loop = asyncio.get_running_loop()

            def stop() -> None:
                loop.call_soon_threadsafe(server.handle_exit, signal.SIGTERM, None)
                self._thread.join(STOP_SECONDS)

            self._stop = stop
            try:
                await server.serve(sockets=[listening])
            finally:
                self.hub.signals.close()
                self.hub.close()

        self._thread = threading.Thread(target=lambda: asyncio.run(main()), name="lying coordinator", daemon=True)
        self._thread.start()
        if not ready.wait(PROGRESS_SECONDS):
            raise EnvironmentFailure("the coordinator did not start.")

    # sites

    def assume_colluders(self, count: int, before: int) -> None:
        """Changes the policy of all sites."""
        for site in SITES:
            path = self.site(site).root / "policy.toml"
            policy = path.read_text()
            assert f"assume_colluders = {before}" in policy
            path.write_text(policy.replace(f"assume_colluders = {before}", f"assume_colluders = {count}"))

    def site(self, id: str) -> SiteFolder:
        return SiteFolder(self.folder / "sites" / id)

    def start_site(self, id: str, agent: Sequence[str] = ()) -> None:
        """Args: agent: another command than for all sites."""
        with open(self.folder / f"{id}.log", "ab") as log:
            self._sites[id] = subprocess.Popen(
                [*(agent or self._agent), str(self.site(id).root)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )

    def stop_site(self, id: str) -> None:
        process = self._sites.pop(id)
        process.kill()
        process.wait()

    def let_go(self, id: str) -> subprocess.Popen[bytes]:
        """Hands over a site's process: nobody minds any more if it ends."""
        return self._sites.pop(id)

    def said(self, id: str) -> list[str]:
        """The lines that a site has printed, over all its lives."""
        return (self.folder / f"{id}.log").read_text().splitlines()

    def journal(self, id: str) -> list[Entry]:
        """What a site has written down, as its steward would read it."""
        with contextlib.closing(Journal(self.site(id).journal)) as journal:
            return list(journal.entries())

    # runs

    def client(self) -> CoordinatorClient:
        """The analyst's."""
        return CoordinatorClient(
            self.hub.folder.url,
            self.certificate,
            self.identity,
            "analyst",
            lambda id: self.roster.key_of(id, "coordinator"),
            lambda: next(self._numbers),
            patience_seconds=STOP_SECONDS,
        )

    @contextlib.contextmanager
    def run(self, job: Job) -> Iterator[str]:
        """Submits a job; at the end stops its run and waits until it is over. Yields: its id (hex)."""
        id = self._ask(lambda client: client.submit(job.to_bytes()))
        try:
            yield id
        finally:
            self._ask(lambda client: client.stop(id))
            self.wait_for(lambda: self.status(id) != "running")

    def status(self, run: str) -> str:
        return self.hub.store.look(lambda tx: tx.run(run)).status

    def wait_for(self, done: Callable[[], bool], progress: Callable[[], object] = lambda: None) -> None:
        """Returns once `done`. Raises: EnvironmentFailure: a process ended, or there was no progress for too long."""
        last, end = progress(), time.monotonic() + PROGRESS_SECONDS
        while not done():
            if (now := progress()) != last:
                last, end = now, time.monotonic() + PROGRESS_SECONDS
            for site, process in self._sites.items():
                if process.poll() is not None:
                    raise EnvironmentFailure(f"the site {site} ended.", mend=f"See {self.folder / site}.log.")
            if time.monotonic() > end:
                raise EnvironmentFailure(
                    "the attacked federation stands still.", mend=f"See the logs in {self.folder}."
                )
            time.sleep(LOOK_SECONDS)

    def _ask(self, question: Callable[[CoordinatorClient], Coroutine[Any, Any, Result]]) -> Result:
        async def ask() -> Result:
            async with self.client() as client:
                return await question(client)

        return asyncio.run(ask())


class Truths:
    """The sites' true contributions, computed again from their own tables: training is deterministic."""

    def __init__(self, federation: Federation, job: Job) -> None:
        self._federation, self._job = federation, job
        self._trainers: dict[str, Trainer] = {}
        self._answers: dict[tuple[str, bytes], Answer] = {}

    def __call__(self, view: View) -> Words:
        site, plan = view.site, view.plan
        query = Query.from_bytes(self._federation.hub.blobs.read(plan.query.hex()))
        if site not in self._trainers:
            self._trainers[site] = Trainer(self._job, read_table(self._federation.tables[site]), site)
        key = site, plan.query
        if key not in self._answers:
            self._answers[key] = self._trainers[site].answer(query)
        return contribute(self._answers[key], query, plan.coder)
