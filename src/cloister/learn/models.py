"""Models from a job and a state: the back end that a task names, the fitted model, its predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Protocol

from cloister.job import Job, Torch
from cloister.job.nets import Code
from cloister.learn.metrics import Predictions
from cloister.learn.prepare import Bools, Columns, Inputs, Rows, design
from cloister.learn.tables import Frame, check
from cloister.vector import State
from cloister.vector.bundle import Array


class Model(Protocol):
    """A back end: what it can do with a flat model (float32[d])."""

    def train(self, flat: Array, rows: Rows, seed: int, round_: int) -> tuple[Array, float]: ...

    def predict(self, flat: Array, x: Inputs) -> Array: ...

    def assess(self, flat: Array, rows: Rows) -> Predictions: ...

    def export(self, flat: Array) -> Any: ...


def back_end(job: Job, shapes: Iterable[tuple[str, Iterable[int]]], inputs: int) -> Model:
    """The back end of the job's task; only here are torch and scikit-learn loaded.

    Args: shapes: name and shape of the model's tensors, in the flat vector's order. inputs: prepared columns.
    """
    sizes = {name: tuple(shape) for name, shape in shapes}
    if isinstance(job.task, Torch):
        from cloister.learn.torch_task import TorchModel

        return TorchModel(job, sizes, inputs)
    from cloister.learn.sklearn_task import SklearnModel

    return SklearnModel(job, sizes)


def complete(job: Job) -> Job:
    """The job with the initial values of a model of the user's own, from the job's seed; any other as it is."""
    if not isinstance(job.task, Torch) or not isinstance(job.task.model, Code) or job.initial is not None:
        return job
    from cloister.learn.torch_task import initial_of

    initial = initial_of(job)
    shapes = tuple((name, array.shape) for name, array in initial.items())
    model = dataclasses.replace(job.task.model, shapes=shapes, initial=initial)
    return dataclasses.replace(job, task=dataclasses.replace(job.task, model=model))


def build_model(job: Job, state: State) -> Any:
    """The trained model: a torch.nn.Module in evaluation mode, or a fitted scikit-learn estimator."""
    return _of_state(job, state).export(state.tensors["model"])


def predict(job: Job, state: State, frame: Frame, fit_rows: Bools | None = None) -> Array:
    """What the trained model says of a table that fulfils the job's contract.

    Args: fit_rows: the rows that Standardize(by="site") takes its statistics from; None: all.
    Returns: float64[rows]: probability of the second label, or value; [rows, K] for more than two labels.
    Raises: DataError: the table does not fulfil the contract.
    """
    frame, kinds = frame.rename(columns=str), state.facts["columns"]
    check(job.data, frame.assign(**dict.fromkeys(_unneeded(job, frame), "")), "", kinds)
    x = design(job, Columns.of(job, kinds), state.tensors, frame, fit_rows, "")
    return _of_state(job, state).predict(state.tensors["model"], x)


def _unneeded(job: Job, frame: Frame) -> list[str]:
    """Columns that the contract needs for training only and that this table lacks."""
    return [name for name in (job.data.target, job.data.split) if name and name not in frame.columns]


def _of_state(job: Job, state: State) -> Model:
    columns = Columns.of(job, state.facts["columns"])
    inputs = len(columns.numeric) + sum(state.tensors[f"fit/buckets/{name}"].size for name in columns.encoded)
    return back_end(job, state.facts["shapes"], inputs)
