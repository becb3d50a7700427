"""`cloister demo`: a sealed federation on this machine, end to end, and whether it was worth it."""

from __future__ import annotations

import contextlib
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli.output import AsJson, finish
from cloister.vector.errors import UsageError

if TYPE_CHECKING:
    from cloister.cli.loopback import Loopback

MOST_SITES = 64
Data = Annotated[
    Path | None, typer.Option("--data", help="A folder with one CSV per site (default: bundled breast-cancer data).")
]

SPLIT = 4  # of the bundled table, unless --seed is given: sites that differ much, as hospitals do


def demo(
    data: Data = None,
    target: Annotated[str | None, typer.Option("--target", help="With --data: the column to predict.")] = None,
    sites: Annotated[int, typer.Option("--sites", max=MOST_SITES, help="Without --data; at least 3.")] = 5,
    job_file: Annotated[
        Path | None, typer.Option("--job", help="With --data: a job file instead of the MLP.")
    ] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="Default: 20, or the job's.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the split, the model, the shuffling.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where everything is kept.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the processes running.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start one coordinator and five sites on loopback TLS, train under the sealed sum, kill a site on the way."""
    if (data is None) != (target is None and job_file is None):
        raise UsageError("--data goes with --target or --job.", mend="For example --data hospitals --target disease.")
    from cloister.cli.demo_data import changed, job_over, split_bundled, tables_of, write
    from cloister.cli.demo_run import Demonstration
    from cloister.cli.demo_view import lines
    from cloister.cli.loopback import Loopback
    from cloister.cli.progress import Progress
    from cloister.job import load_job

    if data is None:
        frames = split_bundled(sites, SPLIT if seed is None else seed)
        folder = _folder(out)
        tables = write(frames, folder / "data")
    else:
        tables = tables_of(data)
        folder = _folder(out)
    job = changed(load_job(job_file) if job_file else job_over(tables, target), rounds, seed)
    federation = Loopback(folder)
    with _ended(federation, keep), Progress(rounds=job.algorithm.rounds, quiet=as_json) as view:
        outcome = Demonstration(federation, job, tables, view).run()
        if keep:
            outcome["processes"] = {name: process.pid for name, process in federation.processes.items()}
    finish(outcome, as_json, lines(outcome), f"open {outcome['results']}/report.html")
    if not outcome["ok"]:
        raise typer.Exit(1)


def _folder(out: Path | None) -> Path:
    if out is None:
        return Path(tempfile.mkdtemp(prefix="cloister-demo-"))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not an empty folder.", mend="Choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    return out


@contextlib.contextmanager
def _ended(federation: Loopback, keep: bool) -> Iterator[None]:
    """Ends all processes whatever happens (Ctrl-C and SIGTERM too), unless they are to be kept and all went well."""

    def interrupt(*details: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            federation.stop()
        signal.signal(signal.SIGTERM, before)
