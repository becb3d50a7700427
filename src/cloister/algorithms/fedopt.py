"""FedAvgM, FedAdagrad, FedAdam, FedYogi: Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan, "Adaptive
Federated Optimization", ICLR 2021, algorithm 2 (adaptive) and algorithm 1 with momentum. https://arxiv.org/abs/2003.00295

The mean delta is the server's pseudo-gradient. FedAvgM is also Hsu, Qi, Brown, "Measuring the Effects of
Non-Identical Data Distribution for Federated Visual Classification", 2019. https://arxiv.org/abs/1909.06335
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from cloister.algorithms.base import require_fraction, require_positive
from cloister.algorithms.fedavg import FedAvg
from cloister.vector import State, Total
from cloister.vector.bundle import Array
from cloister.vector.layout import Floats


@dataclass(frozen=True)
class FedAvgM(FedAvg):
    """The server moves along a momentum of the mean deltas: m = momentum * m + mean. Attributes: momentum."""

    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fraction(self.name, momentum=self.momentum)

    def start(self, model: Array) -> State:
        return super().start(model).with_(None, {"server/m": np.zeros(np.shape(model))})

    def learn(self, state: State, total: Total) -> State:
        mean = self.combined(state, total)
        velocity = self.momentum * state.tensors["server/m"] + mean
        return self.moved(state, mean, velocity, {"server/m": velocity})


@dataclass(frozen=True)
class _Adaptive(FedAvg):
    """model += server_lr * m / (sqrt(v) + tau), with m = beta1 * m + (1 - beta1) * mean, coordinate by coordinate.

    Attributes:
      server_lr: eta; a coordinate moves by about this much in a round.
      beta1: of m. tau: how adaptive the server is (v starts at tau**2); large tau is momentum alone.
    """

    server_lr: float = 0.01
    beta1: float = 0.9
    tau: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fraction(self.name, beta1=self.beta1)
        require_positive(self.name, tau=self.tau)

    def start(self, model: Array) -> State:
        m, v = np.zeros(np.shape(model)), np.full(np.shape(model), self.tau**2)
        return super().start(model).with_(None, {"server/m": m, "server/v": v})

    def learn(self, state: State, total: Total) -> State:
        mean = self.combined(state, total)
        m = self.beta1 * state.tensors["server/m"] + (1.0 - self.beta1) * mean
        v = self.second(state.tensors["server/v"], mean * mean)
        return self.moved(state, mean, m / (np.sqrt(v) + self.tau), {"server/m": m, "server/v": v})

    @abstractmethod
    def second(self, v: Floats, square: Floats) -> Floats:
        """The next second moment."""


@dataclass(frozen=True)
class FedAdagrad(_Adaptive):
    """v = v + mean**2; see `_Adaptive` for the rest."""

    beta1: float = 0.0

    def second(self, v: Floats, square: Floats) -> Floats:
        return v + square


@dataclass(frozen=True)
class FedAdam(_Adaptive):
    """v = beta2 * v + (1 - beta2) * mean**2. Attributes: beta2: of v; the others as in `_Adaptive`."""

    beta2: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fraction(self.name, beta2=self.beta2)

    def second(self, v: Floats, square: Floats) -> Floats:
        return self.beta2 * v + (1.0 - self.beta2) * square


@dataclass(frozen=True)
class FedYogi(FedAdam):
    """v = v - (1 - beta2) * mean**2 * sign(v - mean**2): it forgets a large mean only additively."""

    def second(self, v: Floats, square: Floats) -> Floats:
        return v - (1.0 - self.beta2) * square * np.sign(v - square)
