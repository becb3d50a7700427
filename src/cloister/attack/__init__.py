"""Room `attack`: coordinators that cheat, told to real sites; what refuses them, and what they got."""

from cloister.attack.lies import LIES
from cloister.attack.rogues import ROGUES
from cloister.attack.suite import Outcome, attack, chosen, described

__all__ = ["LIES", "Outcome", "ROGUES", "attack", "chosen", "described"]
