"""Room `round`: what is literally the same code in a simulation, at a site and at the coordinator."""

from cloister.round.contribute import contribute
from cloister.round.decide import Decision, Policy, decide_job, decide_plan
from cloister.round.loop import Cohort, Store, Trainer, choose_cohort, run
from cloister.round.program import Program

__all__ = [
    "Cohort",
    "Decision",
    "Policy",
    "Program",
    "Store",
    "Trainer",
    "choose_cohort",
    "contribute",
    "decide_job",
    "decide_plan",
    "run",
]
