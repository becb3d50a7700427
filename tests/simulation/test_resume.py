"""A simulation that was interrupted, killed or never finished goes on, and ends with the same bits."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

import cloister as cl
from cloister.cli.app import run as command
from cloister.simulation.store import RunFolder, read_run
from cloister.vector.errors import EnvironmentFailure, StateLocked, UsageError

JOB = """
import cloister as cl
job = cl.Job(
    data=cl.Table("patients", target="ill"),
    prepare=[cl.Impute(), cl.OneHot(), cl.Standardize()],
    task=cl.Torch(model=cl.nets.MLP([4]), loss="bce", optimizer=cl.SGD(lr=0.2), batch_size=16),
    algorithm=cl.FedAvg(rounds=6, cohort=0.7),
)
"""


@pytest.fixture
def folder(tmp_path: Path, whole: Any) -> Path:
    whole.to_csv(tmp_path / "patients.csv", index=False)
    (tmp_path / "job.py").write_text(JOB)
    return tmp_path


def expected(folder: Path) -> bytes:
    return cl.simulate(cl.load_job(folder / "job.py"), folder / "patients.csv", sites=6).state.to_bytes()


@pytest.mark.parametrize("engine", ["serial", "processes"])
@pytest.mark.parametrize("step", [0, 2, 5])
def test_killed_at_any_step_it_goes_on_to_the_same_bits(folder, engine, step):
    """A real SIGKILL, right after the events of a step were told and before anything else."""
    script = f"""
    import os, signal, cloister as cl
    def die(event):
        if event["event"] == "round" and event["round"] == {step}:
            print(os.getpid(), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    cl.simulate(cl.load_job("job.py"), "patients.csv", sites=6, folder="run", engine="{engine}", progress=die)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert command(["simulate", "--resume", str(folder / "run"), "--engine", engine, "--json"]) == 0
    assert (folder / "run" / "state.bundle").read_bytes() == expected(folder)
    events = [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text().splitlines()]
    assert [event["round"] for event in events if event["event"] == "round"] == list(range(10))


def test_ctrl_c_leaves_a_run_that_goes_on(folder):
    slow = JOB.replace("rounds=6", "rounds=100000")
    (folder / "slow.py").write_text(slow)
    arguments = [
        sys.executable,
        "-m",
        "cloister.cli",
        "simulate",
        "slow.py",
        "--data",
        "patients.csv",
        "--sites",
        "6",
    ]
    running = subprocess.Popen(
        [*arguments, "--out", "run", "--engine", "processes"],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore Ctrl-C
    )
    try:
        until = time.monotonic() + 60
        while not (folder / "run" / "state.bundle").exists() and time.monotonic() < until:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130
    assert "cloister simulate --resume run" in " ".join(told.split())
    job, settings = read_run(folder / "run")
    assert job.algorithm.rounds == 100000
    assert settings["sites"] == 6
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    assert not children.exists()


def test_the_same_call_goes_on_and_a_finished_run_is_not_run_again(folder):
    job, data = cl.load_job(folder / "job.py"), folder / "patients.csv"

    class Stop(Exception):
        pass

    def stop(event):
        if event.get("trained") == 3:
            raise Stop

    with pytest.raises(Stop):
        cl.simulate(job, data, sites=6, folder=folder / "run", progress=stop)
    events: list[Any] = []
    result = cl.simulate(job, data, sites=6, folder=folder / "run", progress=events.append)
    assert result.state.to_bytes() == expected(folder)
    assert next(event["trained"] for event in events if event.get("stage") == "train") > 1
    assert result.history["seconds"].iloc[1:].notna().all()
    events.clear()
    again = cl.simulate(job, data, sites=6, folder=folder / "run", progress=events.append)
    assert [event["event"] for event in events] == ["done"]
    assert again.state.to_bytes() == result.state.to_bytes()


def test_another_run_in_the_folder_is_refused(folder):
    job, data = cl.load_job(folder / "job.py"), folder / "patients.csv"
    cl.simulate(job, data, sites=6, folder=folder / "run", dropouts={3: ["site-1"]})
    with pytest.raises(UsageError, match="other settings: dropouts, sites"):
        cl.simulate(job, data, sites=5, folder=folder / "run")
    with pytest.raises(UsageError, match="another job"):
        cl.simulate(job, data, sites=6, folder=folder / "run", seed=3, dropouts={3: ["site-1"]})
    assert read_run(folder / "run")[1]["dropouts"] == {3: ["site-1"]}


def test_what_cannot_go_on_says_so(folder, capsys):
    job, data = cl.load_job(folder / "job.py"), folder / "patients.csv"
    with pytest.raises(UsageError, match="holds no simulation"):
        read_run(folder)
    with pytest.raises(EnvironmentFailure, match=r"cannot be made.*Choose another folder"):
        cl.simulate(job, data, sites=6, folder=folder / "job.py" / "run")
    cl.simulate(job, data, sites=6, folder=folder / "masked", seal="masks")
    with pytest.raises(UsageError, match="cannot go on"):
        cl.simulate(job, data, sites=6, folder=folder / "masked", seal="masks")
    assert command(["simulate"]) == 2
    assert "there is no job" in capsys.readouterr().err
    assert command(["simulate", str(folder / "job.py"), "--resume", str(folder / "masked")]) == 2


def test_two_processes_do_not_share_a_run(folder):
    job = cl.load_job(folder / "job.py")
    settings = {"data": None, "sites": 6, "partition": "iid", "seal": "ideal", "dropouts": 0.0}
    one, other = (RunFolder(folder / "run", job, settings, every_step=True) for _ in range(2))
    with one.locked(), pytest.raises(StateLocked), other.locked():
        pass


def test_checkpoints_wait_for_each_other_unless_sites_keep_a_memory(folder, monkeypatch):
    job = cl.load_job(folder / "job.py")
    written: list[int] = []
    monkeypatch.setattr(
        RunFolder, "flush", lambda self: written.append(1) or setattr(self, "_saved_at", time.monotonic())
    )
    for every_step, count in ((True, 5), (False, 1)):
        store = RunFolder(folder / f"run-{every_step}", job, {}, every_step=every_step)
        written.clear()
        for _ in range(5):
            store.settled()
        assert len(written) == count


def test_what_sites_remember_goes_on_too(folder, whole):
    job = dataclasses.replace(cl.load_job(folder / "job.py"), algorithm=cl.SCAFFOLD(rounds=6, cohort=0.7))
    expected = cl.simulate(job, whole, sites=6)

    class Stop(Exception):
        pass

    def stop(event):
        if event.get("trained") == 4:
            raise Stop

    with pytest.raises(Stop):
        cl.simulate(job, whole, sites=6, folder=folder / "run", progress=stop)
    result = cl.simulate(job, whole, sites=6, folder=folder / "run", engine="processes", processes=2)
    assert result.state.to_bytes() == expected.state.to_bytes()


def test_a_private_run_is_repeated_and_goes_on_where_nothing_is_claimed(folder):
    ranges = "cl.Standardize(ranges=dict.fromkeys(('age', 'dose', 'level'), (-50, 100)))"
    source = JOB.replace("cl.OneHot(), cl.Standardize()", ranges)
    source = source.replace('target="ill"', 'target="ill", ignore=["kind"]')
    source = source.replace("cohort=0.7),", "cohort=0.7), privacy=cl.RowDP(epsilon=8, delta=1e-5),")
    (folder / "job.py").write_text(source)
    arguments = ["simulate", str(folder / "job.py"), "--data", str(folder / "patients.csv"), "--sites", "6", "--json"]
    for out, more in (("a", ["--reproducible"]), ("b", ["--reproducible"]), ("c", [])):
        assert command([*arguments, *more, "--out", str(folder / out)]) == 0
    (folder / "b" / "state.bundle").unlink()
    (folder / "b" / "events.jsonl").unlink()
    assert command(["simulate", "--resume", str(folder / "b"), "--json"]) == 0
    states = {out: (folder / out / "state.bundle").read_bytes() for out in "abc"}
    assert states["a"] == states["b"] != states["c"]
