"""What a steward types, on a real site's folder: data, policy, review in terminal and browser, verdicts, log."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import cloister as cl
from cloister.cli.app import run
from cloister.job.lint import lint
from cloister.learn import complete
from cloister.seal.identity import Identity
from cloister.site import bubblewrap
from cloister.site.journal import Journal
from cloister.site.policy import policy_toml
from cloister.site.settings import SiteFolder, site_toml, write_private

JOB = """
import torch
from torch import nn
import cloister as cl

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(2, 64)
        self.out = nn.Linear(64, 1)
{made}
    def forward(self, x):
        return self.out(torch.relu(self.wide(x)))

def loss(model, batch):
    return nn.functional.binary_cross_entropy_with_logits(model(batch["x"])[:, 0], batch["y"])

job = cl.Job(
    data=cl.Table("heart", target="ill", classes=2),
    task=cl.Torch(Net, loss=loss, optimizer=cl.SGD(lr=0.1), steps=1),
    algorithm=cl.FedAvg(rounds=2),
    name="{name}",
)
"""
IMPRINT = """        with torch.no_grad():
            self.wide.weight[:] = 1.0
            self.wide.bias[:] = -torch.arange(64.0)"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A joined site that was told of two jobs: an honest one, and one with an imprint layer that waits."""
    folder = tmp_path_factory.mktemp("site")
    settings = {"id": "kent", "federation": "hearts", "coordinator": "https://127.0.0.1:9", "data": {}}
    write_private(folder / "site.toml", site_toml(settings).encode())
    write_private(folder / "policy.toml", policy_toml([]).encode())
    write_private(folder / "identity.key", Identity.generate(lambda size: b"k" * size).to_bytes())
    rows = pd.DataFrame(
        {"patient": [1, 1, 2, 3], "age": [40.5, 41, 60, None], "bp": [1, 2, 3, 4], "ill": [0, 0, 1, 1]}
    )
    rows.to_csv(folder / "heart.csv", index=False)
    rows.to_parquet(folder / "heart.parquet")
    with closing(sqlite3.connect(folder / "heart.db")) as database:
        rows.to_sql("visits", database, index=False)
    return folder


def typed(capsys: pytest.CaptureFixture[str], *words: Any, code: int = 0) -> dict[str, Any]:
    """One command with --json; what it printed."""
    assert run([*map(str, words), "--json"]) == code
    said = capsys.readouterr()
    found: dict[str, Any] = json.loads((said.out if code == 0 else said.err).splitlines()[-1])
    return found


def told_of(site: Path, folder: Path, name: str, made: str) -> cl.Job:
    (folder / f"{name}.py").write_text(JOB.format(made=made, name=name))
    job = complete(cl.load_job(folder / f"{name}.py"))
    here = SiteFolder(site)
    here.jobs.mkdir(exist_ok=True)
    write_private(here.jobs / job.digest.hex(), job.to_bytes())
    facts = {"run": job.digest.hex()[:32], "job": job.digest.hex(), "analyst": "dr.lee", "name": name}
    with closing(Journal(here.journal)) as journal:
        journal.log("announced", **facts)
        journal.log("waiting", **facts)
    return job


