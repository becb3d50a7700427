"""Real processes on loopback, started as a user would start them, and ended whatever a test does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest

CLI = [sys.executable, "-m", "cloister.cli"]
SECONDS = 120


class Terminal:
    """A working directory in which commands are typed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.started: list[subprocess.Popen[str]] = []

    def run(self, *arguments: str, code: int = 0) -> str:
        """One command to its end; returns what it printed."""
        done = subprocess.run(
            [*CLI, *arguments], cwd=self.folder, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert done.returncode == code, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout if code == 0 else done.stderr

    def json(self, *arguments: str) -> dict[str, Any]:
        """The last JSON object that a command printed."""
        found: dict[str, Any] = json.loads(self.run(*arguments, "--json").splitlines()[-1])
        return found

    def start(self, *arguments: str, program: list[str] | None = None) -> subprocess.Popen[str]:
        """A command that runs on; its output goes to NUMBER.log."""
        log = (self.folder / f"{len(self.started)}.log").open("w+")
        process = subprocess.Popen(
            [*(program or CLI), *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
        )
        self.started.append(process)
        return process

    def said(self, process: subprocess.Popen[str]) -> str:
        return (self.folder / f"{self.started.index(process)}.log").read_text()

    def wait_for(self, process: subprocess.Popen[str], text: str) -> None:
        """Until a started command has printed `text`."""
        end = time.monotonic() + SECONDS
        while text not in self.said(process):
            assert process.poll() is None, f"ended: {self.said(process)}"
            assert time.monotonic() < end, f"never said {text!r}: {self.said(process)}"
            time.sleep(0.05)

    def signal(self, pid: int, number: int) -> None:
        """Like `kill`; a process that is gone already is fine."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def open_terminals(folder: Path) -> Iterator[Callable[[str], Terminal]]:
    opened: list[Terminal] = []

    def open_terminal(name: str) -> Terminal:
        opened.append(Terminal(folder / name))
        return opened[-1]

    yield open_terminal
    for each in reversed(opened):
        each.close()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[[str], Terminal]]:
    """`terminal(name)`: a terminal in a directory of its own."""
    yield from open_terminals(tmp_path)


@pytest.fixture(scope="module")
def module_terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Terminal]]:
    """The same for a federation that all tests of a module look at."""
    yield from open_terminals(tmp_path_factory.mktemp("terminals"))


@pytest.fixture(scope="session")
def patients() -> Callable[[int, int], pd.DataFrame]:
    """`patients(rows, seed)`: numbers, a category, missing cells, and a label that depends on them."""

    def make(rows: int, seed: int) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        age, pressure = rng.normal(60, 12, rows), rng.normal(130, 18, rows)
        ward = rng.choice(["north", "south", "west"], rows)
        score = 0.08 * (age - 60) + 0.05 * (pressure - 130) + (ward == "west") + rng.normal(0, 1, rows)
        table = {"age": age.round(1), "pressure": pressure.round(0), "ward": ward, "ill": (score > 0.3) * 1}
        frame = pd.DataFrame(table)
        frame.loc[rng.random(rows) < 0.05, "age"] = np.nan
        return frame

    return make


@pytest.fixture
def processes_of() -> Callable[[Path], list[int]]:
    """`processes_of(folder)`: processes that run with, or were started with a path, below it."""

    def find(folder: Path) -> list[int]:
        found = []
        for process in psutil.process_iter(["cmdline", "status", "cwd"]):
            words = [*(process.info["cmdline"] or []), process.info["cwd"] or ""]
            alive = process.info["status"] != psutil.STATUS_ZOMBIE
            if alive and process.pid != os.getpid() and any(str(folder) in word for word in words):
                found.append(process.pid)
        return found

    return find


@pytest.fixture(scope="session")
def free_port() -> int:
    """One for each test process: those of one module run one after the other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield int(taken.getsockname()[1])
