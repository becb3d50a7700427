"""`cloister submit | status | watch | fetch`: what the data scientist types against a real federation."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from cloister.cli.output import AsJson, finish, say, stream, table
from cloister.vector.errors import UsageError

T = TypeVar("T")
Folder = Annotated[Path, typer.Option("--folder", "-f", help="The analyst's folder.")]
Run = Annotated[str, typer.Argument(help="The run's id, as `submit` printed it, or its first characters.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where the results are written.")]
DEFAULT_FOLDER = Path("analyst")
DEFAULT_OUT = Path("results")


def submit(
    job_file: Annotated[Path, typer.Argument(metavar="JOB.py", help="The job file.")],
    invitation: Annotated[str | None, typer.Option(help="The first time: the invitation, cloister1:...")] = None,
    proxy: Annotated[
        str, typer.Option(metavar="URL", help="The first time: the way out, http://[USER:PASSWORD@]HOST:PORT.")
    ] = "",
    proxy_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The first time: PEM of the CA of a proxy that opens TLS.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run to its end and fetch its results.")] = False,
    out: Out = DEFAULT_OUT,
    folder: Folder = DEFAULT_FOLDER,
    as_json: AsJson = False,
) -> None:
    """Sign a job and hand it to the coordinator; with --wait also watch it and fetch its results."""
    from cloister.cli.analyst import Analyst
    from cloister.cli.results import summary
    from cloister.job import load_job
    from cloister.learn import complete

    job = complete(load_job(job_file))

    async def act() -> tuple[str, dict[str, Any] | None]:
        joined = Analyst.join(invitation, folder, proxy, proxy_ca) if invitation else None
        analyst = await joined if joined else Analyst.open(folder)
        async with analyst.connect(say) as client:
            run = await client.submit(job.to_bytes())
            if not wait:
                return run, None
            await _watch(client, run, as_json)
            return run, await _fetch(client, analyst, run, out, quiet=as_json)

    run, saved = _do(act())
    result = {"run": run, "job": job.digest.hex(), **(saved or {})}
    lines = [f"run [bold]{run[:12]}[/bold] of job {job.digest.hex()[:12]}"]
    if saved:
        finish(result, as_json, [*lines, *summary(saved)], f"open {saved['results']}/report.html")
    else:
        finish(result, as_json, lines, f"cloister watch {run[:12]}")


def status(
    run: Annotated[str, typer.Argument(help="A run's id or its first characters; none lists all.")] = "",
    folder: Folder = DEFAULT_FOLDER,
    as_json: AsJson = False,
) -> None:
    """The federation's sites and runs, or one run."""
    from cloister.cli.analyst import Analyst

    async def act() -> dict[str, Any]:
        async with Analyst.open(folder).connect(say) as client:
            return await client.status(await full_id(client, run) if run else "")

    found = _do(act())
    finish(found, as_json, _status_lines(found), "" if run else "cloister watch RUN")


def watch(run: Run, folder: Folder = DEFAULT_FOLDER, as_json: AsJson = False) -> None:
    """Follow a run's events until it ends."""
    from cloister.cli.analyst import Analyst

    async def act() -> str:
        async with Analyst.open(folder).connect(say) as client:
            full = await full_id(client, run)
            await _watch(client, full, as_json)
            return full

    full = _do(act())
    if not as_json:
        finish({}, False, [], f"cloister fetch {full[:12]}")


def fetch(
    run: Run,
    out: Out = DEFAULT_OUT,
    evidence: Annotated[
        bool, typer.Option(help="Also save what `cloister verify` needs: opened sums, signed messages, log.")
    ] = True,
    folder: Folder = DEFAULT_FOLDER,
    as_json: AsJson = False,
) -> None:
    """Fetch a finished run: model, history, report, receipts, and the evidence that `cloister verify` replays."""
    from cloister.cli.analyst import Analyst
    from cloister.cli.results import summary

    async def act() -> dict[str, Any]:
        analyst = Analyst.open(folder)
        async with analyst.connect(say) as client:
            return await _fetch(client, analyst, await full_id(client, run), out, evidence, quiet=as_json)

    saved = _do(act())
    finish(saved, as_json, summary(saved), f"open {saved['results']}/report.html")


def _do(action: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(action)


async def full_id(client: Any, run: str, *, newest: bool = False) -> str:
    """The run whose id begins with `run`, or the newest one that is over. Raises: UsageError: none, or several."""
    runs = (await client.status())["runs"]
    found = [str(entry["run"]) for entry in runs if str(entry["run"]).startswith(run)]
    if newest:
        found = [str(entry["run"]) for entry in runs if entry["status"] != "running"][-1:]
    if len(found) != 1:
        what = "no run" if not found else f"{len(found)} runs"
        raise UsageError(f"{what} begins with {run!r}.", mend="`cloister status` lists them.")
    return found[0]


async def _watch(client: Any, run: str, as_json: bool) -> None:
    from cloister.cli.analyst import follow

    async for event in follow(client, run):
        stream(event, as_json)


async def _fetch(
    client: Any, analyst: Any, run: str, out: Path, evidence: bool = True, *, quiet: bool
) -> dict[str, Any]:
    from cloister.cli.evidence import clear, fetch_evidence
    from cloister.cli.results import fetch_result

    result = await fetch_result(client, run)
    clear(out)
    await asyncio.to_thread(result.save, out)
    size = await fetch_evidence(client, analyst, run, out, quiet=quiet) if evidence else 0
    return {"results": str(out), "evidence_bytes": size, **result.as_json()}


def _status_lines(found: dict[str, Any]) -> list[Any]:
    lines: list[Any] = []
    for name, entries in found.items():
        if isinstance(entries, list) and entries and isinstance(entries[0], dict):
            columns = list(entries[0])
            rows = [[str(entry.get(column, "")) for column in columns] for entry in entries]
            lines.append(table(name, columns, rows))
        else:
            lines.append(f"{name}: {entries}")
    return lines
