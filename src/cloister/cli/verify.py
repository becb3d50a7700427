"""`cloister verify`: replays a run from its evidence, and says what is proven, what is not, and what failed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.markup import escape

from cloister.cli.output import AsJson, finish, progress, say, table
from cloister.vector.errors import CloisterError, MalformedMessage, UsageError

if TYPE_CHECKING:
    from cloister.cli.analyst import Analyst
    from cloister.round import Evidence, Verdict


FULL = 44  # challenges that find an altered tenth of a sum with 99%
SHOWN = 20  # findings, one by one
KEY = re.compile("[0-9a-fA-F]{64}")
RUN = re.compile("[0-9a-f]{1,32}")
MADE = {"model.safetensors": "final state", "job.json": "job"}  # what is made of what
COLOURS = {"proven": "green", "not proven": "yellow", "FAILED": "bold red"}


def verify(
    target: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|URL|RUN",
            help="A results folder; or a run to be fetched first: https://HOST:PORT/RUN or its id. Without RUN, or"
            " for an analyst's folder: the newest that is over.",
        ),
    ],
    root: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|HEX",
            help="The federation's public root key: 64 hex digits, or a file with them; analyst.json and a site's"
            " pinned.json serve too.",
        ),
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="A site's folder: what it remembers of the run must agree, and its root key serves as --root.",
        ),
    ] = None,
    audit: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Challenge the coordinator to show N pieces of each sum whose masked vectors it keeps.",
        ),
    ] = 0,
    every: Annotated[
        bool,
        typer.Option("--all", help="Every run of the coordinator, or in a folder of such folders: the whole log."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="With a URL or a run: where results and evidence are kept.")
    ] = None,
    folder: Annotated[
        Path, typer.Option("--folder", "-f", help="The analyst's folder, to reach the coordinator with.")
    ] = Path("analyst"),
    as_json: AsJson = False,
) -> None:
    """Replay a run from its evidence: signatures, receipts, log, every step of the model; exit 1 if a check fails."""
    pinned, dialled = read_root(root) if root else None, _dialled(target, folder)
    if every:
        _verify_all(target, dialled, pinned, site, audit, out, as_json)
        return
    here = Path(target)
    if dialled:
        analyst, run = dialled
        with _kept(out) as here:
            asked = asyncio.run(_fetch(analyst, run, here, audit, as_json, whole=out is not None))
            verdict, facts = judged(here, pinned or analyst.root, asked, site, as_json)
    elif out is not None:
        raise UsageError("--out goes with a URL or a run.", mend=f"{target} is kept where it is.")
    elif audit:
        from cloister.cli.analyst import Analyst

        analyst = Analyst.open(folder)
        asked = asyncio.run(_audit(analyst, here, audit, as_json))
        verdict, facts = judged(here, pinned or analyst.root, asked, site, as_json)
    else:
        verdict, facts = judged(here, pinned, Asked(), site, as_json)
    _report(verdict, {"target": str(out or target), **facts}, audited=audit > 0, as_json=as_json)


def _verify_all(
    target: str,
    dialled: tuple[Analyst, str] | None,
    root: bytes | None,
    site: Path | None,
    audit: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Raises: Exit: 1 where a check of any run failed."""
    from cloister.cli import verify_all

    with contextlib.ExitStack() as held:
        if dialled:
            analyst, root = dialled[0], root or dialled[0].root
            kept = held.enter_context(_kept(out))
            folders = asyncio.run(verify_all.fetch_all(analyst, kept, audit, quiet=as_json))
        elif audit:
            raise UsageError("--audit asks the coordinator.", mend="Give its URL, or one run's folder.")
        else:
            folders = verify_all.found_in(Path(target))
        runs, whole, found = verify_all.judge_all(folders, root, site, quiet=as_json)
    ok = not found and all(each.verdict.ok for each in runs)
    told = {"ok": ok, "runs": [{**each.facts, **each.verdict.as_json()} for each in runs]}
    told |= {"whole_log": vars(whole), "findings": [vars(finding) for finding in found]}
    finish(told, as_json, verify_all.lines(runs, whole, found), "")
    if not ok:
        raise typer.Exit(1)


