"""What a steward sees of the privacy ledger: each dataset's account beside its budget, over time, and signed."""

from __future__ import annotations

import contextlib
import json
from contextlib import closing
from pathlib import Path
from typing import Any

from cloister.privacy.accounting import epsilon, events_as_json, events_from_json
from cloister.seal.identity import verify
from cloister.seal.labels import BUDGET, fields, lp
from cloister.site.ledger import Charge, Ledger, Spent, accounts, utc_now
from cloister.site.settings import SiteFolder
from cloister.vector import canonical
from cloister.vector.errors import MalformedMessage

DELTA = 1e-5  # at which an account without a budget is shown
POINTS = 32  # of an account over time: each is an accounting of its own


def account(folder: Path, *, over_time: bool = False) -> dict[str, Any]:
    """Every dataset's spending; also while the agent runs.

    Args: over_time: with (time, epsilon) after the charges, thinned to POINTS.
    Returns: {"site", "entries", "head", "as_of", "datasets": [...]}. Raises: UsageError, EnvironmentFailure.
    """
    here = SiteFolder(folder)
    settings, policy, entries, now = here.settings(), here.policy(), _entries(here.ledger), utc_now()
    found = []
    for spent in accounts(entries, now):
        budget = policy.budget.get(spent.name)
        delta = budget.delta if budget else DELTA
        cost = spent.epsilon(delta)
        told: dict[str, Any] = {
            "name": spent.name,
            "dataset": spent.dataset,
            "epsilon": cost,
            "delta": delta,
            "budget": budget.epsilon if budget else None,
            "left": max(budget.epsilon - cost, 0.0) if budget else None,
            "rounds": spent.rounds,
            "exact_rounds": spent.exact,
            "rounds_today": spent.today,
            "rounds_a_day": budget.rounds_a_day if budget else None,
        }
        if over_time:
            told["over_time"] = _over_time([each for each in entries if each.dataset == spent.dataset], delta)
        found.append(told)
    head = entries[-1].hash if entries else bytes(32).hex()
    return {"site": settings.id, "entries": len(entries), "head": head, "as_of": now, "datasets": found}


def _entries(path: Path) -> list[Charge]:
    if not path.exists():
        return []  # looking makes no ledger
    with closing(Ledger(path)) as ledger:
        return ledger.entries()


def _over_time(charges: list[Charge], delta: float) -> list[tuple[str, float]]:
    step = max(1, -(-len(charges) // POINTS))
    ends = sorted({*range(step, len(charges) + 1, step), len(charges)})
    return [
        (charges[end - 1].at, epsilon([event for each in charges[:end] for event in each.events or ()], delta))
        for end in ends
    ]


def export(folder: Path) -> bytes:
    """The accounts as this site's signed statement: LP(canonical JSON) || LP(Ed25519 signature).

    It holds the events, so that whoever reads it computes epsilon anew; the hash of the newest charge is in it, so
    that a later statement of the same site shows whether the ledger was put back.
    """
    here = SiteFolder(folder)
    settings, entries = here.settings(), _entries(here.ledger)
    head = entries[-1].hash if entries else bytes(32).hex()
    told = {"site": settings.id, "federation": settings.federation, "as_of": utc_now(), "head": head}
    body = canonical({**told, "entries": len(entries), "accounts": [_written(spent) for spent in accounts(entries)]})
    return lp(body) + lp(here.identity().sign(BUDGET, body))


def _written(spent: Spent) -> dict[str, Any]:
    told = {"name": spent.name, "dataset": spent.dataset, "rounds": spent.rounds, "exact_rounds": spent.exact}
    return {**told, "events": events_as_json(spent.events)}


def open_export(data: bytes, key: bytes) -> dict[str, Any]:
    """What `export` wrote, if its signature holds. Args: key: the site's. Raises: BadSignature, MalformedMessage."""
    parts = fields(data)
    if len(parts) != 2:
        raise MalformedMessage("a signed budget has two fields")
    body, signature = parts
    verify(key, BUDGET, body, signature)
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        told: dict[str, Any] = json.loads(body)
        for each in told["accounts"]:
            events_from_json(each["events"])
        return told
    raise MalformedMessage("a signed budget does not parse")
