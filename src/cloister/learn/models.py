"""Models from a job and a state: the back end that a task names, the fitted model, its predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import pandas as pd

from cloister.algorithms import Curvature, Terms, Trained
from cloister.job import Arrays, Job, Table, Torch
from cloister.job.nets import Code
from cloister.learn.arrays import as_inputs, check_features
from cloister.learn.metrics import Predictions
from cloister.learn.prepare import Bools, Columns, Inputs, Rows, design
from cloister.learn.private import NoisySteps
from cloister.learn.tables import Frame, check
from cloister.vector import State
from cloister.vector.bundle import Array


class Model(Protocol):
    """A back end: what it can do with a flat model (float32[d])."""

    def train(self, flat: Array, rows: Rows, seed: int, round_: int, terms: Terms = Terms()) -> Trained: ...

    def train_privately(self, flat: Array, rows: Rows, noisy: NoisySteps, round_: int, terms: Terms) -> Trained: ...

    def curvature(self, flat: Array, rows: Rows, all_rows: int) -> Curvature: ...

    def predict(self, flat: Array, x: Inputs) -> Array: ...

    def assess(self, flat: Array, rows: Rows) -> Predictions: ...

    def export(self, flat: Array) -> Any: ...


class ManyModel(Model, Protocol):
    """A back end that can train several clients at once: of `cl.Torch`."""

    def train_many(self, flat: Array, clients: Sequence[Rows], seeds: Sequence[int]) -> list[Trained]: ...


class FewModel(Model, Protocol):
    """A back end that can train several sites together with the bits of one by one: of nets by name."""

    def few(self, rows: int) -> int: ...

    def train_few(self, flat: Array, sites: Sequence[Rows], seeds: Sequence[int]) -> list[Callable[[], Trained]]: ...


def back_end(job: Job, shapes: Iterable[tuple[str, Iterable[int]]], inputs: int) -> Model:
    """The back end of the job's task; torch and scikit-learn are loaded only if it needs them.

    Args: shapes: name and shape of the model's tensors, in the flat vector's order. inputs: prepared columns.
    """
    sizes = {name: tuple(shape) for name, shape in shapes}
    if declarative(job):
        from cloister.learn.net_task import NetModel

        return NetModel(job, sizes)
    if isinstance(job.task, Torch):
        from cloister.learn.torch_task import TorchModel

        return TorchModel(job, sizes, inputs)
    from cloister.learn.sklearn_task import SklearnModel

    return SklearnModel(job, sizes)


def declarative(job: Job) -> bool:
    """Whether net and loss are named, not code: they are computed without torch."""
    return isinstance(job.task, Torch) and not isinstance(job.task.model, Code) and isinstance(job.task.loss, str)


def load_back_end(job: Job) -> None:
    """Loads the libraries of the job's task. Raises EnvironmentFailure: one is not installed."""
    kind = "net" if declarative(job) else "torch" if isinstance(job.task, Torch) else "sklearn"
    import_module(f"cloister.learn.{kind}_task")


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


def predict(job: Job, state: State, features: Frame | Array, fit_rows: Bools | None = None) -> Array:
    """What the trained model says of data that fulfil the job's contract.

    Args:
      features: a table; or x [rows, *shape], where the contract is of arrays.
      fit_rows: the rows that Standardize(by="site") takes its statistics from; None: all.
    Returns: float64[rows]: probability of the second label, or value; [rows, K] for more than two labels.
    Raises: DataError: the data do not fulfil the contract.
    """
    model, flat = _of_state(job, state), state.tensors["model"]
    if isinstance(job.data, Arrays):
        x = np.asarray(features)
        check_features(job.data, x)
        return model.predict(flat, as_inputs(job, x))
    return model.predict(flat, _prepared(job, job.data, state, pd.DataFrame(features), fit_rows))


def _prepared(job: Job, contract: Table, state: State, frame: Frame, fit_rows: Bools | None) -> Inputs:
    frame, kinds = frame.rename(columns=str), state.facts["columns"]
    # columns that the contract needs for training only may be missing
    unneeded = [name for name in (contract.target, contract.split) if name and name not in frame.columns]
    check(contract, frame.assign(**dict.fromkeys(unneeded, "")), "", kinds)
    return design(job, Columns.of(job, kinds), state.tensors, frame, fit_rows, "")


def _of_state(job: Job, state: State) -> Model:
    if isinstance(job.data, Arrays):
        return back_end(job, state.facts["shapes"], job.data.inputs)
    columns = Columns.of(job, state.facts["columns"])
    inputs = len(columns.numeric) + sum(state.tensors[f"fit/buckets/{name}"].size for name in columns.encoded)
    return back_end(job, state.facts["shapes"], inputs)
