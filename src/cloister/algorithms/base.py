"""What every algorithm is: `start`, `ask`, `learn` over sums of sites, and `local`, the half that runs at a site.

    state = algorithm.start(model)
    while (query := algorithm.ask(state)) is not None:
        state = algorithm.learn(state, total_of(query))         # the sum of all sites' `algorithm.local(site)`

The anchor is FedJAX's FederatedAlgorithm (Ro, Suresh, Wu 2021, https://arxiv.org/abs/2108.02117): all state is
in `State`, so it can be checkpointed after each `learn`, and no algorithm ever receives what one site said.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from cloister.algorithms.local import Site
from cloister.algorithms.robust import Aggregate, aggregate_from_json
from cloister.algorithms.schedule import Schedule, schedule_from_json
from cloister.vector import Query, State, Total
from cloister.vector.bundle import Array
from cloister.vector.errors import JobError

FEWEST = 3  # sites whose sum opens
SAMPLINGS = ("uniform", "poisson")
_REGISTRY: dict[str, type[Algorithm]] = {}


@dataclass(frozen=True)
class Algorithm(ABC):
    """An algorithm with its settings; immutable, named in the manifest by its class name.

    Attributes:
      rounds: of training, at most.
      cohort: fraction of the sites that is asked in each training round, in (0, 1].
      sampling: of that cohort: "uniform", so many sites; "poisson", each with that chance.
      patience: training ends when the sealed loss on the held-out rows has not fallen for so many evaluations; the
        result is the model with the smallest. None: all rounds.
    """

    rounds: int
    cohort: float = 1.0
    patience: int | None = field(default=None, kw_only=True)
    sampling: str = field(default="uniform", kw_only=True)

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()  # of the task: keys of `local.NEEDS`
    stateful: ClassVar[bool] = False  # whether sites keep a memory of their own between rounds
    whole: ClassVar[bool] = True  # whether the result is all of a model; else part of it stays at each site
    sealed: ClassVar[bool] = True  # whether only sums are opened
    asynchronous: ClassVar[bool] = False  # whether an answer may be to an earlier question
    simulated: ClassVar[str] = ""  # why it is for simulations alone; empty: a federation can run it
    instead: ClassVar[str] = ""  # what to take there
    measured: ClassVar[tuple[str, ...]] = ("test",)  # the models that are evaluated: the keys of `models`

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__name__
        if not cls.__name__.startswith("_"):
            _REGISTRY[cls.__name__] = cls

    def __post_init__(self) -> None:
        require_count(self.name, rounds=self.rounds, patience=self.patience)
        if not 0.0 < self.cohort <= 1.0:
            raise JobError(f"{self.name}: cohort={self.cohort} is not a fraction in (0, 1].")
        if self.sampling not in SAMPLINGS:
            raise JobError(f"{self.name}: sampling={self.sampling!r} is not one of {', '.join(SAMPLINGS)}.")

    @abstractmethod
    def start(self, model: Array) -> State:
        """Args: model: float32[d], the flat initial model. Returns a state with tensor "model" and fact "round" 0."""

    @abstractmethod
    def ask(self, state: State) -> Query | None:
        """The next question, or None when done. What sites need besides the job is in its config and tensors."""

    def measures(self, state: State) -> bool:
        """Whether the next question may also measure the model that it broadcasts: one of each round may."""
        return True

    @abstractmethod
    def learn(self, state: State, total: Total) -> State:
        """The next state, from the opened sum of the last question. A round of several ends when "round" rises."""

    def local(self, site: Site) -> Mapping[str, Array]:
        """A site's answer: an array for each block that `ask` names, and its "train_loss"."""
        return site.train().answer

    def enough(self, asked: int) -> int:
        """How many answers a training question waits for, of so many sites; the others drop out of its round."""
        return asked

    def serves(self, begun: Query, asked: Query) -> bool:
        """Whether what a site began to compute for a question is its answer to a later one; else it begins anew."""
        return False

    def aged(self, values: Mapping[str, Array], begun: Query, asked: Query) -> Mapping[str, Array]:
        """Such an answer, as one to the later question."""
        return values

    def models(self, site: Site) -> Mapping[str, Array]:
        """The models that a site evaluates on its held-out rows, by the names in `measured`; flat float32[d].

        "test" is the one that the history's loss, accuracy ... are about.
        """
        return {"test": site.model}

    def alone(self) -> Algorithm:
        """What a site without a federation would do in its stead, for as many rounds: a baseline."""
        return self

    def require_federation(self) -> None:
        """Raises JobError: it is for simulations alone."""
        if self.simulated:
            raise JobError(f"{self.name} is for simulations: {self.simulated}", mend=self.instead)

    @property
    def trains_plainly(self) -> bool:
        """Whether sites do nothing but train from the broadcast and answer with delta and loss."""
        return type(self).local is Algorithm.local

    def as_json(self) -> dict[str, Any]:
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        written = {
            key: entry.as_json() if isinstance(entry, Schedule | Aggregate) else entry
            for key, entry in values.items()
        }
        return {"name": self.name, **written}


def require_count(owner: str, **settings: int | None) -> None:
    """Raises JobError for a setting that is given and is not a whole number of at least 1."""
    for name, value in settings.items():
        if value is not None and (type(value) is not int or value < 1):
            raise JobError(f"{owner}: {name}={value!r} is not a whole number of at least 1.")


def require_positive(owner: str, **settings: float | None) -> None:
    """Raises JobError for a setting that is given and is not a positive finite number."""
    for name, value in settings.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise JobError(f"{owner}: {name}={value} is not a positive number.")


def require_fraction(owner: str, **settings: float) -> None:
    """Raises JobError for a setting outside [0, 1)."""
    for name, value in settings.items():
        if not 0.0 <= value < 1.0:
            raise JobError(f"{owner}: {name}={value} is not in [0, 1).")


_READ: dict[str, Callable[[dict[str, Any]], Any]] = {
    "aggregate": aggregate_from_json,
    "schedule": schedule_from_json,
}


def from_json(data: Any) -> Algorithm:
    """The algorithm that `as_json` wrote. Raises JobError: an unknown name or settings that do not fit."""
    if not isinstance(data, dict) or data.get("name") not in _REGISTRY:
        raise JobError("the job names no algorithm known here.", mend=f"Known are: {', '.join(sorted(_REGISTRY))}.")
    try:
        settings: dict[str, Any] = {
            key: _READ[key](entry) if key in _READ and isinstance(entry, dict) else entry
            for key, entry in data.items()
            if key != "name"
        }
        return _REGISTRY[data["name"]](**settings)
    except TypeError as fault:
        raise JobError(f"{data['name']}: settings do not fit: {fault}") from None
