"""A coordinator's memory does not grow with the number of uploads: the benchmark itself, with smaller numbers."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from cloister.seal import client as seal_client

SITES, WORDS = 12, 4_000_000  # twelve uploads of 16 MB are 192 MB


@pytest.fixture(scope="module")
def memory() -> Any:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "memory.py"
    spec = importlib.util.spec_from_file_location("benchmark_memory", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.processes
def test_uploads_are_summed_in_less_memory_than_three_of_them(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_mask_only = memory.own_mask_only
    monkeypatch.setattr(seal_client, "apply_masks", own_mask_only)
    found = asyncio.run(memory.measure(tmp_path, SITES, WORDS))
    assert found.right, "the sum opened to something else"
    assert found.opened > found.baseline + found.upload_bytes // 2, "the control: what was measured holds the sum"
    assert found.uploads_above < memory.BAR
