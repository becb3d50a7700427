"""The agent's side of the training process: starts it, asks it, believes nothing it says, and ends it.

Whatever the worker does (hangs, dies, writes noise, answers too long) ends as one typed error here.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import json
import os
import re
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister.site import bubblewrap, framing, sandbox
from cloister.site.framing import Kind, Limits
from cloister.site.reader import export_of, table_of
from cloister.site.sandbox import MIB, WorkerLimits
from cloister.site.settings import DataSource, write_private
from cloister.vector import Answer, CloisterError, Query
from cloister.vector.errors import (
    EnvironmentFailure,
    LocalError,
    MalformedMessage,
    PolicyRefused,
    TaskError,
    WorkerDied,
    error_names,
)

COMMAND = (sys.executable, "-I", "-m", "cloister.site.worker")
LOG_BYTES = 1 << 16  # of a worker's output kept, the newest; it may print gigabytes
MESSAGE_CHARACTERS = 400
RAISED = re.compile(r"raise[sd] (\w{1,40})")  # what learn says of an exception; only Python's own are passed on
SECONDS_TO_DIE = 2.0
LOOK_SECONDS = 0.5  # between two looks at the disk
SIGNALLED = 128  # and the signal's number: how a shell, and bubblewrap, say that a signal ended a process
SECONDS_TO_PRINT = 0.02  # the traceback is written before the fault, through another pipe


@dataclass(frozen=True)
class Task:
    """What one worker is for.

    Attributes:
      site: the site's id. data: where its table lies. home: the worker's private folder, made if absent.
      log: where the end of what the worker printed is kept when it fails; may hold data values.
      job: the bundle; empty to read the table's schema only.
      ships_code: then nothing the worker says once that code may have run is passed on in words.
      memory: the folder of what the site keeps between rounds, for algorithms that have it do so.
    """

    site: str
    data: DataSource
    home: Path
    limits: WorkerLimits
    log: Path
    job: bytes = b""
    ships_code: bool = False
    memory: Path | None = None


async def read_schema(task: Task) -> dict[str, str]:
    """The table's columns and their types: all of it that is told to the coordinator. See `read_profile`."""
    return {str(column): str(about["kind"]) for column, about in (await read_profile(task))["columns"].items()}


async def read_profile(task: Task) -> dict[str, Any]:
    """The table as its steward may know it, read in a worker of its own: {"rows", "columns": {name: {"kind", ...}}}.

    Raises: DataError: no table there, or one that does not parse. WorkerDied, TaskError.
    """
    worker = await Worker.spawn(task)
    try:
        _, payload = await worker.exchange(None, {Kind.SCHEMA: framing.MAX_TEXT_BYTES})
        profile = facts_of(payload, columns=dict)
    finally:
        await worker.close()
        shutil.rmtree(task.home, ignore_errors=True)
    return profile


