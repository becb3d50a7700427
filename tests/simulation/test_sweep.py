"""A grid of simulations: each cell is the simulation of its settings, what is finished stays, names are told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cloister as cl
from cloister.cli.app import run as command
from cloister.simulation.settings import changed, names, values
from cloister.vector.errors import CloisterError, JobError, TaskError, UsageError

JOB = """
import cloister as cl
job = cl.Job(
    data=cl.Table("patients", target="ill"),
    prepare=[cl.Impute(), cl.OneHot(), cl.Standardize()],
    task=cl.Torch(model=cl.nets.MLP([4]), loss="bce", optimizer=cl.SGD(lr=0.2), batch_size=16),
    algorithm=cl.FedAvg(rounds=3, cohort=0.7),
)
"""


@pytest.fixture
def folder(tmp_path: Path, whole: Any) -> Path:
    whole.to_csv(tmp_path / "patients.csv", index=False)
    (tmp_path / "job.py").write_text(JOB)
    return tmp_path


def test_every_cell_is_the_simulation_of_its_settings(folder, whole, make_job):
    grid = {"algorithm.lr": [0.05, 0.5], "partition.alpha": [0.3, 30], "seed": [0, 1]}
    events: list[Any] = []
    found = cl.sweep(make_job(), whole, grid, folder=folder / "out", sites=4, processes=2, progress=events.append)
    assert len(found.outcomes) == 8
    assert found.outcomes[0].settings == {"algorithm.lr": 0.05, "partition.alpha": 0.3, "seed": 0}
    last = found.outcomes[-1]
    task = cl.Torch(model=cl.nets.MLP([4]), loss="bce", optimizer=cl.SGD(lr=0.5), batch_size=16)
    alone = cl.simulate(make_job(task=task), whole, sites=4, partition="dirichlet:30", seed=1, engine="serial")
    assert (folder / "out/cells/008/state.bundle").read_bytes() == alone.state.to_bytes()
    assert last.metrics == alone.final
    assert {event["cell"] for event in events if event["event"] == "outcome"} == set(range(1, 9))
    summary = found.summary
    assert summary["cells"].tolist() == [2, 2, 2, 2]
    mean = np.mean([cell.metrics["accuracy"] for cell in found.outcomes[-2:]])
    assert summary["accuracy"].iloc[-1] == pytest.approx(mean)
    assert found.best["accuracy"] == summary["accuracy"].max()
    page = found.save(folder / "out") / "report.html"
    assert 'href="cells/008/report.html"' in page.read_text()
    assert (folder / "out/cells/008/report.html").exists()
    assert (folder / "out/sweep.svg").exists()
    assert len((folder / "out/cells.csv").read_text().splitlines()) == 9


def test_a_killed_sweep_goes_on_and_finished_cells_are_kept(folder):
    """A real SIGKILL while later cells run; then the first cells' files are the same, and all end with equal bits."""
    script = """
    import os, signal, cloister as cl
    def die(event):
        if event["event"] == "outcome":
            os.kill(os.getpid(), signal.SIGKILL)
    grid = {"lr": [0.1, 0.2, 0.3], "algorithm.rounds": [3, 4]}
    cl.sweep(cl.load_job("job.py"), "patients.csv", grid, folder="out", processes=1, progress=die, sites=5)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=folder, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    finished = list((folder / "out").glob("cells/*/outcome.json"))
    assert finished == [folder / "out/cells/001/outcome.json"]
    before = finished[0].stat().st_mtime_ns
    assert command(["sweep", "--resume", str(folder / "out"), "--data", str(folder / "patients.csv"), "--json"]) == 0
    assert finished[0].stat().st_mtime_ns == before
    task = cl.Torch(model=cl.nets.MLP([4]), loss="bce", optimizer=cl.SGD(lr=0.3), batch_size=16)
    job = cl.Job(cl.Table("patients", target="ill"), task, cl.FedAvg(rounds=4, cohort=0.7),
                 [cl.Impute(), cl.OneHot(), cl.Standardize()])  # fmt: skip
    alone = cl.simulate(job, folder / "patients.csv", sites=5)
    assert (folder / "out/cells/006/state.bundle").read_bytes() == alone.state.to_bytes()


def test_ctrl_c_ends_every_process_and_says_how_to_go_on(folder):
    running = subprocess.Popen(
        [sys.executable, "-m", "cloister.cli", "sweep", "job.py", "--data", "patients.csv", "--out", "out",
         "--set", "algorithm.rounds=2,100000", "--processes", "1"],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore Ctrl-C
    )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while not (folder / "out/cells/002/state.bundle").exists() and time.monotonic() < until:
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to all of the group
        _, told = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130, told
    assert "cloister sweep --resume out" in " ".join(told.split())
    with pytest.raises(ProcessLookupError):
        os.killpg(running.pid, 0)
    assert (folder / "out/cells/001/outcome.json").exists()
    assert not (folder / "out/cells/002/outcome.json").exists()


def test_a_cell_that_fails_is_told_and_the_others_count(folder, capsys):
    chosen = ["--set", "algorithm.lr=0.1,1e9", "--set", "algorithm.rounds=2", "--sites", "4"]
    arguments = ["sweep", str(folder / "job.py"), "--data", str(folder / "patients.csv"), *chosen]
    assert command([*arguments, "--out", str(folder / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [bool(cell["error"]) for cell in told["cells"]] == [False, True]
    assert "diverged" in told["cells"][1]["error"]
    assert told["best"]["algorithm.lr"] == "0.1"
    assert "1 of 2 cells failed; cell 2" in (folder / "out/report.html").read_text()
    assert command([*arguments, "--out", str(folder / "out")]) == 0  # nothing is run again
    assert "NaN" not in json.dumps(told)
    with pytest.raises(TaskError, match=r"no cell could be finished; the first: .*diverged"):
        cl.sweep(cl.load_job(folder / "job.py"), folder / "patients.csv", {"lr": [1e9]}, sites=4)


def test_the_best_is_one_that_never_failed(make_job):
    from cloister.learn.sweep import Outcome, Sweep

    def cell(number: int, lr: float, seed: int, accuracy: float | None) -> Outcome:
        settings = {"lr": lr, "seed": seed}
        if accuracy is None:
            return Outcome(number, settings, error="it diverged.")
        return Outcome(number, settings, {"accuracy": accuracy}, [{"round": 1, "accuracy": accuracy}])

    found = Sweep(make_job(), ["lr", "seed"], [cell(1, 0.1, 0, 0.8), cell(2, 0.1, 1, 0.7), cell(3, 0.5, 0, 0.9),
                                               cell(4, 0.5, 1, None)])  # fmt: skip
    assert found.best["lr"] == "0.1"
    assert found.best["accuracy"] == pytest.approx(0.75)
    assert json.loads(json.dumps(Sweep(make_job(), ["lr", "seed"], found.outcomes[2:]).best))["accuracy_std"] is None
    page = found.report()
    assert "1 of 4 cells failed; cell 4: it diverged." in page
    assert "<script" not in page


def test_another_sweep_in_the_folder_is_refused(folder):
    job, data = cl.load_job(folder / "job.py"), folder / "patients.csv"
    cl.sweep(job, data, {"algorithm.rounds": [1]}, folder=folder / "out", sites=4)
    with pytest.raises(UsageError, match=r"holds another sweep. .*--resume"):
        cl.sweep(job, data, {"algorithm.rounds": [2]}, folder=folder / "out", sites=4)
    with pytest.raises(UsageError, match="holds no sweep"):
        command_error(["sweep", "--resume", str(folder)])


def command_error(arguments: list[str]) -> None:
    from cloister.cli.app import app

    app(arguments, standalone_mode=False)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("algorithm.server_lrr=1", "Did you mean algorithm.server_lr"),
        ("weight=1", "There are: task.model.hidden, .*partition.alpha"),
        ("lr=-1", "SGD: lr: Input should be greater than 0"),
        ("algorithm=FedFoo", "Known are: Cyclic, Ditto"),
        ("algorithm.server_lr=fast", "does not fit. In the job it is 1.0"),
        ("partition=oval", "Use one of skewed, iid"),
        ("partition.alpha=-1", "needs a positive number"),
        ("sites=2", "at least 3 sites"),
        ("sites=1000", "1000 sites cannot share 300 rows"),
        ("rounds", "has no values"),
    ],
)
def test_unknown_names_and_values_name_the_valid_ones_in_one_line(folder, capsys, setting, told):
    out = folder / "out"
    arguments = ["sweep", str(folder / "job.py"), "--data", str(folder / "patients.csv"), "--set", setting]
    assert command([*arguments, "--out", str(out)]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    import re

    assert re.search(told, error), error
    assert not (out / "cells").exists()


def test_names_are_paths_or_their_ends(make_job):
    job = make_job()
    assert "task.optimizer.lr" in names(job)
    assert not [name for name in names(job) if name.startswith("data")]
    for name in ("task.optimizer.lr", "optimizer.lr", "lr", "algorithm.lr"):
        assert changed(job, {}, name, 1)[0].task.optimizer == cl.SGD(lr=1.0)
    assert changed(job, {}, "Standardize.by", "site")[0].prepare[2] == cl.Standardize(by="site")
    assert changed(job, {}, "task.model.hidden", [8, 4])[0].task.model == cl.nets.MLP([8, 4])
    assert changed(job, {}, "algorithm.steps", 7)[0].task.steps == 7
    prox = changed(make_job(algorithm=cl.FedAvg(rounds=9, cohort=0.5)), {}, "algorithm", "FedProx")[0].algorithm
    assert prox == cl.FedProx(rounds=9, cohort=0.5)
    krum = changed(job, {}, "aggregate", "Krum")[0]
    assert krum.algorithm.aggregate == cl.Krum()
    assert changed(krum, {}, "aggregate.bad", 1)[0].algorithm.aggregate == cl.Krum(bad=1)
    assert changed(krum, {}, "algorithm.aggregate", None)[0].algorithm.aggregate is None
    with pytest.raises(JobError, match=r"Known are: .*Krum"):
        changed(job, {}, "algorithm.aggregate", "Best")
    assert changed(job, {"partition": "sizes:1"}, "partition.alpha", 0.5)[1] == {"partition": "sizes:0.5"}
    assert changed(job, {"sites": 5}, "sites", 7)[1] == {"sites": 7}
    with pytest.raises(UsageError, match="names several settings"):
        changed(make_job(algorithm=cl.FedAvgM(rounds=2)), {}, "momentum", 0.5)
    with pytest.raises(JobError):
        changed(job, {}, "algorithm.rounds", 1.5)


def test_an_estimator_s_parameters_have_names_too():
    from sklearn.linear_model import LogisticRegression

    job = cl.Job(cl.Table("t", target="y"), cl.Sklearn(LogisticRegression(C=2.0)), cl.Newton(rounds=2))
    assert changed(job, {}, "C", 0.5)[0].task.estimator.params["C"] == 0.5


def test_values_are_json_or_text():
    assert values("0.01,0.1") == [0.01, 0.1]
    assert values("iid,dirichlet:0.5") == ["iid", "dirichlet:0.5"]
    assert values("[16],[32,16]") == [[16], [32, 16]]
    assert values("true,null") == [True, None]


def test_every_error_is_of_the_tree(make_job):
    for name, value in (("algorithm", 3), ("algorithm.rounds", "x"), ("task.model.hidden", "wide"), ("seed", "x")):
        with pytest.raises(CloisterError):
            changed(make_job(), {}, name, value)


def test_what_nobody_foresaw_is_kept_with_its_trace_and_run_again(folder, monkeypatch):
    monkeypatch.setattr("cloister.simulation.sweep.simulate", lambda *args, **kwargs: 1 / 0)
    job, data = cl.load_job(folder / "job.py"), folder / "patients.csv"
    with pytest.raises(TaskError, match=r"ZeroDivisionError: division by zero \(the trace is in .*fault.txt"):
        cl.sweep(job, data, {"algorithm.rounds": [1]}, folder=folder / "out", sites=4)
    monkeypatch.undo()
    found = cl.sweep(job, data, {"algorithm.rounds": [1]}, folder=folder / "out", sites=4)
    assert not found.outcomes[0].error
