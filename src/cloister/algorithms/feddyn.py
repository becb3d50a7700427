"""FedDyn: Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama, "Federated Learning Based on Dynamic
Regularization", ICLR 2021, algorithm 1. https://arxiv.org/abs/2111.04263

A site minimises its loss - <g_i, w> + alpha / 2 * |w - broadcast|**2, where g_i is its loss' gradient at its last
local model: minima of the sites and of the federation then agree. g_i never leaves the site, and only deltas are
summed: the server's h follows from them. Sites weigh by their rows, where the paper has equal sites.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cloister.algorithms.base import require_positive
from cloister.algorithms.fedavg import FedAvg
from cloister.algorithms.local import Site, Terms
from cloister.vector import State, Total
from cloister.vector.bundle import Array


@dataclass(frozen=True)
class FedDyn(FedAvg):
    """Attributes: alpha: strength of the regularisation; the paper tries 0.001 to 0.1."""

    alpha: float = 0.01

    needs = frozenset({"gradients"})
    combines = False
    stateful = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self.name, alpha=self.alpha)

    def start(self, model: Array) -> State:
        return super().start(model).with_(None, {"server/h": np.zeros(np.shape(model))})

    def local(self, site: Site) -> Mapping[str, Array]:
        gradient = site.memory.get("gradient", np.zeros_like(site.model))
        trained = site.train(terms=Terms(correction=-gradient, proximal=self.alpha))
        site.memory["gradient"] = gradient - np.float32(self.alpha) * trained.delta
        return trained.answer

    def learn(self, state: State, total: Total) -> State:
        h = state.tensors["server/h"] - self.alpha * total.sums["delta"]
        mean = total.mean("delta")
        return self.moved(state, mean, mean - h / self.alpha, {"server/h": h})
