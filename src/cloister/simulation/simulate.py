"""`simulate`: a job over a whole federation in one process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib import import_module
from typing import Any

from cloister.job import Job, Torch
from cloister.learn import complete, schema
from cloister.learn.result import Result
from cloister.privacy import PrivacyStatement
from cloister.round import Program, choose_cohort, run
from cloister.seal.threshold import colluders_tolerated, threshold
from cloister.simulation.baselines import compare
from cloister.simulation.cohort import Dropouts, Event, LocalCohort
from cloister.simulation.data import shards
from cloister.simulation.engine import SerialEngine
from cloister.simulation.sealing import Ideal, Masks, Seal
from cloister.vector.errors import UsageError

SEALS = ("ideal", "masks")


def simulate(
    job: Job,
    data: Any,
    sites: int | None = None,
    seed: int | None = None,
    *,
    seal: str = "ideal",
    baselines: bool = False,
    dropouts: Dropouts = 0.0,
    progress: Callable[[Event], None] | None = None,
) -> Result:
    """Runs a job as a federation would: the same questions, the same integers, the same model, in this process.

    Args:
      data: a folder with one CSV per site, a dict of site to DataFrame, or one table to be cut into sites with
        skewed labels and sizes: a DataFrame, a CSV's path, or (X, y).
      sites: into how many sites one table is cut (default 5).
      seed: instead of the job's own: of the cut, the test rows, the initial model and the training.
      seal: "ideal" adds the integers; "masks" runs the real sealed sum. Both give the same model, bit for bit.
      baselines: also train each site alone and all rows pooled, and compare (`result.table`).
      dropouts: the chance that a site vanishes in a round, or which sites vanish in which step.
      progress: takes the events that a federation's `watch` gives.
    Raises: DataError, JobError, UsageError: the data, the job or a setting. TaskError: training fails at too many
      sites. RoundVoid: too many dropped out.
    """
    if seal not in SEALS:
        raise UsageError(f"seal={seal!r} is not one of {', '.join(SEALS)}.")
    job = complete(job if seed is None else dataclasses.replace(job, seed=seed))
    tables = shards(data, target=job.data.target, sites=sites, seed=job.seed)
    columns = job.data.resolve({site: schema(table) for site, table in tables.items()})
    # a missing library is told before anything runs, and loading it is no part of a round's time
    import_module(f"cloister.learn.{'torch' if isinstance(job.task, Torch) else 'sklearn'}_task")
    events: list[Event] = []

    def observe(event: Event) -> None:
        events.append(event)
        if progress is not None:
            progress(event)

    sealing: Seal = Masks(job, tables) if seal == "masks" else Ideal()
    engine = SerialEngine(job, tables)
    cohort = LocalCohort(job, engine, list(tables), sealing, dropouts=dropouts, observe=observe)
    state = run(Program(job, columns), cohort, observe=lambda state, total: cohort.settle(state))
    comparison = None
    if baselines:
        comparison = compare(job, tables, state, lambda line: observe({"event": "baseline", "model": line}))
    observe({"event": "done"})
    return Result(
        job,
        state,
        _statement(seal, len(choose_cohort(list(tables), job.algorithm.cohort, job.seed, 0))),
        events,
        sealing.receipts,
        comparison,
    )


def _statement(seal: str, cohort: int) -> PrivacyStatement:
    return PrivacyStatement(
        mechanism="none",
        unit="none",
        epsilon=None,
        delta=None,
        seal=seal,
        colluders=colluders_tolerated(cohort, threshold(cohort)),
    )
