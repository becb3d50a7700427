"""bubblewrap, where it is installed and works: a training process in namespaces of its own, before its other walls.

Landlock refuses to open what is not named; here it is not even there: no other file or mount, no other process, no
other network, nobody else's memory by number. One room more for what the kernel's other walls may have missed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from cloister.site.sandbox import SYSTEM

NAME = "bubblewrap"
PARENT = 1  # what a process in there sees as the process that started it
GRANTS = frozenset({"files", "no-network", "no-new-privileges"})  # of the walls, those that stand by it alone
TRIAL_SECONDS = 30.0
PATHS = "import json, sys; print(json.dumps([sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path]))"


@cache
def works() -> bool:
    """Whether it is installed and may make namespaces here; tried once."""
    command = [*_outside(), "--chdir", "/", sys.executable, "-I", "-c", ""]
    return shutil.which("bwrap") is not None and _runs(command) is not None


def prefix(table: Path, home: Path, memory: Path | None) -> list[str]:
    """What a worker's command is put behind, [] where bubblewrap does not work.

    Args: table: to read. home, memory: to read and write; home is where it starts.
    """
    if not works():
        return []
    words = [*_outside(), "--ro-bind", str(table.resolve()), str(table.resolve())]
    for path in filter(None, (home, memory)):
        words += ["--bind", str(path.absolute()), str(path.absolute())]
    words += ["--remount-ro", "/", "--remount-ro", "/dev"]  # else writing there takes memory that no limit counts
    return [*words, "--chdir", str(home.absolute()), "--"]


@cache
def _outside() -> tuple[str, ...]:
    """Namespaces, and what everybody may read: the system's libraries and Python's."""
    words = [
        shutil.which("bwrap") or "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--cap-drop",
        "ALL",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
    ]
    libraries = json.loads(_runs([sys.executable, "-I", "-c", PATHS]) or "[]")
    for path in dict.fromkeys(map(Path, (*SYSTEM, *libraries))):
        if path.is_absolute() and path.parts[1] not in ("proc", "dev"):
            words += ["--ro-bind-try", str(path), str(path)]
    return tuple(words)


def _runs(command: list[str]) -> str | None:
    """What a command prints; None if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRIAL_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
