"""What a site remembers of a run, against the evidence of it: a history that was changed for others shows there."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from cloister.round import Claim, Evidence, Finding, Verdict
from cloister.round.evidence import file_of
from cloister.seal.labels import fields
from cloister.seal.log import Checkpoint
from cloister.seal.receipt import Receipt
from cloister.site.journal import Journal
from cloister.site.settings import SiteFolder
from cloister.vector.errors import CloisterError

HASH_BYTES = 32
MEND = "Compare with another site: the coordinator showed two histories, or these files were changed."


@dataclass(frozen=True)
class Memory:
    """One site's. Attributes: root: its pinned root key. round, receipt: the number of its last receipt of the run
    and that receipt's digest; -1 before the first. head: its newest checkpoint of the log, b"" before the first."""

    site: str
    root: bytes
    round: int
    receipt: bytes
    head: bytes


def remembered(folder: Path, run: str) -> Memory:
    """Reads a site's folder, also while its agent runs. Raises: UsageError: it is none."""
    here = SiteFolder(folder)
    settings, pinned = here.settings(), here.pinned()
    with closing(Journal(here.journal)) as journal:
        round, receipt = journal.last_receipt(bytes.fromhex(run))
        return Memory(settings.id, pinned.root_key, round, receipt, journal.head())


def with_head(evidence: Evidence, memory: Memory) -> Evidence:
    """With the site's checkpoint among the others, unless it is of a longer log, of which this one may be a part."""
    if not memory.head:
        return evidence
    size = Checkpoint.from_text(memory.head.rpartition(b"\n\n")[0] + b"\n").size
    if size * HASH_BYTES > len(evidence.leaves or b""):
        return evidence
    return replace(evidence, checkpoints={**evidence.checkpoints, memory.site: memory.head})


def compared(verdict: Verdict, evidence: Evidence, memory: Memory) -> Verdict:
    """With a claim about the site: receipts are chained, so its last one stands for all before it."""
    of, where, site = f"site {memory.site}", f"round {memory.round}", memory.site
    if memory.round < 0:
        return verdict.also(Claim(of, "not proven", "it holds no receipt of this run"))
    for place, each in enumerate(evidence.rounds):
        try:
            receipt = Receipt.from_bytes(fields(each.receipt)[0])
        except (CloisterError, IndexError):
            continue  # a finding already
        if receipt.plan.round != memory.round:
            continue
        if receipt.digest == memory.receipt:
            why = f"its last receipt of this run, of round {memory.round}, is the one here"
            return verdict.also(Claim(of, "proven", why))
        finding = Finding(
            "StaleReceipt", where, "the site holds another receipt.", MEND, site, file_of("receipts", place)
        )
        return verdict.also(Claim(of, "FAILED", finding.sentence), [finding])
    said = "the site holds a receipt that is not here: something was left out."
    finding = Finding("StaleReceipt", where, said, MEND, site, file_of("receipts", len(evidence.rounds)))
    return verdict.also(Claim(of, "FAILED", finding.sentence), [finding])
