"""`cloister simulate`: a job in one process, over tables at hand."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli.output import AsJson, finish, say
from cloister.vector.errors import UsageError

if TYPE_CHECKING:
    from cloister.job import Job
    from cloister.learn.result import Result


class Seal(StrEnum):
    ideal = "ideal"
    masks = "masks"


class Engine(StrEnum):
    auto = "auto"
    serial = "serial"
    processes = "processes"
    batched = "batched"
    ray = "ray"


Partition = Annotated[
    str,
    typer.Option(
        help="How it is cut: skewed, iid, dirichlet:ALPHA, shards:NUMBER, sizes:ALPHA, noise:DEVIATIONS, "
        "sorted:COLUMN, by:COLUMN."
    ),
]
Reproducible = Annotated[
    bool,
    typer.Option(
        "--reproducible",
        help="Draw the noise of privacy from the seed, so that the run can be repeated: it hides nobody.",
    ),
]


def simulate(
    job_file: Annotated[
        Path | None, typer.Argument(metavar="[JOB.py]", help="The job file; none with --resume.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="A folder with one file per site (.csv, .npz), or one file to be cut into --sites."
        ),
    ] = None,
    sites: Annotated[int | None, typer.Option("--sites", help="Into how many sites one table is cut.")] = None,
    partition: Partition = "skewed",
    seal: Annotated[Seal, typer.Option(help="ideal: the same integers, not masked; masks: the real sealed sum.")] = (
        Seal.ideal
    ),
    seed: Annotated[int | None, typer.Option(help="Instead of the job's own.")] = None,
    dropouts: Annotated[float, typer.Option(help="The chance that a site vanishes in a round.")] = 0.0,
    deadline: Annotated[
        float | None,
        typer.Option(help="A site drops out of a round that takes it longer than so many times the median site."),
    ] = None,
    availability: Annotated[
        float | None,
        typer.Option(help="The chance that a site is there when a round begins; its cohort is drawn from those."),
    ] = None,
    attack: Annotated[
        str | None,
        typer.Option(
            help="What malicious sites do: label-flip, sign-flip[:FACTOR], alie[:Z], ipm[:EPSILON], backdoor[:CLASS]."
        ),
    ] = None,
    attackers: Annotated[
        str | None, typer.Option(help="Which sites are malicious: a fraction of all (0.2), or names with commas.")
    ] = None,
    plot_partition: Annotated[
        Path | None,
        typer.Option("--plot-partition", metavar="FILE", help="A picture of the cut: .svg, .png or .pdf."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also train each site alone, and all rows pooled.")
    ] = False,
    engine: Annotated[
        Engine, typer.Option(help="What computes: auto uses every core where it pays, with the same bits.")
    ] = Engine.auto,
    processes: Annotated[int | None, typer.Option(help="How many; one for each core if not given.")] = None,
    reproducible: Reproducible = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where checkpoints and results are written.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="DIR", help="Go on with the interrupted run in DIR.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a job as a federation would, in one process: the same questions, the same integers, the same model."""
    from cloister.cli.results import summary

    computing = {"engine": engine.value, "processes": processes, "baselines": compare}
    if resume is not None:
        if job_file is not None or out is not None:
            raise UsageError("--resume takes the job and the folder from DIR.", mend="Leave JOB.py and --out out.")
        result = _resume(resume, data, computing, as_json)
        out = resume
    else:
        if job_file is None:
            raise UsageError("there is no job.", mend="Give a job file, or --resume DIR.")
        choices: dict[str, Any] = {"sites": sites, "seed": seed, "partition": partition, "seal": seal.value}
        choices |= {"dropouts": dropouts, "deadline": deadline, "availability": availability}
        choices |= {"attack": attack, "attackers": _attackers(attackers), "reproducible": reproducible}
        result = _start(job_file, data, out, as_json, choices, computing, plot_partition)
    facts = result.as_json()
    if out is not None:
        result.save(out)
        facts["results"] = str(out)
    step = f"open {out}/report.html" if out else f"cloister simulate {job_file} --out results"
    finish(facts, as_json, [*_conditions(facts["conditions"]), *summary(facts)], step)


def _attackers(text: str | None) -> float | list[str] | None:
    """A fraction, or names."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return [name.strip() for name in text.split(",") if name.strip()]


def _conditions(known: Mapping[str, Any]) -> list[str]:
    """What a simulation was run under, for people."""
    lines = []
    if "attack" in known:
        lines.append(f"malicious sites ({known['attack']}): {', '.join(known['attackers'])}")
    if "backdoor_success" in known:
        lines.append(f"rows with the backdoor's mark that the model falls for: {known['backdoor_success']:.1%}")
    return lines


def _start(
    job_file: Path,
    data: Path | None,
    out: Path | None,
    as_json: bool,
    choices: dict[str, Any],
    computing: dict[str, Any],
    picture: Path | None,
) -> Result:
    from cloister.job import load_job

    job = load_job(job_file)
    source = data if data is not None else bundled_or_refused(job.data.target)
    if picture is not None:
        _plot(job, source, picture, choices)
    if out is not None:
        return _run(job, source, out, as_json, **choices, **computing)
    # without --out, a run that is interrupted is kept all the same
    kept = Path(tempfile.mkdtemp(prefix="cloister-run-"))
    try:
        result = _run(job, source, kept, as_json, **choices, **computing)
    except BaseException as fault:
        if not isinstance(fault, KeyboardInterrupt):
            shutil.rmtree(kept)
        raise
    shutil.rmtree(kept)
    return result


def _plot(job: Job, source: object, picture: Path, choices: dict[str, Any]) -> None:
    """Before anything is trained: the cut is known, and a run may be long."""
    from cloister.simulation.data import shards_of
    from cloister.simulation.picture import partition_of

    seeded = job if choices["seed"] is None else dataclasses.replace(job, seed=choices["seed"])
    found = partition_of(seeded, shards_of(seeded, source, choices["sites"], choices["partition"]))
    if found is None:
        raise UsageError("so many sites are not drawn.", mend="Leave --plot-partition out.")
    found.save(picture)
    say(f"the cut is drawn in {picture}")


def _resume(folder: Path, data: Path | None, computing: dict[str, Any], as_json: bool) -> Result:
    from cloister.simulation.store import read_run

    job, settings = read_run(folder)
    known = settings.pop("data")
    source = data or (Path(known) if known else bundled_or_refused(job.data.target))
    say(f"going on with the run in {folder}")
    return _run(job, source, folder, as_json, **settings, **computing)


def _run(job: Job, source: object, folder: Path, as_json: bool, **settings: Any) -> Result:
    from cloister.cli.progress import Progress
    from cloister.simulation.simulate import simulate as run

    try:
        with Progress(rounds=job.algorithm.rounds, quiet=as_json) as view:
            view.train()
            return run(job, source, folder=folder, progress=view.event, **settings)
    except KeyboardInterrupt:
        say(f"interrupted; to go on: cloister simulate --resume {folder}")
        raise


def bundled_or_refused(target: str) -> object:
    """The table that comes with scikit-learn, where a job asks for it. Raises UsageError: another job, no --data."""
    from cloister.cli import bundled

    if target != bundled.TARGET:
        raise UsageError(
            "there is no data.", mend="Give --data FOLDER with one CSV per site, or --data FILE --sites N."
        )
    say("no --data: scikit-learn's breast-cancer table, cut into sites")
    return bundled.breast_cancer()
