"""What a steward changes beside a running agent: it offers the datasets of site.toml and policy.toml as they are now.

Rules need no watching, since every decision reads policy.toml anew. What only a new start can change is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from cloister.site.desk import Desk
from cloister.site.settings import DataSource, SiteFolder, SiteSettings
from cloister.vector import CloisterError
from cloister.vector.errors import Unreachable

LOOK_SECONDS = 1.0
Stamps = tuple[tuple[int, int], ...]
Offered = dict[str, DataSource]


async def watch(desk: Desk, offered: Offered, offer: Callable[[Offered], Awaitable[None]]) -> None:
    """Calls `offer` whenever other datasets are to be offered. What cannot be read is told and changes nothing.

    Args: offered: so far. Raises: Unreachable: the coordinator was away for too long.
    """
    here, stamps = desk.folder, Stamps()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if (now := stamps_of(here)) == stamps:
            continue
        stamps = now
        try:
            settings = here.settings()
            wanted = offered_by(here, settings)
        except CloisterError as fault:
            desk.tell("warning", message=f"{fault} Until then the datasets are offered as before.")
            continue
        if kept := fixed(settings, desk.settings):
            desk.tell("warning", message=f"site.toml: {', '.join(kept)}: start the agent again for it.")
        desk.settings = desk.settings.model_copy(update={"data": settings.data})
        if wanted == offered:
            continue
        try:
            await offer(wanted)
            offered = wanted
        except Unreachable:
            raise
        except CloisterError as fault:
            desk.tell("warning", message=str(fault))


def stamps_of(here: SiteFolder) -> Stamps:
    """Of the two files: inode and time; both edits in place and files put in their place change them."""
    found = []
    for name in ("site.toml", "policy.toml"):
        try:
            about = (here.root / name).stat()
            found.append((about.st_ino, about.st_mtime_ns))
        except OSError:
            found.append((0, 0))
    return tuple(found)


def offered_by(here: SiteFolder, settings: SiteSettings) -> Offered:
    """The datasets that are bound and that the policy lets jobs use. Raises: UsageError."""
    allowed = here.policy().allow.datasets
    return {name: source for name, source in sorted(settings.data.items()) if name in allowed}


def fixed(new: SiteSettings, old: SiteSettings) -> list[str]:
    """The settings that differ and that a running agent cannot change."""
    names = set(SiteSettings.model_fields) - {"data"}
    return sorted(name for name in names if getattr(new, name) != getattr(old, name))
