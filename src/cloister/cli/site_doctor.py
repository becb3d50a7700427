"""`cloister site doctor`: which walls stand, and what else a site needs, each with its mend."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from cloister.vector import CloisterError

if TYPE_CHECKING:
    from cloister.site.settings import SiteFolder

WALLS = """
import json, sys
from pathlib import Path
from cloister.site import sandbox
home = Path(sys.argv[1])
print(json.dumps(sandbox.enter(sandbox.Room(sandbox.WorkerLimits(), home / "table", home))))
"""


@dataclass(frozen=True)
class Check:
    """Attributes: state: "good", "missing" (works without) or "bad". mend: one line."""

    name: str
    state: str
    what: str
    mend: str = ""


def examine(here: SiteFolder) -> list[Check]:
    """Every check; none raises."""
    found: list[Check] = []
    for check in (_walls, _files, _policy, _data, _journal, _lock, _proxy, _coordinator):
        try:
            found += check(here)
        except (CloisterError, OSError, ValueError) as fault:
            mend = getattr(fault, "mend", "")
            found.append(Check(check.__name__.strip("_"), "bad", str(getattr(fault, "message", fault)), mend))
    return found


def _walls(here: SiteFolder) -> Iterator[Check]:
    import json
    import tempfile

    from cloister.site import bubblewrap, landlock, sandbox

    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [sys.executable, "-c", WALLS, home], capture_output=True, text=True, timeout=60, check=False
        )
    stand = set(json.loads(done.stdout)) if done.returncode == 0 else set()
    abi = landlock.version()
    yield Check(
        "landlock",
        "good" if abi >= 6 else "missing" if abi else "bad",
        f"ABI {abi}" if abi else "none: files and TCP cannot be confined",
        "" if abi >= 6 else "Linux 6.12 or newer with landlock in CONFIG_LSM scopes signals and sockets too.",
    )
    mends = {
        "no-network": "Allow user namespaces: sysctl kernel.unprivileged_userns_clone=1.",
        "files": "Boot with lsm=landlock,... or a newer kernel.",
        "system-calls": "A kernel with CONFIG_SECCOMP_FILTER.",
    }
    for name in sandbox.WALLS:
        lent = name not in stand and name in bubblewrap.GRANTS and bubblewrap.works()
        needed = name in sandbox.REQUIRED_FOR_CODE
        state = "good" if name in stand or lent else "bad" if needed else "missing"
        what = "stands" if name in stand else "stands by bubblewrap alone" if lent else "does not stand"
        yield Check(f"wall {name}", state, what, "" if state == "good" else mends.get(name, ""))
    if bubblewrap.works():
        yield Check("bubblewrap", "good", "around every training process")
    elif shutil.which("bwrap"):
        yield Check(
            "bubblewrap", "missing", "is installed, but may make no namespaces", "The other walls do its work."
        )
    else:
        yield Check("bubblewrap", "missing", "is not installed", "The other walls do its work.")


def _files(here: SiteFolder) -> Iterator[Check]:
    for name, most in (("identity.key", 0o600), ("site.toml", 0o600), ("policy.toml", 0o644), ("journal.db", 0o600)):
        path = here.root / name
        if not path.exists():
            if name != "journal.db":
                yield Check(name, "bad", "is missing", "Join again, or restore it from a backup.")
            continue
        mode, owner = path.stat().st_mode & 0o777, path.stat().st_uid
        loose = bool(mode & ~most) or owner != os.getuid()
        yield Check(
            name,
            "bad" if loose else "good",
            f"mode {mode:03o}, uid {owner}",
            f"chmod {most:o} {path}" if loose else "",
        )
    here.identity()
    here.pinned()


def _policy(here: SiteFolder) -> Iterator[Check]:
    from cloister.cli.site_policy import doubts_about

    doubts = doubts_about(here)
    yield Check(
        "policy",
        "missing" if doubts else "good",
        doubts[0] if doubts else "in order",
        "cloister site policy edit" if doubts else "",
    )


def _data(here: SiteFolder) -> Iterator[Check]:
    from cloister.cli.site_data import look

    for name, source in here.settings().data.items():
        try:
            profile = look(here, name, source)
        except CloisterError as fault:
            yield Check(f"data {name}", "bad", fault.message, fault.mend)
        else:
            yield Check(f"data {name}", "good", f"{profile['rows']:,} rows, {len(profile['columns'])} columns")


def _journal(here: SiteFolder) -> Iterator[Check]:
    from cloister.site.journal import Journal

    with closing(Journal(here.journal)) as journal:
        count = sum(1 for _ in journal.entries())
    yield Check("log", "good", f"{count:,} entries, the chain is whole")


def _lock(here: SiteFolder) -> Iterator[Check]:
    from cloister.site.lock import FolderLock
    from cloister.vector.errors import StateLocked

    try:
        with FolderLock(here.lock):
            yield Check("agent", "missing", "does not run", f"cloister site run {here.root}")
    except StateLocked as fault:
        yield Check("agent", "good", fault.message.replace("another agent", "the agent"))


def _proxy(here: SiteFolder) -> Iterator[Check]:
    from cloister.site.reach import OPENS_TLS, proxy_of

    settings, proxy = here.settings(), proxy_of(here)
    way = proxy.shown(settings.coordinator)
    if proxy.authority:
        yield Check("proxy", "good", OPENS_TLS.format(way))
    elif way:
        said_by = "[proxy] of site.toml" if settings.proxy.url else "HTTPS_PROXY of this shell"
        yield Check("proxy", "good", f"{way} ({said_by}) tunnels: the coordinator's certificate is pinned")


def _coordinator(here: SiteFolder) -> Iterator[Check]:
    from cloister.site.reach import certificate_of, proxy_of
    from cloister.wire import fetch_roster

    settings, proxy, began = here.settings(), proxy_of(here), time.monotonic()

    async def ask() -> None:
        certificate = await certificate_of(here, proxy)
        await fetch_roster(settings.coordinator, certificate, "latest", 3.0, proxy)

    asyncio.run(ask())
    yield Check("coordinator", "good", f"{settings.coordinator} answers in {1e3 * (time.monotonic() - began):.0f} ms")


def as_json(found: list[Check]) -> list[dict[str, str]]:
    return [asdict(check) for check in found]