def _report(verdict: Verdict, facts: dict[str, Any], *, audited: bool, as_json: bool) -> None:
    """Raises: Exit: 1 where a check failed."""
    from cloister.round.evidence import SIMULATION

    simulated, step = facts["federation"] == SIMULATION, ""
    if verdict.ok and not audited and not simulated:
        step = f"cloister verify {facts['target']} --audit {FULL}"
    rows = [
        (claim.of, f"[{COLOURS[claim.outcome]}]{claim.outcome}[/]", escape(claim.why)) for claim in verdict.claims
    ]
    of = "a simulation" if simulated else f"federation {facts['federation'] or 'unknown'}"
    title = f"{facts['target']}: {of}, run {facts['run'][:12] or 'unknown'}, {facts['receipts']} receipts"
    lines: list[Any] = [table(title, ("claim", "outcome", "why"), rows, left=(0, 1, 2))]
    lines += [f"[red]found:[/red] {escape(finding.sentence)}" for finding in verdict.findings[:SHOWN]]
    if len(verdict.findings) > SHOWN:
        lines.append(f"... and {len(verdict.findings) - SHOWN} more; --json lists all")
    lines.append(f"[bold {'green' if verdict.ok else 'red'}]verdict:[/] {verdict.sentence}")
    finish({**facts, **verdict.as_json()}, as_json, lines, step)
    if not verdict.ok:
        raise typer.Exit(1)


# what is asked of a coordinator


@dataclass(frozen=True)
class Asked:
    """What a coordinator said just now. Attributes: audits: nonce in hex -> leaves asked for. note,
    leaves: of its log."""

    audits: Mapping[str, int] = field(default_factory=dict)
    note: bytes = b""
    leaves: bytes = b""


def _dialled(target: str, folder: Path) -> tuple[Analyst, str] | None:
    """Whom to ask and for which run, where `target` is no folder with evidence: a run or an analyst's folder.

    Returns: the analyst, and the run's first characters, "" for the newest.
    Raises: UsageError: no analyst's folder, or one for another coordinator.
    """
    from cloister.cli.analyst import Analyst

    here, where = Path(target), urlsplit(target)
    if (here / "analyst.json").exists():
        return Analyst.open(here), ""
    if here.exists() or not (where.scheme or RUN.fullmatch(target)):
        return None
    analyst = Analyst.open(folder)
    if where.scheme and f"{where.scheme}://{where.netloc}" != analyst.url.rstrip("/"):
        raise UsageError(
            f"{analyst.folder} is for the coordinator at {analyst.url}.",
            mend="Give that address and the run, https://HOST:PORT/RUN, or another --folder.",
        )
    return analyst, where.path.strip("/")  # of an id alone it is the whole


@contextmanager
def _kept(out: Path | None) -> Iterator[Path]:
    """Where what is fetched lies: for good, or until it is verified."""
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="cloister-verify-") as folder:
        yield Path(folder)


async def _fetch(analyst: Analyst, run: str, folder: Path, audit: int, quiet: bool, *, whole: bool) -> Asked:
    """Args: run: its first characters; "" for the newest one that is over. whole: also model, history and report."""
    from cloister.cli.evidence import ask_audits, fetch_evidence, read_evidence
    from cloister.cli.results import fetch_result
    from cloister.cli.runs import full_id

    async with analyst.connect(say) as client:
        id = await full_id(client, run, newest=not run)
        if whole:
            (await fetch_result(client, id)).save(folder)
        await fetch_evidence(client, analyst, id, folder, quiet=quiet)
        if not audit:
            return Asked()
        return Asked(await ask_audits(client, read_evidence(folder), folder, audit, quiet=quiet))


async def _audit(analyst: Analyst, folder: Path, count: int, quiet: bool) -> Asked:
    """Audits what a folder holds, and compares its log with the one that the coordinator shows now."""
    from cloister.cli.evidence import ask_audits, read_evidence

    evidence = read_evidence(folder)
    async with analyst.connect(say) as client:
        audits = await ask_audits(client, evidence, folder, count, quiet=quiet)
        return Asked(audits, *await client.log())


# what is judged


def judged(
    folder: Path, root: bytes | None, asked: Asked, site: Path | None, quiet: bool
) -> tuple[Verdict, dict[str, Any]]:
    """The verdict on a folder, and what it is about."""
    from cloister.cli.evidence import read_evidence
    from cloister.cli.memory import compared, remembered, with_head
    from cloister.round import verify as replay

    facts: dict[str, Any] = {"federation": "", "run": "", "receipts": 0}
    try:
        evidence = read_evidence(folder)
    except MalformedMessage as fault:
        return _unreadable(fault), facts
    facts |= _about(evidence)
    memory = None if site is None else remembered(site, facts["run"])
    if root is None and memory is not None:
        root = memory.root
    if root is not None:
        _not_private(root, evidence)
        evidence = evidence.trusting(root)
    if asked.note:
        evidence = _with_log(evidence, asked)
    if memory is not None:
        evidence = with_head(evidence, memory)
    with _watched(quiet) as told:
        verdict = _with_model(replay(evidence, asked=asked.audits, told=told), folder, evidence)
    return verdict if memory is None else compared(verdict, evidence, memory), facts


