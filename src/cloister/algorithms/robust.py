"""Aggregates that some malicious sites cannot move at will, over the means of random groups of sites ("buckets").

One site's update is never opened, so these see what is: the sealed sums of buckets, drawn anew in each round after
it is known who takes part (Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via
Bucketing", ICLR 2022, algorithm 1, https://arxiv.org/abs/2006.09365). Each `bad` site spoils one bucket at most, so
what a paper says of n workers with f bad ones holds for the buckets with as many bad ones. The price: the sums of
buckets are seen, not only the sum of all.

Means of buckets are float64 [g, d]. Every bucket counts once, whatever rows its sites say they have: a bad one would
say many. Elementwise numpy and sums in a fixed order only, so that a verifier replays them bit for bit.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from cloister.vector.errors import JobError
from cloister.vector.layout import Floats

_REGISTRY: dict[str, type[Aggregate]] = {}


@dataclass(frozen=True)
class Aggregate(ABC):
    """Attributes: buckets: how many random groups of sites are summed apart."""

    buckets: int = field(default=7, kw_only=True)

    least: ClassVar[int] = 3  # buckets, below which it cannot do better than a mean
    remembers: ClassVar[bool] = False  # whether it starts from the round before

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _REGISTRY[cls.__name__] = cls

    def __post_init__(self) -> None:
        self.require(self.least)

    def require(self, least: int) -> None:
        """Raises JobError: fewer buckets than `least`."""
        if type(self.buckets) is not int or self.buckets < least:
            name = type(self).__name__
            raise JobError(
                f"{name}: buckets={self.buckets!r}.", mend=f"With these settings it takes {least} or more."
            )

    def require_count(self, setting: str, least: int) -> None:
        """Raises JobError: that setting is no whole number of at least `least`."""
        value = getattr(self, setting)
        if type(value) is not int or value < least:
            raise JobError(f"{type(self).__name__}: {setting}={value!r} is not a whole number of at least {least}.")

    @abstractmethod
    def combine(self, means: Floats, before: Floats) -> Floats:
        """Args: before: what this gave in the round before where it `remembers`, else zeros; [d]. Returns: [d]."""

    def as_json(self) -> dict[str, Any]:
        return {"name": type(self).__name__, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class Median(Aggregate):
    """Coordinate by coordinate: Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards
    Optimal Statistical Rates", ICML 2018, definition 1. https://arxiv.org/abs/1803.01498"""

    def combine(self, means: Floats, before: Floats) -> Floats:
        ordered, middle = np.sort(means, axis=0), len(means) // 2
        return _mean(ordered[middle : middle + 1] if len(means) % 2 else ordered[middle - 1 : middle + 1])


@dataclass(frozen=True)
class TrimmedMean(Aggregate):
    """Coordinate by coordinate without the `bad` largest and smallest: Yin et al. 2018 (see `Median`), definition 2.

    Attributes: bad: as many malicious sites as are to be withstood; takes 2 bad + 1 buckets.
    """

    bad: int = 2

    def __post_init__(self) -> None:
        self.require_count("bad", 1)
        self.require(2 * self.bad + 1)

    def combine(self, means: Floats, before: Floats) -> Floats:
        _still(len(means), 2 * self.bad + 1)
        kept = np.sort(means, axis=0)[self.bad : len(means) - self.bad]
        return _mean(kept)


@dataclass(frozen=True)
class Krum(Aggregate):
    """The `keep` means that lie closest to their nearest others: Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine
    Learning with Adversaries: Byzantine Tolerant Gradient Descent", NIPS 2017, section 4; keep > 1 is Multi-Krum.
    https://arxiv.org/abs/1703.02757

    Attributes:
      bad: as many malicious sites as are to be withstood; takes 2 bad + 3 buckets.
      keep: how many are averaged.
    """

    bad: int = 2
    keep: int = 1

    def __post_init__(self) -> None:
        self.require_count("bad", 1)
        self.require_count("keep", 1)
        self.require(max(2 * self.bad + 3, self.keep + self.bad))

    def combine(self, means: Floats, before: Floats) -> Floats:
        _still(len(means), 2 * self.bad + 3)
        apart = np.array([[square(one - other) for other in means] for one in means])
        nearest = np.sort(apart, axis=1)[:, 1 : len(means) - self.bad - 1]  # [0] is its own, n - f - 2 follow
        scores = _mean(nearest.T)
        kept = means[np.argsort(scores, kind="stable")[: self.keep]]
        return _mean(kept)


