"""What a steward does beside the running agent: approve or deny a job by its digest, and look at what happened."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from cloister.seal.identity import fingerprint_words
from cloister.site import verdicts
from cloister.site.journal import Journal
from cloister.site.settings import SiteFolder
from cloister.vector.errors import UsageError

RECENT = 5


def approve(folder: Path, digest: str) -> str:
    """Lets one job run here; takes effect at once, also for a run that waits for it. See `decide`."""
    return decide(folder, digest, "approved")


def deny(folder: Path, digest: str, reason: str) -> str:
    """Refuses one job for good, until it is approved. Args: reason: for the log and the analyst. See `decide`."""
    return decide(folder, digest, "denied", reason)


def decide(folder: Path, digest: str, verdict: verdicts.Word, reason: str = "") -> str:
    """Signs a verdict with the site's key, and writes it down and into the log.

    Args: digest: 64 hex digits, or the first 12 or more of a job that was announced to this site.
    Returns: the whole digest, hex. Raises: UsageError: no such job, or several.
    """
    here = SiteFolder(folder)
    here.settings()  # refuses a folder that is no site's
    whole = whole_digest(here, digest)
    with closing(Journal(here.journal)) as journal:
        said = verdicts.record(here, here.identity(), whole, verdict, reason)
        journal.log(verdict, **said)
    return whole


def whole_digest(here: SiteFolder, digest: str) -> str:
    """Raises: UsageError: these digits name none or several of the jobs announced here."""
    digest = digest.lower()
    if re.fullmatch("[0-9a-f]{64}", digest):
        return digest
    with closing(Journal(here.journal)) as journal:
        announced = {str(entry.facts["job"]) for entry in journal.entries("announced")}
    found = {job for job in announced if re.fullmatch("[0-9a-f]{12,63}", digest) and job.startswith(digest)}
    if len(found) != 1:
        raise UsageError(
            f"{digest!r} names {len(found)} of the {len(announced)} jobs announced to this site.",
            mend="Give 12 or more digits of a digest that `cloister site review` shows.",
        )
    return found.pop()


def waiting_runs(journal: Journal) -> dict[str, dict[str, Any]]:
    """The runs that wait for a verdict: run id -> {"job", "analyst", "name", "at"}, oldest first."""
    waiting: dict[str, dict[str, Any]] = {}
    for entry in journal.entries():
        if entry.kind == "waiting":
            waiting[entry.facts["run"]] = {**entry.facts, "at": entry.at}
        elif entry.kind in ("done", "lifted"):
            waiting.pop(entry.facts["run"], None)
        elif entry.kind == "refused" and entry.facts.get("whole_run"):
            waiting.pop(entry.facts.get("run", ""), None)
    return waiting


def status(folder: Path) -> dict[str, Any]:
    """Who this site is and what its journal holds; also while its agent runs."""
    here = SiteFolder(folder)
    settings, policy, identity = here.settings(), here.policy(), here.identity()
    with closing(Journal(here.journal)) as journal:
        entries, waiting = list(journal.entries()), waiting_runs(journal)
    kinds = Counter(entry.kind for entry in entries)
    refused = [entry for entry in entries if entry.kind == "refused"]
    return {
        "site": settings.id,
        "federation": settings.federation,
        "coordinator": settings.coordinator,
        "roster": max((int(path.stem) for path in here.rosters.glob("*.signed")), default=0),
        "words": fingerprint_words(identity.public),
        "datasets": {name: source.where for name, source in settings.data.items() if name in policy.allow.datasets},
        "code": policy.allow.code,
        "jobs": sorted({entry.facts["job"] for entry in entries if entry.kind == "announced"}),
        "waiting": sorted({run["job"] for run in waiting.values()}),
        "rounds_asked": kinds["asked"],
        "rounds_receipted": kinds["receipt"],
        "refused": len(refused),
        "last_refusals": [f"{entry.at} {entry.facts['message']}" for entry in refused[-RECENT:]],
        "log_entries": len(entries),
    }
