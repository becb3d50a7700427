"""A short run of the fuzzer in every test run; the long one is `python tests/fuzz/decoders.py --inputs 1000000`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from decoders import Target, fuzz, try_one
from targets import all_targets

TARGETS = all_targets()


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_honest_inputs_parse(target):
    for seed in target.seeds:
        assert try_one(target, target.wrap(seed)) is None


def test_a_short_run_finds_nothing():
    found = fuzz(TARGETS, inputs=150 * len(TARGETS), seed=2024)
    assert [(each.target, each.fault, each.where) for each in found] == []


def test_the_fuzzer_finds_a_decoder_that_breaks():
    def careless(data: bytes) -> int:
        return data[7]

    found = fuzz([Target("careless", careless, (b"12345678",))], inputs=200, seed=1)
    assert [each.fault for each in found] == ["IndexError"]
