"""FLTrust: Cao, Fang, Liu, Gong, "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping", NDSS 2021,
algorithm 2. https://arxiv.org/abs/2012.13995

An update counts as far as it points where a trusted one points, and is made as long as that. Here the trusted one is
no single update, which would have to be opened: it is the sealed sum over some sites that are named, asked by
themselves in a first question of each round. A second question goes to all others, in random groups ("buckets", see
`robust`), whose means are weighed. No site is in both sums, so no difference of sums is one site's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cloister.algorithms.base import FEWEST, require_count
from cloister.algorithms.fedavg import FedAvg
from cloister.algorithms.robust import square
from cloister.vector import Query, State, Total
from cloister.vector.bundle import Array
from cloister.vector.errors import JobError
from cloister.vector.layout import Floats

REFERENCE = "server/reference"  # a tensor of the state: the trusted sites' mean delta of this round


@dataclass(frozen=True)
class FLTrust(FedAvg):
    """Attributes:
    trusted: names of sites that are not malicious, three at least; a steward's fewest sites of a sum hold for them.
      Their updates are the measure, and not part of the model's.
    buckets: into how many groups the others are cut.
    """

    trusted: Sequence[str] = ()
    buckets: int = 7

    combines = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count(self.name, buckets=self.buckets)
        if isinstance(self.trusted, str) or not all(isinstance(site, str) for site in self.trusted):
            raise JobError("FLTrust: trusted is no list of names.", mend='Try trusted=["a", "b", "c"].')
        object.__setattr__(self, "trusted", tuple(sorted(set(self.trusted))))  # JSON has lists
        if len(self.trusted) < FEWEST:
            raise JobError(
                f"FLTrust: {len(self.trusted)} trusted sites: the reference would be one site's own update.",
                mend="Name three or more sites in trusted=[...].",
            )

    def start(self, model: Array) -> State:
        return super().start(model).with_({"reference": False}, {REFERENCE: np.zeros(np.shape(model))})

    def ask(self, state: State) -> Query | None:
        query = super().ask(state)
        if query is None:
            return None
        if not state.facts["reference"]:
            return replace(query, named=tuple(self.trusted), fraction=1.0, poisson=False)
        return replace(query, named=tuple(self.trusted), others=True, buckets=self.buckets)

    def measures(self, state: State) -> bool:
        return bool(state.facts["reference"])  # once a round, and where most sites are

    def learn(self, state: State, total: Total) -> State:
        if not state.facts["reference"]:
            return state.with_({"reference": True}, {REFERENCE: total.mean("delta")})
        means = np.stack([part.mean("delta") for part in total.parts if part.rows > 0] or [total.mean("delta")])
        combined = trusting(means, state.tensors[REFERENCE])
        return self.moved(state, combined).with_({"reference": False})


def trusting(means: Floats, reference: Floats) -> Floats:
    """Means that are made as long as the reference, weighed by the cosine with it where that is positive.

    Args: means: [g, d]. reference: [d]. Returns: [d]; zeros where no mean points its way.
    """
    length = math.sqrt(square(reference))
    total, trust = np.zeros_like(reference), 0.0
    for mean in means:
        own = math.sqrt(square(mean))
        score = max(0.0, float(np.sum(mean * reference)) / (own * length)) if own * length > 0 else 0.0
        trust += score
        total += score * (length / own) * mean if score > 0 else 0.0
    return total / trust if trust > 0 else total
