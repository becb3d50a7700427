"""A federation from the command line, as the README shows it, and the same job in one process: the same model."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.processes

SITES = ("kent", "lyon", "oslo")
JOB = """
import cloister as cl

job = cl.Job(
    data=cl.Table("patients", target="ill"),
    prepare=[cl.Impute(), cl.OneHot(), cl.Standardize()],
    task=cl.Torch(cl.nets.MLP([8]), loss="bce", optimizer=cl.SGD(lr=0.1), epochs=1, batch_size=32),
    algorithm=cl.FedAvg(rounds=3),
    seed=5,
)
"""


@dataclass
class ByHand:
    """Three roles in their own directories. codes: invitation by id. serving: the coordinator's process."""

    operator: Any
    steward: Any
    scientist: Any
    codes: dict[str, str]
    serving: Any
    data: Path


@pytest.fixture
def by_hand(terminal: Any, patients: Any, free_port: int) -> ByHand:
    """A coordinator that serves and has invited three sites and an analyst; tables and a job file are there."""
    operator, steward, scientist = terminal("operator"), terminal("steward"), terminal("scientist")
    operator.run("coordinator", "init", "clinics", "--port", str(free_port))
    invited = operator.json("coordinator", "invite", *SITES, "--analyst", "lee")
    serving = operator.start("coordinator", "serve")
    operator.wait_for(serving, "serving https://")
    data = steward.folder / "data"
    data.mkdir()
    for number, site in enumerate(SITES):
        patients(60 + 40 * number, number).to_csv(data / f"{site}.csv", index=False)
    (scientist.folder / "job.py").write_text(JOB)
    codes = {entry["id"]: entry["code"] for entry in invited["invitations"]}
    return ByHand(operator, steward, scientist, codes, serving, data)


def start_sites(by_hand: ByHand) -> list[Any]:
    """Every steward's two commands."""
    for site in SITES:
        table = f"patients={by_hand.data / site}.csv"
        joined = by_hand.steward.json("site", "join", by_hand.codes[site], "--data", table)
        assert len(joined["words"].split()) == 6
    return [by_hand.steward.start("site", "run", site) for site in SITES]


def test_the_readme_s_federation_and_its_simulation_end_in_the_same_bytes(by_hand: ByHand) -> None:
    agents = start_sites(by_hand)
    for agent in agents:
        by_hand.steward.wait_for(agent, "waiting")
    code = by_hand.codes["lee"]
    submit = ("submit", "job.py", "--invitation", code, "--wait", "--out", "results", "--json")
    submitting = by_hand.scientist.start(*submit)
    by_hand.scientist.wait_for(submitting, "waiting for the operator")
    admitted = by_hand.operator.json("coordinator", "admit", "--yes")
    assert admitted["sites"] == 3
    assert submitting.wait(120) == 0, by_hand.scientist.said(submitting)

    simulated = by_hand.scientist.json("simulate", "job.py", "--data", str(by_hand.data), "--out", "simulated")
    masked = by_hand.scientist.json(
        "simulate", "job.py", "--data", str(by_hand.data), "--seal", "masks", "--out", "masked"
    )
    folder = by_hand.scientist.folder
    models = {name: (folder / name / "model.safetensors").read_bytes() for name in ("results", "simulated", "masked")}
    assert models["results"] == models["simulated"] == models["masked"]
    states = {name: (folder / name / "state.bundle").read_bytes() for name in models}
    assert states["results"] == states["simulated"] == states["masked"]  # with every metric in the history

    checked = by_hand.scientist.json("check", "job.py")
    assert checked["digest"] == simulated["job"] == masked["job"]
    status = by_hand.scientist.json("status")
    assert [(run["status"], run["job"]) for run in status["runs"]] == [("done", checked["digest"])]
    assert len(list((folder / "results" / "receipts").iterdir())) == 3 + 3 + 1

    run = status["runs"][0]["run"][:8]
    by_hand.scientist.run("fetch", run, "--out", "again")
    assert (folder / "again" / "model.safetensors").read_bytes() == models["results"]
    oslo = ("--site", str(by_hand.steward.folder / "oslo"))
    for name, options in (("again", ("--audit", "44", *oslo)), ("masked", ())):
        verdict = by_hand.scientist.json("verify", name, *options)
        claims = {claim["claim"]: claim["outcome"] for claim in verdict["claims"]}
        assert (verdict["receipts"], claims["model"], claims["model file"]) == (7, "proven", "proven")
        assert (claims["ledgers"] == "proven") == (name == "again")  # nor a ledger
        assert (claims["root key"] == "proven") == (name == "again")  # a simulation has none
        assert claims.get("site oslo") == ("proven" if name == "again" else None)
    shown = list((folder / "again" / "audits").iterdir())
    assert [path.name.partition("-")[0] for path in shown] == ["00006"]  # the newest round's vectors are kept
    assert '"done"' in by_hand.scientist.run("watch", run, "--json")
    found = by_hand.steward.json("site", "status", "oslo")
    assert found["rounds_receipted"] == 7
    assert found["refused"] == 0


