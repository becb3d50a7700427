"""What is asked of a cohort, and what one site answers.

A *delta* is local minus broadcast: `new = broadcast + mean(delta)`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from cloister.vector.bundle import Array, pack, unpack
from cloister.vector.errors import LayoutError, MalformedMessage
from cloister.vector.layout import Block, Layout

ROWS, CLIPPED = "rows", "clipped"


@dataclass(frozen=True)
class Query:
    """One question to a cohort.

    Attributes:
      task: what the learn room computes: "profile", "moments", "train", "evaluate" ...
      layout: of the answer, without the accounting blocks (see `sealed_layout`).
      max_rows: W_max: rows / max_rows is a site's weight; rows above it count as max_rows, and as clipped.
      tensors: broadcast to every site (the model, fitted statistics).
      config: JSON values (round number, local learning rate ...).
      fraction: of the federation's sites that are sampled into the cohort, in (0, 1].
      poisson: each site is asked with that chance, instead of so many sites.
      named: these sites alone are asked, all of them; or with `others`, all but these. Empty: nobody in particular.
      buckets: into how many groups the cohort is cut, whose sums open apart (see `Total.parts`); 1 for one sum.
    """

    task: str
    layout: Layout
    max_rows: int
    tensors: Mapping[str, Array] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    fraction: float = 1.0
    buckets: int = 1
    poisson: bool = False
    named: tuple[str, ...] = ()
    others: bool = False

    def admits(self, sites: Collection[str]) -> bool:
        """Whether these may be the cohort, as far as the question names sites."""
        named = set(self.named)
        return named.isdisjoint(sites) if self.others or not named else named.issuperset(sites)

    @property
    def sealed_layout(self) -> Layout:
        """The layout that is summed: the query's blocks, then the site's rows and clipped count.

        Weight and clipping ride inside the sealed vector, so nobody learns a single site's.
        """
        accounting = (
            Block(ROWS, (), bound=float(self.max_rows), wide=True),
            Block(CLIPPED, (), bound=float(2**40), wide=True),
        )
        return Layout(self.layout.blocks + accounting)

    def to_bytes(self) -> bytes:
        """What is broadcast; its SHA-256 is the protocol's model hash."""
        facts = {
            "task": self.task,
            "layout": self.layout.as_json(),
            "max_rows": self.max_rows,
            "config": dict(self.config),
            "fraction": self.fraction,
            "buckets": self.buckets,
            "poisson": self.poisson,
            "named": list(self.named),
            "others": self.others,
        }
        return pack(facts, self.tensors)

    @classmethod
    def from_bytes(cls, data: bytes) -> Query:
        """Raises: MalformedMessage."""
        facts, tensors = unpack(data)
        try:
            query = cls(
                task=facts["task"],
                layout=Layout.from_json(facts["layout"]),
                max_rows=facts["max_rows"],
                tensors=tensors,
                config=facts["config"],
                fraction=facts["fraction"],
                buckets=facts["buckets"],
                poisson=facts["poisson"],
                named=tuple(facts["named"]),
                others=facts["others"],
            )
        except (KeyError, TypeError, LayoutError) as fault:
            raise MalformedMessage(f"a query does not parse: {fault}") from None
        well_typed = isinstance(query.task, str) and type(query.max_rows) is int and isinstance(query.config, dict)
        sampled = type(query.fraction) in (int, float) and 0.0 < query.fraction <= 1.0
        grouped = type(query.buckets) is int and query.buckets >= 1
        named = type(query.poisson) is type(query.others) is bool and facts["named"] == list(query.named)
        if not well_typed or not sampled or not grouped or not named or query.max_rows < 1:
            raise MalformedMessage(
                "a query's task, max_rows, config, fraction, sites or buckets: another type or range"
            )
        return query


@dataclass(frozen=True)
class Answer:
    """What the training code hands to the trusted part: not yet checked, clipped, weighted or sealed.

    Attributes: rows: how many rows it rests on. values: an array for each block of the query's layout.
    """

    rows: int
    values: Mapping[str, Array]

    def to_bytes(self) -> bytes:
        return pack({"rows": self.rows}, self.values)

    @classmethod
    def from_bytes(cls, data: bytes) -> Answer:
        facts, tensors = unpack(data)
        if type(facts.get("rows")) is not int or facts["rows"] < 0:
            raise MalformedMessage("an answer without a row count")
        return cls(facts["rows"], tensors)
