"""SCAFFOLD: Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated
Learning", ICML 2020, algorithm 1 with option II. https://arxiv.org/abs/1910.06378

Every local step is corrected by c - c_i, the server's control variate less the site's own: the site then descends the
federation's loss, not its own, however many steps it takes. c_i never leaves the site; its changes are summed, and c
is the row-weighted mean of all c_i, whichever sites were asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cloister.algorithms.base import require_positive
from cloister.algorithms.fedavg import FedAvg
from cloister.algorithms.local import Site, Terms
from cloister.algorithms.names import statistics
from cloister.vector import Block, State, Total
from cloister.vector.bundle import Array


@dataclass(frozen=True)
class SCAFFOLD(FedAvg):
    """Attributes: control_bound: largest change of one coordinate of c_i (a gradient) that the encoding carries."""

    control_bound: float = 64.0

    needs = frozenset({"gradients", "plain_sgd"})
    combines = False
    stateful = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self.name, control_bound=self.control_bound)

    def start(self, model: Array) -> State:
        return super().start(model).with_(None, {"server/control": np.zeros(np.shape(model))})

    def blocks(self, state: State) -> tuple[Block, ...]:
        shape = state.tensors["model"].shape
        return (*super().blocks(state), Block("control", shape, bound=self.control_bound, weighted=True))

    def broadcast(self, state: State) -> dict[str, Array]:
        return {**super().broadcast(state), "control": state.tensors["server/control"].astype(np.float32)}

    def local(self, site: Site) -> Mapping[str, Array]:
        control, own = site.query.tensors["control"], site.memory.get("control", np.zeros_like(site.model))
        trained = site.train(terms=Terms(correction=control - own))
        renewed = own - control - trained.delta / np.float32(trained.steps * site.optimizer["lr"])
        renewed[statistics(site.shapes)] = 0.0  # nothing descends there
        site.memory["control"] = renewed
        return {**trained.answer, "control": renewed - own}

    def learn(self, state: State, total: Total) -> State:
        # a weighted sum is of rows / all rows * change: sites that were not asked count as unchanged
        control = state.tensors["server/control"] + total.sums["control"]
        return self.moved(state, total.mean("delta"), tensors={"server/control": control})
