"""The loop that everything is: ask -> sealed sum -> learn, with a checkpoint after each step.

    while (query := program.ask(state)) is not None:
        state = program.learn(state, cohort.sum(query))

`cohort.sum` is the only thing that differs between a simulation and a real federation.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from cloister.round.program import Program
from cloister.seal.threshold import MIN_SITES
from cloister.vector import Answer, Query, State, Total, canonical


class Cohort(Protocol):
    """The sites that answer: `LocalCohort` in a simulation, `RemoteCohort` in a federation."""

    def sum(self, query: Query) -> Total:
        """Asks the cohort and opens the sealed sum. Raises RoundVoid when too few sites answered."""
        ...


class Trainer(Protocol):
    """What computes one site's answer: the learn room, in a worker process or in the simulator."""

    def answer(self, query: Query) -> Answer: ...


class Store(Protocol):
    """Where the state rests between steps; `save` is durable before it returns."""

    def load(self) -> State | None: ...

    def save(self, state: State) -> None: ...


def run(
    program: Program,
    cohort: Cohort,
    store: Store | None = None,
    observe: Callable[[State, Total], None] = lambda state, total: None,
) -> State:
    """Runs a program to its end, from the stored state if there is one.

    Args: observe: called after each step with the new state and the opened total.
    Returns: the final state.
    """
    state = (store.load() if store else None) or program.start()
    while (query := program.ask(state)) is not None:
        total = cohort.sum(query)
        state = program.learn(state, total)
        if store:
            store.save(state)
        observe(state, total)
    return state


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def asked(query: Query, sites: Collection[str], seed: int, step: int) -> list[str]:
    """The sites, of these that are there, to which a question goes."""
    named = set(query.named)
    pool = [site for site in sites if (site in named) != query.others] if named else list(sites)
    return choose_cohort(pool, query.fraction, seed, step, poisson=query.poisson)


def choose_cohort(sites: Sequence[str], fraction: float, seed: int, step: int, *, poisson: bool = False) -> list[str]:
    """The sites asked in one step: a uniform sample of round(fraction * n), at least three where there are three.

    With `poisson` each is in it with chance `fraction`, by itself; a sample of under three is drawn again. Which site
    is asked is no secret, so no privacy is amplified by either.

    Deterministic in (seed, step) and independent of the order of `sites`. Floyd's method (Bentley, Floyd 1987,
    "A sample of brilliance") with numbers drawn by SHA-256: a small cohort of many sites costs no more than of few.
    """
    ordered, fewest = sorted(sites), min(MIN_SITES, len(sites))
    if fraction >= 1.0:
        return ordered
    material = canonical([seed, step, "cohort"])
    if poisson:
        return _coins(ordered, fraction, material, fewest)
    count = max(round(fraction * len(ordered)), fewest)
    chosen: set[int] = set()
    for last in range(len(ordered) - count, len(ordered)):
        drawn = int.from_bytes(hashlib.sha256(material + last.to_bytes(8, "big")).digest(), "big") % (last + 1)
        chosen.add(last if drawn in chosen else drawn)
    return [ordered[at] for at in sorted(chosen)]


def _coins(ordered: Sequence[str], chance: float, material: bytes, fewest: int) -> list[str]:
    """A coin for each, 8 bytes of SHAKE-256; all of them anew until enough sites are chosen."""
    below, draw = int(chance * 2.0**64), 0
    while True:
        drawn = hashlib.shake_256(material + draw.to_bytes(8, "big")).digest(8 * len(ordered))
        chosen = [
            site for at, site in enumerate(ordered) if int.from_bytes(drawn[8 * at : 8 * at + 8], "big") < below
        ]
        if len(chosen) >= fewest:
            return chosen
        draw += 1
