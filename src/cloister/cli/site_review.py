"""What a steward needs to know of a job: who signed it, what would leave, what it costs, its code, what looks odd."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.markup import escape
from rich.syntax import Syntax

from cloister.cli.check import columns_read, describe
from cloister.cli.output import facts, size, table

if TYPE_CHECKING:
    from cloister.job import Job
    from cloister.site.settings import SiteFolder

GUESSED_ROWS = 1000  # rows all sites have together; it moves no size, only where a cost depends on it
LEVELS = {"danger": "bold red", "look": "yellow", "fine": "green"}


def jobs_seen(here: SiteFolder) -> list[dict[str, Any]]:
    """The jobs announced to this site, newest first: {"job", "name", "analyst", "at", "runs", "state"}."""
    from cloister.site.journal import Journal
    from cloister.site.steward import waiting_runs
    from cloister.site.verdicts import verdict_on

    found: dict[str, dict[str, Any]] = {}
    public = here.identity().public
    with closing(Journal(here.journal)) as journal:
        waiting = {run["job"] for run in waiting_runs(journal).values()}
        for entry in journal.entries("announced"):
            job = found.setdefault(entry.facts["job"], {"job": entry.facts["job"], "runs": []})
            job |= {"name": entry.facts["name"], "analyst": entry.facts["analyst"], "at": entry.at}
            job["runs"].append(entry.facts["run"])
    for digest, job in found.items():
        said = verdict_on(here, public, digest)
        job["verdict"] = said
        job["state"] = "waits" if digest in waiting and said is None else said["verdict"] if said else "by rule"
    return sorted(found.values(), key=lambda job: job["at"], reverse=True)


def page_of(here: SiteFolder, seen: dict[str, Any]) -> dict[str, Any]:
    """One job as a page: everything that a steward decides by, as JSON values. Args: seen: of `jobs_seen`."""
    from cloister.cli.site_policy import line_text, policy_now
    from cloister.job import Job
    from cloister.job.lint import lint
    from cloister.round import decide_job

    path = here.jobs / seen["job"]
    if not path.exists():
        return {**seen, "kept": False}
    job = Job.from_bytes(path.read_bytes())
    told = describe(job)
    decision = decide_job(policy_now(here, job), job, seen["analyst"])
    before, diff = diff_to_approved(here, job)
    return {
        **seen,
        "kept": True,
        "computes": told["computes"],
        "algorithm": told["algorithm"],
        "dataset": job.data.name,
        "columns": columns_read(job),
        "rounds": job.algorithm.rounds,
        "questions": questions_of(here, job),
        "privacy": privacy_of(here, job),
        "decision": {
            "allow": decision.allow,
            "waits": decision.waits,
            "rule": decision.rule,
            "reason": decision.reason,
            "line": decision.line,
            "text": line_text(here, decision.line),
        },
        "source": job.source,
        "lines": len((job.source or "").splitlines()),
        "before": before,
        "diff": diff,
        "notes": [vars(note) for note in lint(job)],
    }


def questions_of(here: SiteFolder, job: Job) -> list[dict[str, Any]]:
    """What would leave: every kind of question with the length and bound of its answer, as the program would ask it.

    Nothing of this site's rows is read: sums are played as zeros over its columns, so a table whose categories are
    found by the federation has at least this many words.
    """
    import numpy as np

    from cloister.round import Program
    from cloister.vector import CloisterError, FixedPoint, Total

    asked: dict[str, dict[str, Any]] = {}
    try:
        program = Program(job, job.data.resolve({"here": _columns(here, job.data.name)}))
        state = program.start()
        for _ in range(8):
            query = program.ask(state)
            if query is None or query.task in asked:
                break
            coder = FixedPoint(query.sealed_layout, 3, job.bits)
            bounds = {block.name: block.clip or block.bound for block in query.layout.blocks}
            asked[query.task] = {
                "task": query.task,
                "words": coder.size,
                "bits": job.bits,
                "bytes": math.ceil(coder.size * job.bits / 8),
                "blocks": [
                    {
                        "name": block.name,
                        "size": block.size,
                        "bound": bounds[block.name],
                        "norm": block.clip is not None,
                    }
                    for block in query.layout.blocks
                ],
            }
            zeros = {block.name: np.zeros(block.shape) for block in query.layout.blocks}
            state = program.learn(state, Total(zeros, GUESSED_ROWS, 0, query.max_rows, 3))
    except (CloisterError, ArithmeticError, KeyError, AssertionError):
        pass  # what was asked so far is shown; the agent checks every real question's length against the policy
    return list(asked.values())


def _columns(here: SiteFolder, dataset: str) -> dict[str, str]:
    try:
        kept = json.loads((here.root / "profiles" / f"{dataset}.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    unit = here.settings().units.get(dataset)
    return {name: about["kind"] for name, about in kept["columns"].items() if name != unit}


def privacy_of(here: SiteFolder, job: Job) -> dict[str, Any]:
    """What the job would cost of its dataset's budget, and what is left of that."""
    from cloister.round.decide import privacy_unit

    unit, budget = privacy_unit(job), here.policy().budget.get(job.data.name)
    told: dict[str, Any] = {"unit": unit, "epsilon": None, "delta": None, "budget": None, "spent": None}
    if job.privacy is not None:
        told |= {"epsilon": job.privacy.epsilon, "delta": job.privacy.delta}
        told["sentence"] = (
            f"hides {unit}: epsilon {job.privacy.epsilon:g} at delta {job.privacy.delta:g} for the whole job"
        )
    else:
        told["sentence"] = "exact sums over the sites: what they reveal is not bounded by differential privacy"
    if budget is not None:
        spent = spent_of(here, job.data.name, budget.delta)
        told |= {"budget": budget.epsilon, "budget_delta": budget.delta, "spent": spent}
    return told


