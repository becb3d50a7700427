"""`sweep`: a grid of simulations. Each cell is one simulation in a process of its own, with a folder of its own.

    sweep.json     the settings that are varied, and the options that are not
    job.bundle     the job
    cells/003/     a simulation's folder; outcome.json is there once the cell is finished
    report.html    the table and the plots

A sweep that was interrupted goes on from its folder: finished cells are kept, others go on from their checkpoints and
end with the same bits.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from cloister.job import Job
from cloister.learn import complete
from cloister.learn.models import load_back_end
from cloister.learn.sweep import Outcome, Sweep
from cloister.round.loop import cores
from cloister.simulation.cohort import Event
from cloister.simulation.data import loaded, shards_of
from cloister.simulation.settings import changed
from cloister.simulation.simulate import simulate, whereabouts
from cloister.vector.errors import CloisterError, LocalError, RoundVoid, StateLocked, TaskError, UsageError
from cloister.vector.files import replace_file

MOST_CELLS = 10_000
DECIDED = (TaskError, LocalError, RoundVoid)
Settings = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Cell:
    """One simulation. Attributes: number: from 1. settings: of this cell. options: of `simulate`."""

    number: int
    settings: Mapping[str, Any]
    job: Job
    options: Mapping[str, Any]
    folder: Path

    @property
    def outcome(self) -> Path:
        return self.folder / "outcome.json"

    @property
    def fault(self) -> Path:
        return self.folder / "fault.txt"


def sweep(
    job: Job,
    data: Any,
    settings: Settings,
    *,
    folder: str | Path | None = None,
    processes: int | None = None,
    progress: Callable[[Event], None] | None = None,
    **options: Any,
) -> Sweep:
    """Runs a job under every combination of some settings, one simulation a process.

        cl.sweep(job, "hospitals", {"algorithm.lr": [0.01, 0.1], "seed": range(5)})

    Args:
      data: as `simulate` takes them.
      settings: the values of each name; see `simulation/settings.py`. `seed` among them is a repetition: the summary
        has mean and deviation over it.
      folder: of the sweep: what is finished there is not run again.
      processes: how many cells at a time; one for each core if not given.
      progress: takes {"event": "cells", "cells"}, {"event": "cell", "cell", "done", "rounds"} as a cell's rounds are
        opened, and {"event": "outcome", ...} as it ends.
      options: of `simulate`, for all cells: sites, partition, dropouts ...
    Raises: UsageError, JobError: a name or a value that does not fit, before anything is run. The error of the first
      cell, where none could be finished.
    """
    if processes is not None and processes < 1:
        raise UsageError(f"processes={processes} is not at least 1.")
    with contextlib.ExitStack() as held:
        path = Path(folder) if folder is not None else Path(held.enter_context(tempfile.TemporaryDirectory()))
        plain = {name: list(each) for name, each in settings.items()}
        cells = _grid(job, options, plain, path)
        table = loaded(job, data)
        for cell in cells:  # what cannot be cut is told before anything is run
            shards_of(cell.job, table, cell.options.get("sites"), cell.options.get("partition", "skewed"))
        _claim(path, job, {"data": whereabouts(data), **options}, plain)
        load_back_end(job)
        _run(cells, table, processes or cores(), progress or (lambda event: None))
        found = [_read(cell) for cell in cells]
    if all(outcome.error for outcome in found):
        raise TaskError(f"no cell could be finished; the first: {found[0].error}")
    return Sweep(job, list(plain), found)


def read_sweep(folder: Path) -> tuple[Job, dict[str, Any], dict[str, list[Any]]]:
    """Job, options and settings of a sweep's folder. Raises: UsageError: it is none."""
    try:
        told = json.loads((folder / "sweep.json").read_text("utf-8"))
        return Job.from_bytes((folder / "job.bundle").read_bytes()), dict(told["options"]), dict(told["settings"])
    except (OSError, ValueError, KeyError, TypeError, CloisterError):
        raise UsageError(
            f"{folder} holds no sweep.", mend="Give the folder that --out named when it was started."
        ) from None


def _grid(job: Job, options: Mapping[str, Any], settings: Settings, folder: Path) -> list[Cell]:
    """Every combination, checked. The last name varies fastest."""
    if not settings:
        raise UsageError("a sweep varies at least one setting.", mend="Try --set algorithm.rounds=10,20.")
    for name, values in settings.items():
        if not values:
            raise UsageError(f"{name} has no value.", mend=f"Try --set {name}=1,2.")
    cells: list[Cell] = []
    for number, chosen in enumerate(itertools.product(*settings.values()), 1):
        if number > MOST_CELLS:
            raise UsageError(f"the grid has more than {MOST_CELLS:,} cells.", mend="Vary less at a time.")
        named = dict(zip(settings, chosen, strict=True))
        made, with_ = job, dict(options)
        for name in sorted(named, key=lambda name: name.count(".")):  # an algorithm before its settings
            made, with_ = changed(made, with_, name, named[name])
        cells.append(Cell(number, named, complete(made), with_, folder / "cells" / f"{number:03d}"))
    return cells


