"""Room `round`: what is literally the same code in a simulation, at a site and at the coordinator."""

from cloister.round.contribute import contribute
from cloister.round.decide import Decision, Policy, decide_job, decide_plan
from cloister.round.evidence import Evidence, RoundEvidence
from cloister.round.loop import Cohort, Store, Trainer, asked, choose_cohort, run
from cloister.round.program import Program
from cloister.round.verdict import Claim, Finding, Verdict
from cloister.round.verify import verify

__all__ = [
    "Claim",
    "Cohort",
    "Decision",
    "Evidence",
    "Finding",
    "Policy",
    "Program",
    "RoundEvidence",
    "Store",
    "Trainer",
    "Verdict",
    "asked",
    "choose_cohort",
    "contribute",
    "decide_job",
    "decide_plan",
    "run",
    "verify",
]
