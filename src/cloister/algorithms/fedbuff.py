"""FedBuff: Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, "Federated Learning with Buffered Asynchronous
Aggregation", AISTATS 2022, algorithms 1 and 2. https://arxiv.org/abs/2106.06639

Nobody waits for the slowest: sites train all the time, and the server's model moves whenever `buffer` of them are
ready. The buffer is a sealed sum over the first that are. A site that still trains drops out of it, keeps its update
at home, and hands it in to a later one: trained from a model that is `tau` versions old by then, times
1 / sqrt(1 + tau), which the site itself sees to. An update that is older than `max_staleness` is never handed in.
Sites weigh by their rows, where the paper has equal sites.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cloister.algorithms.base import FEWEST, require_count
from cloister.algorithms.fedavg import FedAvg
from cloister.algorithms.local import Site
from cloister.vector import Query, State, Total
from cloister.vector.bundle import Array
from cloister.vector.errors import JobError

SIMULATED = "simulated"  # a fact of the state: sites are one process, which trains a late one when it hands in
PAST = "past"  # of a question then: float32[max_staleness, d], the model one version ago, two ...


@dataclass(frozen=True)
class FedBuff(FedAvg):
    """Attributes:
    cohort: the fraction of the sites that train at any time (the paper's concurrency), in a federation: are asked.
    buffer: how many updates move the model: the paper's K. A round of the history is one of these moves. A federation
      takes more than two thirds of the sites that are asked, as its sealed sums do.
    max_staleness: versions; older updates are thrown away where they are.
    """

    buffer: int = 10
    max_staleness: int = 10

    asynchronous = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count(self.name, buffer=self.buffer, max_staleness=self.max_staleness)
        if self.buffer < FEWEST:
            raise JobError(f"FedBuff: buffer={self.buffer} would open single updates.", mend="Three or more.")
        if self.sampling != "uniform":
            raise JobError("FedBuff: who is ready is in a sum, nobody is sampled.", mend="Leave sampling out.")

    def require_federation(self) -> None:
        if self.patience is not None:
            raise JobError(
                "FedBuff: a federation measures the final model alone, since updates are of several.",
                mend="Leave patience out.",
            )

    def enough(self, asked: int) -> int:
        return min(self.buffer, asked)

    def serves(self, begun: Query, asked: Query) -> bool:
        trained = begun.task == asked.task == "train"
        return trained and 0 <= asked.config["round"] - begun.config["round"] <= self.max_staleness

    def aged(self, values: Mapping[str, Array], begun: Query, asked: Query) -> Mapping[str, Array]:
        counts = np.float32(discount(asked.config["round"] - begun.config["round"]))
        return {name: value * counts if name == "delta" else value for name, value in values.items()}

    def measures(self, state: State) -> bool:
        return bool(state.facts.get(SIMULATED))

    def broadcast(self, state: State) -> dict[str, Array]:
        past = {PAST: self._past(state)} if state.facts.get(SIMULATED) else {}
        return {**super().broadcast(state), **past}

    def _past(self, state: State) -> Array:
        kept = state.tensors.get(f"server/{PAST}")
        return np.tile(state.tensors["model"], (self.max_staleness, 1)) if kept is None else kept

    def local(self, site: Site) -> Mapping[str, Array]:
        tau = site.staleness
        trained = site.train(site.query.tensors[PAST][tau - 1] if tau else None)
        return {**trained.answer, "delta": trained.delta * np.float32(discount(tau))}

    def learn(self, state: State, total: Total) -> State:
        combined = self.combined(state, total)
        if not state.facts.get(SIMULATED):
            return self.moved(state, combined)
        past = np.concatenate([state.tensors["model"][np.newaxis], self._past(state)[:-1]])
        return self.moved(state, combined, tensors={f"server/{PAST}": past})


def discount(tau: int) -> float:
    """What an update counts that is so many versions old: section 5.1 of the paper."""
    return 1.0 / math.sqrt(1.0 + tau)
