"""The frozen vectors: the machines still write these bytes, and a second implementation writes the same."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cloister.seal.messages import KINDS
from cloister.vector.errors import error_names

TESTS = Path(__file__).resolve().parents[1]
FOLDER = TESTS / "vectors" / "v1"
ROUNDS = sorted(path.name for path in FOLDER.glob("round-*.json"))


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def frozen(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


def test_the_machines_still_write_the_frozen_bytes() -> None:
    built = load(TESTS / "vectors" / "generate.py").build()
    assert sorted(built) == sorted(path.name for path in FOLDER.glob("*.json"))
    for name, content in built.items():
        assert content == frozen(name), f"{name}: the protocol has changed its bytes"


@pytest.mark.parametrize("name", ROUNDS)
def test_a_second_implementation_writes_the_same_bytes(name: str) -> None:
    vectors = frozen(name)
    reference = load(TESTS / "seal" / "reference.py").Reference(vectors["inputs"])
    assert reference.ctx.hex() == vectors["derived"]["context"]
    assert reference.h1.hex() == vectors["derived"]["h1"]
    assert reference.h2.hex() == vectors["derived"]["u2"]
    assert reference.h3.hex() == vectors["derived"]["u3"]
    for kind, message in vectors["messages"].items():
        assert reference.messages[kind] == message, kind
    assert reference.payloads == vectors["payloads"]
    assert reference.total == vectors["total"]
    assert [root.hex() for root in reference.sum_roots] == vectors["sum_roots"]


@pytest.mark.parametrize("name", ROUNDS)
def test_the_vectors_hold_a_message_of_every_kind(name: str) -> None:
    kinds = {label.rpartition("/")[2] for label in KINDS} | {"receipt"}
    assert set(frozen(name)["messages"]) == kinds


def test_the_reference_shares_no_code() -> None:
    source = (TESTS / "seal" / "reference.py").read_text()
    assert "cloister." not in source.replace('"cloister/v1', "")
    assert "import cryptography" not in source
    assert len(source.splitlines()) <= 400


def test_bad_vectors_are_refused_by_name(rig: Any) -> None:
    known, settings = error_names(), load(TESTS / "vectors" / "generate.py").REFUSED
    for bad in frozen("bad.json"):
        federation = rig(**settings)
        if bad["phase"] == "receipt":
            federation.run()
        elif bad["phase"] != "open":
            federation.upto(bad["phase"])
        client = federation.clients[bad["site"]]
        take = client.open if bad["phase"] == "open" else client.receive
        with pytest.raises(known[bad["error"]]):
            take(bytes.fromhex(bad["message"]))
