"""FedBuff from the command line: a slow site hands its update in late, and one that is killed comes back."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import psutil
import pytest
from safetensors.numpy import load_file
from tests.e2e.conftest import until

import cloister as cl
from cloister.learn import complete

pytestmark = pytest.mark.processes

SLOW, KILLED, THIRD = "oslo", "kent", "nice"
SITES = ("bern", KILLED, "lyon", THIRD, SLOW)
ROUNDS, RATE = 12, 0.1
JOB = f"""
import cloister as cl

job = cl.Job(
    data=cl.Table("patients", target="ill"),
    task=cl.Torch(cl.nets.Linear(), loss="bce", optimizer=cl.Adam(lr={RATE}), steps=1),
    algorithm=cl.FedBuff(rounds={ROUNDS}, buffer=4, max_staleness={ROUNDS}),
)
"""


@dataclass
class Story:
    """What a run leaves behind. events: the scientist's. again: those of the killed site's second agent."""

    steward: Any
    scientist: Any
    events: list[dict[str, Any]]
    again: list[dict[str, Any]]

    @property
    def trained(self) -> list[dict[str, Any]]:
        """The sums of updates, in order."""
        return [each for each in self.events if each["event"] == "round" and each["stage"] == "train"]


@pytest.fixture(scope="module")
def story(module_terminal: Any, patients: Callable[[int, int], pd.DataFrame], free_port: int) -> Story:
    """The slow site's training stands still for some rounds; meanwhile another site's agent is killed."""
    operator, steward, scientist = map(module_terminal, ("operator", "steward", "scientist"))
    operator.run("coordinator", "init", "clinics", "--port", str(free_port))
    invited = operator.json("coordinator", "invite", *SITES, "--analyst", "lee")
    codes = {entry["id"]: entry["code"] for entry in invited["invitations"]}
    operator.wait_for(operator.start("coordinator", "serve"), "serving https://")
    (scientist.folder / "job.py").write_text(JOB)
    submitting = scientist.start("submit", "job.py", "--invitation", codes["lee"], "--wait", "--json")
    for number, site in enumerate(SITES):
        table_of(site, patients(80, number)).to_csv(steward.folder / f"{site}.csv", index=False)
    joins = [steward.start("site", "join", codes[site], "--data", f"patients={site}.csv") for site in SITES]
    assert [join.wait(60) for join in joins] == [0] * len(SITES)
    operator.run("coordinator", "admit", *SITES, "--yes")
    agents = {site: steward.start("site", "run", site, "--json") for site in SITES}
    for agent in agents.values():
        steward.wait_for(agent, '"ready"')
    operator.run("coordinator", "admit", "lee", "--yes")

    scientist.wait_for(submitting, '"trained": 1')
    stopped = stop_training(agents[SLOW])
    scientist.wait_for(submitting, '"trained": 5')
    agents[KILLED].kill()
    agents[KILLED].wait()
    again = steward.start("site", "run", KILLED, "--json")
    steward.wait_for(again, '"ready"')

    def handed_in() -> bool:
        opened, uploaded = events(scientist.said(submitting)), events(steward.said(agents[THIRD]))
        return last(opened, "open") == last(uploaded, "uploaded")

    # the open round needs the slow site only; those after it need the site that is back, as a third stands still
    until(handed_in)
    third = stop_training(agents[THIRD])
    go_on(stopped)
    scientist.wait_for(submitting, f'"trained": {ROUNDS - 2}')
    go_on(third)
    assert submitting.wait(120) == 0, scientist.said(submitting)
    return Story(steward, scientist, events(scientist.said(submitting)), events(steward.said(again)))


def table_of(site: str, patients: pd.DataFrame) -> pd.DataFrame:
    """All are remote and ill at the slow site, nobody is remote elsewhere. Adam's first step is as long as its rate:
    each training at the slow site moves the weight of `remote` by RATE, and none at the others does."""
    slow = site == SLOW
    west = patients["ward"] == "west"
    return pd.DataFrame({"remote": float(slow), "west": west * 1.0, "ill": 1 if slow else patients["ill"]})


def stop_training(agent: subprocess.Popen[str]) -> list[psutil.Process]:
    """The agent's training processes, which stand still now; the agent goes on."""
    training = psutil.Process(agent.pid).children(recursive=True)
    for process in training:
        process.suspend()
    return training


def go_on(training: list[psutil.Process]) -> None:
    for process in training:
        process.resume()


def last(told: list[dict[str, Any]], event: str) -> int:
    """The round of the last such event."""
    return max(each["round"] for each in told if each["event"] == event)


def events(said: str) -> list[dict[str, Any]]:
    """What a command with --json tells while it runs."""
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return [each for each in lines if "event" in each]


def test_nobody_waits_for_the_slow_site(story: Story) -> None:
    (run,) = story.scientist.json("status")["runs"]
    assert run["status"] == "done"
    assert [each["trained"] for each in story.trained] == list(range(1, ROUNDS + 1))
    assert [each["dropped"] for each in story.trained[3:5]] == [[SLOW]] * 2


def test_its_late_update_counts_less(story: Story) -> None:
    """Its log says when it began what it handed in; the model, how much that counted."""
    log = story.steward.json("site", "log", "--last", "0", "--folder", SLOW)["entries"]
    asked = {entry["round"] for entry in log if entry["kind"] == "asked" and entry["task"] == "train"}
    masked = {entry["round"] for entry in log if entry["kind"] == "charged"}
    ages, counted, before = [], 0.0, -1
    for summed in story.trained:
        if summed["round"] in masked:
            begun = min(round_ for round_ in asked if round_ > before)
            before = summed["round"]
            age = sum(begun <= each["round"] < before for each in story.trained)
            if SLOW not in summed["dropped"]:
                ages.append(age)
                counted += RATE / summed["survivors"] / math.sqrt(1 + age)
    assert max(ages) > 1
    folder = story.scientist.folder
    _, first = complete(cl.load_job(folder / "job.py")).initial_model(2)
    moved = load_file(folder / "results" / "model.safetensors")["weight"] - first["weight"]
    assert float(moved[0, 0]) == pytest.approx(counted, rel=1e-4)


def test_a_killed_agent_is_in_later_sums(story: Story) -> None:
    assert [each["round"] for each in story.again if each["event"] == "receipt"]
    later = {each["round"] for each in story.trained[6:] if KILLED not in each["dropped"]}  # it died after the fifth
    assert later & {each["round"] for each in story.again if each["event"] == "receipt"}


def test_the_result_is_proven(story: Story) -> None:
    verdict = story.scientist.json("verify", "results")
    claims = {claim["claim"]: claim["outcome"] for claim in verdict["claims"]}
    assert claims["model"] == claims["model file"] == claims["ledgers"] == "proven"
    assert verdict["receipts"] == 1 + ROUNDS + 1
