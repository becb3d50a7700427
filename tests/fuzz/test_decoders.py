"""A short run of the fuzzer in every test run; the long one is `python tests/fuzz/decoders.py --inputs 1000000`."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

import cloister
from cloister.wire import api

sys.path.insert(0, str(Path(__file__).parent))

from decoders import Target, fuzz, try_one
from targets import all_targets

TARGETS = all_targets()
SOURCE = Path(cloister.__file__).parent
ROOMS = ("vector", "seal", "privacy", "algorithms", "job", "wire", "round", "site")
DECODER = re.compile(
    r"from_(bytes|json|text|name|files)|decode|parse\w*|open_(envelope|checkpoint|receipt|export)|unpack|split|fields|\w+_from_json"
)
PARSERS = {"loads", "model_validate", "model_validate_json", "validate_json"}
NOT_FUZZED = {
    "seal/identity.py:Identity.from_bytes": "the own key",
    "seal/shamir.py:split": "deals shares",
    "site/bubblewrap.py:_outside": "where the own interpreter keeps its libraries",
    "site/journal.py:Journal.entries": "the own database, compared with a chain of hashes first",
    "site/memory.py:RunMemory._read": "the own file",
    "site/verdicts.py:verdict_on": "what this site signed itself",
    "site/worker.py:main": "the worker's side: it believes its agent",
    "vector/layout.py:FixedPoint.decode": "any words of the right number are a sum",
    "wire/client.py:_Pieces.decode": "what is sent, as aiohttp would log it",
}


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_honest_inputs_parse(target):
    for seed in target.seeds:
        assert try_one(target, target.wrap(seed)) is None


def functions(node: ast.AST, within: str = "") -> Iterator[tuple[str, ast.AST]]:
    """(qualified name, function) of all that a module defines."""
    for child in ast.iter_child_nodes(node):
        name = within
        if isinstance(child, ast.ClassDef):
            name += f"{child.name}."
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield within + child.name, child
            name += f"{child.name}.<locals>."
        yield from functions(child, name)


def decoders() -> set[str]:
    """Every function of the source that reads bytes or JSON, by its name or by what it calls."""
    found = set()
    for path in (path for room in ROOMS for path in (SOURCE / room).rglob("*.py")):
        for name, function in functions(ast.parse(path.read_text())):
            calls = [call.func for call in ast.walk(function) if isinstance(call, ast.Call)]
            called = {each.attr for each in calls if isinstance(each, ast.Attribute)}
            if DECODER.fullmatch(name.rpartition(".")[2]) or called & PARSERS:
                found.add(f"{path.relative_to(SOURCE)}:{name}")
    return found


def test_every_decoder_is_a_target_or_named_as_none():
    passed = set()

    def look(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(SOURCE)):
            passed.add(f"{Path(code.co_filename).relative_to(SOURCE)}:{code.co_qualname}")

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        for target in TARGETS:
            for seed in target.seeds:
                try_one(target, target.wrap(seed))
    finally:
        sys.setprofile(before)
    assert decoders() & passed, "the look sees nothing"
    assert not decoders() - passed - NOT_FUZZED.keys(), "add a target to targets.py"


def test_every_body_is_a_target():
    kinds = {kind.__name__ for kind in api.Body.__subclasses__()}
    assert kinds <= {target.name.removeprefix("wire.") for target in TARGETS}


def test_a_short_run_finds_nothing():
    found = fuzz(TARGETS, inputs=150 * len(TARGETS), seed=2024)
    assert [(each.target, each.fault, each.where) for each in found] == []


def test_the_fuzzer_finds_a_decoder_that_breaks():
    def careless(data: bytes) -> int:
        return data[7]

    found = fuzz([Target("careless", careless, (b"12345678",))], inputs=200, seed=1)
    assert [each.fault for each in found] == ["IndexError"]