def spent_of(here: SiteFolder, dataset: str, delta: float) -> float | None:
    """Epsilon that the ledger has for a dataset so far; None if it has not been opened."""
    from cloister.site.ledger import Ledger, accounts, dataset_key

    source = here.settings().data.get(dataset)
    if source is None or not here.ledger.exists():
        return None
    with closing(Ledger(here.ledger)) as ledger:
        key = dataset_key(source.where, source.unit)
        return next((each.epsilon(delta) for each in accounts(ledger.entries()) if each.dataset == key), 0.0)


def diff_to_approved(here: SiteFolder, job: Job) -> tuple[str | None, list[str]]:
    """The digest of the last approved job on the same dataset, and the unified diff of its code to this one's."""
    from cloister.job import Job
    from cloister.site.verdicts import verdict_on

    public, digest = here.identity().public, job.digest.hex()
    approved = []
    for path in here.verdicts.glob("*") if here.verdicts.is_dir() else ():
        said = verdict_on(here, public, path.name)
        if said and said["verdict"] == "approved" and path.name != digest and (here.jobs / path.name).exists():
            other = Job.from_bytes((here.jobs / path.name).read_bytes())
            if other.data.name == job.data.name and other.source is not None:
                approved.append((said["at"], path.name, other.source))
    if not approved:
        return None, []
    _, name, source = max(approved)
    lines = difflib.unified_diff(
        source.splitlines(),
        (job.source or "").splitlines(),
        f"approved {name[:12]}",
        f"this {digest[:12]}",
        lineterm="",
    )
    return name, list(lines)


def as_text(page: dict[str, Any]) -> Iterator[Any]:
    """The page for a terminal: rich renderables, top to bottom."""
    about = {
        "digest": page["job"],
        "signed by": f"{page['analyst']}, received {page['at']}",
        "state": page["state"],
    }
    if not page["kept"]:
        yield facts(page["name"], about)
        yield "[yellow]the job's bundle is not kept here any more[/yellow]"
        return
    about |= {"computes": page["computes"], "algorithm": page["algorithm"], "columns read": page["columns"]}
    about |= {"privacy": page["privacy"]["sentence"], "budget": budget_text(page["privacy"])}
    yield facts(page["name"], about)
    rows = [
        (each["task"], f"{each['words']:,}", str(each["bits"]), size(each["bytes"]), bounds_text(each))
        for each in page["questions"]
    ]
    yield table("what would leave, masked", ("question", "words", "bits", "bytes", "bounds"), rows, (0, 4))
    yield "never: a row, this site's row count, metrics or model"
    yield Group("", "[bold]findings[/bold]")
    for note in page["notes"]:
        where = f"{note['tensor']}: " if note["tensor"] else ""
        yield f"[{LEVELS[note['level']]}]{note['level']}[/] {escape(where + note['text'])} {escape(note['mend'])}"
    if page["source"] is not None:
        yield Group("", f"[bold]code[/bold]: {page['lines']} lines")
        if page["before"]:
            yield Syntax("\n".join(page["diff"]) or "no change", "diff", background_color="default")
        yield Syntax(page["source"], "python", line_numbers=True, background_color="default")
    decision = page["decision"]
    word = (
        "[green]allowed[/green]"
        if decision["allow"]
        else "[yellow]waits[/yellow]"
        if decision["waits"]
        else "[red]no[/red]"
    )
    where = f"policy.toml, line {decision['line']}: {decision['text']}" if decision["line"] else decision["rule"]
    yield f"\n{word}: {escape(decision['reason'])} [dim]{escape(where)}[/dim]"


def budget_text(privacy: dict[str, Any]) -> str:
    """What remains of the dataset's budget."""
    if privacy["budget"] is None:
        return "the policy sets none for this dataset"
    spent = privacy["spent"] or 0.0
    left = max(privacy["budget"] - spent, 0.0)
    return (
        f"epsilon {spent:.3g} of {privacy['budget']:g} spent, {left:.3g} left (at delta {privacy['budget_delta']:g})"
    )


def bounds_text(question: dict[str, Any]) -> str:
    blocks = question["blocks"]
    told = [f"{each['name']} {'length ' if each['norm'] else ''}<= {each['bound']:.3g}" for each in blocks[:3]]
    return ", ".join(told) + (f", {len(blocks) - 3} more" if len(blocks) > 3 else "")
