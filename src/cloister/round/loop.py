"""The loop that everything is: ask -> sealed sum -> learn, with a checkpoint after each step.

    while (query := program.ask(state)) is not None:
        state = program.learn(state, cohort.sum(query))

`cohort.sum` is the only thing that differs between a simulation and a real federation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

from cloister.round.program import Program
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


def choose_cohort(sites: Sequence[str], fraction: float, seed: int, step: int) -> list[str]:
    """The sites asked in one step: a uniform sample of round(fraction * n), at least three where there are three.

    Deterministic in (seed, step) and independent of the order of `sites`. Floyd's method (Bentley, Floyd 1987,
    "A sample of brilliance") with numbers drawn by SHA-256: a small cohort of many sites costs no more than of few.
    """
    ordered = sorted(sites)
    if fraction >= 1.0:
        return ordered
    count = max(round(fraction * len(ordered)), min(3, len(ordered)))
    material = canonical([seed, step, "cohort"])
    chosen: set[int] = set()
    for last in range(len(ordered) - count, len(ordered)):
        drawn = int.from_bytes(hashlib.sha256(material + last.to_bytes(8, "big")).digest(), "big") % (last + 1)
        chosen.add(last if drawn in chosen else drawn)
    return [ordered[at] for at in sorted(chosen)]
