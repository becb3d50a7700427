"""Lies told to real sites, and the proof that the suite notices when one of them succeeds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from cloister.attack import LIES, ROGUES, Outcome, attack, chosen, described
from cloister.attack.spoils import _basic_solution, correlation, noise_bound
from cloister.cli.app import run
from cloister.vector.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]

# What issue and protocol ask for (docs/protocol.md), each by the lies that tell it.
ASKED = {
    "victim listed both as survivor and as dropped": ["survivor-and-dropped", "second-survivor-set"],
    "two survivor sets": ["second-survivor-set", "difference-of-sums", "reworded-question"],
    "two models": ["two-models", "swapped-model"],
    "two key lists": ["two-key-lists", "second-key-list", "man-in-the-middle"],
    "swapped or replayed ciphertexts": ["swapped-ciphertexts", "replayed-ciphertexts", "misdirected-ciphertexts"],
    "an old round replayed": ["replayed-round", "replayed-survivors"],
    "threshold lowered": ["lowered-threshold"],
    "a site that is not in the roster": ["sybil-in-plan", "sybil-in-key-list"],
    "consistency signatures withheld": ["withheld-consistency", "borrowed-signature"],
    "shrunken cohort": [
        "one-site-cohort",
        "insider-cohort",
        "shrunken-key-list",
        "shrunken-sharers",
        "shrunken-survivors",
    ],
    "truncated, oversized or re-typed vectors": [
        "truncated-vectors",
        "oversized-vectors",
        "retyped-vectors",
        "swapped-roots",
    ],
    "stale or forked receipt": ["stale-receipt", "forked-receipt", "rewritten-receipt"],
    "a log that is split, or leaves a receipt out": ["split-log", "missing-receipt"],
    "a changed plan after approval": ["changed-job", "changed-layout", "second-announcement"],
    "a sum forged after opening": ["forged-sum", "forged-model"],
}
SITES_THAT_CHEAT = {
    "garbage shares": ["garbage-shares"],
    "wrong length": ["short-vector"],
    "an upload that is not the one signed for": ["false-root"],
    "NaN": ["not-a-number"],
    "replays": ["replayed-keys"],
    "a site that answers twice after a crash": ["second-answer"],
}


def test_the_list_is_complete() -> None:
    assert {name for names in ASKED.values() for name in names} == set(LIES)
    assert {name for names in SITES_THAT_CHEAT.values() for name in names} == set(ROGUES)


def test_every_lie_says_what_it_tries_and_how_it_is_refused_and_is_documented() -> None:
    page = (ROOT / "docs/attacks.md").read_text()
    for name, (tries, _, refused) in described([*LIES.values(), *ROGUES.values()]):
        row = next((line for line in page.splitlines() if line.startswith(f"| `{name}` |")), "")
        assert tries in row, name
        assert all(f"`{error}`" in row for error in refused), name


def test_an_unknown_attack_is_refused() -> None:
    with pytest.raises(UsageError, match="no attack 'sesame'"):
        chosen(["sesame"])


def test_the_list_needs_no_federation(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["attack", "--list", "--json"]) == 0
    assert [each["attack"] for each in json.loads(capsys.readouterr().out)["attacks"]] == [*LIES, *ROGUES]


@pytest.mark.parametrize("words", [400, 1_000, 20_000])
def test_noise_stays_under_the_bound_and_a_leak_does_not(words: int) -> None:
    random = np.random.default_rng(words)
    true = random.integers(-50_000, 50_000, words).astype(np.int32).view(np.uint32)
    mask = random.integers(0, 2**32, (20, words), dtype=np.uint64).astype(np.uint32)
    bound = noise_bound(words)
    assert max(correlation(true + row, true, 32) for row in mask) < bound < 1
    assert correlation(true, true, 32) > 0.999 > bound
    assert noise_bound(40) == float("inf")


def by_name(outcomes: list[Outcome]) -> dict[str, Outcome]:
    return {outcome.name: outcome for outcome in outcomes}


@pytest.mark.processes
def test_real_sites_refuse_by_name_and_the_cheater_gets_noise(tmp_path: Path) -> None:
    names = [
        "two-models",
        "second-survivor-set",
        "man-in-the-middle",
        "lowered-threshold",
        "forged-sum",
        "garbage-shares",
    ]
    outcomes = by_name(attack(chosen(names), tmp_path))
    assert [outcome.fault for outcome in outcomes.values()] == [""] * len(names)
    assert set(outcomes["lowered-threshold"].refusals.values()) == {"ThresholdTooLow"}
    assert outcomes["garbage-shares"].refusals == {"coordinator": "BadShare"}
    assert outcomes["forged-sum"].refusals == {"verify": "BadSum"}
    measured = outcomes["second-survivor-set"].worst
    assert measured is not None
    assert 0 < measured.correlation < measured.bound < 0.3
    assert measured.removed == 1  # its own mask, of which the sum was opened; four masks with others stay


@pytest.mark.processes
def test_a_planted_bug_is_found(tmp_path: Path) -> None:
    """Sites that skip the check of a second survivor set give the victim away, and the suite says so."""
    agent = [sys.executable, str(Path(__file__).with_name("forgetful_site.py"))]
    (outcome,) = attack(chosen(["second-survivor-set"]), tmp_path, agent=agent)
    assert not outcome.held
    assert "LEAKED" in outcome.fault
    assert outcome.worst is not None
    assert (outcome.worst.site, outcome.worst.crowd) == ("ghent", 1)
    assert outcome.worst.correlation > 0.999
    assert outcome.worst.removed == outcome.worst.masks == 5


@pytest.mark.processes
def test_two_sums_of_one_answer_are_found_whatever_the_questions_were_called(tmp_path: Path) -> None:
    agent = [sys.executable, str(Path(__file__).with_name("forgetful_site.py"))]
    (outcome,) = attack(chosen(["reworded-question"]), tmp_path, agent=agent)
    assert "LEAKED" in outcome.fault
    assert outcome.worst is not None
    assert (outcome.worst.site, outcome.worst.crowd) == ("ghent", 1)


def test_a_sum_that_was_opened_twice_is_found_in_whole_numbers():
    """Half of the one and half of the other is an answer too, and no use: words are added, not halved."""
    twice = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert sorted(_basic_solution(twice, np.array([1.0, -1.0]))) == pytest.approx([-1.0, 0.0, 1.0])
