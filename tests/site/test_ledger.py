"""The privacy ledger: its arithmetic, its chain, what a kill leaves behind, and two agents on one ledger."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cloister.privacy.accounting import Event, epsilon
from cloister.seal.identity import Identity
from cloister.site import budget
from cloister.site.journal import Journal
from cloister.site.ledger import Charge, Ledger, Limit, accounts, dataset_key
from cloister.site.restore import write_off
from cloister.vector.errors import BadSignature, EnvironmentFailure, PolicyRefused, StateLocked, UsageError

TODAY, TOMORROW = "2030-01-01T10:00:00+00:00", "2030-01-02T10:00:00+00:00"
HEART = dataset_key("/data/heart.csv", "")


def a_charge(round: int = 0, events: tuple[Event, ...] | None = (Event(5.0),), **changes: str) -> Charge:
    charge = Charge(HEART, "heart", "rows", events, "ab" * 16, round, "cd" * 32)
    return dataclasses.replace(charge, **changes)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "ledger.db", lambda: TODAY)
    yield made
    made.close()


def test_a_budget_is_spent_to_the_last_round_that_fits(ledger: Ledger) -> None:
    limit, fits = Limit(2.0, 1e-5, line=7), 0
    while epsilon([Event(5.0, count=fits + 1)], 1e-5) <= 2.0:
        fits += 1
    for round in range(fits):
        ledger.require(a_charge(round), limit)
        ledger.charge(a_charge(round), limit)
    with pytest.raises(PolicyRefused, match=r"budget of 'heart' is epsilon 2 .*line 7") as refused:
        ledger.charge(a_charge(fits), limit)
    assert refused.value.rule == "budget.heart"
    with pytest.raises(PolicyRefused):
        ledger.require(a_charge(fits), limit)
    assert len(ledger.entries()) == fits, "what was refused is not charged"
    ledger.charge(a_charge(fits, ()), limit)  # a round that releases nothing fits always


def test_jobs_and_coordinators_compose_and_datasets_do_not(ledger: Ledger) -> None:
    limit = Limit(2.0, 1e-5)
    ledger.charge(a_charge(0, (Event(3.0),), run="01" * 16, job="11" * 32), limit)
    ledger.charge(a_charge(0, (Event(4.0),), run="02" * 16, job="22" * 32), None)  # of a coordinator without budgets
    ledger.charge(a_charge(0, (Event(0.5),), dataset=dataset_key("/data/lung.csv", ""), name="lung"), None)
    heart, lung = accounts(ledger.entries())
    assert heart.epsilon(1e-5) == epsilon([Event(3.0), Event(4.0)], 1e-5)
    assert lung.epsilon(1e-5) == epsilon([Event(0.5)], 1e-5)
    with pytest.raises(PolicyRefused):
        ledger.charge(a_charge(1, (Event(2.0),), name="another name of it"), limit)


def test_rounds_a_day(tmp_path: Path) -> None:
    now = [TODAY]
    ledger, limit = Ledger(tmp_path / "ledger.db", lambda: now[0]), Limit(50.0, 1e-5, rounds_a_day=2)
    for round in range(2):
        ledger.charge(a_charge(round, ()), limit)
    with pytest.raises(PolicyRefused, match="2 rounds today") as refused:
        ledger.charge(a_charge(2, ()), limit)
    assert refused.value.rule == "budget.heart.rounds_a_day"
    now[0] = TOMORROW
    ledger.charge(a_charge(2, ()), limit)


def test_a_budget_lets_no_job_without_privacy_by(ledger: Ledger) -> None:
    with pytest.raises(PolicyRefused, match="no differential privacy"):
        ledger.charge(a_charge(0, None), Limit(5.0, 1e-5))
    ledger.charge(a_charge(0, None), None)
    assert accounts(ledger.entries())[0].exact == 1


def test_the_ledger_only_grows_and_shows_what_was_altered(ledger: Ledger, tmp_path: Path) -> None:
    for round in range(3):
        ledger.charge(a_charge(round), None)
    beside = sqlite3.connect(tmp_path / "ledger.db")
    for statement in ("UPDATE charge SET body = x'00' WHERE number = 2", "DELETE FROM charge WHERE number = 2"):
        with pytest.raises(sqlite3.IntegrityError, match="only grows"):
            beside.execute(statement)
    beside.execute("DROP TRIGGER charge_kept")
    beside.execute("DELETE FROM charge WHERE number = 2")
    beside.commit()
    with pytest.raises(EnvironmentFailure, match="broken at entry 2"):
        ledger.charge(a_charge(3), None)


def test_what_was_read_before_is_not_read_again_and_may_not_shrink(ledger: Ledger, tmp_path: Path) -> None:
    ledger.charge(a_charge(0), None)
    older = sqlite3.connect(":memory:")
    sqlite3.connect(tmp_path / "ledger.db").backup(older)
    ledger.charge(a_charge(1), None)
    beside = Ledger(tmp_path / "ledger.db", lambda: TODAY)
    beside.charge(a_charge(2), None)
    assert [entry.round for entry in ledger.entries()] == [0, 1, 2], "what another agent charged counts"
    assert ledger.entries() == beside.entries()
    older.backup(sqlite3.connect(tmp_path / "ledger.db"))
    for _ in range(2):
        with pytest.raises(EnvironmentFailure, match="an older copy was put in its place"):
            ledger.charge(a_charge(3), None)
    assert len(Ledger(tmp_path / "ledger.db").entries()) == 1


def test_charges_are_counted_for_each_federation(ledger: Ledger) -> None:
    for federation, counts in (("hearts", 1), ("lungs", 1), ("hearts", 7), ("hearts", 0)):
        ledger.charge(dataclasses.replace(a_charge(0, ()), federation=federation, counts=counts), None)
    assert [ledger.charges(name) for name in ("hearts", "lungs", "others")] == [8, 1, 0]


def test_what_a_restored_ledger_lacks_counts_as_spent(folder: Path) -> None:
    """The budget is spent in full, and the number is the federation's again."""
    ledger = Ledger(folder / "ledger.db")
    ledger.charge(dataclasses.replace(a_charge(0), federation="hearts"), None)
    assert write_off(folder, 9) == {"site": "oslo", "lost": 8, "datasets": ["heart"]}
    assert ledger.charges("hearts") == 9
    assert min(each["left"] for each in budget.account(folder)["datasets"]) == 0.0
    with pytest.raises(UsageError, match="lacks no charge: it has 9"):
        write_off(folder, 9)
    with closing(Journal(folder / "journal.db")) as journal:
        assert [entry.kind for entry in journal.entries()] == ["charged", "written-off"]
        journal.log("charged", charge="ab" * 32)  # which this ledger never held
    assert write_off(folder, 0)["lost"] == 0
    assert ledger.charges("hearts") == 9


