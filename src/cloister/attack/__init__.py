"""Room `attack`: coordinators and sites that cheat, told to real ones; what refuses them, and what they got."""

from cloister.attack.lies import LIES
from cloister.attack.suite import Outcome, attack, chosen

__all__ = ["LIES", "Outcome", "attack", "chosen"]
