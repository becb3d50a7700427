"""The points at which a process can die, read out of the source, and how each of them is come by."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import cloister
from cloister.site.journal import COUNTERS, SLOTS
from cloister.site.verdicts import Word

SOURCE = Path(cloister.__file__).parent
BEFORE_AND_AFTER = ("before", "after")

# How a point is come by; a number says how often it is passed in one round, each time for something else.
ROUND, START, BEGIN, END = "each round", "each start", "a run's begin", "a run's end"
REFUSAL, VOID, COMMAND, RESTART = "a refusal", "a void round", "a command", "a site that starts"
ALONE = "the journal or the database alone"
DEATHS: dict[str, tuple[str, int]] = {
    "site.counter.charges": (ROUND, 2),  # after messages 2 and 6
    "site.counter.mailbox": (ROUND, 1),
    "site.counter.rounds": (ROUND, 1),
    "site.counter.sequence": (START, 1),
    "site.file": (ALONE, 1),  # rosters, verdicts, what a run keeps between rounds; and those of joining
    "site.ledger": (ROUND, 1),
    "site.log.announced": (BEGIN, 1),
    "site.log.answered": (ROUND, 5),  # messages 1, 3, 5, 7 and 9
    "site.log.approved": (ALONE, 1),
    "site.log.asked": (ROUND, 1),
    "site.log.charged": (ROUND, 1),
    "site.log.crashed": (ALONE, 1),
    "site.log.denied": (ALONE, 1),
    "site.log.done": (END, 1),
    "site.log.lifted": (ALONE, 1),
    "site.log.offers": (ALONE, 1),
    "site.log.prepared": (BEGIN, 1),
    "site.log.proxy": (ALONE, 1),
    "site.log.receipt": (ROUND, 1),
    "site.log.refused": (REFUSAL, 1),
    "site.log.started": (START, 1),
    "site.log.unreadable": (ALONE, 1),
    "site.log.void": (VOID, 1),
    "site.log.waiting": (ALONE, 1),
    "site.log.written-off": (ALONE, 1),
    "site.made": (START, 1),
    "site.place": (ROUND, 1),
    "site.receipt": (ROUND, 1),
    "site.slot.distrust": (ALONE, 1),
    "site.slot.notice": (BEGIN, 1),
    "site.slot.open": (ROUND, 1),
    "site.slot.survivors": (ROUND, 3),  # since the last receipt, for the query, in the round
    "site.slot.unmask": (ROUND, 1),
    "coordinator.blob": (ROUND, 6),  # query, sum, state, receipt, messages 2 and 8
    "coordinator.delete": (ROUND, 1),
    "coordinator.part": (ROUND, 1),
    "coordinator.tx.admit": (COMMAND, 1),
    "coordinator.tx.announce": (ROUND, 1),
    "coordinator.tx.catalogue": (RESTART, 1),
    "coordinator.tx.close": (ROUND, 5),  # the phases
    "coordinator.tx.columns": (BEGIN, 1),
    "coordinator.tx.enroll": (COMMAND, 1),
    "coordinator.tx.event": (VOID, 1),
    "coordinator.tx.finish": (END, 1),
    "coordinator.tx.invite": (COMMAND, 1),
    "coordinator.tx.message": (ROUND, 1),
    "coordinator.tx.number": (ROUND, 1),
    "coordinator.tx.open": (ROUND, 1),
    "coordinator.tx.refuse": (REFUSAL, 1),
    "coordinator.tx.roster": (ALONE, 1),
    "coordinator.tx.save": (ROUND, 1),
    "coordinator.tx.stop": (END, 1),
    "coordinator.tx.submit": (BEGIN, 1),
    "coordinator.tx.unfit": (ALONE, 1),
    "coordinator.tx.void": (VOID, 1),
}


def wishes(side: str, how: str) -> list[str]:
    """What CLOISTER_CRASH_AT may be, for all points of "site" or "coordinator" that are come by in this way."""
    return [
        f"{name}:{when}:{count}"
        for name, (known, times) in DEATHS.items()
        if known == how and name.startswith(f"{side}.")
        for count in range(1, times + 1)
        for when in BEFORE_AND_AFTER
    ]


def points() -> set[str]:
    """Every point in the source. Raises: ValueError: one whose name cannot be read there."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        for call in _calls(path):
            match _called(call):
                case "durable":
                    found |= set(_named(call, path))
                case "run_tx" if "coordinator" in path.parts:
                    found |= {f"coordinator.tx.{_literal(call, path)}"} - {"coordinator.tx."}
                case "_commit" if path.name == "rounds.py":
                    found.add(f"coordinator.tx.{_literal(call, path)}")
                case "_transaction":
                    found |= set(_written(call, path))
    return found


def _calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _literal(call: ast.Call, path: Path) -> str:
    """The name in a call; "" in the one helper that passes its own argument on."""
    match call.args[0]:
        case ast.Constant(value=str(name)):
            return name
        case ast.Name(id="name") if path.name == "rounds.py":
            return ""
    raise ValueError(f"{path}:{call.lineno}: a durable write without a name")


def _named(call: ast.Call, path: Path) -> Iterator[str]:
    match call.args[0]:
        case ast.Constant(value=str(name)):
            yield name
        case ast.JoinedStr() if path.name in ("store.py", "journal.py"):  # the helpers: their callers have the names
            pass
        case _:
            raise ValueError(f"{path}:{call.lineno}: a point without a name")


def _written(call: ast.Call, path: Path) -> Iterator[str]:
    """A transaction of the journal; what it is about may be one word of a list."""
    match call.args[0]:
        case ast.Constant(value=str(name)):
            yield f"site.{name}"
        case ast.JoinedStr(values=[ast.Constant(value="slot."), _]):
            yield from (f"site.slot.{word}" for word in SLOTS)
        case ast.JoinedStr(values=[ast.Constant(value="counter."), _]):
            yield from (f"site.counter.{word}" for word in COUNTERS)
        case ast.JoinedStr(values=[ast.Constant(value="log."), _]):
            yield from (f"site.log.{kind}" for kind in _kinds())
        case _:
            raise ValueError(f"{path}:{call.lineno}: a transaction without a name")


def _kinds() -> set[str]:
    """What a site writes into its log."""
    found = set()
    for path in (SOURCE / "site").glob("*.py"):
        for call in _calls(path):
            logs = _called(call) == "log" and ast.unparse(call.func).endswith("journal.log")
            if (logs or _called(call) == "note") and isinstance(call.args[0], ast.Constant):
                found.add(str(call.args[0].value))
    return found | {*get_args(Word)}  # the verdicts of a steward
