"""What a replay came to: claims with what became of them, and a finding for every breach (`verify`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["proven", "not proven", "FAILED"]


@dataclass(frozen=True)
class Finding:
    """A breach.

    Attributes: name: of the error. where: "round 3", "log" ... site: whom it is about, or "". file: of the evidence,
      in which it shows.
    """

    name: str
    where: str
    message: str
    mend: str = ""
    site: str = ""
    file: str = ""

    @property
    def sentence(self) -> str:
        where = f"{self.where}, site {self.site}" if self.site else self.where
        return f"{self.name} in {self.file} ({where}): {self.message}" + (f" {self.mend}" if self.mend else "")


@dataclass(frozen=True)
class Claim:
    """One thing that was to be shown. Attributes: of: what it is about, in a word or two. why: a sentence."""

    of: str
    outcome: Outcome
    why: str


@dataclass(frozen=True)
class Verdict:
    """Attributes: claims: in the order in which they rest on each other. findings: every breach; none is needed for
    `ok`."""

    claims: tuple[Claim, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return not self.findings

    @property
    def proven(self) -> tuple[str, ...]:
        return self._with("proven")

    @property
    def unproven(self) -> tuple[str, ...]:
        return self._with("not proven")

    def _with(self, outcome: Outcome) -> tuple[str, ...]:
        return tuple(claim.why for claim in self.claims if claim.outcome == outcome)

    @property
    def sentence(self) -> str:
        """The verdict in one line."""
        if not self.ok:
            places = len({finding.file for finding in self.findings})
            return f"FAILED: {count(len(self.findings), 'finding')} in {count(places, 'file')}."
        return "nothing was altered, as far as the evidence goes."

    def also(self, claim: Claim, findings: Sequence[Finding] = ()) -> Verdict:
        """This verdict with one more claim, before those that no replay can show."""
        at = next((place for place, each in enumerate(self.claims) if each.of == BEYOND[0].of), len(self.claims))
        return Verdict((*self.claims[:at], claim, *self.claims[at:]), (*self.findings, *findings))

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "verdict": self.sentence,
            "claims": [{"claim": claim.of, "outcome": claim.outcome, "why": claim.why} for claim in self.claims],
            "findings": [vars(finding) for finding in self.findings],
        }


BEYOND = (
    Claim("the sites' data", "not proven", "what each site sealed, and how it trained, is its own word"),
    Claim("other rounds", "not proven", "a round without a receipt shows nowhere here; void rounds have none"),
)


def count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' if number != 1 else ''}"
