"""Cyclic weight transfer: Chang, Balachandar, Lam, Yi, Brown, Beers, Rosen, Rubin, Kalpathy-Cramer, "Distributed deep
learning networks among institutions for medical imaging", JAMIA 25 (2018). https://doi.org/10.1093/jamia/ocy017

One site trains and hands its model to the next. That is one site's update, opened: nothing of it is sealed, so it is
for comparisons in a simulation, and a federation refuses it.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloister.algorithms.fedavg import FedAvg
from cloister.vector import State, Total
from cloister.vector.errors import JobError


@dataclass(frozen=True)
class Cyclic(FedAvg):
    """Attributes: rounds: transfers; in each one site trains. All have their turn before anyone has another, in an
    order that follows from the job's seed, anew each time."""

    combines = False
    sealed = False
    simulated = "it hands one site's model to the next, unsealed."
    instead = "Take FedAvg, or FedProx where sites differ."

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cohort != 1.0:
            raise JobError("Cyclic: one site after the other is asked, all of them.", mend="Leave cohort out.")

    def learn(self, state: State, total: Total) -> State:
        return self.moved(state, total.mean("delta"))
