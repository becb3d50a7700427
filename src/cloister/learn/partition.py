"""How many rows of each label each site has: known in a simulation, and to nobody in a federation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloister.vector.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png", ".pdf")


@dataclass(frozen=True)
class Partition:
    """Attributes: labels: their names. counts: rows of each label, by site. sites: how many there are in all."""

    labels: Sequence[str]
    counts: Mapping[str, Sequence[int]]
    sites: int

    def plot(self) -> Figure:
        """Sites across, labels up, an area for each number of rows."""
        from cloister.learn.figures import bubbles

        return bubbles(self)

    def save(self, path: str | Path) -> None:
        """Writes the picture. Raises: UsageError: a file whose name says no format, or no folder."""
        path = Path(path)
        if path.suffix.lower() not in SUFFIXES:
            raise UsageError(f"{path.name} names no picture.", mend=f"End it with {', '.join(SUFFIXES)}.")
        if not path.parent.is_dir():
            raise UsageError(f"there is no folder {path.parent}.", mend="Make it first.")
        self.plot().savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)

    def as_json(self) -> dict[str, Any]:
        counts = {site: list(row) for site, row in self.counts.items()}
        return {"labels": list(self.labels), "counts": counts, "sites": self.sites}
