"""Differential privacy in a real federation: what is claimed, charged and refused, by processes on loopback."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest

import cloister as cl
from cloister.cli.loopback import Loopback
from cloister.cli.results import fetch_result
from cloister.learn.result import Result
from cloister.privacy.accounting import epsilon
from cloister.site.budget import account
from cloister.site.ledger import Ledger
from cloister.site.restore import write_off
from cloister.vector.errors import UsageError

pytestmark = pytest.mark.processes
SITES = ("kent", "lyon", "oslo")
BUDGET = "\n[budget.clouds]\nepsilon = 3.0\ndelta = 1e-5\nrounds_a_day = 40\n"


def clouds(seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, 90)
    x = rng.normal(size=(90, 2)) + np.where(y, 1.0, -1.0)[:, None]
    return pd.DataFrame({"a": x[:, 0].round(3), "b": x[:, 1].round(3), "y": y, "person": np.arange(90) // 3})


def a_job(privacy: Any) -> cl.Job:
    return cl.Job(
        data=cl.Table("clouds", target="y", ignore=["person"]),
        prepare=[cl.Standardize(ranges={"a": (-4, 4), "b": (-4, 4)})],
        task=cl.Torch(cl.nets.Linear(), loss="bce", optimizer=cl.SGD(lr=0.5), batch_size=30),
        algorithm=cl.FedAvg(rounds=2),
        privacy=privacy,
    )


ROWS = a_job(cl.RowDP(epsilon=2, delta=1e-5, unit="person"))


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Loopback, Any]]:
    """Three sites that run; kent's steward has set a budget."""
    folder = tmp_path_factory.mktemp("private")
    tables = {}
    for number, site in enumerate(SITES):
        tables[site] = folder / f"{site}.csv"
        clouds(number).to_csv(tables[site], index=False)
    hub = Loopback(folder)
    analyst = hub.found("clouds", tables, lambda line: None)
    with (hub.site("kent") / "policy.toml").open("a") as policy:
        policy.write(BUDGET)
    shutil.copytree(hub.site("lyon"), folder / "backup")
    yield hub, analyst
    hub.stop()


def finished(analyst: Any, job: cl.Job) -> tuple[Result | None, list[dict[str, Any]]]:
    """Submits a job and waits for its end. Returns: the result, or None; the run's events."""

    async def act() -> tuple[Result | None, list[dict[str, Any]]]:
        async with analyst.connect(lambda line: None) as client:
            run = await client.submit(job.to_bytes())
            while (await client.status(run))["status"] == "running":
                await asyncio.sleep(0.2)
            events = await client.events(run, hold_seconds=0)
            done = (await client.status(run))["status"] == "done"
            return (await fetch_result(client, run) if done else None), events

    return asyncio.run(asyncio.wait_for(act(), 120))


@pytest.fixture(scope="module")
def first(federation: tuple[Loopback, Any]) -> Result:
    result, events = finished(federation[1], ROWS)
    assert result is not None, events
    return result


def test_a_private_run_says_what_it_spent(first: Result) -> None:
    said = first.privacy
    assert 1.9 < said.epsilon <= 2.0
    assert said.sentence.endswith(
        "epsilon " + f"{said.epsilon:.3g} of 2 at delta 1e-05 spent, for all rows of one person."
    )
    assert "train_loss" not in first.history
    assert first.state.facts["rows"] == 3 * 24, "people to train on, not rows"


def test_every_site_charged_exactly_that(federation: tuple[Loopback, Any], first: Result) -> None:
    for site in SITES:
        (spent,) = account(federation[0].site(site))["datasets"]
        assert spent["epsilon"] == pytest.approx(first.privacy.epsilon, rel=1e-9)
        assert spent["rounds"] == 1 + 2 + 1  # census, training, evaluation
    (kent,) = account(federation[0].site("kent"))["datasets"]
    assert kent["left"] == pytest.approx(3.0 - kent["epsilon"])


