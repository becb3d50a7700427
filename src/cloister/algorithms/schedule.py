"""Schedules of the server's learning rate: a factor for each round.

A falling rate averages out the noise of minibatches and sampled cohorts. It does not remove the bias that many local
steps on unlike sites bring (Charles, Konečný, AISTATS 2021, https://arxiv.org/abs/2103.05032): that takes smaller
local rates, or an algorithm that corrects the drift.

Factors are rounded to 12 digits, so that a verifier on another machine, with another math library, replays them bit
for bit.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from cloister.vector.errors import JobError

_REGISTRY: dict[str, type[Schedule]] = {}


@dataclass(frozen=True)
class Schedule(ABC):
    """Attributes: warmup: rounds over which the factor first rises linearly (Goyal et al. 2017, section 2.2,
    https://arxiv.org/abs/1706.02677)."""

    warmup: int = field(default=0, kw_only=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _REGISTRY[cls.__name__] = cls

    def __post_init__(self) -> None:
        if type(self.warmup) is not int or self.warmup < 0:
            raise JobError(f"{type(self).__name__}: warmup={self.warmup!r} is not a whole number.")

    def factor(self, round_: int, rounds: int) -> float:
        """Args: round_: from 1 to rounds. Returns: what server_lr is multiplied by."""
        if round_ <= self.warmup:
            return round(round_ / (self.warmup + 1), 12)
        return round(self._after(round_ - self.warmup - 1, max(rounds - self.warmup, 1)), 12)

    @abstractmethod
    def _after(self, done: int, rounds: int) -> float:
        """Args: done: rounds since the warm-up, from 0. rounds: without the warm-up."""

    def as_json(self) -> dict[str, Any]:
        return {"name": type(self).__name__, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class CosineDecay(Schedule):
    """From 1 down to `floor` along half a cosine.

    Loshchilov, Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, equation 5, without
    restarts. https://arxiv.org/abs/1608.03983
    """

    floor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.floor <= 1.0:
            raise JobError(f"CosineDecay: floor={self.floor} is not in [0, 1].")

    def _after(self, done: int, rounds: int) -> float:
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * done / rounds))


@dataclass(frozen=True)
class StepDecay(Schedule):
    """Multiplied by `by` after every `every` rounds: with every=1 an exponential decay.

    As in Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012,
    section 5, which divides by ten.
    """

    every: int = 1
    by: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.every) is not int or self.every < 1 or not 0.0 < self.by <= 1.0:
            raise JobError(f"StepDecay: every={self.every!r}, by={self.by} are not a round count and in (0, 1].")

    def _after(self, done: int, rounds: int) -> float:
        return float(self.by ** (done // self.every))


@dataclass(frozen=True)
class InverseDecay(Schedule):
    """1 / (1 + rate * done): steps whose sum is unbounded and whose squares' sum is not.

    Robbins, Monro, "A Stochastic Approximation Method", Annals of Mathematical Statistics 22 (1951), theorem 2.
    https://doi.org/10.1214/aoms/1177729586
    """

    rate: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise JobError(f"InverseDecay: rate={self.rate} is not a positive number.")

    def _after(self, done: int, rounds: int) -> float:
        return 1.0 / (1.0 + self.rate * done)


def schedule_from_json(data: dict[str, Any]) -> Schedule:
    """The schedule that `as_json` wrote. Raises JobError: an unknown name. TypeError: settings that do not fit."""
    name = data.get("name")
    if name not in _REGISTRY:
        raise JobError("the job names no schedule known here.", mend=f"Known are: {', '.join(sorted(_REGISTRY))}.")
    return _REGISTRY[name](**{key: value for key, value in data.items() if key != "name"})
