"""Each site alone, and all rows in one place: the same program, run over cohorts of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from cloister.job import Arrays, Job
from cloister.learn import Trainer, predict
from cloister.learn.arrays import ArrayData
from cloister.learn.comparison import HIGHER_IS_BETTER, Comparison, measure
from cloister.learn.prepare import split, unit_of
from cloister.round import Program, run
from cloister.simulation.cohort import LocalCohort
from cloister.simulation.engine import SerialEngine
from cloister.simulation.sealing import Ideal
from cloister.vector import State
from cloister.vector.errors import DataError, TaskError

SPLIT = "__split__"  # column of the pooled table that says which rows were whose test rows
NEVER = 10**9
POOLED = "pooled"


def compare(
    job: Job, tables: Mapping[str, Any], state: State, say: Callable[[str], None] = lambda line: None
) -> Comparison:
    """Measures a federated model against each site's own and the pooled one, on the union of all test rows.

    The baselines take the same number of rounds, local epochs and batch size; the pooled one is plain minibatch
    training on every site's training rows; both are without noise. A model of which a part stays at each site is
    measured by the federation's own sealed sums, since nobody has it whole.

    Args:
      tables: of the sites, by name. state: the federation's final state, simulated or real.
      say: takes a line before each training.
    """
    quiet = dataclasses.replace(job, algorithm=job.algorithm.alone(), privacy=None)
    if quiet.evaluate is not None:  # the baselines are measured once, here
        quiet = dataclasses.replace(quiet, evaluate=dataclasses.replace(quiet.evaluate, every=NEVER))
    sites = {}
    for site, table in tables.items():
        try:
            sites[site] = _tested_alike(job, Trainer(quiet, table, site))
        except DataError:
            continue  # a site that could take no part has no test rows either
    local = {}
    for site, trainer in sites.items():
        say(f"{site} alone")
        local[site] = _scores(quiet, _alone(quiet, state, trainer), sites)
    say("all rows in one place")
    everything = _pool(quiet, sites)
    return Comparison(
        federated=_scores(quiet, state, sites) if job.algorithm.whole else _sealed(state),
        pooled=_scores(everything.job, _alone(everything.job, state, everything), {POOLED: everything}),
        local=local,
        train_rows={site: trainer.rows for site, trainer in sites.items()},
        test_rows=sum(int(trainer.test.sum()) for trainer in sites.values()),
    )


def _tested_alike(job: Job, trainer: Trainer) -> Trainer:
    """The same test rows as in the federation, which keeps the rows of one patient together."""
    if unit_of(job) is not None:
        trainer.test = trainer.data.test = split(job, trainer.data.features, trainer.site)
        trainer.rows = int((~trainer.test).sum())
    return trainer


def _alone(job: Job, like: State, trainer: Trainer) -> State | None:
    """The model of one table alone, over the federation's columns; None where it cannot be trained."""
    engine = SerialEngine.of(job, {trainer.site: trainer})
    cohort = LocalCohort(job, engine, [trainer.site], Ideal(), required=lambda sites: 1)
    try:
        return run(Program(job, like.facts["columns"]), cohort)
    except (TaskError, DataError):
        return None


def _sealed(state: State) -> dict[str, float | None]:
    """The final model's metrics as the federation measured them."""
    last = state.facts["history"][-1]
    return {name: last[name] for name in HIGHER_IS_BETTER if name in last}


def _pool(job: Job, sites: Mapping[str, Trainer]) -> Trainer:
    """Every row of every site; what was for training and what for testing stays so."""
    if isinstance(job.data, Arrays):
        held = [(each.features, each.labels, each.test) for each in _arrays(sites)]
        return Trainer(job, tuple(np.concatenate(part) for part in zip(*held, strict=True)), POOLED)
    split, every = job.data.split or SPLIT, sites.values()
    parts = [each.data.features.assign(**{split: np.where(each.test, "test", "train")}) for each in every]
    pooled = dataclasses.replace(job, data=dataclasses.replace(job.data, split=split))
    return Trainer(pooled, pd.concat(parts, ignore_index=True), POOLED)


def _arrays(sites: Mapping[str, Trainer]) -> list[ArrayData]:
    return [trainer.data for trainer in sites.values() if isinstance(trainer.data, ArrayData)]


def _scores(job: Job, state: State | None, sites: Mapping[str, Trainer]) -> dict[str, float | None]:
    """Exact metrics of a model on the test rows of these tables together; empty without a model or without rows."""
    tested = [trainer for trainer in sites.values() if trainer.test.any()]
    if state is None or not tested:
        return {}
    said = [predict(job, state, trainer.data.features, fit_rows=~trainer.test)[trainer.test] for trainer in tested]
    predicted = np.concatenate(said)
    if not np.isfinite(predicted).all():
        return {}
    return measure(job.kind, np.concatenate([trainer.y[trainer.test] for trainer in tested]), predicted)
