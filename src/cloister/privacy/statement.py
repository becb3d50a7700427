"""What a result says about privacy: one sentence for people, fields for machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class PrivacyStatement:
    """Attributes:
    mechanism: "none" (exact sums; no differential privacy), or what adds the noise.
    unit: whose presence is protected: "row", "site", a column that says whose row it is, or "none".
    epsilon, delta: that all opened sums together cost each unit; None without differential privacy.
    seal: "sealed" (only sums were opened), or how a simulation in one process summed: "ideal" or "masks", or
      "unsealed", where it opened single sites' updates.
    colluders: sites that may collude with the coordinator before a single honest site's sum share is exposed.
    asked: the epsilon of the job.
    events: what was released, as `accounting.Event` writes it: epsilon follows from them and delta.
    conditions: what else must hold, as sentences.
    """

    mechanism: str
    unit: str
    epsilon: float | None
    delta: float | None
    seal: str
    colluders: int
    asked: float | None = None
    events: tuple[Mapping[str, Any], ...] = ()
    conditions: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        if self.seal == "sealed":
            opened = (
                "Only sums over the surviving sites were opened; no site's update, row count or metric left it, "
                f"as long as at most {self.colluders} sites collude with the coordinator."
            )
        elif self.seal == "unsealed":
            opened = "Simulated in one process: each site's own model went to the next one, which no federation does."
        else:
            how = "with its masks" if self.seal == "masks" else "without its masks"
            opened = f"Simulated in one process: the same integer sums as a sealed federation, {how}."
        if self.mechanism == "none":
            return f"{opened} No differential privacy: what the sums themselves reveal is not bounded."
        if self.epsilon is None or self.delta is None:
            return f"{opened} {self.mechanism}, but no claim: {' '.join(self.conditions)}"
        whose = {"row": "one row", "site": "one site"}.get(self.unit, f"all rows of one {self.unit}")
        spent = f"epsilon {self.epsilon:.3g} of {self.asked:.3g}" if self.asked else f"epsilon {self.epsilon:.3g}"
        return f"{opened} {self.mechanism}: {spent} at delta {self.delta:.3g} spent, for {whose}."

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "sentence": self.sentence}