def _claim(folder: Path, job: Job, options: Mapping[str, Any], settings: Settings) -> None:
    """Makes the folder this sweep's. Raises: UsageError: it is another's."""
    folder.mkdir(parents=True, exist_ok=True)
    told = json.loads(json.dumps({"options": options, "settings": settings}))
    if (folder / "sweep.json").exists():
        before, known, varied = read_sweep(folder)
        moved = {**known, "data": told["options"]["data"]}  # the same data may lie elsewhere by now
        if before.digest != complete(job).digest or (moved, varied) != (told["options"], told["settings"]):
            raise UsageError(
                f"{folder} holds another sweep.",
                mend=f"Choose another folder, or go on with `cloister sweep --resume {folder}`.",
            )
        return
    replace_file(folder / "job.bundle", complete(job).to_bytes())
    replace_file(folder / "sweep.json", (json.dumps(told, indent=2) + "\n").encode())


# --- running


def _run(cells: Sequence[Cell], data: Any, processes: int, progress: Callable[[Event], None]) -> None:
    """Each cell that is not finished, so many at a time; ended with this process' interest in them."""
    done = [cell for cell in cells if cell.outcome.exists()]
    progress({"event": "cells", "cells": len(cells), "done": len(done)})
    waiting = iter([cell for cell in cells if cell not in done])
    running: dict[Any, tuple[Cell, Any, Connection]] = {}
    try:
        while True:
            for cell in itertools.islice(waiting, processes - len(running)):
                process, connection = _start(cell, data, [each for _, _, each in running.values()])
                running[process.sentinel] = (cell, process, connection)
            if not running:
                return
            ready = wait([*running, *(connection for _, _, connection in running.values())])
            for sentinel, (cell, process, connection) in list(running.items()):
                if connection in ready or sentinel in ready:
                    for rounds in _told(connection):
                        progress({"event": "cell", "cell": cell.number, "rounds": rounds})
                if sentinel in ready:
                    process.join()
                    connection.close()
                    del running[sentinel]
                    progress({"event": "outcome", "cell": cell.number, **_read(cell).as_json()})
    finally:
        for _, process, connection in running.values():
            connection.close()
            process.terminate()
        for _, process, _ in running.values():
            process.join()


def _start(cell: Cell, data: Any, others: Sequence[Connection]) -> tuple[Any, Connection]:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_cell, args=(cell, data, there, [here, *others]), daemon=False)
    process.start()
    there.close()
    return process, here


def _told(connection: Connection) -> Iterator[int]:
    with contextlib.suppress(EOFError, OSError):
        while connection.poll():
            yield connection.recv()


def _cell(cell: Cell, data: Any, connection: Connection, others: Sequence[Connection]) -> None:
    """A cell's process. Ctrl-C is for the one that started it; with that one goes the other end of the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for other in others:
        other.close()

    def told(event: Event) -> None:
        if event.get("stage") == "train":
            connection.send(event["trained"])

    began = time.perf_counter()
    settings: dict[str, Any] = {"engine": "serial", **cell.options}
    try:
        result = simulate(cell.job, data, folder=cell.folder, progress=told, **settings)
    except (BrokenPipeError, StateLocked):
        return
    except DECIDED as fault:  # it would fail again: this is the cell's outcome
        _write(cell, Outcome(cell.number, cell.settings, error=" ".join(str(fault).split())))
        return
    except Exception as fault:
        cell.folder.mkdir(parents=True, exist_ok=True)
        cell.fault.write_text(f"{traceback.format_exc()}{type(fault).__name__}: {' '.join(str(fault).split())}\n")
        return
    result.save(cell.folder)
    history = json.loads(result.history.to_json(orient="records", double_precision=15))
    seconds = time.perf_counter() - began
    _write(cell, Outcome(cell.number, cell.settings, dict(result.final), history, round(seconds, 3)))


def _write(cell: Cell, outcome: Outcome) -> None:
    cell.folder.mkdir(parents=True, exist_ok=True)
    replace_file(cell.outcome, (json.dumps(outcome.as_json()) + "\n").encode())


def _read(cell: Cell) -> Outcome:
    """What became of a cell; one without an outcome is run again when the sweep goes on."""
    if not cell.outcome.exists():
        why = "its process was killed."
        if cell.fault.exists():
            why = f"{cell.fault.read_text('utf-8').splitlines()[-1]} (the trace is in {cell.fault})"
        return Outcome(cell.number, cell.settings, error=why)
    return Outcome.from_json(json.loads(cell.outcome.read_text("utf-8")))
