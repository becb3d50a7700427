"""Hostile training code behind the walls: every attempt is made for real, and refused by the kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cloister.site import landlock

ATTEMPTS = {
    "read its table": "open(table).read()",
    "write in its folder": "open(home + '/note', 'w').write('x'); os.remove(home + '/note')",
    "import a library": "import scipy.special",
    "read the identity key": "open(key).read()",
    "list the site's folder": "os.listdir(os.path.dirname(key))",
    "read another table": "open(other).read()",
    "change its table": "open(table, 'a').write('x')",
    "write outside its folder": "open(os.path.dirname(key) + '/new', 'w')",
    "write to the machine's temporary folder": "open('/tmp/cloister-escape', 'w')",
    "read /etc/passwd": "open('/etc/passwd').read()",
    "start a program": "subprocess.run(['/bin/true'], check=True)",
    "reach the coordinator": "socket.create_connection(('127.0.0.1', port), timeout=2)",
    "listen on a port": "socket.create_server(('127.0.0.1', 0)); socket.create_connection(('127.0.0.1', port), 2)",
    "reach a service by its socket": "socket.socket(socket.AF_UNIX).connect(service)",
    "send to a service from a pair": "socket.socketpair(type=socket.SOCK_DGRAM)[0].connect(service)",
    "share memory by a number": "call(29, 0, 4096, 0o1600)",
    "attach another's memory": "call(30, 0, 0, 0)",
    "queue a message": "call(68, 1, 0o1600)",
    "make a file in memory": "os.memfd_create('bomb')",
    "signal the agent": "os.kill(os.getppid(), 0)",
    "look into the agent's memory": "open(f'/proc/{os.getppid()}/mem', 'rb').read(1)",
    "fork": "os.fork()",
    "bomb with forks": "[os.fork() for _ in range(1000)]",
    "leave a process behind": "subprocess.Popen([sys.executable, '-c', 'pass'], start_new_session=True)",
    "start a thread": "threading.Thread(target=int).start()",
    "trace a process": "call(101, 16, os.getppid(), 0, 0)",
    "read a process's memory": "call(310, os.getppid(), 0, 0, 0, 0, 0)",
    "make a namespace": "call(272, 0x10000000)",
    "mount": "call(165, b'none', home.encode(), b'tmpfs', 0, 0)",
    "load a BPF program": "call(321, 5, 0, 0)",
    "set up io_uring": "call(425, 8, ctypes.create_string_buffer(120))",
    "use the kernel's keys": "call(250, 0, 0, 0, 0, 0)",
    "count the machine's events": "call(298, 0, 0, -1, -1, 0)",
    "use numbers of the other ABI": "call(0x40000000 + 101, 16, os.getppid(), 0, 0)",
    "write a file of a gigabyte": "open(home + '/big', 'wb').truncate(1 << 30)",
    "read the agent's environment": "open(f'/proc/{os.getppid()}/environ', 'rb').read()",
}
ALLOWED = ("read its table", "write in its folder", "import a library", "start a thread")

HOSTILE = """
import ctypes, json, os, signal, socket, subprocess, sys, threading
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def call(*arguments):
    wide = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    if ctypes.CDLL(None, use_errno=True).syscall(*wide) < 0:
        fault = ctypes.get_errno()  # EPERM or EACCES is a wall's answer; any other a mistake in the attempt
        raise OSError(fault, os.strerror(fault)) if fault in (1, 13) else RuntimeError(f"errno {fault}")
from cloister.site import sandbox
table, home, key, other, service, port, attempts = json.loads(sys.stdin.read())
os.chdir(home)
walls = sandbox.enter(sandbox.Room(sandbox.WorkerLimits(), Path(table), Path(home)))
outcomes = {}
for name, attempt in attempts.items():
    try:
        exec(attempt)
        outcomes[name] = "done"
    except OSError as fault:
        outcomes[name] = type(fault).__name__
print(json.dumps([walls, outcomes]))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, str]]:
    """What each attempt came to, with a real server listening on loopback while they are made."""
    import socket

    if os.uname().machine != "x86_64":
        pytest.skip("the attempts name system calls by x86-64's numbers")
    if landlock.version() < 6:
        pytest.skip(f"this kernel's Landlock has ABI {landlock.version()}; signals and sockets are scoped from 6 on")
    site = tmp_path_factory.mktemp("site")
    (site / "home").mkdir()
    for name in ("table.csv", "other.csv", "identity.key"):
        (site / name).write_text("1,2\n")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as service:
        service.bind(str(site / "service.sock"))
        service.listen()
        port = server.getsockname()[1]
        given = [str(site / name) for name in ("table.csv", "home", "identity.key", "other.csv", "service.sock")]
        done = subprocess.run(
            [sys.executable, "-c", HOSTILE],
            input=json.dumps([*given, port, ATTEMPTS]),
            capture_output=True,
            text=True,
            check=True,
        )
        socket.create_connection(("127.0.0.1", port), timeout=2).close()  # both servers were there all the time
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(site / "service.sock"))
    walls, found = json.loads(done.stdout)
    return walls, found


def test_every_wall_stands(outcomes: tuple[list[str], dict[str, str]]) -> None:
    assert {
        "no-new-privileges",
        "memory",
        "processor",
        "file-size",
        "no-core-dump",
        "no-network",
        "files",
        "system-calls",
    } == set(outcomes[0])


@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_ends_as_it_should(name: str, outcomes: tuple[list[str], dict[str, str]]) -> None:
    assert (outcomes[1][name] == "done") == (name in ALLOWED), outcomes[1][name]


def test_without_the_walls_the_attempts_succeed(tmp_path: Path) -> None:
    """The control: it is the walls that refuse, not a mistake in the attempts."""
    (tmp_path / "key").write_text("secret")
    key, attempt = str(tmp_path / "key"), ATTEMPTS["read the identity key"]
    exec(attempt, {"open": open, "key": key})
    exec(ATTEMPTS["read /etc/passwd"])


def test_a_kernel_without_landlock_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(landlock, "_call", lambda number, *arguments: -1)
    assert landlock.version() == 0
    assert not landlock.restrict([tmp_path], [])
