"""Ditto: Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
algorithm 1. https://arxiv.org/abs/2012.04221

Beside the federation's model, which is FedAvg's, each site trains one of its own on its loss
+ pull / 2 * |v - broadcast|**2. It never leaves the site. Both are evaluated by sealed sums: the history's columns
`personal_...` are of the sites' own models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloister.algorithms.base import require_positive
from cloister.algorithms.fedavg import FedAvg
from cloister.algorithms.local import Site, Terms
from cloister.vector.bundle import Array


@dataclass(frozen=True)
class Ditto(FedAvg):
    """Attributes: pull: the paper's lambda: near 0 sites train alone, large values end at the federation's model."""

    pull: float = 0.1

    needs = frozenset({"gradients"})
    stateful = True
    measured = ("test", "personal")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self.name, pull=self.pull)

    def local(self, site: Site) -> Mapping[str, Array]:
        trained, own = site.train(), site.memory.get("personal", site.model)
        site.memory["personal"] = own + site.train(own, Terms(proximal=self.pull, anchor=site.model)).delta
        return trained.answer

    def models(self, site: Site) -> Mapping[str, Array]:
        return {"test": site.model, "personal": site.memory.get("personal", site.model)}
