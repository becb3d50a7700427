"""What a coordinator still has of the sites' contributions: the masked vectors of a run's last opened round."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from cloister.coordinator.folder import open_folder
from cloister.coordinator.uploads import stored
from cloister.seal.messages import Masked
from cloister.seal.plan import Plan
from cloister.vector import Query
from cloister.vector.errors import UsageError


def masked_vectors(folder: Path, run: str) -> tuple[Plan, Query, dict[str, bytes]]:
    """Reads a coordinator's folder, also while it serves.

    Returns: the plan of the run's last opened round, the query that was asked in it, and for each site whose masked
      vector arrived its packed words, as uploaded.
    Raises: UsageError: the run opened no round.
    """
    opened = open_folder(folder)
    with closing(opened.store()) as store:
        last = store.look(lambda tx: tx.last_round(run, "done"))
        if last is None:
            raise UsageError(f"the run {run[:12]} has opened no round.", mend="`cloister status` lists the runs.")
        headers = store.look(lambda tx: tx.uploads(run, last.number))
    plan = Plan.from_bytes(last.plan)
    blobs, parts = opened.blobs(), opened.parts()
    vectors = {
        site: b"".join(parts.read(stored(message.context, part.hex())) for part in message.parts)
        for site, message in ((site, Masked.from_bytes(header)) for site, header in headers.items())
    }
    return plan, Query.from_bytes(blobs.read(plan.query.hex())), vectors
