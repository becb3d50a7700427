"""FedProx: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous Networks",
MLSys 2020, algorithm 2. https://arxiv.org/abs/1812.06127

Each site minimises its loss plus proximal / 2 * |w - broadcast|**2, which holds local models near the broadcast where
sites differ or do unequal amounts of work. The server averages as in FedAvg.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloister.algorithms.base import require_positive
from cloister.algorithms.fedavg import FedAvg
from cloister.algorithms.local import Site, Terms
from cloister.vector.bundle import Array


@dataclass(frozen=True)
class FedProx(FedAvg):
    """Attributes: proximal: the paper's mu; it tries 0.001 to 1."""

    proximal: float = 0.01

    needs = frozenset({"gradients"})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self.name, proximal=self.proximal)

    def local(self, site: Site) -> Mapping[str, Array]:
        return site.train(terms=Terms(proximal=self.proximal)).answer
