"""A run's evidence: from its coordinator into the results folder, and out of it again (files of `round.evidence`)."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cloister.cli.analyst import Analyst
from cloister.cli.output import progress, say
from cloister.round import Evidence
from cloister.round.evidence import REQUIRED, SUFFIX, Content, file_of, trust_file
from cloister.seal import audit
from cloister.seal.identity import SIGNATURE_BYTES
from cloister.seal.labels import fields, lp
from cloister.seal.receipt import Receipt
from cloister.seal.roster import Roster
from cloister.vector.errors import CloisterError, MalformedMessage, UsageError
from cloister.wire import CoordinatorClient, fetch_roster

FOLDERS = (*SUFFIX, "log")
BARE = ("job.bundle", "state.bundle")  # results have these, and receipts, without further evidence
LARGE = ("totals", "audits")
SIGNED = "job.signature"
NEWEST = "newest"  # the name under which a coordinator's checkpoint is kept
SAVED = {"total": "totals", "keylist": "keys", "consistency": "consistency"}  # as RESULTS and as the folder name them
T = TypeVar("T")


async def fetch_evidence(
    client: CoordinatorClient, analyst: Analyst, run: str, folder: Path, *, quiet: bool = False
) -> int:
    """Saves everything that a run can be verified with offline; evidence of another run that is there goes.

    The roots that it names are those of the analyst's invitation. Every blob is checked against its digest.
    Returns: bytes written. Raises: UsageError: the run has opened no round.
    """
    found = await client.result(run)
    if not found["state"]:
        raise UsageError(f"the run {run[:12]} has opened no round yet.", mend=f"cloister watch {run[:12]}")
    clear(folder)
    size = write(folder, "trust.json", trust_file((analyst.root,), 1))
    for name in ("job", "state"):
        size += write(folder, f"{name}.bundle", await client.fetch(bytes.fromhex(found[name])))
    submitted = await client.fetch(bytes.fromhex(found["submission"]))
    size += write(folder, SIGNED, _signature(submitted))
    for version, signed in enumerate(await _rosters(analyst), 1):
        size += write(folder, file_of("rosters", version), signed)
    for place, each in counted(list(enumerate(found["rounds"])), "evidence", quiet):
        names = {"receipts": found["receipts"][place], **{kind: each[name] for name, kind in SAVED.items()}}
        for kind, name in names.items():
            if name:  # a round from before these were kept has its receipt only
                size += write(folder, file_of(kind, place), await client.fetch(bytes.fromhex(name)))
    note, leaves = await client.log()  # last, so that all receipts are in it
    size += write(folder, f"log/{NEWEST}.checkpoint", note)
    return size + write(folder, "log/leaves", leaves)


def _signature(envelope: bytes) -> bytes:
    """Header and signature of a submission, whose body is the job. Raises: MalformedMessage."""
    parts = fields(envelope[:-SIGNATURE_BYTES])
    if len(parts) != 2:
        raise MalformedMessage("the coordinator shows something else than a submission")
    return lp(parts[0]) + lp(envelope[-SIGNATURE_BYTES:])


async def _rosters(analyst: Analyst) -> list[bytes]:
    """All versions, from the first; they are judged when they are verified."""
    fetch = functools.partial(fetch_roster, analyst.url, analyst.certificate, proxy=analyst.proxy)
    newest = await fetch()
    version = Roster.from_bytes((fields(newest) or [b""])[0]).version
    older = [await fetch(each) for each in range(1, version)]
    return [*older, newest]


async def ask_audits(
    client: CoordinatorClient, evidence: Evidence, folder: Path, count: int, *, quiet: bool = False
) -> dict[str, int]:
    """Challenges every round whose masked vectors are kept, each with a nonce drawn here; the answers are saved.

    Args: count: leaves of each sum to be shown; all of one that has no more.
    Returns: nonces, in hex -> how many leaves were asked for.
    """
    asked: list[tuple[int, str, Receipt]] = []
    found: dict[str, Any] | None = None
    for place, each in enumerate(evidence.rounds):
        try:
            receipt = Receipt.from_bytes(fields(each.receipt)[0])
        except (CloisterError, IndexError):
            continue  # `verify` will say so
        found = found or await client.result(receipt.plan.run.hex())
        if any(row["round"] == receipt.plan.round and row["kept"] for row in found["rounds"]):
            asked.append((place, found["run"], receipt))
    nonces: dict[str, int] = {}
    for place, run, receipt in counted(asked, "audits", quiet):
        nonce = os.urandom(audit.NONCE_BYTES)
        leaves = min(count, audit.leaves(receipt))
        answer = await client.audit(run, receipt.plan.round, nonce, leaves)
        write(folder, file_of("audits", place, nonce.hex()), answer)
        nonces[nonce.hex()] = leaves
    if not asked and not quiet:
        say(
            "nothing was audited: the coordinator keeps no masked vectors of this run (`keep_rounds` in its settings)"
        )
    return nonces


def clear(folder: Path) -> None:
    """Removes the evidence of the run that was saved here before."""
    for name in ("trust.json", SIGNED):
        (folder / name).unlink(missing_ok=True)
    for kind in FOLDERS:
        for stale in (folder / kind).glob("*"):
            stale.unlink()


def write(folder: Path, path: str, data: bytes) -> int:
    """Returns: how many bytes."""
    place = folder / path
    place.parent.mkdir(parents=True, exist_ok=True)
    return place.write_bytes(data)


def read_evidence(folder: Path) -> Evidence:
    """What `fetch` or a simulation saved; sums and audits stay on the disk until they are looked at.

    Raises: UsageError: this is no folder with evidence. MalformedMessage: something is missing; names it.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}.", mend="Give the folder that `cloister fetch` wrote.")
    names = [*REQUIRED, SIGNED, *(f"{kind}/{path.name}" for kind in FOLDERS for path in (folder / kind).glob("*"))]
    files = {name: _content(folder / name) for name in names if (folder / name).is_file()}
    if all(name in BARE or name.startswith("receipts/") for name in files):
        if (folder / "run.json").exists():
            raise UsageError(
                f"{folder} is a simulation without masks: nothing in it is signed.",
                mend="Simulate with --seal masks, or verify the results of a federation.",
            )
        raise UsageError(f"{folder} holds no evidence.", mend="`cloister fetch RUN` saves it with the results.")
    return Evidence.from_files(files)


@dataclass(frozen=True)
class _OnDisk:
    """A large file: read when it is looked at, and not kept open until then."""

    path: Path

    def __bytes__(self) -> bytes:
        return self.path.read_bytes()


def _content(path: Path) -> Content:
    return _OnDisk(path) if path.parent.name in LARGE else path.read_bytes()


def counted(work: list[T], title: str, quiet: bool) -> Iterable[T]:
    """The same, with a bar on standard error where people watch."""
    from rich.progress import track

    hidden = quiet or not progress.is_terminal
    return track(work, title, console=progress, transient=True, disable=hidden)
