"""A site's policy, and the pure functions that apply it: allow or refuse, by which rule, for which reason.

What is not named is refused. The agent runs `decide_job` when a job is announced and before every round of it, and
`decide_plan` before every answer; both before anything is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cloister.job import Job, RowDP
from cloister.vector.errors import PolicyRefused

SEALS = ("complete", "sparse")  # kinds of graphs of masks: the first word of what plans name
UNITS = {"none": "no privacy unit", "rows": "rows", "sites": "sites"}


@dataclass(frozen=True)
class Policy:
    """The steward's rules.

    Attributes:
      datasets: names that jobs may use.
      analysts: whose jobs may run; ("*",) is every analyst of the roster.
      declarative: jobs without code may run.
      code: jobs that ship code: "never", "reviewed" (their digest is in `approved`) or "signed-by" (of an analyst in
        `signed_by`; of others as "reviewed").
      approved: hex digests of jobs. denied: of others, with the steward's reason.
      require: whose presence a job's differential privacy must protect: "none", "rows" or "sites".
      seals: kinds of graphs of masks that a round may have.
      hours: minutes of the day, from and to, in which rounds are answered; None: always.
      min_cohort: fewest sites that a round asks. min_survivors: fewest sites in an opened sum.
      assume_colluders: sites assumed to collude with the coordinator; at least two others must remain.
      max_upload_bytes: largest masked contribution.
      units: of a dataset, the column that says whose a row is: jobs that hide rows must count by it.
      lines: the line of policy.toml on which each rule stands.
    """

    datasets: tuple[str, ...] = ()
    analysts: tuple[str, ...] = ("*",)
    declarative: bool = True
    code: str = "never"
    signed_by: tuple[str, ...] = ()
    approved: frozenset[str] = frozenset()
    denied: Mapping[str, str] = field(default_factory=dict)
    require: str = "none"
    seals: tuple[str, ...] = SEALS
    hours: tuple[int, int] | None = None
    min_cohort: int = 3
    min_survivors: int = 3
    assume_colluders: int = 0
    max_upload_bytes: int = 200 * 2**20
    units: Mapping[str, str] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)

    def decision(self, allow: bool, rule: str, reason: str, mend: str = "", *, waits: bool = False) -> Decision:
        return Decision(allow, rule, reason, mend, self.lines.get(rule, 0), waits)

    def cited(self, *rules: str) -> str:
        """Where the policy has these rules: for a refusal that the seal itself gives, following them."""
        return "; ".join(f"{rule}: policy.toml, line {self.lines[rule]}" for rule in rules if rule in self.lines)


@dataclass(frozen=True)
class Decision:
    """Attributes: allow. rule: the policy's rule that decided. reason: one line. mend: what the steward can do.
    line: of policy.toml; 0 where the rule is not written down. waits: the steward's verdict may yet allow it.
    """

    allow: bool
    rule: str
    reason: str
    mend: str = ""
    line: int = 0
    waits: bool = False

    @property
    def where(self) -> str:
        """The line of the policy, for people."""
        if self.line or self.rule != "review":
            return f"policy.toml, line {self.line}" if self.line else "policy.toml does not allow it"
        return "`cloister site deny`"

    @property
    def told(self) -> str:
        """The reason, with the rule and its line."""
        return f"{self.reason.rstrip('.')} ({self.rule}; {self.where})."

    def require(self, site: str = "") -> None:
        """Raises PolicyRefused unless allowed."""
        if not self.allow:
            raise PolicyRefused(self.told, rule=self.rule, mend=self.mend, site=site)


def decide_job(policy: Policy, job: Job, analyst: str) -> Decision:
    """May this job of this analyst run here at all?"""
    digest = job.digest.hex()
    if job.data.name not in policy.datasets:
        reason = f"there is no dataset {job.data.name!r} for jobs at this site."
        mend = f"`cloister site data add {job.data.name} FILE` binds one."
        return policy.decision(False, "allow.datasets", reason, mend)
    if not _names(policy.analysts, analyst):
        return policy.decision(False, "allow.analysts", f"analyst {analyst!r} is not among those allowed.")
    if digest in policy.denied:
        return policy.decision(False, "review", f"the steward has denied this job: {policy.denied[digest]}")
    unit = privacy_unit(job)
    if policy.require not in ("none", unit):
        reason = f"the job's privacy protects {UNITS[unit]}, this site requires {policy.require}."
        return policy.decision(False, "privacy.require", reason, "Add privacy=cl.RowDP(...) to the job, say.")
    column = policy.units.get(job.data.name, "")
    if isinstance(job.privacy, RowDP) and column and job.privacy.unit != column:
        reason = f"rows of {job.data.name!r} belong to a {column!r}, which the job's privacy does not count by."
        return policy.decision(False, "data.unit", reason, f"Say privacy=cl.RowDP(..., unit={column!r}).")
    return _decide_code(policy, job.ships_code, digest, analyst)


def _decide_code(policy: Policy, ships_code: bool, digest: str, analyst: str) -> Decision:
    if not ships_code:
        allow = policy.declarative or digest in policy.approved
        return policy.decision(allow, "allow.declarative", "the job is declarative: it ships no code.")
    if policy.code == "signed-by" and _names(policy.signed_by, analyst):
        return policy.decision(True, "allow.signed_by", f"the job's code is signed by {analyst!r}.")
    if policy.code == "never":
        return policy.decision(False, "allow.code", "the job ships code, and code never runs here.")
    if digest in policy.approved:
        return policy.decision(True, "allow.code", "the steward has read and approved the job's code.")
    mend = f"The steward reads it: `cloister site review`, then `cloister site approve {digest[:12]}`."
    return policy.decision(False, "allow.code", "the job ships code that nobody here has read yet.", mend, waits=True)


def decide_plan(
    policy: Policy,
    *,
    upload_bytes: int,
    min_survivors: int,
    sites: int = 3,
    seal: str = SEALS[0],
    minute: int | None = None,
) -> Decision:
    """May this round be answered?

    Args: upload_bytes: of the masked vector. min_survivors, sites, seal: the plan's. minute: of the day, here.
    """
    if upload_bytes > policy.max_upload_bytes:
        reason = f"the answer would be {upload_bytes:,} bytes, the limit is {policy.max_upload_bytes:,}."
        return policy.decision(False, "allow.max_upload_mb", reason)
    if sites < policy.min_cohort:
        reason = f"the plan asks {sites} sites, this site is one of {policy.min_cohort} or more."
        return policy.decision(False, "allow.min_cohort", reason)
    if min_survivors < policy.min_survivors:
        reason = f"the plan opens a sum of {min_survivors} sites, this site asks for {policy.min_survivors}."
        return policy.decision(False, "allow.min_survivors", reason)
    if seal.partition("-")[0] not in policy.seals:
        return policy.decision(False, "allow.seals", f"the plan's seal is {seal!r}.")
    if minute is not None and policy.hours is not None and not _within(minute, *policy.hours):
        begin, end = (f"{at // 60:02}:{at % 60:02}" for at in policy.hours)
        return policy.decision(False, "allow.hours", f"rounds are answered from {begin} to {end}.")
    return policy.decision(True, "default", "within every limit.")


def privacy_unit(job: Job) -> str:
    """Whose presence the job's differential privacy protects: "rows", "sites", or "none"."""
    return "none" if job.privacy is None else job.privacy.protects


def _names(allowed: tuple[str, ...], analyst: str) -> bool:
    return "*" in allowed or analyst in allowed


def _within(minute: int, begin: int, end: int) -> bool:
    return begin <= minute < end if begin <= end else minute >= begin or minute < end  # 20:00-06:00 spans midnight
