"""The audit: sound code keeps its claim, a planted bug is caught, bounds are those of the papers."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.privacy.conftest import make_job

import cloister as cl
from cloister.cli.app import run
from cloister.cli.audit import _pictures
from cloister.learn import private as steps
from cloister.simulation.audit import audit, best_guesses, gaussian_bound, lower_bound
from cloister.vector.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("guessed", "right", "expected"), [(100, 100, 3.49), (100, 80, 0.96), (1000, 1000, 5.81), (1000, 700, 0.73)]
)
def test_the_one_run_bound_is_the_paper_s(guessed: int, right: int, expected: float) -> None:
    assert lower_bound(guessed, right, guessed, 0.0) == pytest.approx(expected, abs=0.01)
    assert lower_bound(guessed, right, guessed, 1e-3) < expected, "delta leaves room for luck"
    assert lower_bound(guessed, guessed // 2, guessed, 0.0) == pytest.approx(0.0, abs=0.01)


def test_the_gaussian_bound_is_below_the_truth_and_near_it() -> None:
    rng = np.random.default_rng(5)
    inside = rng.random(2000) < 0.5
    scores = rng.normal(size=2000) + 1.0 * inside  # noise multiplier 1: epsilon 4.38 at delta 1e-5
    assert 3.3 < gaussian_bound(scores, inside, 1e-5) < 4.38
    assert gaussian_bound(rng.normal(size=2000), inside, 1e-5) < 0.5
    guessed, right = best_guesses(scores, inside)
    assert (guessed, right / guessed) == (666, pytest.approx(0.85, abs=0.06))


@pytest.fixture
def job() -> cl.Job:
    """Every row is in every step: what canaries see is then Gaussian, and noise that is halved far from sound."""
    task = cl.Torch(cl.nets.MLP([4]), loss="bce", optimizer=cl.SGD(lr=0.5), batch_size=200)
    return make_job(cl.RowDP(epsilon=4, delta=1e-5), algorithm=cl.FedAvg(rounds=4), task=task)


def test_sound_code_keeps_its_claim(job: cl.Job, clouds: pd.DataFrame) -> None:
    found = audit(job, clouds, 4)
    assert not found.broken
    assert 0.3 < found.lower_gaussian < found.claimed <= 4.0, "and the attack is no straw man"
    assert 0.35 < found.membership_auc < 0.65
    assert found.inversion["the row's own update"] == pytest.approx(1.0)


def test_noise_that_was_halved_is_caught(job: cl.Job, clouds: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = steps.grid

    def halved(*given: Any, **named: Any) -> Any:
        noise = sound(*given, **named)
        return dataclasses.replace(noise, deviation=noise.deviation / 2)

    monkeypatch.setattr(steps, "grid", halved)
    found = audit(job, clouds, 4)
    assert found.broken
    assert found.lower_gaussian > found.claimed


def test_the_command_writes_a_page_and_fails_loudly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["audit", "privacy", str(ROOT / "examples/private.py"), "--out", str(tmp_path / "audit"), "--json"]
    assert run(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert not told["broken"]
    page = (tmp_path / "audit/report.html").read_text()
    assert "nothing contradicts the claim" in page
    assert "<svg" in page
    assert "<script" not in page
    sound = steps.grid
    monkeypatch.setattr(steps, "grid", lambda *a, **k: dataclasses.replace(sound(*a, **k), deviation=100.0))
    assert run(command) == 1
    assert "BROKEN" in (tmp_path / "audit/report.html").read_text()


def test_rows_that_are_images_are_shown_as_images() -> None:
    """Side by side: the row, its own update, the sealed sum, the noise; other rows are strips of colour."""
    names = ("the row", "its own update", "the sealed sum", "with noise")
    for size, square in ((64, True), (63, False)):
        drawn = _pictures(SimpleNamespace(pictures=dict.fromkeys(names, np.arange(float(size)))))
        images = re.findall(
            r'<image [^>]*width="([0-9.]+)" height="([0-9.]+)"', re.sub('xlink:href="[^"]*"', "", drawn)
        )
        assert len(images) == 4
        assert all((abs(float(wide) - float(high)) < 2) == square for wide, high in images)


def test_only_what_claims_privacy_of_rows_is_audited(clouds: pd.DataFrame) -> None:
    with pytest.raises(UsageError, match="RowDP"):
        audit(make_job(None), clouds, 4)
