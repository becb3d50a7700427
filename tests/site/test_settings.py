"""What a steward writes: every rule has a default that refuses, and every mistake is named with its place."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cloister as cl
from cloister.round import Decision, decide_job, decide_plan
from cloister.seal.graph import default_graph
from cloister.seal.identity import Identity
from cloister.seal.labels import ZERO32
from cloister.seal.roster import Member, Roster, sign_roster
from cloister.site.policy import PolicyFile, policy_toml
from cloister.site.rosters import Rosters
from cloister.site.settings import DataSource, SiteFolder, site_toml, write_private
from cloister.vector.errors import (
    CloisterError,
    EnvironmentFailure,
    NotInRoster,
    PolicyRefused,
    RosterRefused,
    UsageError,
)

NONE: frozenset[str] = frozenset()


@pytest.fixture
def folder(tmp_path: Path) -> SiteFolder:
    settings = {"id": "kent", "federation": "hearts", "coordinator": "https://a:1", "data": {"heart": "heart.csv"}}
    (tmp_path / "site.toml").write_text(site_toml(settings))
    (tmp_path / "policy.toml").write_text(policy_toml(["heart"]))
    return SiteFolder(tmp_path)


def decide(folder: SiteFolder, job: cl.Job, approved: frozenset[str] = NONE) -> Decision:
    return decide_job(folder.policy().as_policy(approved), job, "dr.lee")


def test_the_first_files_are_read_back(folder: SiteFolder) -> None:
    settings = folder.settings()
    assert (settings.id, settings.federation, settings.coordinator) == ("kent", "hearts", "https://a:1")
    assert settings.data == {"heart": DataSource(file=folder.root / "heart.csv")}
    assert folder.policy().limits.memory_mb == 16384
    assert folder.policy().allow.code == "reviewed"


@given(
    name=st.text(
        st.characters(min_codepoint=32, blacklist_characters="\x7f", blacklist_categories=("Cs",)), min_size=1
    )
)
def test_any_path_survives_toml(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    path = tmp_path_factory.mktemp("toml")
    data = {"heart": f"/srv/{name}.csv"}
    settings = {"id": "kent", "federation": "hearts", "coordinator": "https://a:1", "data": data}
    (path / "site.toml").write_text(site_toml(settings), "utf-8")
    assert SiteFolder(path).settings().data["heart"].file == Path(data["heart"])


def test_an_empty_policy_refuses_everything(folder: SiteFolder, declarative: cl.Job) -> None:
    (folder.root / "policy.toml").write_text("")
    assert not decide(folder, declarative).allow
    for text, rule in (
        ('datasets = ["breast-cancer"]', "allow.analysts"),
        ('datasets = ["breast-cancer"]\nanalysts = ["dr.lee"]', "allow.declarative"),
    ):
        (folder.root / "policy.toml").write_text("[allow]\n" + text)
        decision = decide(folder, declarative)
        assert (decision.allow, decision.rule) == (False, rule)
    (folder.root / "policy.toml").write_text(
        '[allow]\ndatasets = ["breast-cancer"]\nanalysts = ["dr.lee"]\ndeclarative = true'
    )
    assert decide(folder, declarative).allow
    assert not decide_job(folder.policy().as_policy(NONE), declarative, "dr.no").allow


@pytest.mark.parametrize(
    ("code", "signers", "approved", "allowed", "rule"),
    [
        ("never", "", False, False, "allow.code"),
        ("never", "", True, False, "allow.code"),
        ("reviewed", "", False, False, "allow.code"),
        ("reviewed", "", True, True, "allow.code"),
        ("reviewed", '"dr.lee"', False, False, "allow.code"),
        ("signed-by", '"dr.lee"', False, True, "allow.signed_by"),
        ("signed-by", '"dr.no"', False, False, "allow.code"),
        ("signed-by", '"dr.no"', True, True, "allow.code"),
    ],
)
def test_shipped_code(
    folder: SiteFolder, tmp_path: Path, code: str, signers: str, approved: bool, allowed: bool, rule: str
) -> None:
    (tmp_path / "job.py").write_text(
        "import cloister as cl\ndef loss(model, batch): ...\n"
        "job = cl.Job(data=cl.Table('heart', target='ill'), task=cl.Torch(cl.nets.Linear(), loss=loss,"
        " optimizer=cl.SGD(lr=1)), algorithm=cl.FedAvg(rounds=1))\n"
    )
    job = cl.load_job(tmp_path / "job.py")
    text = (
        policy_toml(["heart"])
        .replace('"reviewed"  ', f'"{code}"')
        .replace("signed_by = []", f"signed_by = [{signers}]")
    )
    (folder.root / "policy.toml").write_text(text)
    decision = decide(folder, job, frozenset({job.digest.hex()}) if approved else NONE)
    assert (decision.allow, decision.rule) == (allowed, rule)
    assert text.splitlines()[decision.line - 1].startswith(rule.removeprefix("allow."))
    denied = folder.policy().as_policy(frozenset({job.digest.hex()}), {job.digest.hex(): "no"})
    assert decide_job(denied, job, "dr.lee").rule == "review"


def test_the_rules_on_rounds(folder: SiteFolder) -> None:
    policy = folder.policy().as_policy(NONE)
    assert decide_plan(policy, upload_bytes=200 << 20, min_survivors=3).allow
    assert decide_plan(policy, upload_bytes=(200 << 20) + 1, min_survivors=3).rule == "allow.max_upload_mb"
    assert decide_plan(policy, upload_bytes=1, min_survivors=3, sites=2).rule == "allow.min_cohort"
    assert decide_plan(policy, upload_bytes=1, min_survivors=3, seal="none").rule == "allow.seals"
    assert all(decide_plan(policy, upload_bytes=1, min_survivors=3, seal=default_graph(n)).allow for n in (5, 200))


def test_rounds_are_answered_in_the_hours_of_the_policy(folder: SiteFolder) -> None:
    for hours, open_at, shut_at in (
        ("20:00-06:00", (1200, 1439, 0, 359), (360, 1199)),
        ("09:30-24:00", (570,), (569,)),
    ):
        (folder.root / "policy.toml").write_text(policy_toml([]).replace("00:00-24:00", hours))
        policy = folder.policy().as_policy(NONE)
        assert all(decide_plan(policy, upload_bytes=1, min_survivors=3, minute=at).allow for at in open_at)
        shut = [decide_plan(policy, upload_bytes=1, min_survivors=3, minute=at) for at in shut_at]
        assert {decision.rule for decision in shut} == {"allow.hours"}
        assert hours[:5] in shut[0].reason


@pytest.mark.parametrize(
    ("rule", "written", "plan"),
    [
        ("allow.datasets", 'datasets = ["else"]', None),
        ("allow.analysts", 'analysts = ["dr.no"]', None),
        ("allow.declarative", "declarative = false", None),
        ("privacy.require", 'require = "rows"', None),
        ("allow.max_upload_mb", "max_upload_mb = 1", {"upload_bytes": 2 << 20}),
        ("allow.min_cohort", "min_cohort = 5", {"sites": 4}),
        ("allow.min_survivors", "min_survivors = 4", {"min_survivors": 3}),
        ("allow.seals", 'seals = ["complete"]', {"seal": default_graph(200)}),
        ("allow.hours", 'hours = "08:00-09:00"', {"minute": 700}),
    ],
)
def test_every_refusal_names_the_line_of_the_policy(
    folder: SiteFolder, declarative: cl.Job, rule: str, written: str, plan: dict[str, Any] | None
) -> None:
    text = policy_toml(["breast-cancer"])
    at = next(n for n, line in enumerate(text.splitlines()) if line.startswith(f"{rule.partition('.')[2]} ="))
    lines = [*text.splitlines()[:at], written, *text.splitlines()[at + 1 :]]

    def ask() -> Decision:
        policy = folder.policy().as_policy(NONE)
        asked = {"upload_bytes": 1, "min_survivors": 5, "sites": 5, **(plan or {})}
        return decide_job(policy, declarative, "dr.lee") if plan is None else decide_plan(policy, **asked)

    (folder.root / "policy.toml").write_text(text)
    assert ask().allow, "as the policy was, it is allowed"
    (folder.root / "policy.toml").write_text("\n".join(lines))
    decision = ask()
    assert (decision.allow, decision.rule, decision.line) == (False, rule, at + 1)
    assert decision.told.endswith(f"({rule}; policy.toml, line {at + 1}).")


def test_a_refusal_names_the_line(folder: SiteFolder, declarative: cl.Job) -> None:
    (folder.root / "policy.toml").write_text(
        "[privacy]\nrequire = 'rows'\n[allow]\ndatasets = ['breast-cancer']\nanalysts = ['*']\n"
    )
    assert decide(folder, declarative).line == 2
    (folder.root / "policy.toml").write_text(
        "[allow]\ndatasets = ['breast-cancer']\nanalysts = ['*']\n# no\ndeclarative = false\n"
    )
    with pytest.raises(PolicyRefused, match=r"allow.declarative; policy.toml, line 5"):
        decide(folder, declarative).require("kent")
    (folder.root / "policy.toml").write_text("[allow]\ndatasets = ['breast-cancer']\nanalysts = ['*']\n")
    with pytest.raises(PolicyRefused, match=r"policy.toml does not allow it"):
        decide(folder, declarative).require("kent")


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("policy.toml", "[allow]\ncoed = 'any'", "policy.toml, line 2: allow.coed"),
        ("policy.toml", "[allow]\n\ncode = 'sometimes'", "line 3: allow.code"),
        ("policy.toml", "[allow]\nhours = '8-10'", "line 2: allow.hours: hours are written"),
        ("policy.toml", "[budget.heart]\nepsilon = 1", "line 1: budget.heart.delta"),
        ("policy.toml", "[worker]\nmemory_mb = 1", "worker.memory_mb"),
        ("policy.toml", "[allow]\nmin_survivors = 2", "allow.min_survivors"),
        ("policy.toml", "[allow\n", "no TOML"),
        ("site.toml", "id = 3", "id"),
        (
            "site.toml",
            "id = 'a'\nfederation = 'b'\ncoordinator = 'c'\n[data]\nh = {url = 'x'}",
            "data.h: a dataset is",
        ),
        ("identity.key", "short", "no key"),
        ("pinned.json", "{}", "does not parse"),
    ],
)
def test_a_mistake_is_named_with_its_place(folder: SiteFolder, file: str, text: str, says: str) -> None:
    (folder.root / file).write_text(text)
    read = {
        "policy.toml": folder.policy,
        "site.toml": folder.settings,
        "identity.key": folder.identity,
        "pinned.json": folder.pinned,
    }[file]
    with pytest.raises(UsageError, match=says) as caught:
        read()
    assert "\n" not in str(caught.value)
    assert caught.value.mend


def test_a_folder_that_never_joined_says_how(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Join with an invitation first"):
        SiteFolder(tmp_path).settings()


@given(st.dictionaries(st.text(max_size=10), st.integers() | st.text(max_size=5) | st.booleans(), max_size=4))
def test_no_policy_allows_by_accident(rules: dict[str, object]) -> None:
    try:
        policy = PolicyFile.model_validate({"allow": rules}).as_policy(NONE)
    except ValueError:
        return
    assert policy.datasets == ()


def test_private_files_are_private_and_whole(tmp_path: Path) -> None:
    write_private(tmp_path / "identity.key", b"one")
    write_private(tmp_path / "identity.key", b"two")
    assert (tmp_path / "identity.key").read_bytes() == b"two"
    assert (tmp_path / "identity.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["identity.key"]
    with pytest.raises(EnvironmentFailure):
        write_private(tmp_path / "nowhere" / "file", b"")


class Signed:
    """A root key and the rosters it signed: version n has the sites site-1 .. site-n."""

    def __init__(self) -> None:
        self.root = Identity.generate(lambda size: b"r" * size)
        self.signed: dict[int | str, bytes] = {}
        self.rosters: list[Roster] = []
        for version in (1, 2, 3):
            self.add(version)

    def add(self, version: int, root: Identity | None = None) -> None:
        previous = self.rosters[-1].digest if self.rosters else ZERO32
        members = tuple(Member(f"site-{n}", bytes([n]) * 32) for n in range(1, version + 1))
        roster = Roster("hearts", version, previous, (self.root.public,), 1, sites=members)
        self.rosters.append(roster)
        self.signed[version] = self.signed["latest"] = sign_roster(roster, [root or self.root])

    async def fetch(self, version: int | str) -> bytes:
        return self.signed[version]


def follow(rosters: Rosters) -> Roster:
    return asyncio.run(rosters.follow_latest())


def at(rosters: Rosters, version: int) -> Roster:
    return asyncio.run(rosters.at(version))


def test_rosters_are_followed_and_kept(tmp_path: Path) -> None:
    made = Signed()
    made.signed["latest"] = made.signed[1]
    rosters = Rosters(tmp_path / "rosters", made.root.public, "hearts", made.fetch)
    assert rosters.current is None
    assert follow(rosters).version == 1
    made.signed["latest"] = made.signed[3]
    assert follow(rosters) == made.rosters[2]
    again = Rosters(tmp_path / "rosters", made.root.public, "hearts", made.fetch)
    assert again.current == made.rosters[2]
    assert at(again, 2) == made.rosters[1]
    made.add(4)
    assert at(again, 4).version == 4


def test_a_coordinator_cannot_set_rosters_back_or_sign_its_own(tmp_path: Path) -> None:
    made = Signed()
    rosters = Rosters(tmp_path / "rosters", made.root.public, "hearts", made.fetch)
    follow(rosters)
    with pytest.raises(NotInRoster):
        at(rosters, 2)
    made.signed["latest"] = made.signed[2]
    with pytest.raises(RosterRefused, match="set back"):
        follow(rosters)
    made.add(4, root=Identity.generate(lambda size: b"x" * size))
    with pytest.raises(CloisterError):
        follow(rosters)
    assert rosters.current == made.rosters[2]


def test_damaged_rosters_are_named(tmp_path: Path) -> None:
    made = Signed()
    follow(Rosters(tmp_path / "rosters", made.root.public, "hearts", made.fetch))
    (tmp_path / "rosters" / "3.signed").write_bytes(b"junk")
    with pytest.raises(EnvironmentFailure, match="damaged"):
        Rosters(tmp_path / "rosters", made.root.public, "hearts", made.fetch)
