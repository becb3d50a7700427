"""Fetching a run whose result is not there yet, or never will be."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cloister.cli.results import fetch_result
from cloister.vector import State
from cloister.vector.errors import UsageError


class Coordinator:
    """Answers as a coordinator does of one run."""

    def __init__(self, status: str, state: State | None) -> None:
        self._state = b"" if state is None else state.to_bytes()
        self._told = {"status": status, "state": "aa" if state else "", "job": "bb", "receipts": []}

    async def result(self, run: str) -> dict[str, Any]:
        return self._told

    async def fetch(self, name: bytes) -> bytes:
        assert name == b"\xaa", "the job is of no use without a model"
        return self._state


@pytest.mark.parametrize(
    ("status", "state", "told"),
    [
        ("running", State({"step": 2}, {}), r"has no result yet. cloister watch"),
        ("stopped", None, r"is stopped and never had a model.*submit the job again"),
        ("failed", State({"stage": "profile", "step": 0}, {}), r"is failed and never had a model.*says why it ended"),
    ],
)
def test_a_run_without_a_model_says_so(status, state, told):
    with pytest.raises(UsageError, match=told):
        asyncio.run(fetch_result(Coordinator(status, state), "c0ffee"))
