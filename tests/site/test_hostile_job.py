"""A job whose code attacks the site it runs at, in the real training process, under a policy: blocked, and named."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import cloister as cl
from cloister import learn
from cloister.cli import bundled
from cloister.round import Program, contribute
from cloister.site import landlock, training
from cloister.site.policy import PolicyFile
from cloister.site.settings import DataSource
from cloister.site.training import Task, Worker
from cloister.vector import CloisterError, FixedPoint, Query, Total

from .test_worker import _ends

pytestmark = pytest.mark.processes

# The attempt of the moment lies in the process's own folder: what is tried when the job is imported, and in its loss.
JOB = """
import os
import torch
from torch import nn
import cloister as cl

def attempt(when, **known):
    path = os.environ.get("HOME", "") + "/" + when
    if os.path.exists(path):
        exec(open(path).read(), {**globals(), **known})

attempt("import")

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(30, 1)
    def forward(self, x):
        return self.layer(x)

def loss(model, batch):
    attempt("loss", model=model, batch=batch)
    return nn.functional.binary_cross_entropy_with_logits(model(batch["x"])[:, 0], batch["y"])

job = cl.Job(
    data=cl.Table("breast-cancer", target="malignant", classes=2),
    prepare=[cl.Impute(), cl.Standardize()],
    task=cl.Torch(Net, loss=loss, optimizer=cl.SGD(lr=0.1), steps=1),
    algorithm=cl.FedAvg(rounds=2),
)
"""
POLICY = """
[worker]
seconds = 60
memory_mb = 6144
file_mb = 16
"""
NO_FILE = "(PermissionError|FileNotFoundError|OSError)"  # Landlock's word, and bubblewrap's
BLOCKED = {  # in the loss: an attempt, and what the site says of it
    "open a socket": ("import socket; socket.create_connection(('127.0.0.1', {port}), 5)", "PermissionError"),
    "reach a service by its socket": ("import socket; socket.socket(socket.AF_UNIX)", "PermissionError"),
    "read another dataset": ("open({other!r}).read()", NO_FILE),
    "read the identity key": ("open({key!r}).read()", NO_FILE),
    "write outside its folder": ("open({outside!r}, 'w')", NO_FILE),
    "link the key into its folder": ("os.link({key!r}, os.environ['HOME'] + '/key')", NO_FILE),
    "bomb with forks": ("while True: os.fork()", "PermissionError"),
    "start a shell": ("os.execv('/bin/sh', ['sh'])", "PermissionError"),
    "leave a process behind": (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', ''], start_new_session=True)",
        "PermissionError",
    ),
    "bomb with memory": ("bytearray(1 << 40)", "MemoryError"),
    "bomb with pieces of memory": (
        "import mmap; keep = []\nwhile True: keep.append(mmap.mmap(-1, 1 << 28))",
        "OSError",
    ),
    "bomb with files in memory": ("os.memfd_create('bomb')", "PermissionError"),
    "fill the disk with a file": ("open(os.environ['HOME'] + '/big', 'wb').truncate(1 << 30)", "OSError"),
    "end the process politely": ("raise SystemExit(0)", "SystemExit"),
    "quote a row in an exception": ("raise ValueError(batch['x'][0].tolist())", "ValueError"),
    "name an exception after a row": ("raise type('Row_3_1', (Exception,), {{}})", "an error"),
}
AT_IMPORT = {
    "read the identity key": BLOCKED["read the identity key"],
    "open a socket": BLOCKED["open a socket"],
    "speak with the agent's errors": (
        "from cloister.vector.errors import PolicyRefused; raise PolicyRefused('row 7 says 3.1', rule='x')",
        "an error",
    ),
}
# Code that was imported may replace what the process answers with: what the agent says of each. The last ends it.
FORGED = """
import dataclasses
import numpy as np
from cloister.vector import Answer
true = Answer.to_bytes
def forged(self):
    Answer.to_bytes = true
    rows, blocks = self.rows, dict(self.values)
    {change}
    return true(dataclasses.replace(self, rows=rows, values=blocks))
Answer.to_bytes = forged
"""
ANSWERS = {
    "not a number": ("blocks['delta'] = np.full(31, np.nan)", "NaN"),
    "an infinite number": ("blocks['train_loss'] = np.array(np.inf)", "infinity"),
    "too short a vector": ("blocks['delta'] = np.zeros(30)", "delta"),
    "too long a vector": ("blocks['delta'] = np.zeros(3100)", "delta"),
    "a block that nobody asked for": ("blocks['the table'] = np.zeros(31)", "the table|blocks"),
    "fewer rows than none": ("rows = -5", "parse"),
    "gigabytes": ("blocks['delta'] = np.zeros(1 << 24)", "framing"),
}
# Half a frame, then silence, from a thread that no exception ends.
HANG = """
import stat, time
for number in range(3, 64):
    try:
        if stat.S_ISFIFO(os.fstat(number).st_mode):
            os.write(number, bytes([6, 0, 0, 0]))
    except OSError:
        pass
while True:
    try:
        time.sleep(60)
    except BaseException:
        pass
