"""What a steward does beside the running agent: approve a job by its digest, and look at what happened."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from cloister.seal.identity import fingerprint_words
from cloister.site.journal import Journal
from cloister.site.settings import SiteFolder
from cloister.vector.errors import UsageError

RECENT = 5


def approval(digest: str) -> str:
    """The journal's slot that says that a job may ship code to this site. Args: digest: hex, of the job."""
    return f"approved/{digest}"


def approve(folder: Path, digest: str) -> str:
    """Lets one job that ships code run here; takes effect at once, also in a running agent.

    Args: digest: 64 hex digits, or the first 12 or more of a job that was announced to this site.
    Returns: the whole digest, hex. Raises: UsageError: no such job, or several.
    """
    here, digest = SiteFolder(folder), digest.lower()
    here.settings()  # refuses a folder that is no site's
    with closing(Journal(here.journal)) as journal:
        announced = {entry.facts["job"] for entry in journal.entries("announced")}
        found = {digest} if re.fullmatch("[0-9a-f]{64}", digest) else set()
        if not found and re.fullmatch("[0-9a-f]{12,63}", digest):
            found = {job for job in announced if job.startswith(digest)}
        if len(found) != 1:
            raise UsageError(
                f"{digest!r} names {len(found)} of the {len(announced)} jobs announced to this site.",
                mend="Give 12 or more digits of a digest that `cloister site status` shows.",
            )
        whole = found.pop()
        journal.once(approval(whole), b"approved")
        journal.log("approved", job=whole)
        return whole


def status(folder: Path) -> dict[str, Any]:
    """Who this site is and what its journal holds; also while its agent runs."""
    here = SiteFolder(folder)
    settings, policy, identity = here.settings(), here.policy(), here.identity()
    with closing(Journal(here.journal)) as journal:
        entries = list(journal.entries())
    kinds = Counter(entry.kind for entry in entries)
    refused = [entry for entry in entries if entry.kind == "refused"]
    return {
        "site": settings.id,
        "federation": settings.federation,
        "coordinator": settings.coordinator,
        "words": fingerprint_words(identity.public),
        "datasets": {name: source.where for name, source in settings.data.items() if name in policy.allow.datasets},
        "code": policy.allow.code,
        "jobs": sorted({entry.facts["job"] for entry in entries if entry.kind == "announced"}),
        "rounds_asked": kinds["asked"],
        "rounds_receipted": kinds["receipt"],
        "refused": len(refused),
        "last_refusals": [f"{entry.at} {entry.facts['message']}" for entry in refused[-RECENT:]],
        "log_entries": len(entries),
    }
