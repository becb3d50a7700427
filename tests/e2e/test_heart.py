"""The README's second example: four hospitals, from the downloaded files to the published accuracy, sealed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.processes

EXAMPLE = Path(__file__).parents[2] / "examples" / "heart"
SEEDS = (42, 43, 44)
PUBLISHED, SPREAD = (
    0.685,
    0.025,
)  # FLamby, NeurIPS 2022: FedAvg, plain mean over hospitals; the largest std over seeds


def test_published_accuracy_under_the_sealed_sum(terminal: Any, shared_data: Callable[[str], Path]) -> None:
    here = terminal("here")
    prepare = [sys.executable, str(EXAMPLE / "prepare.py"), str(shared_data("fed-heart-disease")), "hospitals"]
    subprocess.run(prepare, cwd=here.folder, check=True, capture_output=True)
    reached = []
    for seed in SEEDS:
        job = ("simulate", str(EXAMPLE / "job.py"), "--data", "hospitals", "--seed", str(seed))
        sealed = here.json(*job, "--seal", "masks", "--out", f"sealed-{seed}")
        reached.append(sealed["history"][-1]["site_accuracy"])
        assert sealed["receipts"] == 17  # profile, 15 rounds, evaluation
    assert np.mean(reached) > PUBLISHED - SPREAD
    ideal = here.json("simulate", str(EXAMPLE / "job.py"), "--data", "hospitals", "--seed", str(SEEDS[0]))
    model = (here.folder / f"sealed-{SEEDS[0]}" / "model.safetensors").read_bytes()
    assert hashlib.sha256(model).hexdigest() == ideal["model_sha256"]


def test_the_demonstration_takes_the_same_way(terminal: Any, shared_data: Callable[[str], Path]) -> None:
    here = terminal("here")
    prepare = [sys.executable, str(EXAMPLE / "prepare.py"), str(shared_data("fed-heart-disease")), "hospitals"]
    subprocess.run(prepare, cwd=here.folder, check=True, capture_output=True)
    found = here.json("demo", "--data", "hospitals", "--job", str(EXAMPLE / "job.py"), "--out", "demo")
    assert found["ok"]
    assert found["sites"] == ["cleveland", "hungarian", "switzerland", "va"]
    assert found["killed"]["survivors"] == found["killed"]["threshold"] == 3
