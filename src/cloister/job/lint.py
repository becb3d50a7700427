"""What a model's architecture and its first tensors can be built to do to a sum: findings for a steward, not proofs.

A sealed sum hides which site said what. It does not hide rows from a model that was made to carry them: a wide first
layer whose units are thresholds of one measurement puts single rows into differences of its gradient (Fowl et al.,
"Robbing the Fed", ICLR 2022, https://arxiv.org/abs/2110.13057; Zhao et al., LOKI, S&P 2024), and dead units let one
site's gradient pass alone (Pasquini et al., CCS 2022, https://arxiv.org/abs/2111.07380). Nothing of the job is run:
what is looked at is its names, shapes and initial tensors. Every broadcast model of a later round comes from sums and
the algorithm, so the first tensors are where an analyst has a free hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cloister.job.job import Job
from cloister.job.nets import Code
from cloister.job.task import Torch
from cloister.vector.bundle import Array

ALIKE = 0.9  # of rows of a weight that are one row, up to their length: an imprint layer has all
ALIKE_COSINE = 0.999
DEAD = -6.0  # biases, in deviations of what the layer adds up from standardised inputs: a unit that is never on
DEAD_SHARE = 0.5
MANY_ROWS = 512  # an embedding this long holds tokens or ids; smaller tables are categories


@dataclass(frozen=True)
class Note:
    """Attributes: level: "danger" (made to leak, as far as one can tell), "look" (leaks more than most), "fine".
    tensor: it is about; "" for the whole model. text: one line. mend: what can be asked of the analyst.
    """

    level: Literal["danger", "look", "fine"]
    tensor: str
    text: str
    mend: str = ""


def lint(job: Job) -> list[Note]:
    """The findings, gravest first; one "fine" if there is none."""
    if not isinstance(job.task, Torch) or not isinstance(job.task.model, Code):
        return [Note("fine", "", "the model is declared by name; its initial tensors are drawn from the job's seed.")]
    if job.task.model.initial is None:
        return [Note("look", "", "the model's initial tensors are not shown.", "Submit with `cloister submit`.")]
    tensors = {name: np.asarray(array) for name, array in job.task.model.initial.items()}
    found = [*_imprints(tensors), *_dead(tensors), *_copies(tensors), *_embeddings(tensors), *_statistics(tensors)]
    found += _source(job.source or "")
    order = ("danger", "look", "fine")
    return sorted(found, key=lambda note: order.index(note.level)) or [
        Note("fine", "", "no layer looks like one that was made to carry rows.")
    ]


def _layers(tensors: Mapping[str, Array]) -> Iterator[tuple[str, Array, Array | None]]:
    """(name, weight [units, inputs], bias [units] or None) of every layer that has a weight."""
    for name, weight in tensors.items():
        if name.endswith("weight") and weight.ndim >= 2:
            bias = tensors.get(name.removesuffix("weight") + "bias")
            yield name, weight.reshape(len(weight), -1).astype(np.float64), bias


def _imprints(tensors: Mapping[str, Array]) -> Iterator[Note]:
    """Many units that measure the same and differ in their threshold only: Robbing the Fed's bins."""
    for name, weight, bias in _layers(tensors):
        lengths = np.linalg.norm(weight, axis=1)
        used = weight[lengths > 0] / lengths[lengths > 0, None]
        if len(used) < 8 or weight.shape[1] < 2:
            continue
        same = np.abs(used @ used[0]) > ALIKE_COSINE
        if same.mean() < ALIKE or bias is None:
            continue
        thresholds = np.unique(np.asarray(bias, np.float64).round(12))
        if len(thresholds) >= 8:
            yield Note(
                "danger",
                name,
                f"{int(same.sum())} of {len(weight)} units measure the same, with {len(thresholds)} thresholds:"
                " differences of their gradients are single rows (Robbing the Fed).",
                "Deny it, or ask why; an ordinary initialisation has no such rows.",
            )


def _dead(tensors: Mapping[str, Array]) -> Iterator[Note]:
    """Units that (almost) no input turns on, so that the few rows which do stand alone in the gradient."""
    for name, weight, bias in _layers(tensors):
        if bias is None or len(bias) < 4:
            continue
        spread = np.maximum(np.linalg.norm(weight, axis=1), 1e-12)
        share = float((np.asarray(bias, np.float64) / spread < DEAD).mean())
        if share >= DEAD_SHARE:
            yield Note(
                "danger",
                name,
                f"{share:.0%} of its units are off for nearly every row: the few rows that turn one on stand alone in"
                " the gradient (gradient suppression).",
                "Deny it, or ask for an ordinary initialisation.",
            )


def _copies(tensors: Mapping[str, Array]) -> Iterator[Note]:
    """A weight that hands its inputs on unchanged: what an imprint layer needs behind it."""
    for name, weight, _ in _layers(tensors):
        units, inputs = weight.shape
        if min(units, inputs) < 8:
            continue
        one_each = (np.count_nonzero(weight, axis=1) == 1).mean()
        if one_each >= ALIKE:
            yield Note("look", name, f"{one_each:.0%} of its units copy one input each: rows pass through unchanged.")


def _embeddings(tensors: Mapping[str, Array]) -> Iterator[Note]:
    """Only the rows of an embedding that a site's data names get a gradient: the sum shows which were named."""
    for name, weight, bias in _layers(tensors):
        named = "emb" in name.lower()
        if weight.shape[0] >= MANY_ROWS and bias is None and named:
            yield Note(
                "look",
                name,
                f"an embedding of {weight.shape[0]:,} rows: rows with a delta of zero say which words or ids occur"
                " at no site.",
                "With few sites that is much; SiteDP or RowDP covers it with noise.",
            )


def _statistics(tensors: Mapping[str, Array]) -> Iterator[Note]:
    running = sorted(name for name in tensors if name.endswith(("running_mean", "running_var")))
    if running:
        yield Note(
            "look",
            running[0],
            f"BatchNorm: {len(running)} running statistics of features are averaged over the sites in clear sums.",
            "cl.FedBN keeps them at the site; GroupNorm has none.",
        )


REACHES = {
    "socket": "opens sockets", "subprocess": "starts programs", "ctypes": "calls C", "pickle": "unpickles",
    "os": "uses the operating system", "requests": "speaks HTTP", "urllib": "speaks HTTP",
    "threading": "starts threads", "multiprocessing": "starts processes",
    "importlib": "imports by name", "sys": "uses the interpreter's state",
}  # fmt: skip
CALLS = ("eval(", "exec(", "open(", "__import__(", "compile(", "globals(", "setattr(")


def _source(source: str) -> Iterator[Note]:
    """Words in the code that a model or a loss seldom needs. The walls refuse what they do; read them anyway."""
    for number, line in enumerate(source.splitlines(), start=1):
        imported = re.match(r"\s*(?:import|from)\s+(\w+)", line)
        if imported and imported[1] in REACHES:
            yield Note("look", "", f"line {number} of the code {REACHES[imported[1]]}: {line.strip()[:60]}")
        for call in CALLS:
            if re.search(rf"(?<![\w.]){re.escape(call)}", line):
                yield Note("look", "", f"line {number} of the code calls {call[:-1]}: {line.strip()[:60]}")
