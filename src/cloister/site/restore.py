"""After a site's folder was restored: the charges that its privacy ledger lacks count as spent."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from cloister.privacy.accounting import Event, noise_multiplier
from cloister.site.journal import Journal
from cloister.site.ledger import Charge, Ledger, dataset_key
from cloister.site.settings import SiteFolder
from cloister.vector.errors import UsageError

ONCE, ALL = ((1.0, 1),), 0.99  # one release, and a little less noise than would leave something of the budget


def write_off(folder: Path, seen: int) -> dict[str, Any]:
    """Takes what a restored ledger lacks for spent: of a dataset with a budget all of it, as no more can have been.

    A dataset without a budget is charged an exact round: nothing bounds what was answered. Afterwards the ledger's
    number is larger than any that was seen, so that the federation takes this site's answers again.

    Args: seen: the largest charge of this federation that others saw; the journal may know of more.
    Returns: {"site", "lost", "datasets": names}. Raises: UsageError: nothing is missing.
    """
    here = SiteFolder(folder)
    settings, policy = here.settings(), here.policy()
    with closing(Ledger(here.ledger)) as ledger, closing(Journal(here.journal)) as journal:
        held = ledger.charges(settings.federation)
        noted = [entry.facts["charge"] for entry in journal.entries("charged")]
        lost = max(seen, len(noted), held) - held
        if not lost and (not noted or ledger.holds(noted[-1])):
            mend = "The number is the one that the refusal names."
            raise UsageError(f"the ledger of {settings.id} lacks no charge: it has {held}.", mend=mend)
        for at, (name, source) in enumerate(settings.data.items()):
            budget, key = policy.budget.get(name), dataset_key(source.where, source.unit)
            events = None if budget is None else (Event(ALL * noise_multiplier(budget.epsilon, budget.delta, ONCE)),)
            missing = Charge(key, name, "lost", events, "", 0, "", settings.federation, 0 if at else lost)
            journal.log("charged", run="", charge=ledger.charge(missing, None).hash)
        journal.log("written-off", lost=lost, seen=seen)
    return {"site": settings.id, "lost": lost, "datasets": list(settings.data)}
