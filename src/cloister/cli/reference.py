"""docs/cli.md from the commands themselves: `python -m cloister.cli.reference > docs/cli.md` (`make docs`)."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import typer

from cloister.cli.app import app

VALUES = {Path: "PATH", int: "N"}
HEAD = """\
# The command line

Written by `make docs` from the commands themselves; a test compares. Every command prints one next step. With
`--json` it prints one JSON object (one that runs on: a line for each event), and an error as JSON on standard error.

Exit codes: 0 done; 2 your fault (a wrong option, file, job, table or invitation); 1 ours, the machine's or another
party's; 130 interrupted.
"""


def reference() -> str:
    """The whole page, in Markdown."""
    return "\n".join([HEAD, *(_section(path, command) for path, command in _commands("cloister", _root()))])


def _root() -> Any:
    return typer.main.get_command(app)


def _commands(path: str, group: Any) -> Iterator[tuple[str, Any]]:
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from _commands(f"{path} {name}", command)
        else:
            yield f"{path} {name}", command


def _section(path: str, command: Any) -> str:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option"]
    usage = " ".join([path, *(_argument(param) for param in arguments), "[OPTIONS]"])
    text = [f"## {path}", "", " ".join((command.help or "").split()), "", f"    {usage}", ""]
    rows = [f"| `{_argument(param)}` | {param.help or ''} |" for param in arguments]
    rows += [f"| `{_option(param)}` | {param.help or ''}{_default(param)} |" for param in options if not param.hidden]
    return "\n".join([*text, "| | |", "|---|---|", *rows, ""])


def _argument(param: Any) -> str:
    name = param.metavar or param.name.upper()
    name = f"{name}..." if param.nargs == -1 else name
    return name if param.required else f"[{name}]"


def _option(param: Any) -> str:
    names = ", ".join([*param.opts, *param.secondary_opts])
    return names if param.is_flag else f"{names} {_value(param)}"


def _value(param: Any) -> str:
    kind = param.type_descriptor.annotation
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "|".join(member.value for member in kind)
    return str(param.metavar or VALUES.get(kind, "TEXT"))


def _default(param: Any) -> str:
    if param.is_flag or param.default in (None, "", [], ()):
        return ""
    return f" Default: {getattr(param.default, 'value', param.default)}."


if __name__ == "__main__":
    print(reference(), end="")
