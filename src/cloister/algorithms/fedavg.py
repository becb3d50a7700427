"""FedAvg: McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-Efficient Learning of Deep Networks
from Decentralized Data", AISTATS 2017, algorithm 1. https://arxiv.org/abs/1602.05629

Each site trains from the broadcast model; the new model is the broadcast plus the row-weighted mean of the
deltas (local minus broadcast), times `server_lr` (1 is the paper's).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cloister.algorithms.base import Algorithm, require_positive
from cloister.vector import Block, Layout, Query, State, Total
from cloister.vector.bundle import Array


@dataclass(frozen=True)
class FedAvg(Algorithm):
    """Averages deltas, weighted by rows.

    Attributes:
      server_lr: step of the server along the mean delta.
      bound: largest change of one parameter in one round that the encoding carries; larger ones are clipped and
        counted in the history's `clipped`.
      clip: largest L2 norm of one site's delta, or None.
    """

    server_lr: float = 1.0
    bound: float = 8.0
    clip: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self.name, server_lr=self.server_lr, bound=self.bound, clip=self.clip)

    def start(self, model: Array) -> State:
        return State({"round": 0}, {"model": np.asarray(model, np.float32)})

    def ask(self, state: State) -> Query | None:
        if state.facts["round"] >= self.rounds:
            return None
        model = state.tensors["model"]
        delta = Block("delta", model.shape, bound=self.bound, clip=self.clip, weighted=True)
        config = {"round": state.facts["round"] + 1}
        return Query(
            "train", Layout((delta,)), max_rows=1, tensors={"model": model}, config=config, fraction=self.cohort
        )

    def learn(self, state: State, total: Total) -> State:
        step = self.server_lr * total.mean("delta")
        model = (state.tensors["model"].astype(np.float64) + step).astype(np.float32)
        return state.with_({"round": state.facts["round"] + 1}, {"model": model})
