"""A simulation's folder: what is needed to go on after Ctrl-C, a kill or a power cut, and to end with the same bits.

    run.json       the settings besides the job
    job.bundle     the job
    state.bundle   the newest checkpoint: replaced whole, and durable before it counts
    events.jsonl   the events up to it, one a line
    sites/         what sites keep between rounds, where the algorithm has them do so
    trust.json, rosters/, receipts/, totals/, ...   the evidence of a run with masks, for `cloister verify`

Everything random comes from the seed and the step, so whatever came after the checkpoint comes again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cloister.job import Job
from cloister.round.evidence import Content
from cloister.vector import State
from cloister.vector.errors import CloisterError, EnvironmentFailure, StateLocked, UsageError
from cloister.vector.files import replace_file

SECONDS = 1.0  # least time between two checkpoints: a fast round should not wait for the disk


class RunFolder:
    """Implements `round.Store`.

    Args:
      folder: made if absent. job: of the run. settings: JSON values that decide the result.
      every_step: checkpoint each step, as sites that keep a memory need it; else at most once a second.
    Attributes: events: of the steps up to the checkpoint, then those that are told.
    Raises: UsageError: the folder holds another run.
    """

    def __init__(self, folder: Path, job: Job, settings: Mapping[str, Any], *, every_step: bool) -> None:
        self.folder, self._every_step = folder, every_step
        self.events: list[dict[str, Any]] = []
        self._written, self._saved_at = 0, -SECONDS
        self._open: State | None = None
        self._unsaved: State | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            told = f"the folder {folder} cannot be made: {fault.strerror}."
            raise EnvironmentFailure(told, mend="Choose another folder.") from None
        if (folder / "run.json").exists():
            self._check(job, settings)
        else:
            replace_file(folder / "job.bundle", job.to_bytes())
            replace_file(folder / "run.json", (json.dumps(dict(settings), indent=2) + "\n").encode())

    def _check(self, job: Job, settings: Mapping[str, Any]) -> None:
        before, known = read_run(self.folder)
        changed = sorted(name for name, value in settings.items() if _plain(value) != _plain(known.get(name)))
        if before.digest != job.digest or changed:
            what = ", ".join(changed) if before.digest == job.digest else "another job"
            raise UsageError(
                f"{self.folder} holds a run of other settings: {what}.",
                mend=f"Choose another folder, or go on with `cloister simulate --resume {self.folder}`.",
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Raises: StateLocked: another process works on this run."""
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateLocked(f"another process works on {self.folder}.", mend="Wait for it.") from None
            yield

    def load(self) -> State | None:
        path = self.folder / "state.bundle"
        if not path.exists():
            return None
        state = State.from_bytes(path.read_bytes())
        lines = (self.folder / "events.jsonl").read_text("utf-8").splitlines()
        told = [json.loads(line) for line in lines if line]
        self.events[:] = [event for event in told if event.get("round", 0) < state.facts["step"]]
        replace_file(self.folder / "events.jsonl", b"".join(map(_line, self.events)))
        self._written = len(self.events)
        return state

    def save(self, state: State) -> None:
        self._open = state

    def keep(self, path: str, data: Content) -> None:
        """Writes a file of the evidence (`round.evidence`); of an interrupted run it is not looked at again."""
        place = self.folder / path
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(bytes(data))

    def settled(self) -> None:
        """The events of the step that was saved are told: a checkpoint may be made of it."""
        self._unsaved = self._open
        if self._every_step or time.monotonic() - self._saved_at >= SECONDS:
            self.flush()

    def flush(self) -> None:
        """Makes the newest state durable: its events first, for a state without them would never get them."""
        if self._unsaved is None:
            return
        with (self.folder / "events.jsonl").open("ab") as file:
            file.write(b"".join(map(_line, self.events[self._written :])))
            file.flush()
            os.fsync(file.fileno())
        self._written = len(self.events)
        replace_file(self.folder / "state.bundle", self._unsaved.to_bytes())
        self._unsaved, self._saved_at = None, time.monotonic()


def read_run(folder: Path) -> tuple[Job, dict[str, Any]]:
    """The job and the settings of a run's folder. Raises: UsageError: it is none."""
    try:
        settings = json.loads((folder / "run.json").read_text("utf-8"))
        if isinstance(settings["dropouts"], dict):
            settings["dropouts"] = {int(step): gone for step, gone in settings["dropouts"].items()}
        return Job.from_bytes((folder / "job.bundle").read_bytes()), settings
    except (OSError, ValueError, KeyError, TypeError, CloisterError):
        raise UsageError(
            f"{folder} holds no simulation.", mend="Give the folder that --out named when it was started."
        ) from None


def _plain(setting: Any) -> Any:
    return json.loads(json.dumps(setting))


def _line(event: Mapping[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"