def test_a_site_whose_table_does_not_fit_is_named_and_left_out(terminal: Any, by_hand: ByHand) -> None:
    """A fourth site lacks a column: the other three go on, and the analyst hears which column, and no value."""
    bad = by_hand.data / "bern.csv"
    rows = (by_hand.data / "oslo.csv").read_text().splitlines()
    bad.write_text("\n".join([rows[0].replace("pressure", "blood"), *rows[1:]]))
    extra = by_hand.operator.json("coordinator", "invite", "bern")
    by_hand.steward.run("site", "join", extra["invitations"][0]["code"], "--data", f"patients={bad}")
    start_sites(by_hand)
    by_hand.steward.start("site", "run", "bern")
    submitting = by_hand.scientist.start("submit", "job.py", "--invitation", by_hand.codes["lee"], "--wait", "--json")
    by_hand.scientist.wait_for(submitting, "waiting for the operator")
    by_hand.operator.run("coordinator", "admit", "--yes")
    assert submitting.wait(120) == 0, by_hand.scientist.said(submitting)
    said = by_hand.scientist.said(submitting)
    assert "bern" in said
    assert "pressure" in said


def test_what_a_stranger_and_a_mistyped_or_spent_invitation_get(by_hand: ByHand, terminal: Any) -> None:
    code, stranger = by_hand.codes["oslo"], terminal("stranger")
    by_hand.steward.run("site", "join", code, "--data", f"patients={by_hand.data / 'oslo.csv'}")
    data = ("--data", f"patients={by_hand.data / 'kent.csv'}")
    assert "used before" in stranger.run("site", "join", code, *data, code=2)
    assert "mistyped" in stranger.run("site", "join", code[:-4], *data, code=2)
    assert "site's folder already" in by_hand.steward.run("site", "join", code, *data, code=2)
    assert "for the site 'kent'" in stranger.run(
        "submit", str(by_hand.scientist.folder / "job.py"), "--invitation", by_hand.codes["kent"], code=2
    )
    assert not (stranger.folder / "oslo" / "site.toml").exists()


def test_a_killed_coordinator_goes_on_where_it_was(by_hand: ByHand) -> None:
    start_sites(by_hand)
    (by_hand.scientist.folder / "job.py").write_text(JOB.replace("rounds=3", "rounds=12"))
    submitting = by_hand.scientist.start("submit", "job.py", "--invitation", by_hand.codes["lee"], "--wait", "--json")
    by_hand.scientist.wait_for(submitting, "waiting for the operator")
    by_hand.operator.run("coordinator", "admit", "--yes")
    by_hand.scientist.wait_for(submitting, '"trained": 3')
    by_hand.serving.send_signal(signal.SIGKILL)
    by_hand.serving.wait()
    by_hand.operator.start("coordinator", "serve")
    assert submitting.wait(120) == 0, by_hand.scientist.said(submitting)
    assert '"trained": 12' in by_hand.scientist.said(submitting)
    simulated = by_hand.scientist.json("simulate", "job.py", "--data", str(by_hand.data), "--out", "simulated")
    folder = by_hand.scientist.folder
    same = [(folder / name / "model.safetensors").read_bytes() for name in ("results", "simulated")]
    assert same[0] == same[1]
    assert simulated["metrics"]


def test_no_coordinator_is_there(by_hand: ByHand, terminal: Any) -> None:
    by_hand.serving.send_signal(signal.SIGTERM)
    by_hand.serving.wait()
    said = terminal("late").run(
        "site", "join", by_hand.codes["oslo"], "--data", f"patients={by_hand.data / 'oslo.csv'}", code=1
    )
    assert said.startswith("error: the coordinator at https://127.0.0.1:")
    assert "Check the address" in said