def _unreadable(fault: CloisterError) -> Verdict:
    """The verdict where a file is missing or cannot be read at all; the message begins with its name."""
    from cloister.round import Claim, Finding, Verdict

    finding = Finding(fault.name, "folder", fault.message, fault.mend, file=fault.message.split()[0].rstrip(":"))
    return Verdict((Claim("evidence", "FAILED", finding.sentence),), (finding,))


def _about(evidence: Evidence) -> dict[str, Any]:
    """What the evidence says of itself, unverified."""
    from cloister.seal.labels import fields
    from cloister.seal.receipt import Receipt

    said = {"federation": "", "run": "", "receipts": len(evidence.rounds)}
    with contextlib.suppress(CloisterError, IndexError):
        plan = Receipt.from_bytes(fields(evidence.rounds[0].receipt)[0]).plan
        said |= {"federation": plan.federation, "run": plan.run.hex()}
    return said


def _with_log(evidence: Evidence, asked: Asked) -> Evidence:
    """The evidence judged by the log that the coordinator shows now: every head at hand must be one of it.

    One that is not shorter and yet begins otherwise is judged by the folder's: then the new head is none of it.
    """
    notes, held = {**evidence.checkpoints, "now": asked.note}, evidence.leaves or b""
    grown = asked.leaves.startswith(held) or len(asked.leaves) < len(held)
    return replace(evidence, leaves=asked.leaves if grown else held, checkpoints=notes)


def _with_model(verdict: Verdict, folder: Path, evidence: Evidence) -> Verdict:
    """With a claim about model.safetensors and job.json, which are made anew from the state and the job.

    Bytes are compared: what is written is a function of state and job.
    """
    from cloister.round import Claim, Finding

    of, missing = "model file", [name for name in MADE if not (folder / name).is_file()]
    if missing:
        return verdict.also(Claim(of, "not proven", f"there is no {missing[0]}"))
    try:
        expected = _made(evidence)
    except (CloisterError, KeyError):  # a run that ended before it had a model; or `verify` found the reason
        return verdict.also(Claim(of, "not proven", "the job and the state give no model to compare with"))
    wrong = [name for name in MADE if (folder / name).read_bytes() != expected[name]]
    found = [Finding("BadModel", "folder", f"it is not what the {MADE[name]} says", file=name) for name in wrong]
    if found:
        return verdict.also(Claim(of, "FAILED", found[0].sentence), found)
    why = "model.safetensors and job.json are made of that state and job; history.csv and report.html are for reading"
    return verdict.also(Claim(of, "proven", why))


def _made(evidence: Evidence) -> dict[str, bytes]:
    from cloister.job import Job
    from cloister.learn.result import Result
    from cloister.round.private import statement
    from cloister.vector import State

    job, state = Job.from_bytes(evidence.job), State.from_bytes(evidence.state)
    result = Result(job, state, statement(job, state, "sealed", 3))
    return {"model.safetensors": result.model_bytes, "job.json": result.job_text}


# who is trusted


def read_root(text: str) -> bytes:
    """The public root key from 64 hex digits, or from a file: with these, an analyst.json or a site's pinned.json.

    Raises: UsageError.
    """
    if KEY.fullmatch(text):
        return bytes.fromhex(text)
    try:
        content = Path(text).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"--root {text} is no key and no file with one.", mend="It is 64 hex digits.") from None
    if content.startswith("{"):
        with contextlib.suppress(ValueError):
            pinned = json.loads(content)
            content = str(pinned.get("root") or pinned.get("root_key"))
    if not KEY.fullmatch(content):
        raise UsageError(f"{text} holds no root key.", mend="It is one line of 64 hex digits, or an analyst.json.")
    return bytes.fromhex(content)


def _not_private(root: bytes, evidence: Evidence) -> None:
    """Raises: UsageError: the private root key was given. It only says so, and never trusts the public one instead:
    from a *public* key that somebody keeps in a file, anybody could derive a "private" one in the same way."""
    from cloister.seal.identity import Identity
    from cloister.seal.labels import fields
    from cloister.seal.roster import Roster

    try:
        public, roots = Identity.from_bytes(root).public, Roster.from_bytes(fields(evidence.rosters[0])[0]).roots
    except (CloisterError, IndexError):
        return  # `verify` will say so
    if public in roots:
        raise UsageError(
            "that is the private root key: whoever has it can invent sites.",
            mend=f"Keep it offline. Its public key: --root {public.hex()}",
        )


@contextmanager
def _watched(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Says what is looked at now, where people watch."""
    if quiet or not progress.is_terminal:
        yield lambda what: None
        return
    with progress.status("verifying") as status:
        yield lambda what: status.update(f"verifying: {what}")
