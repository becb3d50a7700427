"""The plan of one round: everything a site's policy approves, in signed canonical bytes (protocol.md 2.1).

Its digest is in the round's context, so a site that was shown another plan cannot be summed with the others.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from cloister.seal.buckets import check_buckets
from cloister.seal.graph import COMPLETE, Sparse, check_graph
from cloister.seal.roster import ID, Roster
from cloister.seal.threshold import colluders_tolerated, threshold
from cloister.vector.bundle import canonical, digest
from cloister.vector.errors import (
    BoundError,
    ContextMismatch,
    LayoutError,
    MalformedMessage,
    PlanRefused,
    ThresholdTooLow,
    TooFewSites,
)
from cloister.vector.layout import BITS, FixedPoint, Layout

MAX_SITES = 2048  # who chose whom and the list of keys, which all sites get, stay about a megabyte each
MAX_PLAN_BYTES = 1 << 20
MAX_WORDS = 1 << 32  # 16 GiB of masked words
BOUND_RANGE = (2.0**-256, 2.0**256)  # so that scaling by powers of two can neither overflow nor vanish


@dataclass(frozen=True)
class Plan:
    """What one round is about to do.

    Attributes:
      federation: its name. run: 16 bytes, one training run. round: from 0 on. attempt: 0 in v1.
      job: digest of the job. query: SHA-256 of the query's bytes (the model among them). algorithm: its name.
      bits: of one masked word. layout: of the sealed vector, accounting blocks included.
      max_rows: rows at which a site's weight is 1. sites: the cohort, sorted.
      threshold: answers that open the sum. min_survivors: fewest sites whose sum may open.
      graph: who shares secrets with whom, "complete" or as `graph.Sparse` names it.
      buckets: into how many the cohort is cut; each bucket's sum opens, and is over `min_survivors` at least.
    Raises: PlanRefused: anything that contradicts this, or a sum that could wrap.
    """

    federation: str
    run: bytes
    round: int
    attempt: int
    job: bytes
    query: bytes
    algorithm: str
    bits: int
    layout: Layout
    max_rows: int
    sites: tuple[str, ...]
    threshold: int
    min_survivors: int
    graph: str = COMPLETE
    buckets: int = 1

    def __post_init__(self) -> None:
        if not ID.fullmatch(self.federation) or not ID.fullmatch(self.algorithm):
            raise PlanRefused("the plan's federation or algorithm is no name")
        if (len(self.run), len(self.job), len(self.query)) != (16, 32, 32):
            raise PlanRefused("the plan's run, job or query digest has another length")
        numbers = (self.round, self.attempt, self.bits, self.max_rows)
        integers = (*numbers, self.threshold, self.min_survivors, self.buckets)
        if any(type(value) is not int for value in integers):
            raise PlanRefused("a number of the plan is no integer")
        if not 0 <= self.round < 1 << 64 or not 0 <= self.attempt < 1 << 32 or not 1 <= self.max_rows < 1 << 53:
            raise PlanRefused("the plan's round, attempt or max_rows is out of range")
        if not all(ID.fullmatch(site) for site in self.sites) or list(self.sites) != sorted(set(self.sites)):
            raise PlanRefused("the plan's sites are not sorted distinct ids")
        n = len(self.sites)
        if n > MAX_SITES:
            raise PlanRefused(f"a cohort of {n} sites, where {MAX_SITES} are the most.")
        if self.graph != COMPLETE:
            Sparse.from_name(self.graph)
        if not 1 <= self.buckets <= max(n, 1):
            raise PlanRefused(f"{n} sites in {self.buckets} buckets")
        if not 1 <= self.threshold <= n or not 1 <= self.min_survivors <= n // self.buckets:
            raise PlanRefused(
                f"threshold {self.threshold} or min_survivors {self.min_survivors} cannot be met"
                f" by {n} sites" + (f" in {self.buckets} buckets." if self.buckets > 1 else ".")
            )
        if self.bits not in BITS or not all(_codable(block.bound) for block in self.layout.blocks):
            raise PlanRefused(f"{self.bits} bits, or a bound of the layout, cannot be encoded")
        if not 1 <= self.words <= MAX_WORDS:
            raise PlanRefused(f"the plan's vector has {self.words} words")

    @cached_property
    def coder(self) -> FixedPoint:
        """The fixed-point coder that proves the sum cannot wrap."""
        try:
            return FixedPoint(self.layout, len(self.sites), self.bits)
        except BoundError as fault:
            raise PlanRefused(fault.message, mend=fault.mend) from None

    @property
    def words(self) -> int:
        """Words of one masked vector."""
        return self.coder.size

    @cached_property
    def body(self) -> bytes:
        data: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        data |= {"run": self.run.hex(), "job": self.job.hex(), "query": self.query.hex()}
        data |= {"layout": self.layout.as_json(), "sites": list(self.sites)}
        return canonical(data)

    def to_bytes(self) -> bytes:
        """Canonical JSON without floats."""
        return self.body

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the bytes: the protocol's plan hash."""
        return digest(self.body)

    @classmethod
    def from_bytes(cls, body: bytes) -> Plan:
        """Raises: MalformedMessage: not canonical bytes of a plan. PlanRefused: it contradicts itself."""
        if len(body) > MAX_PLAN_BYTES:
            raise MalformedMessage(f"a plan of {len(body)} bytes")
        try:
            data = json.loads(body)
            data |= {key: bytes.fromhex(data[key]) for key in ("run", "job", "query")}
            data |= {"layout": Layout.from_json(data["layout"]), "sites": tuple(data["sites"])}
            plan = cls(**data)
            same = plan.body == body
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, LayoutError) as fault:
            raise MalformedMessage(f"a plan does not parse: {type(fault).__name__}") from None
        if not same:
            raise MalformedMessage("a plan is not in canonical form")
        return plan


def _codable(bound: float) -> bool:
    return BOUND_RANGE[0] <= bound <= BOUND_RANGE[1]


def check_plan(plan: Plan, roster: Roster, site: str, min_survivors: int, assume_colluders: int) -> None:
    """A site's own checks, before it takes part: nothing here is read from the coordinator but the plan itself.

    Args: min_survivors: fewest sites among which this one will be summed. assume_colluders: how many other sites may
      work with the coordinator; the sum of at least two honest ones must stay between them.
    Raises: TooFewSites, ThresholdTooLow, PlanRefused, ContextMismatch, NotInRoster.
    """
    n = len(plan.sites)
    if plan.federation != roster.federation:
        raise ContextMismatch(f"a plan of federation {plan.federation!r}, this site is in {roster.federation!r}")
    own = threshold(n)
    if plan.threshold < own:
        raise ThresholdTooLow(f"the plan's threshold is {plan.threshold} of {n}, this site requires {own}.")
    if colluders_tolerated(n, plan.threshold) < assume_colluders:
        raise ThresholdTooLow(
            f"threshold {plan.threshold} of {n} is not safe against {assume_colluders} colluding sites."
        )
    check_graph(plan.graph, n, assume_colluders)
    check_buckets(plan.buckets, n, assume_colluders)
    least = max(plan.threshold, min_survivors) if plan.buckets == 1 else n // plan.buckets
    if n // plan.buckets < min_survivors or least - assume_colluders < 2:
        raise TooFewSites(
            f"the cohort has {n} sites; this site is summed among {min_survivors} or more,"
            f" {assume_colluders} of them colluding."
        )
    if site not in plan.sites:
        raise PlanRefused(f"this site ({site!r}) is not in the plan's cohort")
    for other in plan.sites:
        roster.key_of(other, "site")