def test_data_of_every_kind(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = {
        "csv": site / "heart.csv",
        "parquet": site / "heart.parquet",
        "db": f"sqlite:///{site}/heart.db?table=visits",
    }
    for name, place in where.items():
        added = typed(capsys, "site", "data", "add", name, place, "--unit", "patient", "-f", site)
        assert added["rows"] == 4
        assert set(added["columns"]) == {"age", "bp", "ill"}, "whose a row is, is no feature"
        assert added["columns"]["age"] == {"kind": "number", "missing": 1, "distinct": 3, "least": 40.5, "most": 60.0}
    typed(capsys, "site", "data", "add", "heart", site / "heart.csv", "--unit", "patient", "--allow", "-f", site)
    listed = typed(capsys, "site", "data", "list", "-f", site)["datasets"]
    assert [(row["dataset"], row["jobs"], row["fault"]) for row in listed if row["jobs"]] == [("heart", True, None)]
    typed(capsys, "site", "data", "remove", "csv", "-f", site)
    assert set(SiteFolder(site).settings().data) == {"parquet", "db", "heart"}
    assert (site / "profiles" / "heart.json").stat().st_mode & 0o077 == 0
    query = "DELETE FROM visits"
    refused = typed(
        capsys, "site", "data", "add", "x", f"sqlite:///{site}/heart.db", "--query", query, "-f", site, code=2
    )
    assert refused["error"] == "DataError"
    assert "readonly" in (site / "worker.log").read_text()
    with closing(sqlite3.connect(site / "heart.db")) as database:
        assert database.execute("SELECT count(*) FROM visits").fetchone() == (4,)


def test_policy_is_checked_before_it_is_saved(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (site / "policy.toml").read_bytes()
    monkeypatch.setenv("EDITOR", "sed -i s/reviewed/perhaps/")
    assert run(["site", "policy", "edit", "-f", str(site)]) == 2
    assert "line 6: allow.code" in capsys.readouterr().err
    assert (site / "policy.toml").read_bytes() == before
    monkeypatch.setenv("EDITOR", "sed -i s/perhaps/reviewed/")  # it goes on with the draft
    assert run(["site", "policy", "edit", "-f", str(site)]) == 0
    capsys.readouterr()
    assert typed(capsys, "site", "policy", "check", "-f", site)["doubts"] == []


def test_review_explains_and_decides(site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    honest = told_of(site, tmp_path, "honest", "")
    asked = typed(capsys, "site", "policy", "explain", tmp_path / "honest.py", "-f", site)
    assert (asked["answer"], asked["rule"]) == ("not yet", "allow.code")
    assert asked["text"].startswith('code = "reviewed"')
    typed(capsys, "site", "approve", honest.digest.hex()[:12], "-f", site)
    assert typed(capsys, "site", "policy", "explain", honest.digest.hex()[:12], "-f", site)["answer"] == "yes"
    hostile = told_of(site, tmp_path, "hostile", IMPRINT)
    page = typed(capsys, "site", "review", "-f", site)["jobs"][0]
    assert (page["job"], page["analyst"], page["state"]) == (hostile.digest.hex(), "dr.lee", "waits")
    train = next(each for each in page["questions"] if each["task"] == "train")
    assert train["words"] > 2 * 64 + 64 + 64 + 1, "the model, and what is measured of it"
    assert page["before"] == honest.digest.hex()
    assert any(line.startswith("+") and "arange" in line for line in page["diff"])
    assert page["notes"][0]["level"] == "danger"
    assert page["notes"][0]["tensor"] == "wide.weight"
    assert run(["site", "review", "-f", str(site)]) == 0
    assert "Robbing the Fed" in capsys.readouterr().out
    typed(capsys, "site", "deny", hostile.digest.hex()[:12], "--reason", "an imprint layer", "-f", site)
    said = typed(capsys, "site", "policy", "explain", hostile.digest.hex()[:12], "-f", site)
    assert (said["answer"], "imprint" in said["reason"]) == ("no", True)
    log = typed(capsys, "site", "log", "-f", site)["entries"]
    assert [entry["kind"] for entry in log] == ["announced", "waiting", "approved", "announced", "waiting", "denied"]
    assert typed(capsys, "site", "log", "--verify", "-f", site)["whole"]
    with closing(sqlite3.connect(site / "journal.db")) as database:
        database.execute("DROP TRIGGER log_kept")
        database.execute("CREATE TABLE aside AS SELECT * FROM log WHERE number = 2")
        database.execute("DELETE FROM log WHERE number = 2")
        database.commit()
        assert typed(capsys, "site", "log", "--verify", "-f", site, code=1)["error"] == "EnvironmentFailure"
        database.execute("INSERT INTO log SELECT * FROM aside")
        database.commit()


@pytest.mark.parametrize(
    ("tensors", "level", "about"),
    [
        ({"a.weight": np.ones((64, 8)), "a.bias": -np.arange(64.0)}, "danger", "thresholds"),
        ({"a.weight": np.eye(16) + 0.1, "a.bias": np.full(16, -50.0)}, "danger", "off for nearly every row"),
        ({"emb.weight": np.linspace(-1, 1, 600 * 4).reshape(600, 4)}, "look", "embedding"),
        ({"bn.running_mean": np.zeros(4), "bn.running_var": np.ones(4)}, "look", "BatchNorm"),
    ],
)
def test_the_linter_knows_what_carries_rows(tmp_path: Path, tensors: dict[str, Any], level: str, about: str) -> None:
    code = cl.nets.Code("net", initial={name: value.astype("float32") for name, value in tensors.items()})
    task = cl.Torch(model=code, loss="bce", optimizer=cl.SGD(lr=0.1))
    job = cl.Job(data=cl.Table("h", target="y"), task=task, algorithm=cl.FedAvg(rounds=1), source="def net(): ...")
    notes = lint(job)
    assert notes[0].level == level
    assert about in notes[0].text
    rng = np.random.default_rng(1)
    plain = {"a.weight": rng.uniform(-0.3, 0.3, (64, 8)), "a.bias": rng.uniform(-0.3, 0.3, 64)}
    ordinary = cl.nets.Code("net", initial={name: value.astype("float32") for name, value in plain.items()})
    task = cl.Torch(model=ordinary, loss="bce", optimizer=cl.SGD(lr=0.1))
    job = cl.Job(data=cl.Table("h", target="y"), task=task, algorithm=cl.FedAvg(rounds=1), source="def net(): ...")
    assert [note.level for note in lint(job)] == ["fine"]


def listens_at(process: subprocess.Popen[str]) -> set[str]:
    import psutil

    found = psutil.Process(process.pid).net_connections("tcp")
    return {each.laddr.ip for each in found if each.status == psutil.CONN_LISTEN}


@pytest.fixture
def page(site: Path) -> Iterator[str]:
    """The address of the real review page."""
    command = [sys.executable, "-m", "cloister.cli", "site", "review", "--web", "-f", str(site), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = json.loads(process.stdout.readline())["url"]
    assert listens_at(process) == {"127.0.0.1"}
    yield url
    process.terminate()
    process.wait(20)


def status_of(url: str, data: dict[str, str] | None = None, **headers: str) -> tuple[int, str]:
    body = None if data is None else urllib.parse.urlencode(data).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as fault:
        return fault.code, fault.read().decode()


def test_the_page_is_for_the_steward_alone(site: Path, tmp_path: Path, page: str) -> None:
    job = told_of(site, tmp_path, "by-web", IMPRINT)
    assert status_of(page)[0] == 200
    assert status_of(page, Host="evil.example")[0] == 404, "DNS rebinding"
    assert status_of(page.rsplit("/", 2)[0] + "/guessed/")[0] == 404
    code, text = status_of(page + job.digest.hex())
    assert code == 200
    assert "Robbing the Fed" in text
    assert "changes since the last approved version" in text
    assert re.search(r'<span class="plus">\+\s+self\.wide\.bias', text), "the diff shows what was added"
    assert "<script" not in text
    assert not re.search(r"(src|href)=\"(?!/)", text), "nothing from elsewhere"
    secret = re.search(r'name="secret" value="([^"]+)"', text)
    assert secret is not None
    form = {"verdict": "approved", "reason": "<b>agreed</b>"}
    assert status_of(page + job.digest.hex(), form)[0] == 403, "a form from elsewhere does not know the secret"
    forged = {**form, "secret": secret[1]}
    assert status_of(page + job.digest.hex(), forged, Origin="https://evil.example")[0] == 403
    code, text = status_of(page + job.digest.hex(), forged)
    assert code == 200
    assert "Allowed" in text
    assert "<b>agreed" not in text
    if (wanted := os.environ.get("CLOISTER_SCREENSHOT")) is not None:
        shoot(page + job.digest.hex(), Path(wanted))


def shoot(url: str, path: Path) -> str:
    """Renders a page in a headless chromium. Returns: its DOM as text."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no chromium on this machine")
    common = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={path}.profile",
    ]
    done = subprocess.run(
        [browser, *common, "--window-size=1280,1600", f"--screenshot={path}", "--virtual-time-budget=2000", url],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert path.exists(), done.stderr[-2000:]
    dom = [browser, *common, "--dump-dom", url]
    return subprocess.run(dom, capture_output=True, text=True, timeout=120, check=True).stdout


def test_the_page_in_a_real_browser(site: Path, tmp_path: Path, page: str) -> None:
    job = told_of(site, tmp_path, "by-browser", IMPRINT)
    text = shoot(page + job.digest.hex(), tmp_path / "page.png")
    for told in ("by-browser", "dr.lee", "What would leave", "Approve", "Deny", "wide.weight", "policy.toml, line 6"):
        assert told in text
    from matplotlib.image import imread

    picture = imread(tmp_path / "page.png")
    assert picture.shape[:2] == (1600, 1280)
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 100, "it is not blank"


def test_doctor_says_which_walls_stand(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["site", "doctor", "-f", str(site), "--json"]) == 1  # nobody coordinates this site
    checks = {each["name"]: each for each in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["wall memory"]["state"] == "good"
    assert checks["data heart"]["state"] == "good"
    assert (checks["bubblewrap"]["state"] == "good") == bubblewrap.works()
    assert checks["coordinator"]["state"] == "bad"
    (site / "identity.key").chmod(0o644)
    assert run(["site", "doctor", "-f", str(site), "--json"]) == 1
    checks = {each["name"]: each for each in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["identity.key"]["mend"].startswith("chmod 600")
    (site / "identity.key").chmod(0o600)
