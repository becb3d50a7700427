"""Which site a steward's command is about, and careful edits of its two files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from cloister.vector.errors import UsageError

SiteOption = Annotated[
    Path | None, typer.Option("--folder", "-f", help="The site's folder. Default: here, or the one site below here.")
]


def site_folder(given: Path | None) -> Path:
    """Raises: UsageError: no site's folder here, or several."""
    if given is not None:
        return given
    if (here := Path("site.toml")).exists():
        return here.parent
    found = sorted(path.parent for path in Path().glob("*/site.toml"))
    if len(found) != 1:
        seen = ", ".join(map(str, found)) or "none"
        raise UsageError(f"which site? Folders of sites here: {seen}.", mend="Name it with --folder FOLDER.")
    return found[0]


def set_line(text: str, section: str, name: str, value: str | None) -> str:
    """A TOML text with `name = value` in a section, or without that line; every other line stays as it is."""
    from cloister.site.policy import rule_lines

    lines, places = text.splitlines(), rule_lines(text)
    quoted = name if re.fullmatch(r"[\w-]+", name) else json.dumps(name, ensure_ascii=False)
    written = [] if value is None else [f"{quoted} = {value}"]
    if (at := places.get(f"{section}.{name}")) is not None:
        lines[at - 1 : at] = written
    elif (at := places.get(section)) is not None:
        lines[at:at] = written
    elif written:
        lines += ["", f"[{section}]", *written]
    return "\n".join(lines) + "\n"


def allow_dataset(text: str, name: str) -> str:
    """A policy with one more dataset in its rule `allow.datasets`; the comment behind the rule stays."""
    from cloister.site.policy import PolicyFile, rule_lines

    names = sorted({*PolicyFile.parse(text).allow.datasets, name})
    at = rule_lines(text).get("allow.datasets")
    comment = re.search(r"\]\s*(#.*)$", text.splitlines()[at - 1]) if at else None
    behind = f"  {comment[1]}" if comment else ""
    return set_line(text, "allow", "datasets", json.dumps(names, ensure_ascii=False) + behind)
