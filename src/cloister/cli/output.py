"""How a command speaks: people read tables and one next step, machines read one JSON object (`--json`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

from cloister.cli.events import sentence, style

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines, errors included.")]

console = Console(highlight=False)
progress = Console(stderr=True, highlight=False)  # what happens on the way; a pipe sees only the result


def say(text: str) -> None:
    """One line about what happens now, for people: on standard error, so a result can be piped."""
    progress.print(f"[dim]{escape(text)}[/dim]")


def finish(result: Mapping[str, Any], as_json: bool, lines: Iterable[Any], next_step: str) -> None:
    """Ends a command: the result as JSON, or as `lines` (texts or rich tables) and the one next step."""
    if as_json:
        print(json.dumps({**result, "next": next_step}, default=_plain))
        return
    for line in lines:
        console.print(line)
    if next_step:
        console.print(f"[bold]next:[/bold] {escape(next_step)}", soft_wrap=True)


def stream(event: Mapping[str, Any], as_json: bool) -> None:
    """One event of a command that runs on: a JSON line, or a sentence where there is something to say."""
    if as_json:
        print(json.dumps(event, default=_plain), flush=True)
    elif text := sentence(event):
        console.print(escape(text), style=style(event), soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int] = (0,)) -> Group:
    """A title and a plain table. Args: left: the columns that are set flush left; numbers stand right."""
    made = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(columns):
        made.add_column(name, justify="left" if number in left else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return Group(f"\n[bold]{escape(title)}[/bold]", made)


def facts(title: str, known: Mapping[str, Any]) -> Group:
    """A title, and names with what they are, for reading."""
    made = Table(box=None, show_header=False, pad_edge=False)
    for name, value in known.items():
        made.add_row(f"[dim]{escape(name)}[/dim]", escape(str(value)))
    return Group(f"\n[bold]{escape(title)}[/bold]", made, "")


def size(count: float) -> str:
    """Bytes for people, in powers of 1024."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "item"):  # a numpy scalar
        return value.item()
    return str(value)
