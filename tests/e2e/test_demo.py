"""`cloister demo`, as anybody runs it: real processes, a real SIGKILL, and nothing left behind."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.processes
SECONDS = 120.0


def test_a_site_is_killed_and_every_sum_opens(terminal: Any, processes_of: Callable[[Path], list[int]]) -> None:
    here = terminal("here")
    found = here.json("demo", "--rounds", "6", "--out", "demo")
    assert found["ok"]
    assert found["killed"]["survivors"] == 4
    assert found["killed"]["sites"] == 5
    assert found["killed"]["threshold"] == 4
    assert found["rounds_opened"] == found["rounds_asked"] == 3 + 6 + 1  # preparation, training, evaluation
    assert set(found["table"]) == {"local-only", "federated", "pooled"}
    assert set(found["bytes"]["up"]) == set(found["sites"])
    for seen in found["coordinator_saw"]:
        assert seen["masked"] != seen["true"]
        assert seen["equal_words"] <= 2  # of two thousand, by chance
    results = here.folder / found["results"]
    assert {path.name for path in results.iterdir()} >= {
        "model.safetensors",
        "job.json",
        "history.csv",
        "report.html",
    }
    assert len(list((results / "receipts").iterdir())) == found["rounds_opened"]
    assert not processes_of(here.folder)


def test_the_last_words_of_a_demonstration(terminal: Any) -> None:
    """Three sites may lose none, so nobody is killed; the run ends in a table, files and one next step."""
    said = terminal("here").run("demo", "--sites", "3", "--rounds", "2", "--out", "demo")
    assert "Is it worth federating?" in said
    assert "No site was killed" in said
    assert "rounds opened: 6 of 6" in said
    assert said.splitlines()[-1] == "next: open demo/results/report.html"


def test_a_folder_of_ones_own(terminal: Any, patients: Any) -> None:
    here = terminal("here")
    (here.folder / "clinics").mkdir()
    for number, name in enumerate(("Oslo", "Lyon", "Kent")):
        patients(40, number).to_csv(here.folder / "clinics" / f"{name}.csv", index=False)
    found = here.json("demo", "--data", "clinics", "--target", "ill", "--rounds", "8", "--out", "demo")
    assert found["sites"] == ["kent", "lyon", "oslo"]
    assert found["ok"]


def test_ctrl_c_ends_every_process(terminal: Any, processes_of: Callable[[Path], list[int]]) -> None:
    here = terminal("here")
    process = here.start("demo", "--rounds", "500", "--out", str(here.folder / "demo"))
    end = time.monotonic() + SECONDS
    while not any('"asked"' in path.read_text() for path in here.folder.glob("demo/logs/site-*.jsonl")):
        assert process.poll() is None, here.said(process)
        assert time.monotonic() < end
        time.sleep(0.1)
    assert len(processes_of(here.folder)) >= 6
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 130
    assert here.said(process).splitlines()[-1] == "interrupted"
    assert not processes_of(here.folder)


def test_keep_says_how_to_stop(terminal: Any, processes_of: Callable[[Path], list[int]]) -> None:
    here = terminal("here")
    found = here.json("demo", "--sites", "3", "--rounds", "1", "--out", str(here.folder / "demo"), "--keep")
    try:
        assert set(found["processes"]) == {"coordinator", "site-1", "site-2", "site-3"}
        assert set(found["processes"].values()) <= set(processes_of(here.folder))
        status = here.json("status", "--folder", str(here.folder / "demo" / "analyst"))
        assert [run["status"] for run in status["runs"]] == ["done"]
    finally:
        for pid in processes_of(here.folder):
            here.signal(pid, signal.SIGTERM)
    end = time.monotonic() + SECONDS
    while processes_of(here.folder):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_port_that_is_taken(terminal: Any, taken_port: int) -> None:
    here = terminal("here")
    here.run("coordinator", "init", "clinics", "--port", str(taken_port))
    said = here.run("coordinator", "serve", code=2)
    expected = f"port {taken_port} on 127.0.0.1 is taken. Choose another with --port, or stop what uses it."
    assert said == f"error: {expected}\n"
    assert json.loads(here.run("coordinator", "serve", "--json", code=2))["error"] == "AddressInUse"
