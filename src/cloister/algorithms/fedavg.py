"""FedAvg: McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-Efficient Learning of Deep Networks
from Decentralized Data", AISTATS 2017, algorithm 1. https://arxiv.org/abs/1602.05629

Each site trains from the broadcast model; the new model is the broadcast plus the row-weighted mean of the
deltas (local minus broadcast), times `server_lr` (1 is the paper's).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cloister.algorithms.base import Algorithm, require_positive
from cloister.algorithms.names import statistics
from cloister.algorithms.schedule import Schedule
from cloister.vector import Block, Layout, Query, State, Total
from cloister.vector.bundle import Array
from cloister.vector.errors import JobError
from cloister.vector.layout import Floats


@dataclass(frozen=True)
class FedAvg(Algorithm):
    """Averages deltas, weighted by rows.

    Attributes:
      server_lr: step of the server along the mean delta. schedule: a factor on it for each round, or None.
      bound: largest change of one parameter in one round that the encoding carries; larger ones are clipped and
        counted in the history's `clipped`.
      clip: largest L2 norm of one site's delta, or None.
    """

    server_lr: float = 1.0
    bound: float = 8.0
    clip: float | None = None
    schedule: Schedule | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self.name, server_lr=self.server_lr, bound=self.bound, clip=self.clip)
        if not isinstance(self.schedule, Schedule | None):
            raise JobError(f"{self.name}: schedule is no schedule.", mend="Try cl.CosineDecay().")

    def start(self, model: Array) -> State:
        return State({"round": 0}, {"model": np.asarray(model, np.float32)})

    def ask(self, state: State) -> Query | None:
        if state.facts["round"] >= self.rounds:
            return None
        config = {"round": state.facts["round"] + 1}
        return Query(
            "train", Layout(self.blocks(state)), 1, tensors=self.broadcast(state), config=config, fraction=self.cohort
        )

    def learn(self, state: State, total: Total) -> State:
        return self.moved(state, total.mean("delta"))

    def alone(self) -> Algorithm:
        return FedAvg(rounds=self.rounds, bound=self.bound)  # of one delta: plain training

    # --- what algorithms that average deltas have in common

    def blocks(self, state: State) -> tuple[Block, ...]:
        """What is asked of each site."""
        shape = state.tensors["model"].shape
        return (Block("delta", shape, bound=self.bound, clip=self.clip, weighted=True),)

    def broadcast(self, state: State) -> dict[str, Array]:
        """What each site is told."""
        return {"model": state.tensors["model"]}

    def moved(
        self, state: State, mean: Floats, step: Floats | None = None, tensors: Mapping[str, Array] | None = None
    ) -> State:
        """The state after one more round: the model moved along `step` (by default the mean) at the server's rate.

        BatchNorm's running statistics are no weights: they move by the mean itself, whatever the algorithm.
        """
        round_ = state.facts["round"] + 1
        factor = self.schedule.factor(round_, self.rounds) if self.schedule else 1.0
        move = self.server_lr * factor * (mean if step is None else step)
        measured = statistics(state.facts.get("shapes", ()))
        if measured.any():
            move = np.where(measured, mean, move)
        model = (state.tensors["model"].astype(np.float64) + move).astype(np.float32)
        return state.with_({"round": round_}, {**(tensors or {}), "model": model})
