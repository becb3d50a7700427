"""Every fault is one line on standard error, with what to do, and the exit code says whose it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cloister.cli.app import run
from cloister.vector.errors import CloisterError, StorageFull

JOB = """
import cloister as cl
job = cl.Job(
    data=cl.Table("t", target="y"),
    task=cl.Torch(cl.nets.Linear(), loss="bce", optimizer=cl.SGD(lr=0.1)),
    algorithm=cl.FedAvg(rounds=1),
)
"""


def write(folder: Path, **tables: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in tables.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


GOOD = "x,y\n1,0\n2,1\n3,0\n4,1\n5,1\n6,0\n"


@pytest.fixture
def job(tmp_path: Path) -> str:
    path = tmp_path / "job.py"
    path.write_text(JOB)
    return str(path)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    assert run(list(arguments)) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1, said.err
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err
    return said.err


def test_a_wrong_option_names_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--nonsense" in fails(capsys, "demo", "--nonsense")


def test_too_few_sites_in_the_demonstration(capsys: pytest.CaptureFixture[str]) -> None:
    said = fails(capsys, "demo", "--sites", "2")
    assert "subtracting its own" in said
    assert "3 or more" in said


def test_data_without_target(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "--target" in fails(capsys, "demo", "--data", str(tmp_path))


def test_a_job_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.py" in fails(capsys, "check", "nowhere.py")


def test_a_job_file_that_raises_names_the_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("x = 1\nraise ValueError('broken')\n")
    assert "line 2" in fails(capsys, "check", str(tmp_path / "job.py"))


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({}, "no CSV"),
        ({"a": GOOD, "b": GOOD}, "at least 3"),
        ({"a": GOOD, "b": GOOD, "c": ""}, "empty"),
        ({"a": GOOD, "b": GOOD, "c": "x,y\n"}, "no row"),
        ({"a": GOOD, "b": GOOD, "c": "x,z\n1,0\n2,1\n"}, "'y'"),
        ({"a": GOOD, "b": GOOD, "c": "x,y\n1,0\n2\n"}, "cells"),
    ],
    ids=["none", "two", "empty", "header", "target", "ragged"],
)
def test_bad_tables(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, job: str, tables: dict[str, str], expected: str
) -> None:
    folder = write(tmp_path / "data", **tables)
    assert expected in fails(capsys, "simulate", job, "--data", str(folder))


def test_no_value_of_a_row_is_in_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path, job: str) -> None:
    folder = write(tmp_path / "data", a=GOOD, b=GOOD, c="x,y\nMillerSecret,0\n3,1\n")
    assert "MillerSecret" not in fails(capsys, "simulate", job, "--data", str(folder))


def test_an_invitation_that_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    fails(capsys, "site", "join", "cloister1:abc", "--folder", str(tmp_path / "s"))
    fails(capsys, "site", "join", "hello", "--folder", str(tmp_path / "s"))


def test_a_folder_that_is_nobodys(capsys: pytest.CaptureFixture[str], tmp_path: Path, job: str) -> None:
    empty = str(tmp_path / "empty")
    fails(capsys, "site", "run", empty)
    fails(capsys, "site", "status", empty)
    fails(capsys, "coordinator", "serve", "--folder", empty)
    assert "--invitation" in fails(capsys, "submit", job, "--folder", empty)
    fails(capsys, "status", "--folder", empty)


def test_an_out_folder_that_is_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert "--out" in fails(capsys, "demo", "--out", str(tmp_path))
    assert (tmp_path / "file").read_text() == "mine"


def test_errors_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "nowhere.py", "--json"]) == 2
    found = json.loads(capsys.readouterr().err)
    assert found["error"] == "JobError"
    assert found["mend"]


def raised_by_version(monkeypatch: pytest.MonkeyPatch, fault: BaseException) -> None:
    def broken(name: str) -> str:
        raise fault

    monkeypatch.setattr("importlib.metadata.version", broken)


def test_the_unforeseen_is_one_line_and_a_trace_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raised_by_version(monkeypatch, ZeroDivisionError("secret detail"))
    said = fails(capsys, "version", code=1)
    assert "secret detail" not in said
    path = Path(re.search(r"(/\S+\.trace)", said)[1])  # type: ignore[index]
    assert "ZeroDivisionError: secret detail" in path.read_text()
    path.unlink()


def test_a_full_disk_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    raised_by_version(monkeypatch, OSError(28, "No space left on device", "/data/blobs"))
    assert "disk is full" in fails(capsys, "version", code=1)


@pytest.mark.parametrize("fault", [StorageFull("full."), CloisterError("odd.")])
def test_exit_codes_come_from_the_tree(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fault: CloisterError
) -> None:
    raised_by_version(monkeypatch, fault)
    fails(capsys, "version", code=fault.exit_code)


def test_an_interrupt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    raised_by_version(monkeypatch, KeyboardInterrupt())
    assert run(["version"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_every_command_has_json_and_help() -> None:
    from cloister.cli.reference import _commands, _root

    silent = [path for path, command in _commands("cloister", _root()) if not command.help]
    assert not silent
    without = [
        path
        for path, command in _commands("cloister", _root())
        if path != "cloister version" and not any("--json" in param.opts for param in command.params)
    ]
    assert not without
