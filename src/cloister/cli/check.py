"""`cloister check`: what a steward will see of a job, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli.output import AsJson, facts, finish, size

if TYPE_CHECKING:
    from cloister.job import Job

Data = Annotated[
    Path | None, typer.Option("--data", help="A folder with one CSV per site, to check the contract on as well.")
]


def check(
    job_file: Annotated[Path, typer.Argument(metavar="JOB.py", help="The job file.")],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Read a job as a steward would: what it computes, what leaves a site, which code it ships."""
    from cloister.job import load_job
    from cloister.learn import complete

    job = complete(load_job(job_file))
    found = describe(job)
    if data is not None:
        found |= check_data(job, data)
    lines = [facts(f"job {found['digest'][:12]}", found)]
    finish(found, as_json, lines, f"cloister simulate {job_file} --data FOLDER" if data is None else "")


def describe(job: Job) -> dict[str, Any]:
    """What the manifest says, in words."""
    settings = job.algorithm.as_json()
    prepare = [type(step).__name__ for step in job.prepare]
    return {
        "digest": job.digest.hex(),
        "computes": f"a {job.kind} model of {job.data.target!r} on {job.data.name!r}: {type(job.task).__name__}",
        "algorithm": ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None),
        "columns": columns_read(job),
        "prepare": ", ".join(prepare) or "nothing",
        "leaves": "one masked vector a question; never a row, a row count, a metric or a model of this site",
        "code": "none" if not job.ships_code else f"{len((job.source or '').splitlines())} lines of Python",
        "privacy": "sums are sealed; no differential privacy",
        "bits": job.bits,
    }


def columns_read(job: Job) -> str:
    """What of a site's data the training code sees, in words."""
    from cloister.job import Table

    if not isinstance(job.data, Table):
        return f"arrays x of shape [rows, {', '.join(map(str, job.data.shape))}], and y"
    if job.data.columns is None:
        return "all but " + ", ".join((job.data.target, *job.data.ignore))
    return ", ".join(sorted(job.data.columns))


def check_data(job: Job, folder: Path) -> dict[str, Any]:
    """Checks the contract on every table of a folder and measures what would leave. Raises: DataError."""
    from cloister import learn
    from cloister.job import Table
    from cloister.round import Program
    from cloister.simulation.data import columns_of, shards_of
    from cloister.vector import FixedPoint

    tables = shards_of(job, folder, None, "skewed")
    features = columns_of(job, tables)
    for site, frame in tables.items():
        if isinstance(job.data, Table):
            learn.check(job.data, frame, site, features)
        else:
            learn.Trainer(job, frame, site)
    program = Program(job, features)
    first = program.ask(program.start())
    assert first is not None
    words = FixedPoint(first.sealed_layout, len(tables), job.bits).size
    return {
        "sites": ", ".join(tables),
        "features": f"{len(features)}: {', '.join(features)}",
        "first question": f"{first.task}: {words} words, {size(words * job.bits / 8)} up for each site",
    }
