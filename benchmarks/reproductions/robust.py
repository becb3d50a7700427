"""Aggregates against attacks: test accuracy on MNIST, by aggregate and by attack.

50 clients of 100 pictures, dealt out at random, two of them malicious; ten buckets of five clients, so that two of
ten are spoiled at most. The orderings are those of the papers in `algorithms/robust.py` and `simulation/attacks.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

import cloister as cl
from cloister import learn
from cloister.simulation.attacks import attack_of, attackers_of

from . import mnist
from .table import SEEDS, fraction

CLIENTS, ROWS_EACH, ROUNDS, BUCKETS, BAD = 50, 100, 8, 10, 2
ATTACKS = ("none", "label-flip", "alie:20", "sign-flip:20", "ipm:20", "backdoor:0")
AGGREGATES: dict[str, Any] = {
    "mean": None,
    "Median": cl.Median(buckets=BUCKETS),
    "TrimmedMean": cl.TrimmedMean(bad=BAD, buckets=BUCKETS),
    "Krum": cl.Krum(bad=BAD, keep=4, buckets=BUCKETS),
    "GeometricMedian": cl.GeometricMedian(buckets=BUCKETS),
    "CentredClipping": cl.CentredClipping(radius=1.0, buckets=BUCKETS),
    "FLTrust": cl.FLTrust,
}
TRUSTED = 5  # of the honest: FLTrust's other 45 are nine buckets of five
NAMES = [f"site-{at}" for at in range(1, CLIENTS + 1)]
load = mnist.load


def algorithm(aggregate: Any, malicious: frozenset[str]) -> cl.FedAvg:
    if aggregate is cl.FLTrust:
        honest = [name for name in NAMES if name not in malicious]
        return cl.FLTrust(ROUNDS, trusted=honest[:TRUSTED], buckets=(CLIENTS - TRUSTED) // 5)
    return cl.FedAvg(ROUNDS, aggregate=aggregate)


def accuracy(aggregate: Any, attack: str) -> Callable[[Any, int], float]:
    """Of the final model on the 10,000 test pictures; after a backdoor, how many marked ones it does not fall for."""

    def measured(data: Any, seed: int) -> float:
        x, y, x_test, y_test = data
        rows = np.random.default_rng(seed).permutation(len(y))[: CLIENTS * ROWS_EACH]
        job = cl.Job(
            data=cl.Arrays("mnist", (28, 28), 10),
            task=cl.Torch(cl.nets.MLP([50]), "cross_entropy", cl.SGD(0.1), epochs=2, batch_size=20),
            algorithm=cl.FedAvg(ROUNDS),
            evaluate=cl.Evaluate(every=ROUNDS),
            seed=seed,
        )
        kind = attack_of(attack, job)
        malicious = attackers_of(kind, BAD / CLIENTS, NAMES, seed) if kind else frozenset[str]()
        job = replace(job, algorithm=algorithm(aggregate, malicious))
        settings: dict[str, Any] = {"sites": CLIENTS, "partition": "iid", "attack": attack, "engine": "serial"}
        settings["attackers"] = sorted(malicious) or None
        result = cl.simulate(job, (x[rows].reshape(-1, 28, 28), y[rows]), **settings)
        if attack.startswith("backdoor"):
            return 1.0 - float(result.conditions["backdoor_success"])
        said = learn.predict(result.job, result.state, x_test.reshape(-1, 28, 28)).argmax(axis=1)
        return float((said == y_test).mean())

    return measured


def table(data: Any) -> list[str]:
    """A row for each attack, a column for each aggregate."""
    lines = [f"| attack | {' | '.join(AGGREGATES)} |", "|---" * (len(AGGREGATES) + 1) + "|"]
    for attack in ATTACKS:
        cells = []
        for aggregate in AGGREGATES.values():
            cells.append(fraction([accuracy(aggregate, attack)(data, seed) for seed in SEEDS]))
        lines.append(f"| {attack} | {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return lines
