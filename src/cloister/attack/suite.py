"""The suite: tells every lie to real sites, and judges each by what the sites wrote down and what the cheater got.

An attack has held if every site that was told the lie refused it by the name that docs/attacks.md gives it, and the
cheater is left with noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cloister.attack.federation import AGENT, Federation, Truths, make_job
from cloister.attack.liar import Lie, Watched, described, name_of
from cloister.attack.lies import LIES
from cloister.attack.record import Record, View
from cloister.attack.spoils import Spoils, spoils
from cloister.job import Job
from cloister.seal.masks import reduce
from cloister.vector.errors import EnvironmentFailure, UsageError


@dataclass(frozen=True)
class Outcome:
    """How one attack ended.

    Attributes: name, tried, fails: of the attack. expected: the names of errors under which it may be refused.
      refusals: site -> the error that it refused with, by its own journal. spoils: what the cheater got.
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
    """The attacks of these names, or all for "all". Raises: UsageError."""
    if "all" in names:
        return list(LIES.values())
    if unknown := [name for name in names if name not in LIES]:
        raise UsageError(f"there is no attack {unknown[0]!r}.", mend="`cloister attack --list` names them.")
    return [LIES[name] for name in dict.fromkeys(names)]


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
    batches = [[kind for kind in lies if not kind.spoils_run], *([kind] for kind in lies if kind.spoils_run)]
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
        tried, fails, expected = described(kind)
        acts = [machine for machine in machines if type(machine) is kind]
        told = {site for machine in acts for site in machine.told}
        refusals = self._refusals({machine.record.key for machine in acts}, told)
        got = spoils(_of_questions(acts, machines), self._true)
        return Outcome(
            name_of(kind), tried, fails, expected, refusals, tuple(got), _fault(told, expected, refusals, got)
        )

    def _true(self, view: View) -> Any:
        return self._truths(view)

    def _refusals(self, rounds: set[tuple[str, int]], told: set[str]) -> dict[str, str]:
        """What the sites that were told wrote down about these rounds."""
        found = {}
        for site in sorted(told):
            for entry in self._federation.journal(site):
                if entry.kind == "refused" and (entry.facts["run"], entry.facts["round"]) in rounds:
                    found[site] = entry.facts["error"]
        return found


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
