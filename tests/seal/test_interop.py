"""Two implementations in one round: some sites are the product's, the others are played by the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cloister.seal import SealClient

from .test_vectors import TESTS, frozen, load

ROUNDS = ("round-4-sites-1-lost", "round-10-sites-2-buckets")
EXCHANGES = (  # what a site is told, and what it answers
    ("list-of-keys", "shares"),
    ("ciphertexts", ""),
    ("survivors", "consistent"),
    ("consistency", "unmask"),
)


class Played:
    """Stands for one site at the product's coordinator: all that it says, and expects to hear, is the reference's."""

    def __init__(self, reference: Any, site: str) -> None:
        self.reference, self.site, self.exchanges = reference, site, iter(EXCHANGES)

    def message(self, kind: str) -> bytes:
        found = self.reference.messages[kind]
        return bytes.fromhex(found[self.site] if isinstance(found, dict) else found)

    def open(self, data: bytes) -> None:
        assert data == self.message("open")

    def keys(self, *arguments: Any) -> bytes:
        return self.message("keys")

    def receive(self, data: bytes) -> bytes | None:
        told, answer = next(self.exchanges)
        assert data == self.message(told)
        return self.message(answer) if answer else None

    def mask(self, words: Any) -> tuple[bytes, bytes]:
        return self.message("masked"), bytes.fromhex(self.reference.payloads[self.site])


@pytest.fixture(scope="module", params=ROUNDS)
def made(request: Any, rig: Any) -> tuple[Any, Any, dict[str, list[str]]]:
    """The round of the vectors with fresh machines, and the reference that has the same secrets."""
    settings, lost = load(TESTS / "vectors" / "generate.py").ROUNDS[request.param]
    inputs = frozen(f"{request.param}.json")["inputs"]
    return rig(seed=request.param, **settings), load(TESTS / "seal" / "reference.py").Reference(inputs), lost


def test_the_reference_s_sites_and_the_product_s_open_one_sum(made: tuple[Any, Any, dict[str, list[str]]]) -> None:
    federation, reference, lost = made
    for site in federation.names[::2]:
        federation.clients[site] = Played(reference, site)
    total = np.atleast_2d(federation.run(lost))
    assert total.tolist() == reference.total
    assert {type(federation.clients[site]) for site in federation.server.u3} == {Played, SealClient}
    receipt = bytes.fromhex(reference.messages["receipt"])  # the reference's coordinator says the same of it
    for site in federation.server.u3:
        if not isinstance(federation.clients[site], Played):
            federation.clients[site].receive(receipt)
            assert federation.clients[site].receipt.u3 == federation.server.u3
