"""`cloister attack`: a coordinator that cheats against real sites, and what it got."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloister.cli.output import AsJson, console, finish, say, table
from cloister.vector.errors import UsageError

if TYPE_CHECKING:
    from cloister.attack import Outcome


def attack(
    names: Annotated[list[str] | None, typer.Argument(help="Attacks to run, or `all`.")] = None,
    show: Annotated[bool, typer.Option("--list", help="Only list the attacks.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a coordinator that cheats against real sites: each lie must be refused by name and leak nothing."""
    from cloister.attack import attack as run
    from cloister.attack import chosen, described

    kinds = chosen(names or ["all"] if show else names or [])
    if show:
        known = [{"attack": name, "tries": said[0], "refused_as": list(said[2])} for name, said in described(kinds)]
        rows = [(str(each["attack"]), str(each["tries"]), ", ".join(each["refused_as"])) for each in known]
        lines = [table("attacks", ("attack", "what it tries", "refused as"), rows, left=(0, 1, 2))]
        finish({"attacks": known}, as_json, lines, "cloister attack all")
        return
    if not kinds:
        raise UsageError("name an attack, or `all`.", mend="`cloister attack --list` names them.")
    with tempfile.TemporaryDirectory(prefix="cloister-attack-") as folder:
        outcomes = run(kinds, Path(folder), say=(lambda text: None) if as_json else say)
    held = all(outcome.held for outcome in outcomes)
    result = {"ok": held, "attacks": [outcome.as_json() for outcome in outcomes]}
    finish(result, as_json, [_table(outcomes)], "")
    if not held:
        if not as_json:
            console.print("[red]not every attack was held off[/red]")
        raise typer.Exit(1)


def _table(outcomes: list[Outcome]) -> object:
    rows = [
        (
            outcome.name,
            outcome.tried,
            ", ".join(sorted(set(outcome.refusals.values()))) or "none",
            "no vector sent"
            if outcome.worst is None
            else f"{outcome.worst.correlation:.2f} < {outcome.worst.bound:.2f}",
            "held" if outcome.held else outcome.fault,
        )
        for outcome in outcomes
    ]
    held = sum(outcome.held for outcome in outcomes)
    title = f"{held} of {len(outcomes)} attacks refused by name, with noise for the cheater"
    return table(
        title, ("attack", "what it tried", "refusal seen", "|r| < bound", "verdict"), rows, left=(0, 1, 2, 4)
    )