"""


def train_query(job: cl.Job) -> Query:
    """The first query about the model, of a program that was told of empty tables so far."""
    program = Program(job, dict.fromkeys(sorted(bundled.breast_cancer().columns.drop("malignant")), "number"))
    state = program.start()
    while (query := program.ask(state)) is not None and query.task != "train":
        zeros = {block.name: np.zeros(block.shape) for block in query.layout.blocks}
        state = program.learn(state, Total(zeros, 1000, 0, query.max_rows, 3))
    assert query is not None
    return query


class Site:
    """What became of each attempt: the errors as they would leave the site."""

    def __init__(self, folder: Path, table: Path, port: int) -> None:
        (folder / "job.py").write_text(JOB)
        self.job = learn.complete(cl.load_job(folder / "job.py"))
        self.query, self.folder = train_query(self.job), folder
        for name in ("other.csv", "identity.key"):
            (folder / name).write_text("4711\n")
        paths = {"other": folder / "other.csv", "key": folder / "identity.key", "outside": folder / "new"}
        self.known: dict[str, Any] = {name: str(path) for name, path in paths.items()} | {"port": port}
        limits = PolicyFile.parse(POLICY).limits
        bundle, log = self.job.to_bytes(), folder / "worker.log"
        self.task = Task("kent", DataSource(file=table), folder / "home", limits, log, bundle, ships_code=True)
        self.said: dict[str, str] = {}

    async def attempt(self, worker: Worker, name: str, code: str, when: str = "loss") -> None:
        path = self.folder / "home" / when
        path.write_text(code)
        try:
            answer = await worker.answer(self.query, self.query.to_bytes())
            contribute(answer, self.query, FixedPoint(self.query.sealed_layout, sites=3))
            self.said[name] = "done"
        except CloisterError as fault:
            self.said[name] = json.dumps(fault.as_json())
        finally:
            path.unlink(missing_ok=True)

    async def live(self) -> None:
        """Every attempt, in as few processes as survive them."""
        worker = await Worker.start(self.task)
        self.ended = processes_of(worker)
        for name, (code, _) in AT_IMPORT.items():
            await self.attempt(worker, f"import: {name}", code.format(**self.known), "import")
        await self.attempt(worker, "nothing", "")
        for name, (code, _) in BLOCKED.items():
            await self.attempt(worker, name, code.format(**self.known))
        before = psutil.Process().memory_info().rss
        await self.attempt(worker, "print without end", "for _ in range(1 << 10): print('x' * (1 << 16))")
        self.grown = psutil.Process().memory_info().rss - before
        await self.attempt(worker, "nothing again", "")
        for name, (change, _) in ANSWERS.items():
            await self.attempt(worker, f"answer: {name}", FORGED.format(change=change))
        worker = await Worker.start(self.task)
        object.__setattr__(worker._task.limits, "seconds", 3.0)
        self.ended += processes_of(worker)
        await self.attempt(worker, "hang on the pipe", HANG)


def processes_of(worker: Worker) -> list[int]:
    """With bubblewrap there are three: the worker is the last."""
    started = psutil.Process(worker._process.pid)
    return [started.pid, *(child.pid for child in started.children(recursive=True))]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, breast_cancer: Path) -> Site:
    if landlock.version() < 4:
        pytest.skip(f"this kernel's Landlock has ABI {landlock.version()}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        made = Site(tmp_path_factory.mktemp("site"), breast_cancer, server.getsockname()[1])
        asyncio.run(asyncio.wait_for(made.live(), 250))
        socket.create_connection(("127.0.0.1", made.known["port"]), timeout=5).close()  # it was there all the time
    return made


def test_code_that_attempts_nothing_answers(site: Site) -> None:
    assert (site.said["nothing"], site.said["nothing again"]) == ("done", "done")


@pytest.mark.parametrize("name", [*BLOCKED, *(f"import: {name}" for name in AT_IMPORT)])
def test_an_attempt_is_blocked_and_named_without_a_value(site: Site, name: str) -> None:
    what = {**BLOCKED, **{f"import: {each}": said for each, said in AT_IMPORT.items()}}[name][1]
    assert re.search(rf"the job's code raised {what}\.", site.said[name])
    assert not any(value in site.said[name] for value in ("4711", "3.1", "Row", str(site.folder)))


@pytest.mark.parametrize("name", ANSWERS)
def test_a_forged_answer_does_not_leave(site: Site, name: str) -> None:
    said = json.loads(site.said[f"answer: {name}"])
    assert said["error"] == "TaskError"
    assert re.search(ANSWERS[name][1], said["message"])


def test_what_is_printed_costs_the_agent_nothing(site: Site) -> None:
    assert site.said["print without end"] == "done"
    assert site.grown < 64 << 20
    assert (site.folder / "worker.log").stat().st_size <= training.LOG_BYTES


def test_one_that_hangs_is_stopped_by_the_policy_and_leaves_nothing_behind(site: Site) -> None:
    assert "took longer than 3 seconds" in site.said["hang on the pipe"]
    assert "worker.seconds in policy.toml" in site.said["hang on the pipe"]
    assert all(_ends(pid) for pid in site.ended)
