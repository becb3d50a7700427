"""A run's results as an analyst gets them from the coordinator, and their summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cloister.cli.output import size, table
from cloister.job import Job
from cloister.round.private import statement
from cloister.vector import State
from cloister.vector.errors import UsageError
from cloister.wire import CoordinatorClient

if TYPE_CHECKING:
    from cloister.learn.result import Result


async def fetch_result(client: CoordinatorClient, run: str) -> Result:
    """The model, history and receipts of a finished run; every blob is checked against its digest.

    Raises: UsageError: the run has no result yet, or ended before it had a model.
    """
    from cloister.learn.result import Result

    found = await client.result(run)
    if found["status"] == "running":
        raise UsageError(f"the run {run[:12]} has no result yet.", mend=f"cloister watch {run[:12]}")
    state = State.from_bytes(await client.fetch(bytes.fromhex(found["state"]))) if found["state"] else None
    if state is None or "model" not in state.tensors:
        raise UsageError(
            f"the run {run[:12]} is {found['status']} and never had a model: there is nothing to fetch.",
            mend=f"`cloister watch {run[:12]}` says why it ended; submit the job again.",
        )
    job = Job.from_bytes(await client.fetch(bytes.fromhex(found["job"])))
    receipts = [await client.fetch(bytes.fromhex(name)) for name in found["receipts"]]
    events = await client.events(run, hold_seconds=0)
    cohort = min((event["sites"] for event in events if event["event"] == "round"), default=0)
    return Result(job, state, statement(job, state, "sealed", cohort), events, receipts)


def summary(facts: Mapping[str, Any]) -> list[Any]:
    """`Result.as_json()` for people."""
    lines: list[Any] = [f"job {facts['job'][:12]}, model {facts['model_sha256'][:12]}"]
    compared = facts.get("comparison")
    if compared:
        models = {"local-only (mean)": compared["local_mean"], "federated": compared["federated"]}
        models["pooled"] = compared["pooled"]
        rows = [
            [name, *(_number(scores.get(key)) for key in compared["federated"])] for name, scores in models.items()
        ]
        lines.append(table("on all sites' test rows", ["model", *compared["federated"]], rows))
    elif facts["metrics"]:
        rows = [[name, _number(value)] for name, value in facts["metrics"].items()]
        lines.append(table("final model, measured by sums over sites", ["metric", "value"], rows))
    lines.append(facts["privacy"]["sentence"])
    if "results" in facts:
        lines.append(f"results in [bold]{facts['results']}[/bold]")
    if facts.get("evidence_bytes"):
        lines.append(f"evidence: {size(facts['evidence_bytes'])} beside them; cloister verify {facts['results']}")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
