"""Which rows make up which minibatch: drawn in numpy from a seed, the same for every back end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cloister.job import Torch

Pass = tuple[npt.NDArray[np.int64], list[tuple[int, int]]]


def passes(
    task: Torch, rows: int, seed: int, epochs: int | None = None, *, joins_lone_row: bool = False
) -> Iterator[Pass]:
    """Shuffled passes over a site's rows: whole epochs, or as many steps as the task says, reshuffled in between.

    Args:
      epochs: instead of the task's own epochs or steps.
      joins_lone_row: a last batch of one row joins the batch before it.
    Yields: an order of the rows, and the bounds of the minibatches in it. Nothing, for no rows.
    """
    rng, size = np.random.default_rng(seed), task.batch_size
    bounds = [*range(0, rows, size), rows]
    if joins_lone_row and rows > size and rows % size == 1:
        del bounds[-2]
    left = _steps(task, len(bounds) - 1, epochs)
    while left > 0:
        order = rng.permutation(rows)
        batches = list(itertools.pairwise(bounds))[:left]
        left -= len(batches)
        yield order, batches


def work_of(task: Torch, rows: int, epochs: int | None = None) -> tuple[int, int]:
    """How many rows all steps of a local training see together, at most, and how many steps there are."""
    steps = _steps(task, -(-rows // task.batch_size), epochs)
    return steps * min(rows, task.batch_size), steps


def _steps(task: Torch, a_pass: int, epochs: int | None) -> int:
    steps = task.steps if epochs is None else None
    return steps or (epochs or task.epochs or 1) * a_pass
