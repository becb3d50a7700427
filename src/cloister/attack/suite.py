"""The suite: tells every lie to real sites, and judges each by what the sites wrote down and what the cheater got.

An attack has held if every site that was told the lie refused it by the name that docs/attacks.md gives it, and the
cheater is left with noise.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from cloister.attack.federation import AGENT, COLLUDERS, LOOK_SECONDS, SITES, Federation, Truths, make_job
from cloister.attack.liar import Lie, Watched, docstring_of, name_of
from cloister.attack.lies import LIES
from cloister.attack.record import Record
from cloister.attack.replay import findings
from cloister.attack.rogues import ROGUES, Rogue, command
from cloister.attack.spoils import Spoils, spoils
from cloister.coordinator.folder import COORDINATOR
from cloister.job import Job
from cloister.seal.masks import reduce
from cloister.vector.errors import EnvironmentFailure, UsageError

Attack: TypeAlias = type[Lie] | type[Rogue]
ATTACKS: dict[str, Attack] = {**LIES, **ROGUES}
VERIFY = "verify"  # stands for a site where `round.verify` is what refuses
JOURNAL_SECONDS = 10.0
ROUNDS_TO_CHEAT = 20  # in which a rogue that is not found out has got away with it


@dataclass(frozen=True)
class Outcome:
    """How one attack ended.

    Attributes: name, tried, fails: of the attack. expected: the names of errors under which it may be refused.
      refusals: site, or "verify" -> the error that it refused with, by its own journal. spoils: what the cheater got.
      fault: why it has not held, in a sentence; "" if it has.
    """

    name: str
    tried: str
    fails: str
    expected: tuple[str, ...]
    refusals: dict[str, str]
    spoils: tuple[Spoils, ...]
    fault: str

    @property
    def held(self) -> bool:
        return not self.fault

    @property
    def worst(self) -> Spoils | None:
        """The site of which the cheater got the most; None if no site sent a vector."""
        return max(self.spoils, key=lambda one: (one.leaked, one.correlation), default=None)

    def as_json(self) -> dict[str, Any]:
        worst = self.worst
        return {
            "attack": self.name,
            "tried": self.tried,
            "refusals": self.refusals,
            "expected": list(self.expected),
            "correlation": None if worst is None else worst.correlation,
            "bound": None if worst is None else worst.bound,
            "words": None if worst is None else worst.words,
            "opened_sites": None if worst is None else worst.crowd,
            "held": self.held,
            "fault": self.fault,
        }


def chosen(names: Sequence[str]) -> list[Attack]:
    """The attacks of these names, or all for "all", in the order of the list. Raises: UsageError."""
    if "all" in names:
        return list(ATTACKS.values())
    if unknown := [name for name in names if name not in ATTACKS]:
        raise UsageError(f"there is no attack {unknown[0]!r}.", mend="`cloister attack --list` names them.")
    return [kind for name, kind in ATTACKS.items() if name in names]


def described(kinds: Iterable[Attack]) -> list[tuple[str, tuple[str, str, tuple[str, ...]]]]:
    """(name, (what it tries, why it must fail, under which names it may be refused)) of each."""
    return [(name_of(kind), docstring_of(kind)) for kind in kinds]


def attack(
    kinds: Iterable[Attack],
    folder: Path,
    agent: Sequence[str] = AGENT,
    say: Callable[[str], None] = lambda text: None,
    tell: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Runs attacks within one federation.

    Args: folder: for everything; made if absent. agent: the command that runs a site. tell: told each outcome.
    Raises: EnvironmentFailure: the federation did not come up, or the instrument itself is off.
    """
    say("a coordinator, five sites and their tables: loopback, TLS, a process for each site")
    chosen = list(kinds)
    lies = [kind for kind in chosen if issubclass(kind, Lie)]
    rogues = [kind for kind in chosen if issubclass(kind, Rogue)]
    batches = [[kind for kind in lies if not kind.spoils_run and not kind.lasts]]
    batches += ([kind] for kind in sorted(lies, key=lambda kind: kind.lasts) if kind.spoils_run or kind.lasts)
    outcomes = []
    with Federation(folder, agent) as federation:
        job = make_job()
        truths = Truths(federation, job)
        if rogues:
            say(f"a run of the job, in which a site cheats: {', '.join(map(name_of, rogues))}")
            for outcome in _Cheating(federation, job, truths, rogues).outcomes():
                outcomes.append(outcome)
                tell(outcome)
        for batch in filter(None, batches):
            say(f"a run of the job, in which the coordinator lies: {', '.join(map(name_of, batch))}")
            for outcome in _Telling(federation, job, truths, batch).outcomes():
                outcomes.append(outcome)
                tell(outcome)
    return outcomes


