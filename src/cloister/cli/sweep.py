"""`cloister sweep`: a grid of simulations over processes."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from cloister.cli.output import AsJson, finish, progress, say, table
from cloister.cli.simulate import bundled_or_refused
from cloister.vector.errors import UsageError

if TYPE_CHECKING:
    from cloister.job import Job
    from cloister.learn.sweep import Sweep


def sweep(
    job_file: Annotated[
        Path | None, typer.Argument(metavar="[JOB.py]", help="The job file; none with --resume.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=V,V,...",
            help="A setting and its values: a field of the job (algorithm.lr, task.batch_size, seed) or an option of "
            "the simulation (sites, partition.alpha). Several make a grid; `seed` is a repetition.",
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="As `cloister simulate` takes it.")] = None,
    sites: Annotated[int | None, typer.Option("--sites", help="Into how many sites one table is cut.")] = None,
    partition: Annotated[str, typer.Option(help="How it is cut, as `cloister simulate` takes it.")] = "skewed",
    processes: Annotated[
        int | None, typer.Option(help="How many cells at a time; one for each core if not given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where cells, table, plots and report.html are written.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="DIR", help="Go on with the interrupted sweep in DIR.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate a job under every combination of some settings: a table, plots, and a report for each."""
    if resume is not None:
        from cloister.simulation.sweep import read_sweep

        if job_file is not None or out is not None or settings:
            raise UsageError("--resume takes job, settings and folder from DIR.", mend="Leave the others out.")
        job, options, chosen = read_sweep(resume)
        known, out = options.pop("data"), resume
        data = data or (Path(known) if known else None)
        say(f"going on with the sweep in {resume}")
    else:
        from cloister.job import load_job

        if job_file is None:
            raise UsageError("there is no job.", mend="Give a job file, or --resume DIR.")
        job, chosen = load_job(job_file), _parsed(settings or [])
        options = {"sites": sites, "partition": partition}
    folder = out or Path(tempfile.mkdtemp(prefix="cloister-sweep-"))
    found = _run(job, data or bundled_or_refused(job.data.target), chosen, folder, processes, options, as_json)
    found.save(folder)
    finish({**found.as_json(), "results": str(folder)}, as_json, _lines(found), f"open {folder}/report.html")


def _parsed(settings: list[str]) -> dict[str, list[Any]]:
    from cloister.simulation.settings import values

    found: dict[str, list[Any]] = {}
    for each in settings:
        name, equals, text = each.partition("=")
        if not equals or not name or not text:
            raise UsageError(f"--set {each} has no values.", mend="Write --set NAME=VALUE,VALUE.")
        if name in found:
            raise UsageError(f"--set names {name} twice.", mend=f"Write --set {name}=... once, with all values.")
        found[name] = values(text)
    return found


def _run(
    job: Job,
    data: object,
    settings: Mapping[str, list[Any]],
    folder: Path,
    processes: int | None,
    options: Mapping[str, Any],
    as_json: bool,
) -> Sweep:
    from cloister.simulation.sweep import sweep as run

    try:
        with _Cells(quiet=as_json) as view:
            return run(job, data, settings, folder=folder, processes=processes, progress=view.event, **options)
    except KeyboardInterrupt:
        say(f"interrupted; finished cells are kept. To go on: cloister sweep --resume {folder}")
        raise


class _Cells:
    """Cells as a live bar (or as lines where standard error is no terminal)."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet, self._cells, self._done = quiet, 0, 0
        columns = (SpinnerColumn(), TextColumn("cells"), BarColumn(bar_width=24), MofNCompleteColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[facts]}"), TimeElapsedColumn(), console=progress)
        self._task: TaskID | None = None
        self._rounds: dict[int, int] = {}

    def __enter__(self) -> _Cells:
        if not self._quiet and sys.stderr.isatty():
            self._task = self._bar.add_task("cells", total=None, facts="")
            self._bar.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._bar.stop()

    def event(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "cells":
            self._cells, self._done = event["cells"], event["done"]
        elif event["event"] == "cell":
            self._rounds[event["cell"]] = event["rounds"]
        else:
            self._done += 1
            self._rounds.pop(event["cell"], None)
            self._outcome(event)
        if self._task is not None:
            working = ", ".join(f"{cell}: round {rounds}" for cell, rounds in sorted(self._rounds.items())[:4])
            self._bar.update(self._task, total=self._cells, completed=self._done, facts=working)

    def _outcome(self, event: Mapping[str, Any]) -> None:
        if self._quiet:
            return
        settings = ", ".join(f"{name}={value}" for name, value in event["settings"].items())
        measured = "  ".join(f"{name} {value:.3f}" for name, value in event["metrics"].items() if value is not None)
        told = f"failed: {event['error']}" if event["error"] else measured
        self._bar.console.print(f"[dim]cell {self._done} of {self._cells}  {settings}:  {told}[/dim]", soft_wrap=True)


def _lines(found: Sweep) -> list[Any]:
    """The summary as a table, the best combination, and what failed."""
    rows, best = found.summary, found.best
    written = []
    for row in rows.to_dict("records"):
        values = []
        for name in found.metrics:
            told = "-" if row[name] is None or row[name] != row[name] else f"{row[name]:.3f}"
            spread = row.get(f"{name}_std")
            values.append(f"{told} ± {spread:.3f}" if spread is not None and spread == spread else told)
        mark = "*" if best is not None and all(row[axis] == best[axis] for axis in found.axes) else ""
        failed = f"{row['failed']} failed" if row["failed"] else ""
        written.append([mark, *(str(row[axis]) for axis in found.axes), *values, failed])
    told = "mean ± deviation over the seeds" if "seed" in found.names and found.axes != ["seed"] else "final models"
    lines: list[Any] = [table(told, ["", *found.axes, *found.metrics, ""], written, left=(0,))]
    if best is not None:
        lines.append(f"* best {found.headline}, on rows that have now chosen it")
    lines += [f"cell {cell.cell} failed: {cell.error}" for cell in found.outcomes if cell.error][:5]
    return lines
