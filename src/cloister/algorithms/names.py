"""Which coordinates of a flat model belong to which tensors, by name."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from cloister.vector.errors import JobError

Shapes = Sequence[tuple[str, Sequence[int]]]
Mask = npt.NDArray[np.bool_]
STATISTICS = ("running_mean", "running_var")  # torch's names of what BatchNorm measures and no gradient moves


def mask(shapes: Shapes, names: Collection[str]) -> Mask:
    """bool[d]: the coordinates of the named tensors. Args: shapes: in the flat model's order."""
    parts = [np.full(math.prod(shape), name in names) for name, shape in shapes]
    return np.concatenate(parts) if parts else np.zeros(0, np.bool_)


def statistics(shapes: Shapes) -> Mask:
    """bool[d]: BatchNorm's running statistics."""
    return mask(shapes, [name for name, _ in shapes if name.rpartition(".")[2] in STATISTICS])


def matching(shapes: Shapes, patterns: Sequence[str]) -> list[str]:
    """The tensors that a name or pattern ("*.bias") names. Raises JobError: one that names none."""
    found: list[str] = []
    for pattern in patterns:
        hits = [name for name, _ in shapes if fnmatch.fnmatchcase(name, pattern)]
        if not hits:
            there = ", ".join(name for name, _ in shapes)
            raise JobError(f"no tensor of the model is named {pattern!r}.", mend=f"There are: {there}.")
        found += hits
    return found


def normalizing(shapes: Shapes) -> list[str]:
    """The tensors of layers that have running statistics, their weights and biases included."""
    layers = {name.rpartition(".")[0] for name, _ in shapes if name.rpartition(".")[2] in STATISTICS}
    return [name for name, _ in shapes if name.rpartition(".")[0] in layers]


def last_layer(shapes: Shapes) -> list[str]:
    """The tensors of the last layer that has any but statistics."""
    layers = [name.rpartition(".")[0] for name, _ in shapes if name.rpartition(".")[2] not in STATISTICS]
    return [name for name, _ in shapes if name.rpartition(".")[0] == layers[-1]]
