"""Room `simulation`: a whole federation in one process, with the rooms that a real one is made of."""

from cloister.simulation.baselines import compare
from cloister.simulation.cohort import LocalCohort
from cloister.simulation.data import shards
from cloister.simulation.partition import skewed
from cloister.simulation.simulate import simulate

__all__ = ["LocalCohort", "compare", "shards", "simulate", "skewed"]
