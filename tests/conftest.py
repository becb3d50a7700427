"""What all tests share. Threads are held to one: test machines are small, and sums stay reproducible."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

# A loaded machine is no failure; and a push is judged on the same examples each time, new ones are for developers.
hypothesis.settings.register_profile("cloister", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("cloister")

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """`shared_data(name)`: the folder ../shared/data/NAME beside the clone; skips where it is absent."""

    def find(name: str) -> Path:
        folder = ROOT.parent / "shared" / "data" / name
        if not folder.is_dir():
            pytest.skip(f"needs the data set {name!r} in ../shared/data/{name} beside the clone")
        return folder

    return find
