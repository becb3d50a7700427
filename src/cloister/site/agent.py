"""The agent: the trusted program beside the data. Polls the mailbox and lives each run that is announced in it.

It never imports torch, pandas or scikit-learn, and nothing of a job: tables are read and models trained by
`cloister.site.worker`, a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from cloister.seal.roster import Roster
from cloister.site.desk import Desk, Event
from cloister.site.journal import Journal
from cloister.site.lock import FolderLock
from cloister.site.reach import OPENS_TLS, certificate_of, proxy_of
from cloister.site.rosters import Rosters
from cloister.site.runs import SiteRun
from cloister.site.settings import SiteFolder, SiteSettings
from cloister.site.steward import waiting_runs
from cloister.site.training import Task, read_schema
from cloister.site.watch import Offered, offered_by, watch
from cloister.vector import CloisterError
from cloister.vector.errors import EnvelopeReplayed, PeerError, Unreachable
from cloister.wire import CoordinatorClient, Envelope, fetch_roster

ADMISSION_SECONDS = (0.5, 5.0)  # between two looks for a roster with this site in it: first, and at most
GARBLED_SECONDS = 5.0  # before a mailbox is read again that could not be believed
ROSTER_PATIENCE_SECONDS = 2.0
ANSWER_FIRST_SECONDS = 0.005  # before the mailbox is read again: what was read is answered first
SKIPS = 4096  # blocks of numbers of envelopes: a million


def run_agent(folder: Path, on_event: Callable[[Event], None] = lambda event: None) -> None:
    """Runs a site until Ctrl-C or SIGTERM; see `run`."""

    async def until_signalled() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await run(folder, on_event, stop)

    asyncio.run(until_signalled())


async def run(
    folder: Path, on_event: Callable[[Event], None] = lambda event: None, stop: asyncio.Event | None = None
) -> None:
    """Takes part in the federation's rounds until `stop` is set.

    Args: on_event: told what happens, as {"event": ..., "site": ...}; holds no data values.
    Raises:
      UsageError: the folder or a setting in it is wrong. StateLocked: another agent works in it.
      RosterRefused: the coordinator's roster does not follow from the pinned root key.
      Unreachable: the coordinator was away for longer than `patience_seconds` of site.toml.
    """
    here = SiteFolder(Path(folder))
    settings, identity, pinned, proxy = here.settings(), here.identity(), here.pinned(), proxy_of(here)
    here.policy()  # a mistake in it is told now rather than when the first job comes
    with FolderLock(here.lock), contextlib.closing(Journal(here.journal)) as journal:
        shutil.rmtree(here.root / "state", ignore_errors=True)  # of an agent that was killed

        async def fetch(version: int | str) -> bytes:
            certificate = await certificate_of(here, proxy)
            return await fetch_roster(settings.coordinator, certificate, version, ROSTER_PATIENCE_SECONDS, proxy)

        rosters = Rosters(here.rosters, pinned.root_key, settings.federation, fetch)

        def tell(message: str) -> None:
            on_event({"event": "retry", "site": settings.id, "message": message})

        async def serve() -> None:
            roster = await _admitted(settings, identity.public, rosters, on_event)
            async with CoordinatorClient(
                settings.coordinator,
                await certificate_of(here, proxy),
                identity,
                settings.id,
                rosters.coordinator_key,
                journal.next_sequence,
                coordinator=roster.coordinators[0].id,
                patience_seconds=settings.patience_seconds,
                on_retry=tell,
                proxy=proxy,
            ) as client:
                desk = Desk(here, settings, identity, journal, rosters, client, roster.coordinators[0].id, on_event)
                if proxy.authority:
                    desk.note("proxy", opens_tls=True, address=proxy.shown(settings.coordinator))
                    desk.tell("warning", message=OPENS_TLS.format(proxy.shown(settings.coordinator)))
                await _Agent(desk).serve()

        await _until(serve(), stop or asyncio.Event())


class _Agent:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._runs: dict[str, SiteRun] = {}

    async def serve(self) -> None:
        desk = self._desk
        offered = offered_by(desk.folder, desk.settings)
        datasets = await self._catalogue(offered)
        await self._offer(datasets)
        desk.note("started", datasets=sorted(datasets))
        desk.tell("ready", datasets=sorted(datasets), coordinator=desk.settings.coordinator)
        try:
            await desk.follow_log()
        except PeerError as fault:  # the run whose receipt it is will refuse its next round
            desk.note("refused", **fault.as_json())
            desk.tell("refused", **fault.as_json())
        async with asyncio.TaskGroup() as group:
            group.create_task(watch(desk, offered, self._offer_anew))
            for id in waiting_runs(desk.journal):
                run = self._runs[id] = SiteRun(desk, id, recalled=True)
                group.create_task(self._live(run))
            after = desk.journal.counter("mailbox")
            while True:
                try:
                    envelopes = await desk.client.poll(after)
                except PeerError as fault:  # a forged or garbled mailbox: perhaps the next one is whole
                    desk.note("refused", **fault.as_json())
                    desk.tell("refused", **fault.as_json())
                    await asyncio.sleep(GARBLED_SECONDS)
                    continue
                for envelope in envelopes:
                    self._deliver(envelope, group)
                    after = envelope.seq
                await asyncio.sleep(ANSWER_FIRST_SECONDS)
                desk.journal.raise_counter("mailbox", after, "NORMAL")  # read twice at worst

    async def _offer(self, datasets: dict[str, dict[str, str]]) -> None:
        """The first envelope of a start. A folder that was restored would number its envelopes as before."""
        for _ in range(SKIPS):
            with contextlib.suppress(EnvelopeReplayed):
                return await self._desk.client.catalogue(datasets)
            self._desk.journal.skip_sequence()
        return await self._desk.client.catalogue(datasets)

    async def _offer_anew(self, offered: Offered) -> None:
        desk, datasets = self._desk, await self._catalogue(offered)
        await desk.client.catalogue(datasets)
        desk.note("offers", datasets=sorted(datasets))
        desk.tell("ready", datasets=sorted(datasets), coordinator=desk.settings.coordinator)

    async def _catalogue(self, offered: Offered) -> dict[str, dict[str, str]]:
        """The columns of these datasets; one that cannot be read is told and left out."""
        desk, found = self._desk, {}
        for name, source in offered.items():
            task = Task(
                site=desk.site,
                data=source,
                home=desk.folder.state("schema"),
                limits=desk.folder.policy().limits,
                log=desk.folder.worker_log,
            )
            try:
                found[name] = await read_schema(task)
            except CloisterError as fault:
                desk.note("unreadable", dataset=name, **fault.as_json())
                desk.tell("refused", dataset=name, **fault.as_json())
        return found

    def _deliver(self, envelope: Envelope, group: asyncio.TaskGroup) -> None:
        run = self._runs.get(envelope.run)
        if run is None:
            run = self._runs[envelope.run] = SiteRun(self._desk, envelope.run)
            group.create_task(self._live(run))
        try:
            run.deliver(envelope)
        except PeerError as fault:  # a lie: it is not acted upon, and the run's next round finds it out
            self._desk.note("refused", run=envelope.run, round=envelope.round, **fault.as_json())
            self._desk.tell("refused", run=envelope.run, round=envelope.round, **fault.as_json())

    async def _live(self, run: SiteRun) -> None:
        try:
            await run.work()
        finally:
            self._runs.pop(run.run, None)


async def _admitted(
    settings: SiteSettings, key: bytes, rosters: Rosters, on_event: Callable[[Event], None]
) -> Roster:
    """Waits until the root has signed this site's key into the roster."""

    wait, heard, told = ADMISSION_SECONDS[0], time.monotonic(), ""
    while True:
        away: Unreachable | None = None
        try:
            await rosters.follow_latest()
            heard = time.monotonic()
        except Unreachable as fault:
            away = fault
        roster = rosters.current
        if roster is not None and (settings.id, key) in [(member.id, member.key) for member in roster.sites]:
            return roster
        message = "waiting for the operator to admit this site (`cloister coordinator admit`)"
        if away is not None:
            message = f"{away.message} Trying again."
        if message != told:
            on_event({"event": "waiting", "site": settings.id, "message": message})
            told = message
        if away is not None and time.monotonic() - heard > settings.patience_seconds:
            raise away
        await asyncio.sleep(wait)
        wait = min(2 * wait, ADMISSION_SECONDS[1])


async def _until(work: Coroutine[Any, Any, None], stop: asyncio.Event) -> None:
    """Does `work` until `stop` is set. Raises: the first error of `work`, out of whatever groups hold it."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        working.cancel()
        await asyncio.wait({working})
    if not working.cancelled() and (fault := working.exception()) is not None:
        while isinstance(fault, BaseExceptionGroup):
            fault = fault.exceptions[0]
        raise fault
