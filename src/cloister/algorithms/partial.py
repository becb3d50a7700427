"""Partial sharing: part of the model is averaged, the rest never leaves its site.

FedBN: Li, Jiang, Zhang, Kamp, Dou, "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization",
ICLR 2021, algorithm 1. https://arxiv.org/abs/2102.07623
FedRep: Collins, Hassani, Mokhtari, Shakkottai, "Exploiting Shared Representations for Personalized Federated
Learning", ICML 2021, algorithm 1. https://arxiv.org/abs/2102.07078
PartialSharing: FedPer, Arivazhagan, Aggarwal, Singh, Choudhary, "Federated Learning with Personalization Layers",
2019. https://arxiv.org/abs/1912.00818

The sealed vector holds the shared coordinates alone. The evaluation is of each site's whole model; in the result the
local part has its initial values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cloister.algorithms.base import require_count
from cloister.algorithms.fedavg import FedAvg
from cloister.algorithms.local import Site, Terms
from cloister.algorithms.names import Mask, Shapes, last_layer, mask, matching, normalizing
from cloister.vector import Block, State, Total
from cloister.vector.bundle import Array
from cloister.vector.errors import JobError


@dataclass(frozen=True)
class PartialSharing(FedAvg):
    """Attributes: private: names or patterns ("head.*") of the model's tensors that stay at their site."""

    private: Sequence[str] = ()

    needs = frozenset({"steps"})
    combines = False
    stateful = True
    whole = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.private, str) or not all(isinstance(each, str) for each in self.private):
            raise JobError(f"{self.name}: private is no list of names.", mend='Try private=["head.*"].')
        object.__setattr__(self, "private", tuple(self.private))  # JSON has lists

    def names(self, shapes: Shapes) -> list[str]:
        """The tensors that stay."""
        return matching(shapes, self.private)

    def stays(self, shapes: Shapes) -> Mask:
        """bool[d]: the coordinates that stay. Raises JobError: none does, or all do."""
        found = mask(shapes, self.names(shapes))
        if not found.any() or found.all():
            how = "no tensor stays local" if not found.any() else "no tensor is shared"
            there = ", ".join(name for name, _ in shapes)
            raise JobError(f"{self.name}: {how}.", mend=f"Choose private=[...] among: {there}.")
        return found

    def blocks(self, state: State) -> tuple[Block, ...]:
        shared = int((~self.stays(state.facts["shapes"])).sum())
        return (Block("delta", (shared,), bound=self.bound, clip=self.clip, weighted=True),)

    def local(self, site: Site) -> Mapping[str, Array]:
        stays, start = self.stays(site.shapes), self._whole(site)
        delta, answer = self.train(site, start, stays)
        site.memory["private"] = (start + delta)[stays]
        return {**answer, "delta": delta[~stays]}

    def train(self, site: Site, start: Array, stays: Mask) -> tuple[Array, dict[str, Array]]:
        """Returns: local minus start, float32[d], and the answer of the training that is reported."""
        trained = site.train(start)
        return trained.delta, trained.answer

    def models(self, site: Site) -> Mapping[str, Array]:
        return {"test": self._whole(site)}

    def _whole(self, site: Site) -> Array:
        """The broadcast with this site's own part in its place."""
        model = site.model.copy()
        if "private" in site.memory:
            model[self.stays(site.shapes)] = site.memory["private"]
        return model

    def learn(self, state: State, total: Total) -> State:
        stays = self.stays(state.facts["shapes"])
        mean = np.zeros(stays.size)
        mean[~stays] = total.mean("delta")
        return self.moved(state, mean)


@dataclass(frozen=True)
class FedBN(PartialSharing):
    """BatchNorm stays local: by default every layer that has running statistics, with its weight and bias."""

    def names(self, shapes: Shapes) -> list[str]:
        return super().names(shapes) if self.private else normalizing(shapes)


@dataclass(frozen=True)
class FedRep(PartialSharing):
    """The head stays local, by default the last layer: it is trained first, then the body below a fixed head.

    Attributes: head_epochs: of the head's training; the body's is the task's own.
    """

    head_epochs: int = 1

    needs = frozenset({"gradients"})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count(self.name, head_epochs=self.head_epochs)

    def names(self, shapes: Shapes) -> list[str]:
        return super().names(shapes) if self.private else last_layer(shapes)

    def train(self, site: Site, start: Array, stays: Mask) -> tuple[Array, dict[str, Array]]:
        head = site.train(start, Terms(only=stays, epochs=self.head_epochs))
        body = site.train(start + head.delta, Terms(only=~stays))
        return head.delta + body.delta, body.answer
