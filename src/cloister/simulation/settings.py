"""Settings by name: what a sweep varies, in a job's specification and in the options of a simulation.

    algorithm.server_lr   task.optimizer.lr   task.batch_size   prepare.Standardize.by   seed      the job's fields
    lr   optimizer.lr   algorithm.lr   algorithm.epochs                                            short for these
    algorithm=FedAvg,FedProx                                         another algorithm; what both have is kept
    algorithm.aggregate=null,Median   algorithm.schedule=CosineDecay                        by name, with defaults
    sites   partition   partition.alpha   dropouts   attack   attackers ...                        the simulation's

A name is a path in the specification, or the end of one where it is the only such end. Papers count the local rate,
epochs and batch size among an algorithm's settings, so `algorithm.lr` finds them in the task.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cloister.algorithms import Algorithm
from cloister.algorithms.base import from_json
from cloister.algorithms.robust import Aggregate, aggregate_from_json
from cloister.algorithms.schedule import Schedule, schedule_from_json
from cloister.job import Job
from cloister.job.nets import Code
from cloister.job.spec import is_spec
from cloister.job.task import ESTIMATORS, Estimator, Torch
from cloister.simulation.partition import ALPHAS
from cloister.vector.errors import CloisterError, UsageError

OPTIONS = ("sites", "partition", "partition.alpha", "dropouts", "deadline", "availability", "attack", "attackers")
LOCAL = ("lr", "epochs", "steps", "batch_size")  # of the task, though papers name them with the algorithm
FIXED = ("data", "source", "name")  # of a job, and not to be varied: the contract, and what decides nothing

NAMED = (Algorithm, Aggregate, Schedule)
BY_NAME: Mapping[str, Callable[[dict[str, Any]], Any]] = {
    "aggregate": aggregate_from_json,
    "schedule": schedule_from_json,
}

Path = tuple[str, ...]


def names(job: Job) -> list[str]:
    """Every name that `changed` takes for this job, the job's own first."""
    return [".".join(path) for path in _paths(job)] + list(OPTIONS)


def values(text: str) -> list[Any]:
    """`0.01,0.1` or `iid,dirichlet:0.5` or `[16],[32,16]`: JSON where it is some, else text."""
    pieces, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += letter
    return [_value(piece.strip()) for piece in pieces]


def changed(job: Job, options: Mapping[str, Any], name: str, value: Any) -> tuple[Job, dict[str, Any]]:
    """The job and the simulation's options with one setting changed.

    Raises: UsageError: no such name; the line tells the names. JobError, UsageError: a value that does not fit.
    """
    if name == "partition.alpha":
        form, _, _ = str(options.get("partition") or "").partition(":")
        form = form if form in ALPHAS else "dirichlet"
        return job, {**options, "partition": f"{form}:{value}"}
    if name in OPTIONS:
        return job, {**options, name: value}
    path = _found(job, name)
    try:
        made = _replaced(job, path, value)
    except CloisterError:
        raise
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{name}={value} does not fit.", mend=f"In the job it is {_at(job, path)!r}.") from None
    assert isinstance(made, Job)
    return made, dict(options)


def _found(job: Job, name: str) -> Path:
    known, parts = list(_paths(job)), tuple(name.split("."))
    if parts in known:
        return parts
    if parts[0] == "algorithm" and parts[1:] and parts[1] in LOCAL:
        parts = parts[1:]
    ends = [path for path in known if path[-len(parts) :] == parts]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise UsageError(f"{name!r} names several settings.", mend=f"Say which: {_listed(ends)}.")
    every = names(job)
    close = difflib.get_close_matches(name, every, n=3, cutoff=0.6)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    raise UsageError(f"there is no setting {name!r}.", mend=f"{hint}There are: {', '.join(every)}.")


def _paths(value: Any, within: Path = ()) -> Iterable[Path]:
    """Where something stands that can be changed, in a specification."""
    if isinstance(value, NAMED) and within:
        yield within
    for key, entry in _entries(value).items():
        if _entries(entry):
            yield from _paths(entry, (*within, key))
        elif not isinstance(entry, Code):
            yield (*within, key)


def _entries(value: Any) -> dict[str, Any]:
    """The parts of a specification by name; empty for a plain value."""
    if isinstance(value, Estimator):
        return {key: value.params.get(key) for key in ESTIMATORS[value.name]}
    if isinstance(value, NAMED) or (is_spec(value) and not isinstance(value, Code)):
        fixed = FIXED if isinstance(value, Job) else ()
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value) if each.name not in fixed}
    if isinstance(value, tuple) and value and all(map(is_spec, value)):
        return {type(entry).__name__: entry for entry in value}
    return {}


def _at(value: Any, path: Path) -> Any:
    for key in path:
        value = _entries(value)[key]
    return value


def _replaced(value: Any, path: Path, new: Any) -> Any:
    if not path:
        return _fitting(value, new)
    key, *rest = path
    part = _replaced(_entries(value)[key], tuple(rest), new)
    if isinstance(value, Estimator):
        return dataclasses.replace(value, params={**value.params, key: part})
    if isinstance(value, tuple):
        return tuple(part if type(entry).__name__ == key else entry for entry in value)
    if isinstance(value, Algorithm) and key in BY_NAME and isinstance(part, str):
        part = BY_NAME[key]({"name": part})
    exclusive = {"epochs": {"steps": None}, "steps": {"epochs": None}} if isinstance(value, Torch) else {}
    return dataclasses.replace(value, **{**exclusive.get(key, {}), key: part})


def _fitting(before: Any, new: Any) -> Any:
    """A whole number where a fraction stood is one too; an algorithm by name takes over what it shares."""
    if isinstance(before, Algorithm):
        return from_json({"name": new, **_shared(before, new)})
    if isinstance(before, float) and isinstance(new, int) and not isinstance(new, bool):
        return float(new)
    return new


def _shared(before: Algorithm, name: Any) -> dict[str, Any]:
    """The settings that an algorithm of another name has too and that differ from its own defaults."""
    bare = from_json({"name": name, "rounds": before.rounds})
    ours = {field.name: field.default for field in dataclasses.fields(before)}
    written = before.as_json()
    there = {field.name for field in dataclasses.fields(bare)}
    return {key: written[key] for key in ours if key in there and getattr(before, key) != ours[key]}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _listed(paths: Iterable[Path]) -> str:
    return ", ".join(".".join(path) for path in paths)
