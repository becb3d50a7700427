"""FedNova: Wang, Liu, Liang, Joshi, Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization", NeurIPS 2020, equations 6 and 9, section 4.1. https://arxiv.org/abs/2007.07481

Where sites take different numbers of local steps, FedAvg converges to another problem than the pooled one: the mean
leans to the sites with many steps. FedNova averages deltas *per step* (delta / a, where a is the number of steps, or
with momentum the sum of the weights its gradients get), and multiplies by the mean of a.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cloister.algorithms.fedavg import FedAvg
from cloister.algorithms.local import Site
from cloister.vector import Block, State, Total
from cloister.vector.bundle import Array

MOST_STEPS = 2.0**24  # bound of a: an encoding's affair, above what any site does in a round


@dataclass(frozen=True)
class FedNova(FedAvg):
    """Averages deltas per local step. Attributes: as FedAvg; `bound` and `clip` are of the delta per step."""

    needs = frozenset({"sgd"})
    combines = False

    def blocks(self, state: State) -> tuple[Block, ...]:
        return (*super().blocks(state), Block("steps", (), bound=MOST_STEPS, weighted=True, wide=True))

    def local(self, site: Site) -> Mapping[str, Array]:
        trained = site.train()
        a = _gradients(trained.steps, float(site.optimizer["momentum"]))
        return {**trained.answer, "delta": trained.delta / np.float32(a), "steps": np.asarray(a)}

    def learn(self, state: State, total: Total) -> State:
        return self.moved(state, total.mean("steps") * total.mean("delta"))


def _gradients(steps: int, momentum: float) -> float:
    """|a|_1: how much all gradients of `steps` steps count together (a gradient counts on through momentum)."""
    return (steps - momentum * (1.0 - momentum**steps) / (1.0 - momentum)) / (1.0 - momentum)
