"""The suite: tells every lie to real sites, and judges each by what the sites wrote down and what the cheater got.

An attack has held if every site that was told the lie refused it by the name that docs/attacks.md gives it, and the
cheater is left with noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cloister.attack.federation import AGENT, LOOK_SECONDS, Federation, Truths, make_job
from cloister.attack.liar import Lie, Watched, docstring_of, name_of
from cloister.attack.lies import LIES
from cloister.attack.record import Record
from cloister.attack.replay import findings
from cloister.attack.spoils import Spoils, spoils
from cloister.job import Job
from cloister.seal.masks import reduce
from cloister.vector.errors import EnvironmentFailure, UsageError

VERIFY = "verify"  # stands for a site where `round.verify` is what refuses
JOURNAL_SECONDS = 10.0


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


def chosen(names: Sequence[str]) -> list[type[Lie]]:
    """The attacks of these names, or all for "all", in the order of the list. Raises: UsageError."""
    if "all" in names:
        return list(LIES.values())
    if unknown := [name for name in names if name not in LIES]:
        raise UsageError(f"there is no attack {unknown[0]!r}.", mend="`cloister attack --list` names them.")
    return [kind for name, kind in LIES.items() if name in names]


def described(kinds: Iterable[type[Lie]]) -> list[tuple[str, tuple[str, str, tuple[str, ...]]]]:
    """(name, (what it tries, why it must fail, under which names it may be refused)) of each."""
    return [(name_of(kind), docstring_of(kind)) for kind in kinds]


def attack(
    kinds: Iterable[type[Lie]],
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
    lies = list(kinds)
    batches = [[kind for kind in lies if not kind.spoils_run and not kind.lasts]]
    batches += ([kind] for kind in sorted(lies, key=lambda kind: kind.lasts) if kind.spoils_run or kind.lasts)
    outcomes = []
    with Federation(folder, agent) as federation:
        job = make_job()
        truths = Truths(federation, job)
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
        self._check_instrument(machines)
        return [self._judged(kind, machines) for kind in self._batch]

    def _told(self, run: str) -> bool:
        script = self._federation.script
        if self._federation.status(run) != "running":
            return True
        return script.empty and not any(key in self._federation.runs.rounds for key in self._acts())

    def _acts(self) -> list[tuple[str, int]]:
        return [key for key, machine in list(self._federation.script.rounds.items()) if isinstance(machine, Lie)]

    def _check_instrument(self, machines: Sequence[Watched]) -> None:
        """In true rounds the sites' recomputed contributions must add up to what was opened, word for word."""
        for machine in machines:
            record = machine.record
            if isinstance(machine, Lie) or record.opened is None:
                continue
            total = np.zeros_like(record.opened)
            for site in machine.u3:
                view = record.view(site)
                assert view is not None
                total += self._truths(view)
            reduce(total, record.plan.bits)
            if not np.array_equal(total, record.opened):
                raise EnvironmentFailure("the sites' true contributions cannot be computed again on this machine.")

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
