"""The example of next characters: rows that lose nothing, and a job that learns from them."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import cloister as cl

EXAMPLE = Path(__file__).parents[2] / "examples" / "shakespeare"


def test_every_character_is_predicted_once():
    prepare = runpy.run_path(str(EXAMPLE / "prepare.py"))
    alphabet = "\0" + prepare["ALPHABET"]
    speeches = ["To be, or not to be: that is the question." * 5, "Words, words, words."]
    x, y = prepare["rows_of"](speeches)
    assert x.shape == (len(y), 80)
    told = "".join(alphabet[int(code)] for row, last in zip(x, y, strict=True) for code in [*row[1:], last])
    assert told.lstrip("\0") == "\n".join(speeches)
    assert (x[1:, 0] == y[:-1]).all()
    assert runpy.run_path(str(EXAMPLE / "job.py"))["CHARACTERS"] == len(alphabet)


@pytest.fixture
def roles(tmp_path: Path) -> dict[str, tuple[np.ndarray, ...]]:
    said = "The quality of mercy is not strained, it droppeth as the gentle rain from heaven. " * 6
    table = [("play", f"role {at}", said[at : at + 300]) for at in range(4) for _ in range(5)]
    lone = ("play", "a page", "My lord?")
    pd.DataFrame([*table, lone], columns=["play", "role", "speech"]).to_csv(tmp_path / "speeches.csv", index=False)
    return dict(runpy.run_path(str(EXAMPLE / "prepare.py"))["sites"](tmp_path / "speeches.csv"))


def test_the_job_learns_from_roles(roles):
    assert len(roles) == 4, "one speech is not enough for a site"
    job = cl.load_job(EXAMPLE / "job.py")
    job = dataclasses.replace(job, algorithm=cl.FedAvg(rounds=6), evaluate=cl.Evaluate(every=6))
    result = cl.simulate(job, roles, engine="serial")
    losses = result.history["train_loss"].dropna()
    assert losses.iloc[-1] < 0.85 * losses.iloc[0]
    assert 0.0 <= result.final["accuracy"] <= 1.0