class _Telling:
    """One run, in which a batch of lies is told."""

    def __init__(self, federation: Federation, job: Job, truths: Truths, batch: list[type[Lie]]) -> None:
        self._federation, self._job, self._truths, self._batch = federation, job, truths, batch

    def outcomes(self) -> list[Outcome]:
        federation, script = self._federation, self._federation.script
        before = set(script.rounds)
        script.load(self._batch)
        with federation.run(self._job) as run:
            federation.wait_for(lambda: self._told(run), lambda: len(self._acts()))
        script.clear()
        machines = [script.rounds[key] for key in script.rounds if key not in before]
        _check_instrument(machines, self._truths)
        return [self._judged(kind, machines) for kind in self._batch]

    def _told(self, run: str) -> bool:
        script = self._federation.script
        if self._federation.status(run) != "running":
            return True
        return script.empty and not any(key in self._federation.runs.rounds for key in self._acts())

    def _acts(self) -> list[tuple[str, int]]:
        return [key for key, machine in list(self._federation.script.rounds.items()) if isinstance(machine, Lie)]

    def _judged(self, kind: type[Lie], machines: Sequence[Watched]) -> Outcome:
        tried, fails, expected = docstring_of(kind)
        acts = [machine for machine in machines if type(machine) is kind]
        told = {site for machine in acts for site in machine.told}
        if kind.shows:
            refusals = self._refusals({machine.record.key for machine in acts}, told)
        else:
            refusals, told = self._found(acts, machines), {VERIFY} if acts else set()
        got = spoils(_of_questions(acts, machines), self._truths)
        fault = _fault(told, expected, refusals, got)
        return Outcome(name_of(kind), tried, fails, expected, refusals, tuple(got), fault)

    def _refusals(self, rounds: set[tuple[str, int]], told: set[str]) -> dict[str, str]:
        """What the sites that were told wrote down about these rounds; the last of it may be under way."""
        found: dict[str, str] = {}
        end = time.monotonic() + JOURNAL_SECONDS
        while told - found.keys() and time.monotonic() < end:
            for site in sorted(told - found.keys()):
                for entry in self._federation.journal(site):
                    if entry.kind == "refused" and (entry.facts["run"], entry.facts["round"]) in rounds:
                        found[site] = entry.facts["error"]
            time.sleep(LOOK_SECONDS)
        return dict(sorted(found.items()))

    def _found(self, acts: Sequence[Watched], machines: Sequence[Watched]) -> dict[str, str]:
        """What `verify` finds in the round of the lie; anything in a true round would be its own fault."""
        opened = [machine for machine in machines if machine.record.receipts]
        until = [machine for machine in opened if acts and machine.plan.round <= acts[0].plan.round]
        places = {finding.where: finding.name for finding in (findings(self._federation.hub, until) if until else ())}
        return {VERIFY if where == f"round {acts[0].plan.round}" else where: name for where, name in places.items()}


def _check_instrument(machines: Sequence[Watched], truths: Truths) -> None:
    """In true rounds the sites' recomputed contributions must add up to what was opened, word for word."""
    for machine in machines:
        if not isinstance(machine, Lie) and not _exact(machine, truths):
            raise EnvironmentFailure("the sites' true contributions cannot be computed again on this machine.")


def _exact(machine: Watched, truths: Truths) -> bool:
    """Whether what was opened, if anything, is the sum of the survivors' true contributions."""
    record = machine.record
    if record.opened is None:
        return True
    total = np.zeros_like(record.opened)
    for site in machine.u3:
        view = record.view(site)
        assert view is not None
        total += truths(view)
    reduce(total, record.plan.bits)
    return np.array_equal(total, record.opened)


