"""A job as bytes: `pack({"manifest": ..., "source": text or null}, initial tensors)`.

The manifest holds the hashes of source and tensors, so it alone names the job. Reading accepts exactly the
bytes that writing gives: one job has one bundle and one digest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cloister.algorithms import from_json as algorithm_from_json
from cloister.job.nets import Code
from cloister.job.spec import KIND, as_json, from_json
from cloister.job.task import Torch
from cloister.vector.bundle import Array, digest, pack, unpack
from cloister.vector.errors import CloisterError, JobError

if TYPE_CHECKING:
    from cloister.job.job import Job

FORMAT = "cloister/job/1"
MAX_SOURCE_BYTES = 1 << 20  # a job file of over 1 MiB is no job file


def describe(job: Job) -> dict[str, Any]:
    """The manifest of a job: format, job, hash of source, hash of initial tensors."""
    written = {key: value for key, value in as_json(job).items() if key != KIND}
    written["algorithm"] = job.algorithm.as_json()
    tensors = _initial(job)
    return {
        "format": FORMAT,
        "job": written,
        "source": None if job.source is None else digest(job.source.encode()).hex(),
        "initial": digest(pack({}, tensors)).hex() if tensors else None,
    }


def write(job: Job) -> bytes:
    return pack({"manifest": describe(job), "source": job.source}, _initial(job))


def read(data: bytes, job_class: type[Job]) -> Job:
    """Raises: MalformedMessage: no bundle. JobError: anything that `write` does not write."""
    facts, tensors = unpack(data)
    body = facts.get("manifest", {})
    if not isinstance(body, dict) or body.get("format") != FORMAT or not isinstance(body.get("job"), dict):
        raise JobError(f"the bundle is no job of format {FORMAT!r}.")
    source = facts.get("source")
    if source is not None and (not isinstance(source, str) or len(source) > MAX_SOURCE_BYTES):
        raise JobError("the bundle's source is no text, or too long.")
    fields = {key: value for key, value in body["job"].items() if key != "algorithm"}
    try:
        values = from_json(fields)
        if KIND in fields or "source" in fields:
            raise JobError("the manifest has settings that no job has.")
        algorithm = algorithm_from_json(body["job"].get("algorithm"))
        job = job_class(**_with_initial(values, tensors), algorithm=algorithm, source=source)
        if write(job) != data:
            raise JobError("the bundle is not written canonically, so its digest would not name the job.")
    except CloisterError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as fault:
        raise JobError(f"the manifest does not describe a job: {type(fault).__name__}.") from None
    return job


def _initial(job: Job) -> Mapping[str, Array]:
    model = job.task.model if isinstance(job.task, Torch) else None
    if not isinstance(model, Code) or model.initial is None:
        return {}
    return {name: np.asarray(array, np.float32) for name, array in model.initial.items()}


def _with_initial(values: dict[str, Any], tensors: Mapping[str, Array]) -> dict[str, Any]:
    task = values.get("task")
    if not tensors or not isinstance(task, Torch) or not isinstance(task.model, Code):
        return values
    model = dataclasses.replace(task.model, initial=dict(tensors))
    return {**values, "task": dataclasses.replace(task, model=model)}
