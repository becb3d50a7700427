"""A masked simulation leaves the evidence of a run; its replay gives the same state, whatever a server computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn.linear_model

import cloister as cl
from cloister.cli.evidence import read_evidence
from cloister.round import verify

MLP = cl.Torch(cl.nets.MLP([4]), loss="bce", optimizer=cl.SGD(lr=0.1), batch_size=16)
FITTED = [cl.Impute(), cl.OneHot(), cl.Standardize()]
DECLARED = [cl.Standardize(ranges={"a": (-3.0, 3.0), "b": (-3.0, 3.0)})]


def job(**changes: Any) -> cl.Job:
    settings = {"data": cl.Table("t", target="y", classes=2), "task": MLP, "prepare": FITTED, **changes}
    return cl.Job(**{"algorithm": cl.FedAvg(rounds=2), **settings})


def table(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(160, 2))
    frame = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": (x.sum(axis=1) > 0) * 1})
    frame["ward"] = rng.choice(["north", "south"], len(frame))
    frame.loc[::17, "a"] = np.nan
    return frame


CASES = {
    "a mean, with a site lost": job(),
    "momentum": job(algorithm=cl.FedAdam(rounds=2)),
    "control variates": job(algorithm=cl.SCAFFOLD(rounds=2)),
    "a linear system": job(task=cl.Sklearn(sklearn.linear_model.LogisticRegression()), algorithm=cl.Newton(rounds=2)),
    "early stopping": job(algorithm=cl.FedAvg(rounds=6, patience=1)),
    "64 bits": job(bits=64),
    "20 bits": job(bits=20),
}


@pytest.mark.parametrize("case", CASES)
def test_the_replay_ends_in_the_same_state(tmp_path: Path, case: str) -> None:
    lost = {1: ["site-2"]} if "lost" in case else 0.0
    result = cl.simulate(CASES[case], table(), sites=4, seal="masks", folder=tmp_path / "run", dropouts=lost)
    result.save(tmp_path / "run")
    evidence = read_evidence(tmp_path / "run")
    assert evidence.state == result.state.to_bytes()
    assert [each.receipt for each in evidence.rounds] == list(result.receipts)
    verdict = verify(evidence)
    assert verdict.findings == ()
    outcomes = {claim.of: claim.outcome for claim in verdict.claims}
    assert outcomes["model"] == outcomes["survivors"] == outcomes["log"] == "proven"
    assert "end of the run" not in outcomes


def test_noise_of_the_sites_is_in_the_sums(tmp_path: Path) -> None:
    private = job(
        data=cl.Table("t", target="y", classes=2, columns={"a": "number", "b": "number"}),
        prepare=DECLARED,
        privacy=cl.RowDP(epsilon=3.0, delta=1e-3),
    )
    frame = table().dropna()
    cl.simulate(private, frame, sites=4, seal="masks", folder=tmp_path / "run").save(tmp_path / "run")
    verdict = verify(read_evidence(tmp_path / "run"))
    assert verdict.findings == ()
    assert any("bit for bit" in claim for claim in verdict.proven)


def test_arrays_have_no_columns(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(160, 3)).astype(np.float32)
    arrays = job(data=cl.Arrays("t", (3,), classes=2), prepare=[])
    data = (x, (x.sum(axis=1) > 0) * 1)
    cl.simulate(arrays, data, sites=4, seal="masks", folder=tmp_path / "run").save(tmp_path / "run")
    assert verify(read_evidence(tmp_path / "run")).findings == ()


def test_no_evidence_without_masks_or_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cl.simulate(job(), table(), sites=4, seal="masks")
    assert list(tmp_path.iterdir()) == []
    cl.simulate(job(), table(), sites=4, folder=tmp_path / "ideal")
    assert not {"trust.json", "totals", "keys", "log"} & {path.name for path in (tmp_path / "ideal").iterdir()}
