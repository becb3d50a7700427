"""McMahan et al. 2017: the next character of Shakespeare, a site for each speaking role; a short run that learns.

The job is examples/shakespeare. Two yardsticks stand beside it, each of all roles' characters in one place: the most
frequent character, and the most frequent one after each character.
"""

from __future__ import annotations

import dataclasses
import runpy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

import cloister as cl

from .table import DATA, ROOT, Row

EXAMPLE = ROOT / "examples" / "shakespeare"
Roles = Mapping[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.bool_]]]


def load() -> Roles | None:
    speeches = DATA / "shakespeare" / "speeches_by_role.csv.gz"
    if not speeches.is_file():
        return None
    return dict(runpy.run_path(str(EXAMPLE / "prepare.py"))["sites"](speeches))


def tabulated(roles: Roles, seed: int, *, after: bool) -> float:
    """Accuracy on all test rows of a table of counts, by the character before or of all alike."""
    counts = np.zeros((256, 256))
    for x, y, test in roles.values():
        both = np.column_stack([x, y]).astype(np.int64)[~test]
        np.add.at(counts, (both[:, :-1].ravel() if after else 0, both[:, 1:].ravel()), 1)
    best = counts.argmax(axis=1)
    before, following = (np.concatenate([each[test] for each, test in part]) for part in _tested(roles))
    return float((best[before if after else 0] == following).mean())


def _tested(roles: Roles) -> Any:
    """The last character of each row and the one after it, with what is a test row."""
    yield [(x[:, -1].astype(np.int64), test) for x, _, test in roles.values()]
    yield [(y, test) for _, y, test in roles.values()]


def federated(roles: Roles, seed: int) -> float:
    job = cl.load_job(EXAMPLE / "job.py")
    rounds = job.algorithm.rounds
    result = cl.simulate(dataclasses.replace(job, seed=seed, evaluate=cl.Evaluate(every=rounds)), roles)
    return float(result.final["accuracy"])


def _yardstick(after: bool) -> Callable[[Roles, int], float]:
    return lambda roles, seed: tabulated(roles, seed, after=after)


ROWS = (
    Row("most frequent character", "all roles together", "", _yardstick(False)),
    Row("most frequent after each character", "all roles together", "", _yardstick(True)),
    Row("FedAvg, LSTM of 128", "40 rounds, B = 10, E = 1, C = 0.1, lr 4", "", federated),
)