@contextmanager
def _ending(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.wait()


class _Cheating:
    """One run in which one site after the other kind of rogue takes the place of an honest one."""

    def __init__(self, federation: Federation, job: Job, truths: Truths, kinds: list[type[Rogue]]) -> None:
        self._federation, self._job, self._truths, self._kinds = federation, job, truths, kinds

    def outcomes(self) -> Iterator[Outcome]:
        federation, site = self._federation, SITES[0]
        with federation.run(self._job) as run:
            federation.wait_for(lambda: self._opened(run) > 0, lambda: len(federation.script.rounds))
            federation.assume_colluders(1, before=COLLUDERS)  # while it is away, the others go on as four
            for kind in self._kinds:
                federation.stop_site(site)
                said, before = len(federation.said(site)), set(federation.script.rounds)
                federation.start_site(site, command(name_of(kind)))
                with _ending(federation.let_go(site)):
                    yield self._outcome(kind, run, site, said, before)
                starts = self._starts(site)
                federation.start_site(site)
                federation.wait_for(lambda starts=starts: self._starts(site) > starts)  # type: ignore[misc]
            federation.assume_colluders(COLLUDERS, before=1)

    def _starts(self, site: str) -> int:
        return sum(entry.kind == "started" for entry in self._federation.journal(site))

    def _opened(self, run: str) -> int:
        rounds = self._federation.hub.store.look(lambda tx: tx.rounds(run))
        return sum(row.outcome == "done" for row in rounds)

    def _outcome(self, kind: type[Rogue], run: str, site: str, said: int, before: set[tuple[str, int]]) -> Outcome:
        federation, opened = self._federation, self._opened(run)
        logged, (tried, fails, expected) = len(federation.journal(site)), docstring_of(kind)

        def found() -> str:
            if kind.at == "event":
                events = federation.hub.store.look(lambda tx: tx.events_after(run, 0))
                blamed = [event for event in events if event["event"] == "round" and event["blamed"] == [site]]
                return "BadShare" if blamed else ""
            lines = [json.loads(line) for line in federation.said(site)[said:] if line.startswith('{"refused"')]
            if kind.at == "site":
                entries = federation.journal(site)[logged:]
                lines = [{"refused": entry.facts["error"]} for entry in entries if entry.kind == "refused"]
            names = [line["refused"] for line in lines]
            return next((name for name in names if name in expected), "".join(names[-1:]))

        def over() -> bool:
            rounds = list(federation.script.rounds.items())
            tried = [machine for key, machine in rounds if key not in before and site in machine.plan.sites]
            return self._opened(run) > opened and (found() in expected or len(tried) > ROUNDS_TO_CHEAT)

        federation.wait_for(over, lambda: len(federation.script.rounds))
        machines = [federation.script.rounds[key] for key in federation.script.rounds if key not in before]
        where, name = site if kind.at == "site" else COORDINATOR, found()
        refusals = {where: name} if name else {}
        fault = _fault({where}, expected, refusals, [])
        if not all(_exact(machine, self._truths) for machine in machines):
            fault = "a sum opened that is not that of its survivors."
        return Outcome(name_of(kind), tried, fails, expected, refusals, (), fault)


def _of_questions(acts: Sequence[Watched], machines: Sequence[Watched]) -> list[Record]:
    """All rounds, true ones too, in which the lie's question was asked: their sums may differ by one site."""
    asked = {machine.plan.query for machine in acts}
    return [machine.record for machine in machines if machine.plan.query in asked]


def _fault(told: set[str], expected: Sequence[str], refusals: dict[str, str], got: Sequence[Spoils]) -> str:
    """Why an attack has not held; "" if it has."""
    for one in got:
        if one.leaked:
            what = f"a sum of {one.crowd} with {one.site} in it opens, " if one.crowd else ""
            return f"LEAKED: {what}r={one.correlation:.2f} with what {one.site} sent; noise is under {one.bound:.2f}."
    if not told:
        return "the lie was not told: the run ended before."
    if silent := sorted(told - set(refusals)):
        return f"{', '.join(silent)} did not refuse."
    if other := sorted(set(refusals.values()) - set(expected)):
        return f"refused as {', '.join(other)}, expected was {' or '.join(expected)}."
    return ""
