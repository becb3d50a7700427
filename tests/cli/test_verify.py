"""`cloister verify` on a folder: what it says, what it ends with, and which file it names."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import cloister as cl
from cloister.cli.app import run as command
from cloister.cli.evidence import read_evidence
from cloister.round import verify
from cloister.seal.identity import Identity
from cloister.seal.labels import fields
from cloister.seal.log import Log, origin_of
from cloister.seal.receipt import Receipt
from cloister.site.journal import Journal

JOB = cl.Job(
    data=cl.Table("patients", target="ill", classes=2),
    task=cl.Torch(cl.nets.MLP([8]), loss="bce", optimizer=cl.SGD(lr=0.1), batch_size=32),
    prepare=[cl.Standardize()],
    algorithm=cl.FedAvg(rounds=2),
)
ROUNDS = 3 + 2 + 1
Say = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulation's folder, with the masks of a real one."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(120, 3))
    table = pd.DataFrame({"age": x[:, 0], "pressure": x[:, 1], "dose": x[:, 2], "ill": (x.sum(axis=1) > 0) * 1})
    folder = tmp_path_factory.mktemp("simulated") / "results"
    cl.simulate(JOB, table, sites=3, seal="masks", folder=folder).save(folder)
    return folder


@pytest.fixture
def results(simulated: Path, tmp_path: Path) -> Path:
    return shutil.copytree(simulated, tmp_path / "results")


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    def run(*arguments: object, code: int = 0) -> dict[str, Any]:
        """What the command prints with --json; an error is printed on standard error."""
        capsys.readouterr()
        ended = command(["verify", *map(str, arguments), "--json"])
        shown = capsys.readouterr()
        assert ended == code, shown
        found: dict[str, Any] = json.loads(shown.err if code == 2 else shown.out)
        return found

    return run


def outcomes(said: dict[str, Any]) -> dict[str, str]:
    return {claim["claim"]: claim["outcome"] for claim in said["claims"]}


def test_a_simulation_is_proven_and_called_one(results: Path, say: Say, capsys: pytest.CaptureFixture[str]) -> None:
    said = say(results)
    assert said["ok"]
    assert said["federation"] == "simulation"
    assert said["receipts"] == ROUNDS
    assert outcomes(said) == {
        "root key": "not proven",
        "members": "proven",
        "receipts": "proven",
        "job": "not proven",  # nobody submitted it
        "masked vectors": "proven",
        "survivors": "proven",
        "model": "proven",
        "sums": "not proven",
        "log": "proven",
        "ledgers": "not proven",  # a simulation keeps none
        "model file": "proven",
        "the sites' data": "not proven",
        "other rounds": "not proven",
    }
    assert command(["verify", str(results)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "a simulation, run " in told
    assert "one process made all keys" in told
    assert "verdict: nothing was altered, as far as the evidence goes." in told
    assert "--audit" not in told  # there is no coordinator to ask


@pytest.mark.parametrize("name", ["model.safetensors", "job.json"])
def test_a_model_or_job_exchanged_beside_true_evidence(results: Path, say: Say, name: str) -> None:
    """Any byte of it, and any length."""
    true = (results / name).read_bytes()
    for at in (0, 20, len(true) // 2, len(true) - 1):
        (results / name).write_bytes(true[:at] + bytes([true[at] ^ 1]) + true[at + 1 :])
        said = say(results, code=1)
        assert [finding["file"] for finding in said["findings"]] == [name]
        assert outcomes(said)["model file"] == "FAILED"
    (results / name).write_bytes(true + b"\0")
    say(results, code=1)
    (results / name).unlink()
    assert outcomes(say(results))["model file"] == "not proven"


def test_what_is_for_reading_proves_nothing_and_says_so(results: Path, say: Say) -> None:
    (results / "history.csv").write_text("round,accuracy\n1,1.0\n")
    (results / "report.html").unlink()
    said = say(results)
    (claim,) = [claim["why"] for claim in said["claims"] if claim["claim"] == "model file"]
    assert "history.csv and report.html are for reading" in claim


def test_what_is_missing_is_not_proven(results: Path, say: Say) -> None:
    shutil.rmtree(results / "log")
    shutil.rmtree(results / "consistency")
    (results / "totals" / "00004.words").unlink()
    said = say(results)
    kinds = outcomes(said)
    assert (kinds["log"], kinds["survivors"], kinds["model"]) == ("not proven", "not proven", "not proven")
    assert "4 of 6 steps" in next(claim["why"] for claim in said["claims"] if claim["claim"] == "model")


@pytest.mark.parametrize(
    "file", ["totals/00004.words", "consistency/00000.message", "log/leaves", "log/newest.checkpoint"]
)
def test_what_is_there_and_empty_is_a_finding(results: Path, say: Say, file: str) -> None:
    (results / file).write_bytes(b"")
    said = say(results, code=1)
    assert file in {finding["file"] for finding in said["findings"]}


@pytest.mark.parametrize("file", ["trust.json", "state.bundle", "rosters/00001.roster", "receipts/00002.receipt"])
def test_what_must_be_there_is_missed_by_name(
    results: Path, say: Say, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    (results / file).unlink()
    said = say(results, code=1)
    assert [finding["file"] for finding in said["findings"]] == [file]
    assert command(["verify", str(results)]) == 1
    assert f"in {file} (folder)" in " ".join(capsys.readouterr().out.split())


def test_a_folder_within_the_evidence_is_passed_over(results: Path, say: Say) -> None:
    (results / "totals" / "notes").mkdir()
    (results / "receipts" / "README.txt").write_text("mine")
    (results / "log" / "\x1b[2Kproven.checkpoint").write_bytes(b"")  # a name that would draw on the terminal
    assert say(results)["ok"]


def test_no_file_is_held_open_however_many_rounds_there_are(results: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    evidence = read_evidence(results)
    assert len(os.listdir("/proc/self/fd")) == before
    assert verify(evidence).ok
    (results / "totals" / "00004.words").write_bytes(b"")  # read when it is looked at, and not before
    assert not verify(evidence).ok


def test_the_root_that_the_reader_brings(results: Path, say: Say, tmp_path: Path) -> None:
    (root,) = json.loads((results / "trust.json").read_text())["roots"]
    other = Identity.from_bytes(b"o" * 32).public.hex()
    for name, content in {
        "hex": root + "\n",
        "analyst.json": json.dumps({"id": "lee", "root": root}),
        "pinned.json": json.dumps({"certificate": "", "fingerprint": "00" * 32, "root_key": root}),
    }.items():
        (tmp_path / name).write_text(content)
        assert say(results, "--root", tmp_path / name)["ok"]
    assert say(results, "--root", root.upper())["ok"]
    said = say(results, "--root", other, code=1)
    assert outcomes(said)["members"] == "FAILED"
    assert not [claim for claim, outcome in outcomes(said).items() if outcome == "proven" and claim != "model file"]
    # and a folder that names another root is not believed against the reader's
    (results / "trust.json").write_text(json.dumps({"quorum": 1, "roots": [other]}, separators=(",", ":")))
    assert say(results, "--root", root)["ok"]
    assert {finding["file"] for finding in say(results, code=1)["findings"]} == {"trust.json"}


def site_of(results: Path, folder: Path, upto: int, head: bytes | None = None) -> Path:
    """A site's folder that has verified the first `upto` receipts of the run, and a head of the log."""
    (root,) = json.loads((results / "trust.json").read_text())["roots"]
    folder.mkdir()
    (folder / "pinned.json").write_text(json.dumps({"certificate": "", "fingerprint": "00" * 32, "root_key": root}))
    (folder / "site.toml").write_text(
        'id = "kent"\nfederation = "simulation"\ncoordinator = "https://hub:1"\n[data]\n'
    )
    note = (results / "log" / "newest.checkpoint").read_bytes() if head is None else head
    with closing(Journal(folder / "journal.db")) as journal:
        for place in range(upto):
            signed = (results / "receipts" / f"{place:05d}.receipt").read_bytes()
            receipt = Receipt.from_bytes(fields(signed)[0])
            journal.add_receipt(receipt.plan.run, receipt.plan.round, receipt.digest, signed)
            journal.set_place(receipt.plan.run, receipt.plan.round, place, note)
    return folder