@dataclass(frozen=True)
class GeometricMedian(Aggregate):
    """The point with the smallest sum of distances: Pillutla, Kakade, Harchaoui, "Robust Aggregation for
    Federated Learning" (RFA), IEEE TSP 2022, algorithm 2 (smoothed Weiszfeld). https://arxiv.org/abs/1912.13445

    Attributes:
      steps: of Weiszfeld. From the mean, each takes a far-off minority's pull down by its share, so 32 are plenty.
      smoothing: nu, the least distance that is divided by.
    """

    steps: int = 32
    smoothing: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_count("steps", 1)
        if not (math.isfinite(self.smoothing) and self.smoothing > 0):
            raise JobError(f"GeometricMedian: smoothing={self.smoothing!r} is not a positive number.")

    def combine(self, means: Floats, before: Floats) -> Floats:
        at = _mean(means)
        for _ in range(self.steps):
            distances = np.array([max(self.smoothing, math.sqrt(square(mean - at))) for mean in means])
            at = _mean(means, 1.0 / distances)
        return at


@dataclass(frozen=True)
class CentredClipping(Aggregate):
    """Means of what the buckets say beyond the round before, each cut to a length: Karimireddy, He, Jaggi, "Learning
    from History for Byzantine Robust Optimization", ICML 2021, algorithm 2. https://arxiv.org/abs/2012.10333

    Attributes: radius: tau, the longest step that a bucket may ask for. steps: how often it is done in a round.
    """

    radius: float = 1.0
    steps: int = 3

    remembers = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_count("steps", 1)
        if not (math.isfinite(self.radius) and self.radius > 0):
            raise JobError(f"CentredClipping: radius={self.radius!r} is not a positive number.")

    def combine(self, means: Floats, before: Floats) -> Floats:
        at = before
        for _ in range(self.steps):
            beyond = means - at
            lengths = np.array([math.sqrt(square(each)) for each in beyond])
            cut = np.minimum(1.0, self.radius / np.maximum(lengths, np.finfo(np.float64).tiny))
            at = at + _mean(beyond * cut[:, None])
        return at


def _still(buckets: int, least: int) -> None:
    """Raises JobError: so many buckets had no row that what is left cannot carry the promise."""
    if buckets < least:
        raise JobError(
            f"{buckets} buckets had rows to train on, it takes {least}.",
            mend="Fewer buckets, or sites that have rows.",
        )


def _mean(values: Floats, weights: Floats | None = None) -> Floats:
    """Added up in the order of the buckets. Args: values: [g, d]. weights: [g], or all alike."""
    each = np.ones(len(values)) if weights is None else weights
    total = np.zeros(values.shape[1])
    for value, weight in zip(values, each, strict=True):
        total += weight * value
    return total / float(np.sum(each))


def square(values: Floats) -> float:
    """The squared L2 norm; np.sum adds in an order of its own that is the same on every machine, BLAS does not."""
    return float(np.sum(values * values))


def aggregate_from_json(data: dict[str, Any]) -> Aggregate:
    """What `as_json` wrote. Raises JobError: an unknown name. TypeError: settings that do not fit."""
    if data.get("name") not in _REGISTRY:
        raise JobError("the job names no aggregate known here.", mend=f"Known are: {', '.join(sorted(_REGISTRY))}.")
    return _REGISTRY[data["name"]](**{key: value for key, value in data.items() if key != "name"})
