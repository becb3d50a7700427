"""The demonstration itself: founds a federation of real processes, trains, kills a site on the way, and compares."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cloister.cli.analyst import Analyst, follow
from cloister.cli.evidence import fetch_evidence
from cloister.cli.loopback import Event, Loopback
from cloister.cli.progress import Progress
from cloister.cli.results import fetch_result
from cloister.cli.witness import what_the_coordinator_saw
from cloister.job import Job
from cloister.learn import read_table
from cloister.learn.comparison import Comparison
from cloister.learn.result import Result
from cloister.seal.threshold import threshold
from cloister.simulation import compare

WATCH_SECONDS = 0.5  # how often the processes are looked at while they train
JUDGED = {"binary": ("accuracy", "auc"), "multiclass": ("accuracy", "loss"), "regression": ("rmse", "mae")}


class Demonstration:
    """One demonstration. Args: tables: site id -> its CSV. view: told what happens."""

    def __init__(self, federation: Loopback, job: Job, tables: dict[str, Path], view: Progress) -> None:
        self.federation, self.job, self.tables, self.view = federation, job, tables, view
        self.id = ""  # of the run
        self.seconds: dict[str, float] = {}
        self.events: list[Event] = []
        self.happened = asyncio.Event()
        self.victim: str | None = None  # killed on purpose, and not started again yet
        self.struck: dict[str, Any] | None = None

    def run(self) -> dict[str, Any]:
        """Returns: what `--json` prints. Raises: CloisterError: a process ended, or the run failed."""
        with self._timed("set-up"):
            analyst = self.federation.found(self.job.data.name, self.tables, self.view.say)
        with self._timed("training"):
            result = asyncio.run(self._train(analyst))
        with self._timed("baselines"):
            self.view.trained()
            self.view.say("baselines: each site alone, and all rows in one place")
            frames = {site: read_table(path) for site, path in self.tables.items()}
            comparison = compare(self.job, frames, result.state)
        result = Result(self.job, result.state, result.privacy, result.events, result.receipts, comparison)
        with self._timed("report"):
            result.save(self.federation.folder / "results")
        return self._outcome(result, comparison)

    async def _train(self, analyst: Analyst) -> Result:
        async with analyst.connect(self.view.say) as client:
            self.view.say("analyst: signs and submits the job")
            run = self.id = await client.submit(self.job.to_bytes())
            self.view.train()
            guards = [asyncio.create_task(self._guard()), asyncio.create_task(self._strike())]
            watching = asyncio.create_task(self._follow(client, run))
            try:
                while not watching.done():
                    await asyncio.wait([watching, *guards], return_when=asyncio.FIRST_COMPLETED)
                    guards = [guard for guard in guards if not (guard.done() and guard.result() is None)]
                await watching
            finally:
                for task in (*guards, watching):
                    task.cancel()
            await fetch_evidence(client, analyst, run, self.federation.folder / "results", quiet=True)
            return await fetch_result(client, run)

    async def _follow(self, client: Any, run: str) -> None:
        async for event in follow(client, run):
            self.events.append(event)
            self.happened.set()
            self.view.event(event)

    async def _guard(self) -> None:
        """Raises: EnvironmentFailure: a process that nobody killed has ended."""
        while True:
            for name in self.federation.processes:
                if name != self.victim:
                    self.federation.check(name)
            await asyncio.sleep(WATCH_SECONDS)

    async def _strike(self) -> None:
        """SIGKILLs a site while it trains, once it has shared its keys: its masks must come off the sum.

        A small table trains in milliseconds, so the training process is frozen first; then the agent is killed.
        """
        third = max(1, self.job.algorithm.rounds // 3)
        await self._until(lambda event: event["event"] == "round" and event["trained"] >= third)
        cohort = [event["sites"] for event in self.events if event["event"] == "open"][-1]
        if len(cohort) == threshold(len(cohort)):
            return  # a sum over so few sites can lose none
        site = cohort[-1]
        self.federation.freeze_children(site)
        asked = await self.federation.saw(site, lambda event: event.get("event") == "asked")
        number = asked["round"]
        await self._until(
            lambda event: (event["event"], event.get("round"), event.get("closed")) == ("phase", number, "shares")
        )
        self.victim = site
        self.federation.kill(site)
        self.view.say(
            f"killed {site} (SIGKILL) while it trains: its keys are shared, its answer will not come", "red"
        )
        self.struck = {"site": site, "round": number, "sealed_round": number, "opened": False}
        event = await self._until(lambda event: event["event"] == "round" and event["round"] == number)
        sites, survivors = event["sites"], event["survivors"]
        self.struck |= {"sites": sites, "survivors": survivors, "threshold": threshold(sites), "opened": True}
        self.struck["round"] = event["trained"]  # people count the rounds of training
        self.view.say(
            f"the sum opened: {survivors} of {sites} sites answered, {threshold(sites)} were needed", "green"
        )
        self.view.say(f"{site}: its steward starts it again")
        self.federation.start_site(site)
        self.victim = None

    async def _until(self, wanted: Callable[[Event], bool]) -> Event:
        """The first event of the run that is wanted, past or to come."""
        looked = 0
        while True:
            for event in self.events[looked:]:
                if wanted(event):
                    return event
            looked = len(self.events)
            self.happened.clear()
            await self.happened.wait()

    def _outcome(self, result: Result, comparison: Comparison) -> dict[str, Any]:
        rounds = [event for event in self.events if event["event"] == "round"]
        void = [event for event in self.events if event["event"] == "void"]
        better, how = _judge(comparison, self.job.kind)
        opened = not void and (self.struck is None or self.struck["opened"])
        return {
            "ok": better and opened,
            "better": better,
            "judged_by": how,
            "rounds_asked": len(rounds) + len(void),
            "rounds_opened": len(rounds),
            "killed": self.struck,
            "sites": sorted(self.tables),
            "test_rows": comparison.test_rows,
            "table": {
                "local-only": {name: comparison.local_mean(name) for name in comparison.federated},
                "federated": dict(comparison.federated),
                "pooled": dict(comparison.pooled),
            },
            "coordinator_saw": what_the_coordinator_saw(self.federation.coordinator, self.id, self.job, self.tables),
            "run": self.id,
            "bytes": {direction: _added(rounds, f"bytes_{direction}") for direction in ("up", "down")},
            "seconds": {phase: round(value, 4) for phase, value in self.seconds.items()},
            "seconds_by_phase": _added(rounds, "seconds"),
            "job": self.job.digest.hex(),
            "url": self.federation.url,
            "privacy": result.privacy.as_json(),
            "results": str(self.federation.folder / "results"),
        }

    @contextlib.contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - began


def _judge(comparison: Comparison, kind: str) -> tuple[bool, str]:
    """Better than the sites' mean by the first metric, and not worse by the second."""
    ours = [comparison.federated.get(name) for name in JUDGED[kind]]
    theirs = [comparison.local_mean(name) for name in JUDGED[kind]]
    signs = [-1.0 if name in ("loss", "rmse", "mae") else 1.0 for name in JUDGED[kind]]
    gains = [
        None if mine is None or local is None else sign * (mine - local)
        for mine, local, sign in zip(ours, theirs, signs, strict=True)
    ]
    better = gains[0] is not None and gains[0] > 0 and (gains[1] is None or gains[1] >= 0)
    return better, f"better {JUDGED[kind][0]}, {JUDGED[kind][1]} not worse"


def _added(events: list[Event], name: str) -> dict[str, float]:
    """The sum over rounds of an event's amounts by site or phase."""
    total: Counter[str] = Counter()
    for event in events:
        total.update(event.get(name) or {})
    return dict(total)
