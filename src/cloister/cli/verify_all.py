"""`cloister verify --all`: every run of a coordinator, or in a folder of such folders, and the whole log of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.markup import escape

from cloister.cli.analyst import Analyst
from cloister.cli.evidence import ask_audits, counted, fetch_evidence, read_evidence
from cloister.cli.output import say, table
from cloister.cli.verify import COLOURS, Asked, judged
from cloister.round import Claim, Finding, Verdict
from cloister.round.evidence import file_of
from cloister.round.ledgers import Ledgers
from cloister.seal.labels import fields
from cloister.seal.log import Checkpoint
from cloister.seal.merkle import leaf_hash
from cloister.seal.messages import KeyList, Keys
from cloister.seal.receipt import Receipt
from cloister.seal.roster import Roster
from cloister.vector.errors import CloisterError, MalformedMessage, UsageError

HASH_BYTES = 32
LEAVES = "log/leaves"


class Judged(NamedTuple):
    """One run's folder, what it is about, and what came of it."""

    folder: Path
    facts: dict[str, Any]
    verdict: Verdict


async def fetch_all(analyst: Analyst, out: Path, audit: int, *, quiet: bool) -> dict[Path, Asked]:
    """The evidence of every run that has opened a round, each in a folder of its own under `out`.

    Args: audit: leaves to be shown of each sum that can be audited.
    """
    fetched: dict[Path, Asked] = {}
    async with analyst.connect(say) as client:
        runs = [str(entry["run"]) for entry in (await client.status())["runs"]]
        for run in counted(runs, "runs", quiet):
            folder = out / run[:12]
            if not (await client.result(run))["state"]:
                continue
            await fetch_evidence(client, analyst, run, folder, quiet=True)
            audits = await ask_audits(client, read_evidence(folder), folder, audit, quiet=True) if audit else {}
            fetched[folder] = Asked(audits)
    if not fetched:
        raise UsageError("the coordinator has opened no round yet.", mend="`cloister submit` starts a run.")
    return fetched


def found_in(folder: Path) -> dict[Path, Asked]:
    """The runs that were fetched before. Raises: UsageError: there are none."""
    found = {path.parent: Asked() for path in sorted(folder.glob("*/trust.json"))}
    if not found:
        raise UsageError(f"{folder} holds no folders with evidence.", mend="`cloister verify URL --all --out DIR`.")
    return found


def judge_all(
    folders: dict[Path, Asked], root: bytes | None, site: Path | None, *, quiet: bool
) -> tuple[list[Judged], Claim, Sequence[Finding]]:
    """The verdict on each, and a claim about the log that they share, with what was found about it."""
    runs = [
        Judged(folder, facts, verdict)
        for folder, asked in counted(list(folders.items()), "runs", quiet)
        for verdict, facts in [judged(folder, root, asked, site, True)]
    ]
    whole, found = _whole_log(folders)
    return runs, whole, [*found, *_ledgers(folders)]


def _whole_log(folders: Iterable[Path]) -> tuple[Claim, list[Finding]]:
    """Each verdict holds its own log against its checkpoints; here the longest is held against all receipts."""
    logs: dict[Path, bytes] = {}
    known: set[bytes] = set()
    for folder in folders:
        with contextlib.suppress(MalformedMessage):  # which the folder's own verdict tells
            evidence = read_evidence(folder)
            logs[folder] = evidence.leaves or b""
            known |= {leaf_hash(each.receipt) for each in evidence.rounds}
    longest = max(logs.values(), key=len, default=b"")
    said = "a log that is no beginning of the longest one: it was split."
    split = [
        Finding("StaleReceipt", f"log of {folder.name}", said, file=f"{folder.name}/{LEAVES}")
        for folder, leaves in logs.items()
        if not longest.startswith(leaves)
    ]
    if split:
        return Claim("whole log", "FAILED", split[0].sentence), split
    every = [longest[at : at + HASH_BYTES] for at in range(0, len(longest), HASH_BYTES)]
    unknown = sum(leaf not in known for leaf in every)
    if unknown or not every:
        why = f"{unknown} of its {len(every)} receipts are of runs that are not here"
        return Claim("whole log", "not proven", why), []
    return Claim("whole log", "proven", f"each of its {len(every)} receipts is of a run that was replayed here"), []


class _Shown(NamedTuple):
    """The keys of one receipted round. known: how many receipts of the log were there when it was opened."""

    place: int
    known: int
    where: str
    file: str
    keys: KeyList
    survivors: tuple[str, ...]
    roster: Roster

    def known_to(self, site: Keys) -> int:
        """How many were there when this site sent its keys: it carries the head that it had followed the log to."""
        if not site.checkpoint:
            return self.known
        return max(self.known, Checkpoint.from_text(site.checkpoint.rpartition(b"\n\n")[0] + b"\n").size)


def _ledgers(folders: Iterable[Path]) -> list[Finding]:
    """Privacy ledgers that were put back to an older copy between two runs. Each verdict holds those of its own run;
    what does not parse or is not signed is for it to tell."""
    shown: list[_Shown] = []
    for folder in folders:
        with contextlib.suppress(CloisterError, IndexError, ValueError, StopIteration):
            evidence, known = read_evidence(folder), 0
            rosters = [Roster.from_bytes(fields(signed)[0]) for signed in evidence.rosters]
            log = evidence.leaves or b""
            leaves = [log[at : at + HASH_BYTES] for at in range(0, len(log), HASH_BYTES)]
            for number, each in enumerate(evidence.rounds):
                receipt, place = Receipt.from_bytes(fields(each.receipt)[0]), leaves.index(leaf_hash(each.receipt))
                roster = next(roster for roster in rosters if roster.digest == receipt.roster)
                file, where = file_of("keys", number), f"{folder.name}, round {receipt.plan.round}"
                keys = KeyList.from_bytes(each.keys or b"")
                shown.append(_Shown(place, known, where, f"{folder.name}/{file}", keys, receipt.u3, roster))
                known = place + 1
    ledgers, found = Ledgers(), list[Finding]()
    for one in sorted(shown, key=lambda one: one.place):
        key_of = partial(one.roster.key_of, role="site")
        with contextlib.suppress(CloisterError):
            for fault in ledgers.take(one.place, one.keys.entries, one.survivors, key_of, one.known_to):
                found.append(Finding(fault.name, one.where, fault.message, fault.mend, fault.site, one.file))
    return found


def lines(runs: Sequence[Judged], whole: Claim, findings: Sequence[Finding]) -> list[Any]:
    """What people read."""
    rows = []
    for each in runs:
        open_ = [claim.of for claim in each.verdict.claims if claim.outcome == "not proven"]
        said = "nothing failed" if each.verdict.ok else each.verdict.sentence
        rows.append((each.facts["run"][:12] or each.folder.name, str(each.facts["receipts"]), said, ", ".join(open_)))
    rows.append(("whole log", "", f"[{COLOURS[whole.outcome]}]{whole.outcome}[/]", whole.why))
    found = [f"{each.folder.name}: {finding.sentence}" for each in runs for finding in each.verdict.findings]
    found += [finding.sentence for finding in findings]
    title = f"{len(runs)} runs"
    return [table(title, ("run", "receipts", "outcome", "not proven"), rows, left=(0, 2, 3)), *map(escape, found)]
