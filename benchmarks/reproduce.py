"""Published numbers, measured again: `make reproduce NAME=heart`, or `python benchmarks/reproduce.py heart --write`.

Without a name it lists what there is. Data are looked for in ../shared/data beside the clone; without them a
reproduction is skipped and says so. --write puts the table into docs/reproductions.md, between its markers.
"""

from __future__ import annotations

import argparse
import re
import sys
from importlib import import_module

from reproductions.table import DATA, ROOT, table

PAGE = ROOT / "docs" / "reproductions.md"
KNOWN = ("banks", "cnn", "heart", "heart_dp", "mnist", "robust", "shakespeare", "tcga")


def write(name: str, lines: list[str]) -> None:
    """Puts the table between `<!-- name -->` and `<!-- /name -->`."""
    inside = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    body = "\n".join(lines) + "\n"
    PAGE.write_text(inside.sub(lambda found: found[1] + body + found[2], PAGE.read_text()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=KNOWN)
    parser.add_argument("--write", action="store_true", help="into docs/reproductions.md")
    arguments = parser.parse_args()
    if arguments.name is None:
        print("\n".join(KNOWN))
        return 0
    found = import_module(f"reproductions.{arguments.name}")
    frames = found.load()
    if frames is None:
        print(f"skipped: {arguments.name} needs its data in {DATA}, and there is none.")
        return 0
    lines = found.table(frames) if hasattr(found, "table") else table(found.ROWS, frames)
    if arguments.write:
        write(arguments.name, lines)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
