"""State of an algorithm or a run: facts and tensors, immutable by habit, serialised without running code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cloister.vector.bundle import Array, pack, unpack


@dataclass(frozen=True)
class State:
    """Attributes: facts: JSON values. tensors: arrays by name. Never mutated: `with_` makes the next one."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Array] = field(default_factory=dict)

    def with_(self, facts: Mapping[str, Any] | None = None, tensors: Mapping[str, Array] | None = None) -> State:
        """The next state: these facts and tensors laid over the present ones."""
        return State({**self.facts, **(facts or {})}, {**self.tensors, **(tensors or {})})

    def to_bytes(self) -> bytes:
        return pack(self.facts, self.tensors)

    @classmethod
    def from_bytes(cls, data: bytes) -> State:
        """Raises: MalformedMessage."""
        return cls(*unpack(data))
