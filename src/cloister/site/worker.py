"""The training process: `python -m cloister.site.worker`, started by the agent, confined, talking over one pipe.

The only module of this room that may import `cloister.learn` (and with it torch, pandas, and a job's own code). It
is not trusted: whatever it writes is checked by the agent (`training.py`, `round.contribute`).

    agent                                   worker
    SETUP, JOB                       ->     enters its walls, reads the table
                                     <-     READY: the table fulfils the contract (none of the job's code ran yet)
    QUERY                            ->     trains
                                     <-     ANSWER, or FAULT and the next QUERY is awaited
Without a job in SETUP it answers SCHEMA, the table's columns and a profile for the steward, and ends.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any, BinaryIO

from cloister.site import framing, sandbox
from cloister.site.framing import Kind
from cloister.vector import CloisterError, Query, canonical
from cloister.vector.errors import DataError, TaskError


def main() -> int:
    incoming, outgoing = _private_pipe()
    try:
        setup = json.loads(framing.read(incoming, {Kind.SETUP: framing.MAX_TEXT_BYTES})[1])
        limits = sandbox.WorkerLimits(**setup["limits"])
        memory = None if setup["memory"] is None else Path(setup["memory"])
        walls = sandbox.enter(sandbox.Room(limits, Path(setup["table"]), Path.cwd(), memory))
        sandbox.die_with(setup["agent"])  # last: the kernel forgets it when a process changes its credentials
        if setup["has_job"]:
            bundle = framing.read(incoming, {Kind.JOB: framing.MAX_BODY_BYTES})[1]
            _serve(incoming, outgoing, setup, bundle, walls)
        else:
            _tell_schema(outgoing, setup)
    except EOFError:
        return 0  # the agent has no more questions
    return 0


def _private_pipe() -> tuple[BinaryIO, BinaryIO]:
    """Takes the pipe off standard input and output, so that a `print` in a job goes to the log and not into it."""
    incoming, outgoing = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return os.fdopen(incoming, "rb"), os.fdopen(outgoing, "wb")


def _tell_schema(outgoing: BinaryIO, setup: dict[str, Any]) -> None:
    from cloister import learn

    try:
        told = learn.profile(_data(setup))
    except BaseException as fault:
        _tell_fault(outgoing, fault)
    else:
        framing.write(outgoing, Kind.SCHEMA, canonical(told))


def _serve(incoming: BinaryIO, outgoing: BinaryIO, setup: dict[str, Any], bundle: bytes, walls: list[str]) -> None:
    from cloister import learn
    from cloister.job import Job, RowDP

    try:
        job = Job.from_bytes(bundle)
        memory = None if setup["memory"] is None else learn.InFolder(Path(setup["memory"]))
        trainer = learn.Trainer(
            job,
            _data(setup, job.privacy.unit if isinstance(job.privacy, RowDP) else None),
            setup["site"],
            learn.Workshop(job, memory),
        )
    except BaseException as fault:
        return _tell_fault(outgoing, fault)
    framing.write(outgoing, Kind.READY, canonical({"walls": walls, "warnings": trainer.warnings}))
    while True:
        _, data = framing.read(incoming, {Kind.QUERY: framing.MAX_BODY_BYTES})
        try:
            answer = trainer.answer(Query.from_bytes(data)).to_bytes()
        except BaseException as fault:  # a job may even raise SystemExit
            _tell_fault(outgoing, fault)
        else:
            framing.write(outgoing, Kind.ANSWER, answer)


def _data(setup: dict[str, Any], counts_by: str | None = None) -> Any:
    """The site's data. The column that says whose a row is stays only for a job that counts by it: no feature."""
    from cloister import learn

    data: Any = learn.read_data(Path(setup["table"]))
    unit = setup["unit"]
    if not unit:
        return data
    if unit not in getattr(data, "columns", ()):
        raise DataError(f"the table has no unit column {unit!r}.", mend="Correct unit under [data] in site.toml.")
    return data if counts_by == unit else data.drop(columns=unit)


def _tell_fault(outgoing: BinaryIO, fault: BaseException) -> None:
    """The whole story goes to the site's own log; over the pipe goes only what holds no data value."""
    traceback.print_exception(fault, file=sys.stderr)
    print(getattr(fault, "local_detail", ""), file=sys.stderr, flush=True)
    if not isinstance(fault, CloisterError):
        # an exception's text may quote a cell ("could not convert 'Miller' to float"), its type cannot
        fault = TaskError(
            f"the training code raised {type(fault).__name__}.",
            mend="The site's worker.log has the traceback; `cloister simulate` shows it on your own data.",
        )
    framing.write(outgoing, Kind.FAULT, canonical(fault.as_json()))


if __name__ == "__main__":
    sys.exit(main())