def test_what_a_site_remembers_agrees(results: Path, say: Say, tmp_path: Path) -> None:
    kent = site_of(results, tmp_path / "kent", ROUNDS)
    said = say(results, "--site", kent)
    assert outcomes(said)["site kent"] == "proven"
    early = site_of(results, tmp_path / "early", 2)  # it was not there any more
    assert outcomes(say(results, "--site", early))["site kent"] == "proven"
    never = site_of(results, tmp_path / "never", 0)
    assert outcomes(say(results, "--site", never))["site kent"] == "not proven"
    assert "site.toml" in say(results, "--site", tmp_path, code=2)["message"]


def test_a_history_that_the_site_knows_otherwise(results: Path, say: Say, tmp_path: Path, simulated: Path) -> None:
    """Evidence cut short, evidence of another history, and a head of another log."""
    kent = site_of(simulated, tmp_path / "kent", ROUNDS)
    last = f"receipts/{ROUNDS - 1:05d}.receipt"
    for kind, suffix in (
        ("receipts", "receipt"),
        ("totals", "words"),
        ("keys", "message"),
        ("consistency", "message"),
    ):
        (results / kind / f"{ROUNDS - 1:05d}.{suffix}").unlink()
    said = say(results, "--site", kent, code=1)
    assert outcomes(said)["site kent"] == "FAILED"
    assert ("StaleReceipt", last, "kent") in {(each["name"], each["file"], each["site"]) for each in said["findings"]}

    liar = site_of(simulated, tmp_path / "liar", 0)
    run = bytes.fromhex(said["run"])
    with closing(Journal(liar / "journal.db")) as journal:
        journal.add_receipt(run, 1, b"o" * 32, b"another receipt of round 1")
    said = say(simulated, "--site", liar, code=1)
    assert [(each["name"], each["file"]) for each in said["findings"]] == [("StaleReceipt", "receipts/00001.receipt")]

    stranger = Log(origin_of("simulation"), [bytes(32)] * 2).sign(Identity.from_bytes(b"x" * 32))
    forked = site_of(simulated, tmp_path / "forked", ROUNDS, stranger)
    said = say(simulated, "--site", forked, code=1)
    assert {each["file"] for each in said["findings"]} == {"log/kent.checkpoint"}
    newer = Log(origin_of("simulation"), [bytes(32)] * 99).sign(Identity.from_bytes(b"x" * 32))
    ahead = site_of(simulated, tmp_path / "ahead", ROUNDS, newer)  # of a log that this one may begin
    assert say(simulated, "--site", ahead)["ok"]


