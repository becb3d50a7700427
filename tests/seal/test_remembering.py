"""Signatures that verified once are remembered where a simulation asks for it, and nowhere else."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import cloister
from cloister.seal.identity import Identity, remembering, verify
from cloister.vector.errors import BadSignature

KENT = Identity.from_bytes(bytes(range(32)))


def refuses(label: str, body: bytes, signature: bytes) -> bool:
    try:
        verify(KENT.public, label, body, signature)
    except BadSignature:
        return True
    return False


def test_what_was_never_verified_is_refused_though_its_neighbour_is_known() -> None:
    signature = KENT.sign("a", b"body")
    wrong = bytes([signature[0] ^ 1]) + signature[1:]
    with remembering(set()):
        for _ in range(2):
            assert not refuses("a", b"body", signature)
            assert refuses("b", b"body", signature)
            assert refuses("a", b"other", signature)
            assert refuses("a", b"body", wrong)


def test_memory_is_used_inside_the_block_and_its_thread_only() -> None:
    """The control: a false signature that `known` claims is believed inside, so the block does remember."""
    from cloister.seal.labels import lp

    false = (KENT.public, lp(b"a") + b"body", bytes(64))
    elsewhere: list[bool] = []
    with remembering({false}):
        assert not refuses("a", b"body", bytes(64))
        thread = threading.Thread(target=lambda: elsewhere.append(refuses("a", b"body", bytes(64))))
        thread.start()
        thread.join()
    assert elsewhere == [True]
    assert refuses("a", b"body", bytes(64))


@pytest.mark.parametrize("what", ["remembering", "mask_together"])
def test_no_room_but_the_simulator_asks_for_it(what: str) -> None:
    root = Path(cloister.__file__).parent
    users = {path.relative_to(root).parts[0] for path in root.rglob("*.py") if what in path.read_text()}
    assert "seal" in users, "the search finds not even the definition"
    assert users <= {"seal", "simulation"}
