"""Agents as real processes in a real federation: policy, approval, misbehaving code, a missing table, a kill."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

import cloister as cl
from cloister import learn
from cloister.cli import bundled
from cloister.cli.analyst import Analyst, follow
from cloister.cli.app import run as command
from cloister.cli.loopback import Loopback
from cloister.coordinator import init_coordinator, invite
from cloister.seal.identity import Identity
from cloister.simulation import shards
from cloister.site import approve, deny, join, run, status
from cloister.site.journal import Journal
from cloister.site.policy import policy_toml
from cloister.site.settings import SiteFolder, site_toml
from cloister.site.verdicts import verdict_on
from cloister.vector.errors import CloisterError, InvitationError, StateLocked, Unreachable, UsageError

from .conftest import OWN_MODEL

pytestmark = pytest.mark.processes
SITES = ["bern", "kent", "lyon", "oslo"]
FORBIDDEN = ("torch", "pandas", "sklearn", "scipy", "cloister.learn", "cloister.simulation", "cloister_job")

# The agent as the command runs it, which says at the end what it has imported.
WATCHED = """
import json, sys
from pathlib import Path
from cloister.site import run_agent
run_agent(Path(sys.argv[1]), on_event=lambda event: print(json.dumps(event), flush=True))
print(json.dumps({"modules": sorted(sys.modules)}), flush=True)
"""


class Federation:
    """Four sites of which the last has lost its table. The first says what it has imported when it ends."""

    def __init__(self, folder: Path) -> None:
        self.net = Loopback(folder)
        frames = shards(bundled.breast_cancer(), target="malignant", sites=len(SITES), seed=1)
        tables = {site: folder / f"{site}.csv" for site in SITES}
        for site, frame in zip(SITES, frames.values(), strict=True):
            frame.to_csv(tables[site], index=False)
        self.analyst: Analyst = self.net.found("breast-cancer", tables, lambda line: None)
        for site in ("bern", "oslo"):
            self.net.processes[site].terminate()
            self.net.processes[site].wait(20)
            self.net.log(site).unlink()
        tables["oslo"].unlink()
        self.net.start_site("oslo")
        log = open(self.net.log("bern"), "wb")  # noqa: SIM115 - the child's
        command = [sys.executable, "-c", WATCHED, str(self.net.site("bern"))]
        self.net.processes["bern"] = subprocess.Popen(command, stdout=log, stderr=log)
        for site in SITES:
            self.net.wait(site, lambda event: event.get("event") == "ready")

    def said(self, site: str, event: str) -> list[dict[str, Any]]:
        return [dict(each) for each in self.net.events(site) if each.get("event") == event]

    def run(self, job: cl.Job) -> tuple[list[dict[str, Any]], CloisterError | None]:
        """Submits a job and follows it to its end. Returns: its events, and what it failed with."""
        events: list[dict[str, Any]] = []

        async def work() -> None:
            async with self.analyst.connect(lambda line: None) as client:
                async for event in follow(client, await client.submit(job.to_bytes())):
                    events.append(event)

        async def within_time() -> None:
            async with asyncio.timeout(200):
                await work()

        try:
            asyncio.run(within_time())
        except CloisterError as fault:
            return events, fault
        return events, None


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    made = Federation(tmp_path_factory.mktemp("federation"))
    yield made
    made.net.stop()


def own_job(folder: Path, loss: str) -> cl.Job:
    (folder / "job.py").write_text(OWN_MODEL.format(loss=loss))
    return learn.complete(cl.load_job(folder / "job.py"))


def test_a_lost_table_is_one_refusal_and_the_others_go_on(federation: Federation, declarative: cl.Job) -> None:
    assert federation.said("oslo", "ready")[0]["datasets"] == []
    refused = federation.said("oslo", "refused")
    assert [each["error"] for each in refused] == ["DataError"]
    assert "\n" not in refused[0]["message"]
    events, fault = federation.run(declarative)
    assert fault is None
    assert events[-1]["event"] == "done"
    told = [event for event in events if event["event"] == "refused"]
    assert [(event["site"], event["error"], event["scope"]) for event in told] == [("oslo", "DataError", "run")]
    assert str(federation.net.folder) not in json.dumps(events)
    for site in SITES[:3]:
        asked = len(federation.said(site, "asked"))  # the last receipt may come after the run's end was told
        federation.net.wait(
            site, lambda event, site=site, asked=asked: len(federation.said(site, "receipt")) >= asked
        )
        assert [each["survivors"] for each in federation.said(site, "receipt")] == [3] * asked


def test_code_runs_after_approval_only_and_its_errors_say_nothing(federation: Federation, tmp_path: Path) -> None:
    loss = (
        "print('junk on the pipe', flush=True)\n"
        "    raise ValueError(f'a row of the table: {batch[\"x\"][0].tolist()}')"
    )
    job = own_job(tmp_path, loss)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(federation.run, job)
        for site in SITES[:3]:
            federation.net.wait(site, lambda event: event.get("event") == "review")
        restart(federation, "lyon")  # an agent that ends forgets no run that waits
        federation.net.wait("lyon", lambda event: len(federation.said("lyon", "review")) == 2)
        assert status(federation.net.site("kent"))["waiting"] == [job.digest.hex()]
        for site in SITES[:3]:
            assert approve(federation.net.site(site), job.digest.hex()[:12]) == job.digest.hex()
        events, fault = running.result()
    assert fault is not None
    waited = [event for event in events if event.get("scope") == "waiting"]
    assert {event["rule"] for event in waited} == {"allow.code"}
    assert {event["site"] for event in waited} == set(SITES)
    assert all(job.digest.hex()[:12] in event["mend"] for event in waited)
    assert [event["site"] for event in events if event["event"] == "approved"]
    events = [event for event in events if event.get("scope") != "waiting"]
    told = {event["site"]: event for event in events if event["event"] == "refused" and event["site"] != "oslo"}
    assert {event["error"] for event in told.values()} == {"TaskError"}
    assert {event["message"] for event in told.values()} == {"the job's code raised ValueError."}
    assert "a row of the table" not in json.dumps(events)
    federation.net.wait("kent", lambda event: event.get("error") == "TaskError")
    assert "a row of the table" in (federation.net.site("kent") / "worker.log").read_text()
    assert "junk on the pipe" in (federation.net.site("kent") / "worker.log").read_text()
    seen = status(federation.net.site("kent"))
    assert job.digest.hex() in seen["jobs"]
    assert seen["refused"] >= 1
    assert seen["waiting"] == []


def restart(federation: Federation, site: str) -> None:
    ready = len(federation.said(site, "ready"))
    federation.net.kill(site)
    federation.net.start_site(site)
    federation.net.wait(site, lambda event: len(federation.said(site, "ready")) > ready)


def test_a_denied_job_is_refused_with_the_steward_s_reason(federation: Federation, tmp_path: Path) -> None:
    job = own_job(tmp_path, "return model(batch['x']).mean()")
    kent = federation.net.site("kent")
    with ThreadPoolExecutor() as pool:
        running = pool.submit(federation.run, job)
        federation.net.wait("kent", lambda event: event.get("job") == job.digest.hex())
        for site in ("kent", "lyon"):  # two of four: the others can make no sum
            deny(federation.net.site(site), job.digest.hex(), "it asks for more than was agreed")
        events, fault = running.result()
    assert fault is not None
    told = [event for event in events if event.get("site") == "kent" and event.get("scope") == "run"]
    assert [event["rule"] for event in told] == ["review"]
    assert "more than was agreed" in told[0]["message"]
    entry = next(iter(Journal(SiteFolder(kent).journal).entries("denied")))
    said = verdict_on(SiteFolder(kent), SiteFolder(kent).identity().public, job.digest.hex())
    assert said is not None
    assert {**said, "signature": entry.facts["signature"]} == entry.facts
    (SiteFolder(kent).verdicts / job.digest.hex()).write_bytes(b"approved")  # whoever wrote it has not the site's key
    assert verdict_on(SiteFolder(kent), SiteFolder(kent).identity().public, job.digest.hex()) is None


def test_what_an_algorithm_keeps_at_a_site_outlives_its_worker(federation: Federation, declarative: cl.Job) -> None:
    """SCAFFOLD runs to its end though a worker is killed on the way, and nothing of it stays behind."""
    job = dataclasses.replace(
        declarative,
        prepare=(cl.Impute(), cl.Standardize()),
        task=cl.Torch(model=cl.nets.Linear(), loss="bce", optimizer=cl.SGD(lr=0.01), steps=3),
        algorithm=cl.SCAFFOLD(rounds=4),
    )
    trained = len(federation.said("kent", "trained"))
    with ThreadPoolExecutor() as pool:
        running = pool.submit(federation.run, job)
        federation.net.wait("kent", lambda event: len(federation.said("kent", "trained")) >= trained + 4)
        for child in psutil.Process(federation.net.processes["kent"].pid).children():
            child.kill()  # between two questions, or in one: then that round goes on without this site
        events, fault = running.result()
    assert fault is None
    assert events[-1]["event"] == "done"
    for site in SITES[:3]:
        kept = federation.net.site(site) / "memory"
        end = time.monotonic() + 60
        while any(kept.iterdir()) and time.monotonic() < end:
            time.sleep(0.05)
        assert not any(kept.iterdir())


def test_a_killed_agent_joins_the_next_run(federation: Federation, declarative: cl.Job) -> None:
    rounds = len(federation.said("lyon", "receipt"))
    restart(federation, "lyon")
    _, fault = federation.run(declarative)
    assert fault is None
    federation.net.wait("lyon", lambda event: len(federation.said("lyon", "receipt")) > rounds)
    assert federation.said("lyon", "receipt")[-1]["survivors"] == 3


def test_joining_pins_and_makes_its_own_key(federation: Federation, tmp_path: Path) -> None:
    coordinator = federation.net.coordinator
    here = federation.net.site("kent")
    assert (here / "identity.key").stat().st_mode & 0o777 == 0o600
    assert here.stat().st_mode & 0o777 == 0o700
    with pytest.raises(UsageError, match="already"):
        join(invite(coordinator, ["nice"])[0], here, {})
    with pytest.raises(InvitationError, match="not for a site"):
        join(invite(coordinator, ["dr.lee"], "analyst")[0], tmp_path / "nice", {})
    with pytest.raises(UsageError, match="no file"):
        join(invite(coordinator, ["nice"])[0], tmp_path / "nice", {"heart": tmp_path / "absent.csv"})
    invitation = invite(coordinator, ["nice"])[0]
    with pytest.raises(InvitationError, match="certificate"):
        join(replace(invitation, certificate=bytes(32)), tmp_path / "nice", {})
    assert not (tmp_path / "nice").exists()
    with pytest.raises(InvitationError, match="does not know"):
        join(replace(invitation, token=bytes(16)), tmp_path / "nice", {})
    words = join(invitation, tmp_path / "nice", {})  # goes on with the key that the failed one made
    assert len(words.split()) == 6
    assert words == status(tmp_path / "nice")["words"]
    with pytest.raises(InvitationError, match="used before"):
        join(invitation, tmp_path / "other", {})


def test_agents_outlive_their_coordinator(federation: Federation, declarative: cl.Job) -> None:
    rounds = len(federation.said("kent", "receipt"))
    federation.net.kill("coordinator")
    federation.net.wait("kent", lambda event: event.get("event") == "retry")
    federation.net.start("coordinator", "coordinator", "serve", "--folder", str(federation.net.coordinator))
    _, fault = federation.run(declarative)
    assert fault is None
    assert len(federation.said("kent", "receipt")) > rounds
    assert federation.said("kent", "receipt")[-1]["survivors"] == 3


def test_what_a_steward_changes_holds_without_a_restart(
    federation: Federation, declarative: cl.Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kent, table = federation.net.site("kent"), tmp_path / "more.csv"
    before, policy = (kent / "site.toml").read_text(), (kent / "policy.toml").read_text()
    bundled.breast_cancer().to_csv(table, index=False)
    assert command(["site", "data", "add", "more", str(table), "--allow", "-f", str(kent)]) == 0
    federation.net.wait("kent", lambda event: event.get("datasets") == ["breast-cancer", "more"])
    (kent / "site.toml").write_text("[data\n" + before)
    federation.net.wait("kent", lambda event: "site.toml is no TOML" in str(event.get("message")))
    (kent / "site.toml").write_text(before.replace("patience_seconds = 600", "patience_seconds = 60"))
    federation.net.wait("kent", lambda event: "patience_seconds: start the agent again" in str(event.get("message")))
    federation.net.wait("kent", lambda event: federation.said("kent", "ready")[-1]["datasets"] == ["breast-cancer"])
    (kent / "policy.toml").write_text(policy.replace("declarative = true", "declarative = false"))
    events, fault = federation.run(declarative)
    assert fault is not None, "two sites are too few"
    told = next(event for event in events if event["event"] == "refused" and event["site"] == "kent")
    assert told["rule"] == "allow.declarative"
    assert "(allow.declarative; policy.toml, line 5)" in told["message"]
    (kent / "policy.toml").write_text(policy)
    (kent / "site.toml").write_text(before)


def test_a_second_agent_on_the_folder_is_refused(federation: Federation) -> None:
    with pytest.raises(StateLocked, match="another agent"):
        asyncio.run(run(federation.net.site("kent")))


def test_the_agent_imports_no_training_code(federation: Federation) -> None:
    """Last: it ends the agent, which has lived through every run above."""
    assert federation.said("bern", "trained")
    process = federation.net.processes["bern"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    modules = next(each["modules"] for each in federation.net.events("bern") if "modules" in each)
    assert "cloister.round" in modules
    loaded = [name for name in modules for banned in FORBIDDEN if name == banned or name.startswith(banned + ".")]
    assert not loaded
    journal = Journal(SiteFolder(federation.net.site("bern")).journal)
    kinds = [entry.kind for entry in journal.entries()]
    assert {"announced", "approved", "asked", "answered", "receipt", "refused"} <= set(kinds)
    assert not list((federation.net.site("bern") / "state").glob("*"))


def test_a_coordinator_that_is_not_there_is_given_up_with_a_mend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coordinator = Loopback(tmp_path)
    settings = {"id": "kent", "federation": "demo", "coordinator": "https://127.0.0.1:9", "data": {}}
    (tmp_path / "site.toml").write_text(site_toml(settings).replace("patience_seconds = 600", "patience_seconds = 1"))
    (tmp_path / "policy.toml").write_text(policy_toml([]))
    (tmp_path / "identity.key").write_bytes(Identity.generate(lambda size: b"k" * size).to_bytes())
    made = init_coordinator(coordinator.coordinator, "demo", root_path=tmp_path / "root.key")
    pinned = {"certificate": made.certificate.read_text(), "root_key": "00" * 32}
    (tmp_path / "pinned.json").write_text(json.dumps(pinned))
    events: list[Any] = []
    with pytest.raises(Unreachable, match="Check the address"):
        asyncio.run(run(tmp_path, events.append))
    assert [event["event"] for event in events] == ["waiting"]
    assert capsys.readouterr() == ("", "")
    with pytest.raises(UsageError, match="Join with an invitation"):
        asyncio.run(run(tmp_path / "nowhere"))