def test_runs_side_by_side(
    results: Path, say: Say, tmp_path: Path, simulated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two folders of one log agree; one that was altered, or of another log, does not pass for the other's sake."""
    (tmp_path / "all").mkdir()
    first, second = (shutil.copytree(simulated, tmp_path / "all" / name) for name in ("first", "second"))
    said = say(tmp_path / "all", "--all")
    assert (len(said["runs"]), said["whole_log"]["outcome"]) == (2, "proven")
    assert command(["verify", str(tmp_path / "all"), "--all"]) == 0
    assert f"each of its {ROUNDS} receipts" in " ".join(capsys.readouterr().out.split())

    (second / "trust.json").write_bytes(b"{}")
    said = say(tmp_path / "all", "--all", code=1)
    assert [run["ok"] for run in said["runs"]] == [True, False]
    assert command(["verify", str(tmp_path / "all"), "--all"]) == 1
    assert "second: MalformedMessage in trust.json" in " ".join(capsys.readouterr().out.split())

    shutil.rmtree(second)
    shutil.copytree(simulated, second)
    leaves = (second / "log" / "leaves").read_bytes()
    (second / "log" / "leaves").write_bytes(bytes(32) + leaves)  # longer, and it begins otherwise
    said = say(tmp_path / "all", "--all", code=1)
    assert [finding["file"] for finding in said["findings"]] == ["first/log/leaves"]
    assert "holds no folders" in say(first, "--all", code=2)["message"]
    assert "asks the coordinator" in say(tmp_path / "all", "--all", "--audit", "1", code=2)["message"]


def test_what_is_no_evidence_is_bad_input(results: Path, say: Say, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk").write_bytes(b"\xff\x00")
    (tmp_path / "junk.json").write_text('{"root": 3}')
    for arguments, mention in (
        (("nowhere",), "there is no folder nowhere"),
        ((tmp_path / "empty",), "holds no evidence"),
        ((tmp_path / "junk",), "there is no folder"),
        ((results, "--out", tmp_path / "out"), "--out goes with"),
        ((results, "--root", "abc"), "no key and no file"),
        ((results, "--root", tmp_path / "junk"), "no key and no file"),
        ((results, "--root", tmp_path / "junk.json"), "holds no root key"),
        ((results, "--audit", "1", "--folder", tmp_path), "no analyst's folder"),
        (("https://127.0.0.1:1/ab", "--folder", tmp_path), "no analyst's folder"),
        (("abcdef", "--folder", tmp_path), "no analyst's folder"),
        ((results, "--audit", "-1"), "--audit"),
    ):
        assert mention in say(*arguments, code=2)["message"], arguments


def test_results_without_evidence_are_bad_input(results: Path, say: Say) -> None:
    """As `fetch --no-evidence` leaves them."""
    (results / "run.json").unlink()
    for kind in ("rosters", "totals", "keys", "consistency", "log"):
        shutil.rmtree(results / kind)
    (results / "trust.json").unlink()
    assert "cloister fetch" in say(results, code=2)["mend"]


def test_a_simulation_without_masks_has_nothing_to_verify(simulated: Path, say: Say, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "receipts").mkdir()
    for name in ("run.json", "state.bundle", "job.bundle"):
        shutil.copy(simulated / name, plain)
    said = say(plain, code=2)
    assert "without masks" in said["message"]
    assert "--seal masks" in said["mend"]
