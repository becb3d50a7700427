"""What a result says about privacy: one sentence for people, fields for machines."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class PrivacyStatement:
    """Attributes:
    mechanism: "none" (exact sums; no differential privacy).
    unit: whose presence is protected: "row", "site" or "none".
    epsilon, delta: at which; None without differential privacy.
    seal: "sealed" (only sums were opened), or how a simulation in one process summed: "ideal" or "masks".
    colluders: sites that may collude with the coordinator before a single honest site's sum share is exposed.
    """

    mechanism: str
    unit: str
    epsilon: float | None
    delta: float | None
    seal: str
    colluders: int

    @property
    def sentence(self) -> str:
        if self.seal == "sealed":
            opened = (
                "Only sums over the surviving sites were opened; no site's update, row count or metric left it, "
                f"as long as at most {self.colluders} sites collude with the coordinator."
            )
        else:
            how = "with its masks" if self.seal == "masks" else "without its masks"
            opened = f"Simulated in one process: the same integer sums as a sealed federation, {how}."
        if self.mechanism == "none":
            return f"{opened} No differential privacy: what the sums themselves reveal is not bounded."
        return f"{opened} {self.mechanism}, unit {self.unit}: epsilon {self.epsilon:.3g} at delta {self.delta:.3g}."

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "sentence": self.sentence}
