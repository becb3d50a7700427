"""A site's policy, and the pure function that applies it: allow or refuse, by which rule, for which reason.

Every rule has a default that refuses what it guards. The agent runs `decide_job` when a job is announced and
`decide_plan` before every answer; both before anything is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloister.job import Job
from cloister.vector.errors import PolicyRefused

SOURCE_RULES = ("never", "approved", "any")


@dataclass(frozen=True)
class Policy:
    """The steward's rules.

    Attributes:
      datasets: names that jobs may use.
      declarative: jobs without code may run.
      source: jobs that ship code: "never", "approved" (their digest is in `approved`) or "any".
      approved: hex digests of approved jobs.
      analysts: whose jobs may run; ("*",) is every analyst of the roster.
      min_survivors: fewest sites in an opened sum.
      assume_colluders: sites assumed to collude with the coordinator; at least two others must remain.
      max_upload_bytes: largest masked contribution.
    """

    datasets: tuple[str, ...] = ()
    declarative: bool = True
    source: str = "never"
    approved: frozenset[str] = frozenset()
    analysts: tuple[str, ...] = ("*",)
    min_survivors: int = 3
    assume_colluders: int = 0
    max_upload_bytes: int = 200 * 2**20


@dataclass(frozen=True)
class Decision:
    """Attributes: allow. rule: the policy's rule that decided. reason: one line. mend: what the steward can do."""

    allow: bool
    rule: str
    reason: str
    mend: str = ""

    def require(self, site: str = "") -> None:
        """Raises PolicyRefused unless allowed."""
        if not self.allow:
            raise PolicyRefused(self.reason, rule=self.rule, mend=self.mend, site=site)


def decide_job(policy: Policy, job: Job, analyst: str) -> Decision:
    """May this job of this analyst run here at all?"""
    digest = job.digest.hex()
    if job.data.name not in policy.datasets:
        reason = f"there is no dataset {job.data.name!r} for jobs at this site."
        return Decision(False, "dataset", reason, f"`cloister site join --data {job.data.name}=FILE` binds one.")
    if "*" not in policy.analysts and analyst not in policy.analysts:
        return Decision(False, "allow.analysts", f"analyst {analyst!r} is not among those allowed.")
    if not job.ships_code:
        reason = "the job is declarative: it ships no code."
        return Decision(policy.declarative, "allow.declarative", reason)
    if policy.source == "any" or (policy.source == "approved" and digest in policy.approved):
        return Decision(True, "allow.source", f"the job's code is allowed ({policy.source}).")
    mend = f"Read it, then `cloister site approve {digest[:12]}`." if policy.source == "approved" else ""
    return Decision(False, "allow.source", f"the job ships code and the rule is {policy.source!r}.", mend)


def decide_plan(policy: Policy, *, upload_bytes: int, min_survivors: int) -> Decision:
    """May this round be answered? Args: upload_bytes: of the masked vector. min_survivors: the plan's."""
    if upload_bytes > policy.max_upload_bytes:
        reason = f"the answer would be {upload_bytes:,} bytes, the limit is {policy.max_upload_bytes:,}."
        return Decision(False, "allow.max_upload_mb", reason)
    if min_survivors < policy.min_survivors:
        reason = f"the plan opens a sum of {min_survivors} sites, this site asks for {policy.min_survivors}."
        return Decision(False, "min_survivors", reason)
    return Decision(True, "default", "within every limit.")
