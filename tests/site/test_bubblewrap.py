"""bubblewrap around the training process: what it shuts by itself, and that nothing outlives it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import cloister as cl
from cloister.site import bubblewrap, training
from cloister.site.training import Task, Worker
from cloister.vector import Query
from cloister.vector.errors import PolicyRefused, WorkerDied

from .test_worker import IMPOSTOR, READ, _ends

pytestmark = pytest.mark.processes

ATTEMPTS = {
    "read its table": "open(table).read()",
    "write in its folder": "open(home + '/note', 'w').write('x')",
    "import a library": "import numpy",
    "read the identity key": "open(key).read()",
    "see that there is a key": "os.stat(key)",
    "read another table": "open(other).read()",
    "change its table": "open(table, 'a').write('x')",
    "write outside its folder": "open(os.path.dirname(key) + '/new', 'w')",
    "write to the machine's temporary folder": "open('/tmp/cloister-escape', 'w')",
    "fill memory with files": "open('/dev/shm/bomb', 'w')",
    "read /etc/passwd": "open('/etc/passwd').read()",
    "reach the coordinator": "socket.create_connection(('127.0.0.1', port), timeout=2)",
    "reach a service by its socket": "socket.socket(socket.AF_UNIX).connect(service)",
    "see another process": "os.kill(agent, 0)",
}
ALLOWED = ("read its table", "write in its folder", "import a library")
HOSTILE = """
import json, os, socket, sys
table, home, key, other, service, port, agent, attempts = json.loads(sys.stdin.read())
outcomes = {}
for name, attempt in attempts.items():
    try:
        exec(attempt)
        outcomes[name] = "done"
    except OSError as fault:
        outcomes[name] = type(fault).__name__
print(json.dumps(outcomes))
"""


@pytest.fixture(autouse=True)
def installed() -> None:
    if shutil.which("bwrap") is None:
        pytest.skip("needs bubblewrap (bwrap), which is not installed")
    if not bubblewrap.works():
        pytest.skip("bubblewrap is installed and may make no namespaces here")


def test_by_itself_it_shuts_files_network_and_processes(tmp_path: Path) -> None:
    """No other wall is entered: where the kernel has no Landlock, these are the ones that stand."""
    (tmp_path / "home").mkdir()
    for name in ("table.csv", "other.csv", "identity.key"):
        (tmp_path / name).write_text("1,2\n")
    paths = [tmp_path / name for name in ("table.csv", "home", "identity.key", "other.csv", "service.sock")]
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as service:
        service.bind(str(paths[-1]))
        service.listen()
        given = [*map(str, paths), server.getsockname()[1], os.getpid(), ATTEMPTS]

        def outcomes(*around: str) -> dict[str, str]:
            command = [*around, sys.executable, "-I", "-c", HOSTILE]
            done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, check=True)
            found: dict[str, str] = json.loads(done.stdout)
            return found

        found = outcomes(*bubblewrap.prefix(paths[0], paths[1], None))
        assert [name for name in ATTEMPTS if found[name] == "done"] == list(ALLOWED), found
        bare = outcomes()  # the control: it is bubblewrap that refuses
        assert {name: said for name, said in bare.items() if said != "done"} == {}
    Path("/tmp/cloister-escape").unlink()
    Path("/dev/shm/bomb").unlink()


def test_a_worker_in_it_answers_and_ends_with_its_agent_s_word(
    make_task: Callable[..., Task], declarative: cl.Job, profile_query: Query
) -> None:
    async def work() -> None:
        worker = await Worker.start(make_task(declarative))
        assert {bubblewrap.NAME, "files", "no-network", "system-calls"} <= set(worker.walls)
        assert (await worker.answer(profile_query, profile_query.to_bytes())).rows == 455
        inside = psutil.Process(worker._process.pid).children(recursive=True)
        assert inside
        await worker.close()
        assert all(_ends(each.pid) for each in inside)

    asyncio.run(asyncio.wait_for(work(), 60))


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def impostor(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def put(then: str) -> None:
        monkeypatch.setattr(training, "COMMAND", (sys.executable, "-c", IMPOSTOR.format(then=then)))

    return put


def test_a_process_that_left_the_worker_s_session_ends_with_it(
    make_task: Callable[..., Task], declarative: cl.Job, impostor: Callable[[str], None], tmp_path: Path
) -> None:
    impostor(
        f"if os.fork() == 0: os.setsid(); os.execv(sys.executable, [sys.executable, '-c', {LINGER!r}, '{tmp_path}'])"
    )

    def lingering() -> list[psutil.Process]:
        found = psutil.process_iter(["cmdline", "status"])
        return [each for each in found if (each.info["cmdline"] or [""])[-1] == str(tmp_path)]

    async def work() -> None:
        worker = await Worker.start(make_task(declarative))
        await asyncio.to_thread(until, lambda: bool(lingering()))
        await worker.close()
        await asyncio.to_thread(until, lambda: not lingering())

    asyncio.run(asyncio.wait_for(work(), 60))


LINGER = "import time; time.sleep(60)"


def test_a_signal_in_it_is_named(
    make_task: Callable[..., Task], declarative: cl.Job, profile_query: Query, impostor: Callable[[str], None]
) -> None:
    impostor(READ + "os.kill(os.getpid(), signal.SIGKILL)")

    async def work() -> None:
        worker = await Worker.start(make_task(declarative))
        with pytest.raises(WorkerDied, match="ended by SIGKILL"):
            await worker.answer(profile_query, profile_query.to_bytes())

    asyncio.run(asyncio.wait_for(work(), 60))


def test_it_stands_for_walls_that_the_kernel_lacks_and_no_others(
    make_task: Callable[..., Task],
    declarative: cl.Job,
    impostor: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = dataclasses.replace(make_task(declarative), ships_code=True)

    async def start(walls: str) -> None:
        monkeypatch.setattr(
            training, "COMMAND", (sys.executable, "-c", IMPOSTOR.format(then="").replace("[]", walls))
        )
        await (await Worker.start(task)).close()

    async def work() -> None:
        await start('["system-calls"]')
        with pytest.raises(PolicyRefused, match="cannot confine it: system-calls missing"):
            await start('["files", "no-network", "no-new-privileges"]')
        monkeypatch.setattr(bubblewrap, "works", lambda: False)
        with pytest.raises(PolicyRefused, match="files, no-network, no-new-privileges missing"):
            await start('["system-calls"]')

    asyncio.run(asyncio.wait_for(work(), 60))


def test_one_that_is_installed_and_may_do_nothing_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2; exit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    forget()
    try:
        assert bubblewrap.prefix(tmp_path / "table", tmp_path, None) == []
    finally:
        monkeypatch.undo()
        forget()
    assert bubblewrap.works()


def forget() -> None:
    bubblewrap.works.cache_clear()
    bubblewrap._outside.cache_clear()
