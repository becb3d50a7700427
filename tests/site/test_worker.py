"""The training process: what it answers on real data, and that nothing it does can hurt the agent."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

import cloister as cl
from cloister.round import contribute
from cloister.site import training
from cloister.site.training import Task, Worker, read_schema
from cloister.vector import FixedPoint, Query
from cloister.vector.errors import CloisterError, DataError, PolicyRefused, TaskError, WorkerDied

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("bare")]
MakeTask = Callable[..., Task]

# A process in the worker's place that is ready as the real one, and then does what {then} says.
IMPOSTOR = """
import json, os, signal, sys, time
from cloister.site import framing
from cloister.site.framing import HEADER, Kind
incoming, outgoing = sys.stdin.buffer, sys.stdout.buffer
framing.read(incoming, {{Kind.SETUP: 1 << 20}})
framing.read(incoming, {{Kind.JOB: 1 << 30}})
framing.write(outgoing, Kind.READY, b'{{"walls": [], "warnings": []}}')
def raw(data):
    outgoing.write(data)
    outgoing.flush()
{then}
time.sleep(60)
"""
READ = "framing.read(incoming, {Kind.QUERY: 1 << 30})\n"


def run(work: Awaitable[object]) -> None:
    async def within_time() -> None:
        async with asyncio.timeout(60):
            await work

    asyncio.run(within_time())


def test_schema_of_real_data(make_task: MakeTask) -> None:
    schema: dict[str, str] = {}

    async def work() -> None:
        schema.update(await read_schema(make_task()))

    run(work())
    assert len(schema) == 31
    assert set(schema.values()) == {"number"}


def test_answers_on_real_data(make_task: MakeTask, declarative: cl.Job, profile_query: Query) -> None:
    async def work() -> None:
        worker = await Worker.start(make_task(declarative))
        assert {"memory", "no-core-dump", "no-new-privileges"} <= set(worker.walls)
        first = await worker.answer(profile_query, profile_query.to_bytes())
        again = await worker.answer(profile_query, profile_query.to_bytes())
        assert first.rows == again.rows == 455  # 569 rows, a fifth held out
        assert first.values["classes"].sum() == 455
        coder = FixedPoint(profile_query.sealed_layout, sites=3)
        np.testing.assert_array_equal(
            contribute(first, profile_query, coder), contribute(again, profile_query, coder)
        )
        await worker.close()
        await worker.close()
        assert not worker.alive

    run(work())


def test_the_worker_sees_nothing_of_the_agents_environment(
    make_task: MakeTask, declarative: cl.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    async def work() -> None:
        worker = await Worker.start(make_task(declarative))
        process = psutil.Process(worker._process.pid)
        assert "AWS_SECRET_ACCESS_KEY" not in process.environ()
        assert process.environ()["HOME"] == str(worker._task.home)
        assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        assert process.rlimit(psutil.RLIMIT_AS)[0] == worker._task.limits.memory_mb << 20
        assert "NoNewPrivs:\t1" in Path(f"/proc/{process.pid}/status").read_text()
        await worker.close()

    run(work())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no file"),
        ("", "empty"),
        ("a,malignant\n", "no row"),
        ("a,b\n1,2\n", "malignant"),
        ("a,malignant\n1,0\n2\n", "cells"),
        ("a,malignant\nsmith,0\njones,1\n", "'a'"),
        ("a,malignant\n1,perhaps\n2,never\n", "malignant"),
    ],
)
def test_a_bad_table_is_one_clear_line_without_its_values(
    make_task: MakeTask, declarative: cl.Job, tmp_path: Path, content: str | None, says: str
) -> None:
    table = tmp_path / "patients.csv"
    if content is not None:
        table.write_text(content)

    async def profile() -> None:
        worker = await Worker.start(make_task(declarative, table))
        query = _profile_of_a(declarative)
        try:
            await worker.answer(query, query.to_bytes())
        finally:
            await worker.close()

    async def work() -> None:
        with pytest.raises(DataError, match=says) as caught:
            await profile()
        told = json.dumps(caught.value.as_json())
        assert caught.value.site == "kent"
        assert "\\n" not in told
        for value in ("smith", "jones", "perhaps", "never", str(tmp_path)):
            assert value not in told

    run(work())


def _profile_of_a(job: cl.Job) -> Query:
    from cloister.round import Program

    program = Program(job, {"a": "number"})
    query = program.ask(program.start())
    assert query is not None
    return query


@pytest.mark.parametrize(
    ("then", "error", "says"),
    [
        (READ + "time.sleep(60)", WorkerDied, "longer than 1.5 seconds"),
        ("time.sleep(60)", WorkerDied, "longer than"),
        (READ + "os._exit(3)", WorkerDied, "exit code 3"),
        (READ + "os.kill(os.getpid(), signal.SIGKILL)", WorkerDied, "SIGKILL"),
        (READ + "raw(b'hello world' * 100)", TaskError, "framing"),
        (READ + "raw(HEADER.pack(Kind.ANSWER, 1 << 60))", TaskError, "framing"),
        (READ + "framing.write(outgoing, Kind.ANSWER, bytes(1 << 20))", TaskError, "framing"),
        (READ + "framing.write(outgoing, Kind.READY, b'')", TaskError, "framing"),
        (READ + "framing.write(outgoing, Kind.ANSWER, b'x' * 100)", TaskError, "does not parse"),
        (READ + "raw(HEADER.pack(Kind.ANSWER, 500) + b'half'); os._exit(0)", WorkerDied, "exit code 0"),
        (READ + "framing.write(outgoing, Kind.FAULT, b'[]')", TaskError, "does not parse"),
        (
            READ + """framing.write(outgoing, Kind.FAULT, b'{"error": "BadSignature", "message": "x"}')""",
            TaskError,
            "x",
        ),
        (
            READ + """framing.write(outgoing, Kind.FAULT, b'{"error": "PolicyRefused", "message": "x"}')""",
            TaskError,
            "x",
        ),
        (READ + "os.close(1)", WorkerDied, "closed its pipe"),
    ],
)
def test_whatever_a_worker_does_is_one_typed_error(
    make_task: MakeTask,
    declarative: cl.Job,
    profile_query: Query,
    monkeypatch: pytest.MonkeyPatch,
    then: str,
    error: type[CloisterError],
    says: str,
) -> None:
    monkeypatch.setattr(training, "COMMAND", (sys.executable, "-c", IMPOSTOR.format(then=then)))

    async def work() -> None:
        worker = await Worker.start(make_task(declarative, seconds=60))
        object.__setattr__(worker._task.limits, "seconds", 1.5)
        with pytest.raises(error, match=says):
            await worker.answer(profile_query, profile_query.to_bytes() + bytes(1 << 20))  # more than a pipe holds
        await worker.close()
        assert not worker.alive

    run(work())


def test_a_worker_may_print_gigabytes(
    make_task: MakeTask, declarative: cl.Job, profile_query: Query, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    then = READ + "for _ in range(300): os.write(2, b'x' * (1 << 20))\nos.write(2, b'the end')\nos._exit(1)"
    monkeypatch.setattr(training, "COMMAND", (sys.executable, "-c", IMPOSTOR.format(then=then)))
    before = psutil.Process().memory_info().rss

    async def work() -> None:
        worker = await Worker.start(make_task(declarative))
        with pytest.raises(WorkerDied):
            await worker.answer(profile_query, profile_query.to_bytes())

    run(work())
    assert psutil.Process().memory_info().rss - before < 64 << 20
    log = (tmp_path / "worker.log").read_bytes()
    assert log.endswith(b"the end")
    assert len(log) <= training.LOG_BYTES
    assert (tmp_path / "worker.log").stat().st_mode & 0o077 == 0


def test_a_worker_that_fills_the_disk_is_stopped(
    make_task: MakeTask, declarative: cl.Job, profile_query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "COMMAND", (sys.executable, "-c", IMPOSTOR.format(then=READ)))

    async def work() -> None:
        worker = await Worker.start(make_task(declarative))
        object.__setattr__(worker._task.limits, "free_mb", 1 << 40)  # more than any disk has: as if it were full
        with pytest.raises(WorkerDied, match="less than 1099511627776 MiB left") as caught:
            await worker.answer(profile_query, profile_query.to_bytes())
        assert "worker.free_mb in policy.toml" in caught.value.mend

    run(work())


def test_a_process_left_behind_ends_with_the_worker(
    make_task: MakeTask, declarative: cl.Job, profile_query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = (
        "child = os.fork()\nif child == 0: time.sleep(60)\nopen(os.environ['HOME'] + '/child', 'w').write(str(child))"
    )
    monkeypatch.setattr(training, "COMMAND", (sys.executable, "-c", IMPOSTOR.format(then=then)))

    async def work() -> None:
        worker = await Worker.start(make_task(declarative))
        note = worker._task.home / "child"
        while not note.exists() or not note.read_text():
            await asyncio.sleep(0.01)
        await worker.close()
        assert _ends(int(note.read_text()))

    run(work())


def test_the_worker_dies_with_its_agent(tmp_path: Path, declarative: cl.Job, breast_cancer: Path) -> None:
    (tmp_path / "job").write_bytes(declarative.to_bytes())
    agent = f"""
import asyncio
from pathlib import Path
from cloister.site.sandbox import WorkerLimits
from cloister.site.settings import DataSource
from cloister.site.training import Task, Worker
async def main():
    here = Path({str(tmp_path)!r})
    task = Task("kent", DataSource(file={str(breast_cancer)!r}), here / "home", WorkerLimits(), here / "log",
                (here / "job").read_bytes())
    worker = await Worker.start(task)
    print(worker._process.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", agent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    os.kill(worker, 0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert _ends(worker)


def _ends(pid: int) -> bool:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_code_does_not_run_where_a_wall_is_missing(
    make_task: MakeTask, declarative: cl.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "COMMAND", (sys.executable, "-c", IMPOSTOR.format(then="time.sleep(60)")))

    async def work() -> None:
        task = dataclasses.replace(make_task(declarative), ships_code=True)
        with pytest.raises(PolicyRefused, match="cannot confine it: files, no-network") as caught:
            await Worker.start(task)
        assert caught.value.rule == "sandbox"
        await (await Worker.start(make_task(declarative))).close()

    run(work())
