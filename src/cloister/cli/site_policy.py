"""`cloister site policy`: read it, change it, and ask what it says to a job before anything runs."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.syntax import Syntax

from cloister.cli.output import AsJson, finish
from cloister.cli.site_folder import SiteOption, site_folder
from cloister.vector.errors import UsageError

if TYPE_CHECKING:
    from cloister.job import Job
    from cloister.round import Policy
    from cloister.site.settings import SiteFolder

app = typer.Typer(help="What this site allows.", no_args_is_help=True)


@app.command()
def show(folder: SiteOption = None, as_json: AsJson = False) -> None:
    """Print policy.toml; with --json every rule as it holds, defaults included, and its line."""
    from cloister.site.settings import SiteFolder

    here = SiteFolder(site_folder(folder))
    policy = here.policy()
    text = (here.root / "policy.toml").read_text("utf-8")
    shown = Syntax(text, "toml", line_numbers=True, background_color="default")
    finish({**policy.model_dump(), "lines": policy.lines}, as_json, [shown], "cloister site policy edit")


@app.command()
def check(folder: SiteOption = None, as_json: AsJson = False) -> None:
    """Say whether policy.toml can be read, and which of its names lead nowhere."""
    from cloister.site.settings import SiteFolder

    here = SiteFolder(site_folder(folder))
    doubts = doubts_about(here)
    lines = [*(f"[yellow]{escape(doubt)}[/yellow]" for doubt in doubts), "policy.toml is in order"]
    finish({"valid": True, "doubts": doubts}, as_json, lines, "cloister site policy explain JOB")


@app.command()
def edit(folder: SiteOption = None, as_json: AsJson = False) -> None:
    """Open a copy in $VISUAL or $EDITOR; it replaces policy.toml only if it can be read."""
    from cloister.site.policy import PolicyFile
    from cloister.site.settings import SiteFolder, write_private

    here = SiteFolder(site_folder(folder))
    path, draft = here.root / "policy.toml", here.root / "policy.draft.toml"
    if not draft.exists():
        write_private(draft, path.read_bytes())
    command = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    try:
        done = subprocess.run([*command, str(draft)], check=False)
    except OSError:
        raise UsageError(f"the editor {command[0]!r} cannot be started.", mend="Set EDITOR.") from None
    if done.returncode:
        raise UsageError(f"the editor ended with exit code {done.returncode}; nothing was changed.")
    text = draft.read_text("utf-8")
    try:
        PolicyFile.parse(text, draft.name)
    except UsageError as fault:
        mend = f"policy.toml still holds as it was. `cloister site policy edit` goes on with {draft}."
        raise UsageError(fault.message, mend=mend) from None
    write_private(path, text.encode("utf-8"))
    draft.unlink()
    told = f"saved; a running agent goes by it from its next decision on ({path})"
    finish({"saved": str(path)}, as_json, [told], "")


@app.command()
def explain(
    job: Annotated[
        str, typer.Argument(metavar="JOB", help="A job file, or 12 or more digits of a digest seen here.")
    ],
    analyst: Annotated[str, typer.Option(help="Who would submit it.")] = "",
    folder: SiteOption = None,
    as_json: AsJson = False,
) -> None:
    """Say yes or no to a job, and by which line of the policy, before anything runs."""
    from cloister.round import decide_job
    from cloister.site.settings import SiteFolder

    here = SiteFolder(site_folder(folder))
    loaded, submitter = job_of(here, job, analyst)
    policy = policy_now(here, loaded)
    decision = decide_job(policy, loaded, submitter)
    word = "yes" if decision.allow else "not yet" if decision.waits else "no"
    told: dict[str, Any] = {"answer": word, "job": loaded.digest.hex(), "analyst": submitter or None}
    told |= {"rule": decision.rule, "line": decision.line, "reason": decision.reason, "mend": decision.mend}
    told["text"] = line_text(here, decision.line)
    style = {"yes": "green", "no": "red", "not yet": "yellow"}[word]
    where = f"line {decision.line}: {told['text']}" if decision.line else f"{decision.rule} is not written down"
    lines = [f"[{style} bold]{word}[/{style} bold]: {escape(decision.reason)}", f"[dim]{escape(where)}[/dim]"]
    if policy.hours is not None and policy.hours != (0, 1440):
        lines.append(f"[dim]rounds are answered in the hours of line {policy.lines.get('allow.hours', 0)}[/dim]")
    told["hours"], told["now"] = policy.hours, time.strftime("%H:%M")
    finish(told, as_json, lines, decision.mend)


def job_of(here: SiteFolder, text: str, analyst: str) -> tuple[Job, str]:
    """A job file on disk, or a job that was announced to this site; and who submitted it, as far as known."""
    from contextlib import closing

    from cloister.job import Job, load_job
    from cloister.site.journal import Journal
    from cloister.site.steward import whole_digest

    if Path(text).is_file():
        from cloister.learn import complete

        return complete(load_job(Path(text))), analyst
    digest = whole_digest(here, text)
    with closing(Journal(here.journal)) as journal:
        seen = [entry.facts["analyst"] for entry in journal.entries("announced") if entry.facts["job"] == digest]
    kept = here.jobs / digest
    if not kept.exists():
        raise UsageError(
            f"job {digest[:12]} is not kept here.", mend="Name a job file, or a digest of `site review`."
        )
    return Job.from_bytes(kept.read_bytes()), analyst or (seen[-1] if seen else "")


def policy_now(here: SiteFolder, job: Job) -> Policy:
    """The rules and the steward's verdict on this job, as the agent would read them now."""
    from cloister.site.verdicts import verdict_on

    digest = job.digest.hex()
    said = verdict_on(here, here.identity().public, digest)
    approved = frozenset({digest} if said and said["verdict"] == "approved" else ())
    denied = {digest: said["reason"]} if said and said["verdict"] == "denied" else {}
    return here.policy().as_policy(approved, denied, here.settings().units)


def line_text(here: SiteFolder, line: int) -> str:
    text = (here.root / "policy.toml").read_text("utf-8").splitlines()
    return text[line - 1].strip() if 0 < line <= len(text) else ""


def doubts_about(here: SiteFolder) -> list[str]:
    """What can be read but hardly be meant. Raises: UsageError: what cannot be read."""
    policy, settings = here.policy(), here.settings()

    def at(rule: str) -> str:
        return f"line {policy.lines[rule]}: " if rule in policy.lines else ""

    doubts = [
        f"{at('allow.datasets')}dataset {name!r} is not bound: `cloister site data add {name} FILE`."
        for name in policy.allow.datasets
        if name not in settings.data
    ]
    doubts += [
        f"{at(f'budget.{name}')}a budget for {name!r}, which is no dataset here."
        for name in policy.budget
        if name not in settings.data
    ]
    if policy.allow.signed_by and policy.allow.code != "signed-by":
        doubts.append(f'{at("allow.signed_by")}signed_by is read only with code = "signed-by".')
    if policy.allow.code == "signed-by" and "*" in policy.allow.signed_by:
        doubts.append(f"{at('allow.signed_by')}code of every analyst runs here unread.")
    if not policy.allow.analysts:
        doubts.append(f"{at('allow.analysts')}no analyst may submit anything.")
    return doubts
