"""The two state machines of a round as one table each (in the manner of h11): phase -> event -> next phase.

An event is the label of a message without its prefix, or what the caller does: `mask` (a site), `close` and `void`
(the coordinator ends a phase with enough answers, or with too few). What the table does not list is refused, and a
refusal leaves the phase as it was. The diagrams in docs/protocol.md are `diagram(SITE)` and `diagram(COORDINATOR)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from cloister.vector.errors import UnexpectedMessage


class SitePhase(StrEnum):
    """Where a site is in a round: named by the last thing it did."""

    NEW = "new"
    OPENED = "opened"  # the plan is verified, nothing answered yet
    KEYED = "keyed"  # its Keys are out; one such message a round, ever
    SHARED = "shared"
    READY = "ready"  # it holds its neighbours' shares: it can mask
    MASKED = "masked"
    AGREED = "agreed"  # it signed a survivor set; one a round, ever
    UNMASKED = "unmasked"  # its shares are out, its secrets are erased
    DONE = "done"  # the receipt is verified


class Phase(StrEnum):
    """Where the coordinator is in a round: named by the message it awaits."""

    KEYS = "keys"
    SHARES = "shares"
    MASKED = "masked"
    CONSISTENT = "consistent"
    UNMASK = "unmask"
    OPEN = "open"  # the secrets of all masks that must go are there: the sum opens
    VOID = "void"  # nothing was opened, nothing will be


SITE: Mapping[SitePhase, Mapping[str, SitePhase]] = {
    SitePhase.NEW: {"open": SitePhase.OPENED},
    SitePhase.OPENED: {"keys": SitePhase.KEYED},
    SitePhase.KEYED: {"list-of-keys": SitePhase.SHARED},
    SitePhase.SHARED: {"ciphertexts": SitePhase.READY},
    SitePhase.READY: {"mask": SitePhase.MASKED},
    SitePhase.MASKED: {"survivors": SitePhase.AGREED},
    SitePhase.AGREED: {"consistency": SitePhase.UNMASKED},
    SitePhase.UNMASKED: {"receipt": SitePhase.DONE},
    SitePhase.DONE: {},
}

COORDINATOR: Mapping[Phase, Mapping[str, Phase]] = {
    Phase.KEYS: {"keys": Phase.KEYS, "close": Phase.SHARES, "void": Phase.VOID},
    Phase.SHARES: {"shares": Phase.SHARES, "close": Phase.MASKED, "void": Phase.VOID},
    Phase.MASKED: {"masked": Phase.MASKED, "close": Phase.CONSISTENT, "void": Phase.VOID},
    Phase.CONSISTENT: {"consistent": Phase.CONSISTENT, "close": Phase.UNMASK, "void": Phase.VOID},
    Phase.UNMASK: {"unmask": Phase.UNMASK, "close": Phase.OPEN, "void": Phase.VOID},
    Phase.OPEN: {},
    Phase.VOID: {},
}

AnyPhase = TypeVar("AnyPhase", SitePhase, Phase)


def step(table: Mapping[AnyPhase, Mapping[str, AnyPhase]], phase: AnyPhase, event: str, site: str = "") -> AnyPhase:
    """The phase after `event`. Raises: UnexpectedMessage: the table has no such event in this phase."""
    if event not in table[phase]:
        expected = " or ".join(table[phase]) or "nothing more"
        raise UnexpectedMessage(f"{event!r} in the phase {phase.value!r}, which expects {expected}.", site=site)
    return table[phase][event]


def diagram(table: Mapping[AnyPhase, Mapping[str, AnyPhase]]) -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {next(iter(table)).value}"]
    for phase, events in table.items():
        lines += [f"    {phase.value} --> {after.value}: {event}" for event, after in events.items()]
    return "\n".join(lines)
