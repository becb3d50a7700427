"""The known answers are computed at import, and a wrong one stops everything."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cloister.seal import selftest
from cloister.vector.errors import EnvironmentFailure


def test_all_primitives_know_their_answers():
    selftest.check()


@pytest.mark.parametrize("name", sorted(selftest.ANSWERS))
def test_a_wrong_answer_names_the_primitive(name, monkeypatch):
    _, expected = selftest.ANSWERS[name]
    monkeypatch.setattr(selftest, "ANSWERS", {**selftest.ANSWERS, name: (lambda: b"wrong", expected)})
    with pytest.raises(EnvironmentFailure, match=name):
        selftest.check()


def test_a_primitive_that_raises_is_found_too(monkeypatch):
    def broken():
        raise OSError("illegal instruction")

    monkeypatch.setattr(selftest, "ANSWERS", {"AES-256-CTR": (broken, "")})
    with pytest.raises(EnvironmentFailure, match="AES-256-CTR"):
        selftest.check()


def test_importing_any_part_of_the_room_runs_it():
    try_it = (
        "try:\n    import cloister.seal.labels\nexcept Exception as fault:\n    print(type(fault).__name__, fault)"
    )
    code = (
        "import cryptography.hazmat.primitives.kdf.hkdf as kdf\n"
        "class Broken:\n"
        "    def __init__(self, *args): pass\n"
        "    def derive(self, ikm): return b'wrong'\n"
        "kdf.HKDF = Broken\n"
    )
    done = subprocess.run([sys.executable, "-c", code + try_it], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("EnvironmentFailure HKDF-SHA256")