def test_a_site_refuses_what_its_budget_does_not_hold(federation: tuple[Loopback, Any], first: Result) -> None:
    hub, analyst = federation
    before = len(Ledger(hub.site("kent") / "ledger.db").entries())
    result, events = finished(analyst, a_job(cl.RowDP(epsilon=4, delta=1e-5, unit="person")))
    assert result is None, "three sites may lose none"
    refusal = next(event for event in events if event["event"] == "refused")
    assert refusal["site"] == "kent"
    assert "the budget of 'clouds' is epsilon 3" in refusal["message"]
    assert "policy.toml, line" in refusal["message"]
    entries = Ledger(hub.site("kent") / "ledger.db").entries()
    assert len(entries) == before + 1, "the census alone, which costs nothing"
    assert epsilon([event for each in entries for event in each.events], 1e-5) <= 3.0


def test_a_budget_lets_no_exact_sum_by(federation: tuple[Loopback, Any], first: Result) -> None:
    result, events = finished(federation[1], a_job(None))
    assert result is None
    refusal = next(event for event in events if event["event"] == "refused")
    assert "no differential privacy" in refusal["message"]


def grant_more(hub: Loopback) -> None:
    policy = hub.site("kent") / "policy.toml"
    policy.write_text(policy.read_text().replace("epsilon = 3.0", "epsilon = 100.0"))  # read anew for each round


def test_sites_share_the_noise_of_a_sealed_sum(federation: tuple[Loopback, Any], first: Result) -> None:
    hub, analyst = federation
    grant_more(hub)
    before = len(Ledger(hub.site("kent") / "ledger.db").entries())
    result, events = finished(analyst, a_job(cl.SiteDP(epsilon=8, delta=1e-3, clip=cl.AdaptiveClip(initial=0.5))))
    assert result is not None, events
    assert result.privacy.unit == "site"
    assert 7.0 < result.privacy.epsilon <= 8.0
    assert (result.history["rows"] == 3).all(), "how many rows a site has is its own affair"
    entries = Ledger(hub.site("kent") / "ledger.db").entries()[before:]
    assert {each.unit for each in entries} == {"sites"}
    assert epsilon([event for each in entries for event in each.events], 1e-3) == result.privacy.epsilon


def test_a_second_agent_on_a_folder_is_refused_and_charges_nothing(
    federation: tuple[Loopback, Any], first: Result
) -> None:
    kent = federation[0].site("kent")
    before = Ledger(kent / "ledger.db").entries()
    second = [sys.executable, "-m", "cloister.cli", "site", "run", str(kent)]
    done = subprocess.run(second, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "another agent" in done.stderr + done.stdout
    assert Ledger(kent / "ledger.db").entries() == before


def test_a_ledger_that_was_put_back_is_noticed_by_the_federation(
    federation: tuple[Loopback, Any], first: Result
) -> None:
    hub, analyst = federation
    lyon = hub.site("lyon")
    grant_more(hub)
    charged = len(Ledger(lyon / "ledger.db").entries())
    hub.kill("lyon")
    shutil.rmtree(lyon)
    shutil.copytree(hub.folder / "backup", lyon)  # key, journal and no ledger yet: it agrees with itself
    hub.start_site("lyon")
    result, events = finished(analyst, ROWS)
    assert result is None, "three sites may lose none"
    refusal = next(event for event in events if event["event"] == "refused")
    assert (refusal["error"], refusal["site"]) == ("LedgerRolledBack", "lyon")
    assert f"--lost {charged}`" in refusal["mend"]
    assert Ledger(lyon / "ledger.db").entries() == [], "nothing was answered"

    with pytest.raises(UsageError, match="lacks no charge"):
        write_off(hub.site("oslo"), 0)
    assert write_off(lyon, charged)["lost"] == charged
    result, events = finished(analyst, ROWS)
    assert result is not None, events
    assert Ledger(lyon / "ledger.db").charges(hub.federation) == charged + 4
