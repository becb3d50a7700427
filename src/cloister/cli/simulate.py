"""`cloister simulate`: a job in one process, over tables at hand."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.output import AsJson, finish, say
from cloister.vector.errors import UsageError


class Seal(StrEnum):
    ideal = "ideal"
    masks = "masks"


def simulate(
    job_file: Annotated[Path, typer.Argument(metavar="JOB.py", help="The job file.")],
    data: Annotated[
        Path | None, typer.Option("--data", help="A folder with one CSV per site, or one CSV to be cut into --sites.")
    ] = None,
    sites: Annotated[int | None, typer.Option("--sites", help="Into how many sites one table is cut.")] = None,
    seal: Annotated[Seal, typer.Option(help="ideal: the same integers, not masked; masks: the real sealed sum.")] = (
        Seal.ideal
    ),
    seed: Annotated[int | None, typer.Option(help="Instead of the job's own.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also train each site alone, and all rows pooled.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where the results are written.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a job as a federation would, in one process: the same questions, the same integers, the same model."""
    from cloister.cli.progress import Progress
    from cloister.cli.results import summary
    from cloister.job import load_job
    from cloister.simulation.simulate import simulate as run

    job = load_job(job_file)
    source = data if data is not None else _bundled(job.data.target)
    with Progress(rounds=job.algorithm.rounds, quiet=as_json) as view:
        view.train()
        result = run(job, source, sites=sites, seed=seed, seal=seal.value, baselines=compare, progress=view.event)
    facts = result.as_json()
    if out is not None:
        result.save(out)
        facts["results"] = str(out)
    step = f"open {out}/report.html" if out else f"cloister simulate {job_file} --out results"
    finish(facts, as_json, summary(facts), step)


def _bundled(target: str) -> object:
    from cloister.cli import bundled

    if target != bundled.TARGET:
        raise UsageError(
            "there is no data.", mend="Give --data FOLDER with one CSV per site, or --data FILE --sites N."
        )
    say("no --data: scikit-learn's breast-cancer table, cut into sites with skewed labels and sizes")
    return bundled.breast_cancer()
