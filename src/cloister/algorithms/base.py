"""What every algorithm is: `start`, `ask`, `learn`, pure, over sums of sites.

    state = algorithm.start(model)
    while (query := algorithm.ask(state)) is not None:
        state = algorithm.learn(state, total_of(query))

The anchor is FedJAX's FederatedAlgorithm (Ro, Suresh, Wu 2021, https://arxiv.org/abs/2108.02117): all state is
in `State`, so it can be checkpointed after each `learn`, and no algorithm ever receives what one site said.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from cloister.vector import Query, State, Total
from cloister.vector.bundle import Array
from cloister.vector.errors import JobError

_REGISTRY: dict[str, type[Algorithm]] = {}


@dataclass(frozen=True)
class Algorithm(ABC):
    """An algorithm with its settings; immutable, named in the manifest by its class name.

    Attributes:
      rounds: of training.
      cohort: fraction of the sites that is asked in each training round, in (0, 1].
    """

    rounds: int
    cohort: float = 1.0

    name: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__name__
        _REGISTRY[cls.__name__] = cls

    def __post_init__(self) -> None:
        if type(self.rounds) is not int or self.rounds < 1:
            raise JobError(f"{self.name}: rounds={self.rounds!r} is not a whole number of at least 1.")
        if not 0.0 < self.cohort <= 1.0:
            raise JobError(f"{self.name}: cohort={self.cohort} is not a fraction in (0, 1].")

    @abstractmethod
    def start(self, model: Array) -> State:
        """Args: model: float32[d], the flat initial model. Returns a state with tensor "model" and fact "round" 0."""

    @abstractmethod
    def ask(self, state: State) -> Query | None:
        """The next question, or None when done. Its config and tensors are what a site's trainer needs."""

    @abstractmethod
    def learn(self, state: State, total: Total) -> State:
        """The next state, from the opened sum of the last question."""

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, **dataclasses.asdict(self)}


def require_positive(owner: str, **settings: float | None) -> None:
    """Raises JobError for a setting that is given and is not a positive finite number."""
    for name, value in settings.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise JobError(f"{owner}: {name}={value} is not a positive number.")


def from_json(data: Any) -> Algorithm:
    """The algorithm that `as_json` wrote. Raises JobError: an unknown name or settings that do not fit."""
    if not isinstance(data, dict) or data.get("name") not in _REGISTRY:
        raise JobError("the job names no algorithm known here.", mend=f"Known are: {', '.join(sorted(_REGISTRY))}.")
    settings = {key: value for key, value in data.items() if key != "name"}
    try:
        return _REGISTRY[data["name"]](**settings)
    except TypeError as fault:
        raise JobError(f"{data['name']}: settings do not fit: {fault}") from None