class Worker:
    """One training process. `start` it, `answer` queries one at a time, `close` it.

    Attributes: walls: what confines it. warnings: about the table, for the steward, one line each.
    """

    def __init__(self, task: Task, process: asyncio.subprocess.Process, *, wrapped: bool = False) -> None:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        self._task, self._process, self._wrapped = task, process, wrapped
        self._stdin, self._stdout = process.stdin, process.stdout
        self._log = bytearray()
        self._drain = asyncio.create_task(self._keep_log(process.stderr))
        self._disk = asyncio.create_task(self._keep_room())
        self._crowded = False
        self._turn = asyncio.Lock()
        self._believed = True  # no code of the job has run yet
        self._ended = False
        self.walls: tuple[str, ...] = ()
        self.warnings: tuple[str, ...] = ()

    @classmethod
    async def spawn(cls, task: Task) -> Worker:
        """Starts the process and hands it its set-up; `start` also waits until it is ready."""
        for folder in filter(None, (task.home, task.memory)):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        table = await table_of(task.data, task.home, task.log, task.site)
        around = await asyncio.to_thread(bubblewrap.prefix, table, task.home, task.memory)
        process = await asyncio.create_subprocess_exec(
            *around,
            *COMMAND,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=task.home,
            env=sandbox.environment(str(task.home), task.limits.threads),
            start_new_session=True,
        )
        worker = cls(task, process, wrapped=bool(around))
        setup = {
            "agent": bubblewrap.PARENT if around else os.getpid(),
            "site": task.site,
            "table": str(table.resolve()),
            "unit": task.data.unit,
            "memory": None if task.memory is None else str(task.memory),
            "limits": task.limits.as_json(),
            "has_job": bool(task.job),
        }
        await worker._send(Kind.SETUP, json.dumps(setup).encode("utf-8"))
        return worker

    @classmethod
    async def start(cls, task: Task) -> Worker:
        """Returns: a worker that has read the table and is ready for queries.

        Raises: DataError: the table does not fulfil the job's contract. PolicyRefused: the job ships code and a wall
          that must stand does not. TaskError, JobError, WorkerDied.
        """
        worker = await cls.spawn(task)
        try:
            await worker._send(Kind.JOB, task.job)
            _, payload = await worker.exchange(None, {Kind.READY: framing.MAX_TEXT_BYTES})
            facts = facts_of(payload, walls=list, warnings=list)
            around = (bubblewrap.NAME,) if worker._wrapped else ()
            worker.walls, worker.warnings = (*around, *facts["walls"]), tuple(facts["warnings"])
            worker._believed = not task.ships_code
            granted = bubblewrap.GRANTS if worker._wrapped else frozenset()
            if task.ships_code and (missing := sandbox.REQUIRED_FOR_CODE - set(worker.walls) - granted):
                raise PolicyRefused(
                    f"the job ships code and this machine cannot confine it: {', '.join(sorted(missing))} missing.",
                    rule="sandbox",
                    mend="Linux 5.13 or newer with Landlock and network namespaces; declarative jobs still run.",
                    site=task.site,
                )
        except BaseException:
            await worker.close()
            raise
        return worker

    @property
    def alive(self) -> bool:
        return self._process.returncode is None and not self._ended

    async def answer(self, query: Query, data: bytes) -> Answer:
        """Args: data: the bytes of `query`. Returns: its answer, still unchecked but for its length and form.

        Raises: TaskError: the training code raised, or wrote something else. WorkerDied: it ended or took too long.
        """
        async with self._turn:
            _, payload = await self.exchange(data, {Kind.ANSWER: framing.answer_limit(query.layout)})
        try:
            return Answer.from_bytes(payload)
        except MalformedMessage:
            raise TaskError("the training process wrote an answer that does not parse.", site=self._site) from None

    async def exchange(self, query: bytes | None, expected: Limits) -> tuple[Kind, bytes]:
        """Sends a query if there is one and reads one frame, within the time allowed. A FAULT is raised."""
        try:
            async with asyncio.timeout(self._task.limits.seconds):
                if query is not None:
                    await framing.send(self._stdin, Kind.QUERY, query)
                kind, payload = await framing.receive(self._stdout, {**expected, **framing.TEXT})
        except TimeoutError:
            await self.close()
            self._save_log()
            raise WorkerDied(
                f"the training process took longer than {self._task.limits.seconds:g} seconds and was stopped.",
                mend="Ask for less work in a round, or raise worker.seconds in policy.toml.",
                site=self._site,
            ) from None
        except (EOFError, ConnectionError):
            raise await self._died() from None
        except MalformedMessage:
            await self.close()
            raise TaskError("the training process broke the framing of its pipe.", site=self._site) from None
        except BaseException:
            await self.close()  # half a frame may be on its way: nothing after it can be trusted
            raise
        if kind is Kind.FAULT:
            await asyncio.sleep(SECONDS_TO_PRINT)
            self._save_log()
            raise fault_of(payload, self._site, believed=self._believed)
        return kind, payload

    async def close(self) -> None:
        """Ends the process and whatever it started in its session. Safe to call twice."""
        self._ended = True
        self._disk.cancel()
        export_of(self._task.home).unlink(missing_ok=True)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._stdin.close()
        with contextlib.suppress(
            TimeoutError, RuntimeError
        ):  # a grandchild may hold a pipe; somebody may be reading it
            async with asyncio.timeout(SECONDS_TO_DIE):
                while await self._stdout.read(LOG_BYTES):
                    pass  # what is left unread in a full pipe keeps wait() from returning (CPython issue 119710)
                await self._process.wait()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._drain, SECONDS_TO_DIE)

    @property
    def _site(self) -> str:
        return self._task.site

    async def _send(self, kind: Kind, payload: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # a worker that is gone is noticed by the next read
            await framing.send(self._stdin, kind, payload)

    async def _keep_log(self, stderr: asyncio.StreamReader) -> None:
        while part := await stderr.read(LOG_BYTES):
            self._log += part
            del self._log[:-LOG_BYTES]

    async def _keep_room(self) -> None:
        """Ends a worker that fills the disk, by files that are deleted and still open too; its journal needs room."""
        while (about := os.statvfs(self._task.home)).f_bavail * about.f_frsize >= self._task.limits.free_mb * MIB:
            await asyncio.sleep(LOOK_SECONDS)
        self._crowded = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _save_log(self) -> None:
        with contextlib.suppress(OSError, EnvironmentFailure):  # a log that cannot be kept stops nobody
            write_private(self._task.log, bytes(self._log))

    async def _died(self) -> WorkerDied:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), SECONDS_TO_DIE)
        code = self._process.returncode
        if self._wrapped and code is not None and code > SIGNALLED:
            code = SIGNALLED - code  # bubblewrap says it as a shell does
        await self.close()
        self._save_log()
        if self._crowded:
            return WorkerDied(
                f"the training process was stopped: its disk has less than {self._task.limits.free_mb} MiB left.",
                mend="Free some space, or lower worker.free_mb in policy.toml.",
                site=self._site,
            )
        how = "closed its pipe" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        return WorkerDied(
            f"the training process {how} without an answer.",
            mend="The site's worker.log may say why; memory and time are limited under [worker] in policy.toml.",
            site=self._site,
        )


def facts_of(payload: bytes, **needed: type) -> dict[str, Any]:
    """A frame of JSON. Args: needed: its fields, and of which type each is. Raises: TaskError: it does not parse."""
    try:
        facts = json.loads(payload)
        if isinstance(facts, dict) and all(isinstance(facts.get(name), kind) for name, kind in needed.items()):
            return facts
    except (ValueError, RecursionError):
        pass
    raise TaskError("the training process wrote what does not parse.")


def fault_of(payload: bytes, site: str, *, believed: bool) -> CloisterError:
    """The worker's own words, as far as they can be believed to hold no data value."""
    try:
        fields = facts_of(payload, error=str, message=str)
    except TaskError:
        return TaskError("the training process reported an error that does not parse.", site=site)
    name, message, mend = fields["error"], fields["message"], str(fields.get("mend", ""))
    if not believed:
        raised = RAISED.search(message)
        what = raised[1] if raised and hasattr(builtins, raised[1]) else "an error"
        return TaskError(
            f"the job's code raised {what}.",
            mend="Its text stays at the site (worker.log); `cloister simulate` shows it on your own data.",
            site=site,
        )
    kind = error_names().get(name, TaskError)
    if not issubclass(kind, LocalError | TaskError) or issubclass(kind, PolicyRefused):
        kind = TaskError
    return kind(_one_line(message), mend=_one_line(mend), site=site)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:MESSAGE_CHARACTERS]
