"""Many trainers of one process at once: their training where that gives the same bits, all of their answers else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np

from cloister.job import Job, RowDP, Torch
from cloister.learn.few_rows import MOST_AT_ONCE, alike
from cloister.learn.local import Begun
from cloister.learn.metrics import Predictions, blocks
from cloister.learn.models import FewModel, ManyModel, declarative
from cloister.learn.prepare import Rows
from cloister.learn.trainer import Trainer, diverged, unfinite
from cloister.vector import Answer, Query
from cloister.vector.bundle import Array
from cloister.vector.errors import DataError, TaskError


def at_once(job: Job, query: Query) -> int:
    """How many sites' training should be begun together, at most; 1 where it cannot be."""
    few = query.task == "train" and declarative(job) and job.algorithm.trains_plainly
    return MOST_AT_ONCE if few and not isinstance(job.privacy, RowDP) else 1


def begin(trainers: Sequence[Trainer], query: Query) -> dict[str, Begun]:
    """Trains the sites together for which that is quicker; `Trainer.answer` takes it from there, with the same bits.

    Returns: by site, the others left out: they train when they answer.
    """
    ready: list[tuple[Trainer, Rows]] = []
    model: FewModel | None = None
    for trainer in trainers:
        with contextlib.suppress(TaskError, DataError):  # it says so itself when it is asked for its answer
            found, train, _ = trainer.ready(query)
            model = cast(FewModel, found)
            ready.append((trainer, train))
    if model is None:
        return {}
    flat, begun = np.ascontiguousarray(query.tensors["model"], np.float32), dict[str, Begun]()
    for few, places in alike([train for _, train in ready], model.few):
        if few:
            seeds = [ready[at][0].seed(query.config["round"]) for at in places]
            trained = model.train_few(flat, [ready[at][1] for at in places], seeds)
            begun.update(zip((ready[at][0].site for at in places), trained, strict=True))
    return begun


def answers(trainers: Sequence[Trainer], query: Query) -> Iterator[Answer | TaskError]:
    """Each trainer's answer to a query "train" or "evaluate", or why it has none; in their order."""
    if not trainers:
        return
    prepared = [trainer.ready(query) for trainer in trainers]
    model = cast(ManyModel, prepared[0][0])
    flat = np.ascontiguousarray(query.tensors["model"], np.float32)
    tests = [test for _, _, test in prepared]
    evaluates = query.task == "evaluate" or query.config.get("evaluate")
    task = trainers[0].job.task
    own_loss = isinstance(task, Torch) and not isinstance(task.loss, str)
    said = _assessed(model, flat, tests, own_loss) if evaluates else [None] * len(tests)
    trained = None
    if query.task == "train":
        seeds = [trainer.seed(query.config["round"]) for trainer in trainers]
        trained = model.train_many(flat, [train for _, train, _ in prepared], seeds)
    for at, trainer in enumerate(trainers):
        values: dict[str, Array] = {}
        found = said[at]
        if found is not None:
            if not (np.isfinite(found.scores).all() and np.isfinite(found.losses).all()):
                yield unfinite()
                continue
            values |= blocks(trainer.job.kind, found, tests[at].y)
        if trained is not None:
            if not all(np.isfinite(value).all() for value in trained[at].answer.values()):
                yield diverged(query)
                continue
            values |= trained[at].answer
        yield Answer(trainer.rows, {block.name: np.asarray(values[block.name]) for block in query.layout.blocks})


def _assessed(model: ManyModel, flat: Array, tests: Sequence[Rows], own_loss: bool) -> list[Predictions]:
    """One pass over the test rows of all, cut apart again; but a loss of one's own is a mean, which cannot be."""
    if own_loss:
        return [model.assess(flat, test) for test in tests]
    said = model.assess(flat, Rows(np.concatenate([test.x for test in tests]), np.concatenate([t.y for t in tests])))
    ends = np.cumsum([len(test) for test in tests])[:-1]
    return [
        Predictions(*parts) for parts in zip(np.split(said.scores, ends), np.split(said.losses, ends), strict=True)
    ]
