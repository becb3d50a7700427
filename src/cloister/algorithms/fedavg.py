"""FedAvg: McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-Efficient Learning of Deep Networks
from Decentralized Data", AISTATS 2017, algorithm 1. https://arxiv.org/abs/1602.05629

Each site trains from the broadcast model; the new model is the broadcast plus the row-weighted mean of the
deltas (local minus broadcast), times `server_lr` (1 is the paper's).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from cloister.algorithms.base import Algorithm, require_positive
from cloister.algorithms.names import statistics
from cloister.algorithms.robust import Aggregate
from cloister.algorithms.schedule import Schedule
from cloister.vector import Block, Layout, Query, State, Total
from cloister.vector.bundle import Array
from cloister.vector.errors import JobError
from cloister.vector.layout import Floats

AGGREGATE = "server/aggregate"  # a tensor of the state: the combined delta of the round before


@dataclass(frozen=True)
class FedAvg(Algorithm):
    """Averages deltas, weighted by rows.

    Attributes:
      server_lr: step of the server along the mean delta. schedule: a factor on it for each round, or None.
      bound: largest change of one parameter in one round that the encoding carries; larger ones are clipped and
        counted in the history's `clipped`.
      clip: largest L2 norm of one site's delta, or None.
      aggregate: in the mean's place, over random groups of sites; None: the mean over all.
    """

    server_lr: float = 1.0
    bound: float = 8.0
    clip: float | None = None
    schedule: Schedule | None = field(default=None, kw_only=True)
    aggregate: Aggregate | None = field(default=None, kw_only=True)

    combines: ClassVar[bool] = True  # whether all that it learns of a round is `combined`

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self.name, server_lr=self.server_lr, bound=self.bound, clip=self.clip)
        if not isinstance(self.schedule, Schedule | None):
            raise JobError(f"{self.name}: schedule is no schedule.", mend="Try cl.CosineDecay().")
        if not isinstance(self.aggregate, Aggregate | None):
            raise JobError(f"{self.name}: aggregate is no aggregate.", mend="Try cl.Median().")
        if self.aggregate and not self.combines:
            raise JobError(f"{self.name} learns more than a mean of deltas.", mend="Leave aggregate out, or FedAvg.")

    def start(self, model: Array) -> State:
        memory = {AGGREGATE: np.zeros(np.shape(model))} if self.aggregate and self.aggregate.remembers else {}
        return State({"round": 0}, {"model": np.asarray(model, np.float32), **memory})

    def ask(self, state: State) -> Query | None:
        if state.facts["round"] >= self.rounds:
            return None
        config = {"round": state.facts["round"] + 1}
        layout, broadcast = Layout(self.blocks(state)), self.broadcast(state)
        buckets = self.aggregate.buckets if self.aggregate else 1
        poisson = self.sampling == "poisson"
        return Query("train", layout, 1, broadcast, config, self.cohort, buckets, poisson)

    def learn(self, state: State, total: Total) -> State:
        return self.moved(state, self.combined(state, total))

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

    def combined(self, state: State, total: Total) -> Floats:
        """The mean delta, or what stands in its place. float64[d]"""
        if self.aggregate is None:
            return total.mean("delta")
        parts = [part for part in total.parts if part.rows > 0]
        if not parts:
            return total.mean("delta")  # nobody had a row: that is what it says
        means = np.stack([part.mean("delta") for part in parts])
        before = state.tensors.get(AGGREGATE)
        return self.aggregate.combine(means, np.zeros(means.shape[1]) if before is None else before)

    def moved(
        self, state: State, mean: Floats, step: Floats | None = None, tensors: Mapping[str, Array] | None = None
    ) -> State:
        """The state after one more round: the model moved along `step` (by default the mean) at the server's rate.

        BatchNorm's running statistics are no weights: they move by the mean itself, whatever the algorithm.
        """
        round_ = state.facts["round"] + 1
        factor = self.schedule.factor(round_, self.rounds) if self.schedule else 1.0
        move, rate = mean if step is None else step, self.server_lr * factor
        if rate != 1.0:
            move = rate * move
        if move is not mean and (measured := statistics(state.facts.get("shapes", ()))).any():
            move = np.where(measured, mean, move)
        model = np.empty_like(state.tensors["model"])
        np.add(state.tensors["model"], move, out=model, casting="same_kind")  # in float64, without a copy of both
        memory = {AGGREGATE: mean} if AGGREGATE in state.tensors else {}
        return state.with_({"round": round_}, {**(tensors or {}), **memory, "model": model})