def test_an_older_copy_lacks_what_the_journal_knows(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.charge(a_charge(0), None)
    ledger.close()
    shutil.copy(tmp_path / "ledger.db", tmp_path / "older.db")
    ledger = Ledger(tmp_path / "ledger.db")
    newest = ledger.charge(a_charge(1), None)
    assert ledger.holds(newest.hash)
    assert not Ledger(tmp_path / "older.db").holds(newest.hash)
    assert ledger.head() == newest.hash


SPENDER = """
import sys
from pathlib import Path
from cloister.privacy.accounting import Event
from cloister.site.ledger import Charge, Ledger, Limit
from cloister.vector import crash

crash.arm(sys.argv[2])
ledger = Ledger(Path(sys.argv[1]))
for round in range(int(sys.argv[3])):
    charge = Charge("d" * 64, "heart", "rows", (Event(5.0),), "ab" * 16, round, "cd" * 32)
    try:
        charged = ledger.charge(charge, Limit(2.0, 1e-5))
    except Exception as fault:
        print(type(fault).__name__, flush=True)
        break
    print("sent", charged.hash, flush=True)
"""


def spend(path: Path, crash_at: str, rounds: int) -> subprocess.Popen[str]:
    program = [sys.executable, "-c", SPENDER, str(path), crash_at, str(rounds)]
    return subprocess.Popen(program, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_whatever_was_sent_is_charged_whenever_the_site_is_killed(tmp_path: Path, when: str, nth: int) -> None:
    process = spend(tmp_path / "ledger.db", f"site.ledger:{when}:{nth}", 4)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    sent = [line.split()[1] for line in said.splitlines()]
    ledger = Ledger(tmp_path / "ledger.db")
    charged = [entry.hash for entry in ledger.entries()]
    assert len(sent) == nth - 1
    assert charged[: len(sent)] == sent
    assert len(charged) == nth - (when == "before"), "a charge is not given back, though nothing was sent"
    ledger.charge(a_charge(9), None)  # and it goes on


def test_two_agents_on_one_ledger_do_not_spend_the_same_budget_twice(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger.db").close()
    both = [spend(tmp_path / "ledger.db", "", 100) for _ in range(2)]
    said = [process.communicate(timeout=100)[0].splitlines() for process in both]
    assert [lines[-1] for lines in said] == ["PolicyRefused", "PolicyRefused"]
    entries = Ledger(tmp_path / "ledger.db").entries()
    assert sum(len(lines) - 1 for lines in said) == len(entries)
    assert epsilon([event for each in entries for event in each.events], 1e-5) <= 2.0
    assert epsilon([*(event for each in entries for event in each.events), Event(5.0)], 1e-5) > 2.0


def test_a_second_agent_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    from cloister.site.lock import FolderLock

    with FolderLock(tmp_path / "lock"), pytest.raises(StateLocked, match=str(os.getpid())):
        FolderLock(tmp_path / "lock").__enter__()


# --- what a steward sees


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "site.toml").write_text(
        'id = "oslo"\nfederation = "hearts"\ncoordinator = "https://hub"\n[data]\nheart = "heart.csv"\n'
    )
    (tmp_path / "policy.toml").write_text("[budget.heart]\nepsilon = 3.0\ndelta = 1e-5\nrounds_a_day = 9\n")
    (tmp_path / "identity.key").write_bytes(Identity.generate(os.urandom).to_bytes())
    return tmp_path


def test_the_account_of_a_site(folder: Path) -> None:
    assert budget.account(folder)["datasets"] == []
    assert not (folder / "ledger.db").exists(), "looking makes no ledger"
    ledger = Ledger(folder / "ledger.db")
    for round in range(5):
        ledger.charge(a_charge(round), Limit(3.0, 1e-5))
    (heart,) = budget.account(folder, over_time=True)["datasets"]
    assert heart["epsilon"] == epsilon([Event(5.0, count=5)], 1e-5)
    assert heart["left"] == pytest.approx(3.0 - heart["epsilon"])
    assert (heart["rounds"], heart["rounds_today"], heart["rounds_a_day"]) == (5, 5, 9)
    burnt = [cost for _, cost in heart["over_time"]]
    assert burnt == sorted(burnt)
    assert burnt[-1] == heart["epsilon"]


def test_a_signed_statement_holds_the_events(folder: Path) -> None:
    ledger = Ledger(folder / "ledger.db")
    ledger.charge(a_charge(0, (Event(5.0), Event(2.0, 0.25, 40))), None)
    signed, key = budget.export(folder), Identity.from_bytes((folder / "identity.key").read_bytes()).public
    told = budget.open_export(signed, key)
    assert told["site"] == "oslo"
    assert told["head"] == ledger.head()
    assert len(told["accounts"][0]["events"]) == 2
    with pytest.raises(BadSignature):
        budget.open_export(signed.replace(b'"entries":1', b'"entries":0'), key)


def test_the_command_shows_and_draws_it(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cloister.cli.app import run

    Ledger(folder / "ledger.db").charge(a_charge(0), None)
    picture, signed = tmp_path / "budget.svg", tmp_path / "budget.signed"
    assert run(["site", "budget", str(folder), "--plot", str(picture), "--export", str(signed)]) == 0
    said = capsys.readouterr().out
    assert "heart" in said
    assert "1 of 9" in said
    assert "<svg" in picture.read_text()
    assert signed.read_bytes()
    assert run(["site", "budget", str(folder), "--plot", "budget.docx"]) == 2
