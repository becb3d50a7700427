"""The honest-sum audit: an honest coordinator passes, and each way to cheat about a sum is found and named."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.seal import audit, shamir
from cloister.seal.audit import Audit, Chunk
from cloister.seal.merkle import MerkleBuilder
from cloister.seal.messages import KeyList
from cloister.seal.receipt import open_receipt, sign_receipt
from cloister.vector.errors import BadSignature, BadSum, BadUpload, MalformedMessage, PeerError

NONCE = hashlib.sha256(b"nonce").digest()
STATE = hashlib.sha256(b"state").digest()


def leaves_of(data: bytes) -> list[bytes]:
    builder = MerkleBuilder()
    builder.update(data)
    return builder.leaves()


class Round:
    """A finished round with everything that its coordinator keeps, honest or with a sum of its own making."""

    def __init__(self, rig, bits: int = 32, size: int = 40_001, lost: str = "", alter: int | None = None) -> None:
        self.rig = rig(5, size=size, bits=bits, seed=f"audit/{bits}/{size}/{lost}")
        words = self.rig.run({"consistent": [], "masked": [lost] if lost else []})
        if alter is not None:
            words[alter] ^= 1
        server = self.rig.server
        self.sum = words.astype(words.dtype.newbyteorder("<")).tobytes()
        builder = MerkleBuilder()
        builder.update(self.sum)
        self.receipt = open_receipt(server.receipt([builder.root()], STATE), self.rig.coordinator.public)
        self.opening = server.opening()
        self.keys = next(data for kind, _, data in self.rig.log if kind == "to")
        self.uploads = {site: leaves_of(payload) for site, payload in self.rig.payloads.items()}

    def answer(self, count: int, nonce: bytes = NONCE, **changes) -> Audit:
        asked = audit.challenge(self.receipt, nonce, count)
        shown = [
            audit.prove(self.receipt, index, leaves_of(self.sum), self.uploads, self.rig.read) for index in asked
        ]
        return dataclasses.replace(Audit(nonce, self.keys, self.opening, shown), **changes)

    def verify(self, answer: Audit) -> int:
        return audit.verify(answer, self.receipt, self.rig.roster)


@pytest.fixture(scope="module")
def honest(rig):
    return Round(rig, lost="cork")


@pytest.mark.parametrize("bits", [16, 20, 24, 32, 64])
def test_an_honest_sum_passes_in_full(rig, bits):
    done = Round(rig, bits=bits, lost="basel")
    total = audit.leaves(done.receipt)
    assert total == -(-40_001 * (8 if bits == 64 else 4) // 65_536)
    answer = Audit.from_bytes(done.answer(total).to_bytes())
    assert done.verify(answer) == total


def test_a_part_of_the_leaves_passes_and_is_the_part_asked_for(honest):
    assert honest.verify(honest.answer(2)) == 2
    other = honest.answer(2, nonce=bytes(32))
    with pytest.raises(BadSum, match="other leaves"):
        honest.verify(dataclasses.replace(other, nonce=NONCE))
    with pytest.raises(BadSum):
        honest.verify(honest.answer(2, chunks=[]))


@pytest.mark.parametrize("word", [0, 16_383, 16_384, 40_000])
def test_one_altered_word_is_found_where_it_lies_and_nowhere_else(rig, word):
    forged = Round(rig, alter=word)
    total = audit.leaves(forged.receipt)
    with pytest.raises(BadSum, match="the sum are not"):
        forged.verify(forged.answer(total))
    for nonce in (hashlib.sha256(bytes([number])).digest() for number in range(9)):
        if word // 16_384 not in audit.challenge(forged.receipt, nonce, 1):
            assert forged.verify(forged.answer(1, nonce)) == 1


def with_secrets(honest, secrets):
    return dataclasses.replace(honest.opening, secrets=secrets)


def test_another_secret_cannot_be_shown(honest):
    survivors = len(honest.receipt.u3)
    secrets = honest.opening.secrets
    for place in range(len(secrets)):
        opening = with_secrets(honest, (*secrets[:place], shamir.to_bytes(5), *secrets[place + 1 :]))
        with pytest.raises(BadSum, match=r"committed|public key") as finding:
            honest.verify(honest.answer(1, opening=opening))
        expected = honest.receipt.u3[place] if place < survivors else "cork"
        assert finding.value.site == expected
    for wrong in (secrets[:-1], (*secrets[:-1], b"\xff" * 32)):
        with pytest.raises(BadSum):
            honest.verify(honest.answer(1, opening=with_secrets(honest, wrong)))


def test_another_graph_cannot_be_shown(honest):
    sharers = honest.opening.sharers
    for wrong in (sharers[1:], (sharers[0]._replace(chosen=b"\x0f"), *sharers[1:])):
        with pytest.raises(BadSum, match="who chose whom"):
            honest.verify(honest.answer(1, opening=dataclasses.replace(honest.opening, sharers=wrong)))


def test_another_upload_or_key_list_cannot_be_shown(rig, honest):
    answer = honest.answer(1)
    data, path = answer.chunks[0].pieces[0]
    pieces = [(bytes([data[0] ^ 1]) + data[1:], path), *answer.chunks[0].pieces[1:]]
    with pytest.raises(BadUpload) as finding:
        honest.verify(dataclasses.replace(answer, chunks=[dataclasses.replace(answer.chunks[0], pieces=pieces)]))
    assert finding.value.site == honest.receipt.u3[0]
    with pytest.raises(BadSum, match="pieces"):
        honest.verify(dataclasses.replace(answer, chunks=[dataclasses.replace(answer.chunks[0], pieces=pieces[1:])]))
    other = Round(rig).keys
    with pytest.raises(BadSignature):
        honest.verify(honest.answer(1, keys=other))
    own = KeyList.from_bytes(other).signed(honest.rig.coordinator).to_bytes()
    with pytest.raises(BadSum, match="key list"):
        honest.verify(honest.answer(1, keys=own))


def test_a_root_that_no_site_signed_is_refused(honest):
    uploads = (honest.receipt.uploads[0]._replace(root=bytes(32)), *honest.receipt.uploads[1:])
    forged = dataclasses.replace(honest.receipt, uploads=uploads)
    forged = open_receipt(sign_receipt(forged, honest.rig.coordinator), honest.rig.coordinator.public)
    with pytest.raises(PeerError):
        audit.verify(honest.answer(1), forged, honest.rig.roster)


def test_the_opening_shows_one_secret_of_each_site_and_takes_off_no_survivors_pair_mask(honest):
    """What is shown leaves each survivor's vector masked: the words that remain look like nothing it sent."""
    entries = {entry.site: entry for entry in audit.key_entries(honest.keys, honest.receipt, honest.rig.roster)}
    assert len(honest.opening.secrets) == len(honest.receipt.u2)
    (seeds,) = audit._seeds(honest.opening, honest.receipt, entries)
    site = honest.receipt.u3[0]
    words = np.frombuffer(honest.rig.payloads[site], np.uint32).copy()
    for seed in seeds:
        for sign in (1, -1):
            opened = words.copy()
            audit.apply_masks(opened, [(seed[0], sign)])
            same = np.mean(opened == honest.rig.words[site])
            assert same < 0.001


@given(st.integers(1, 60), st.data())
def test_caught_against_the_product_over_draws(total, data):
    altered = data.draw(st.integers(0, total))
    challenged = data.draw(st.integers(0, total))
    missed = 1.0
    for draw in range(challenged):
        missed *= max(total - altered - draw, 0) / (total - draw)
    assert audit.caught(total, altered, challenged) == pytest.approx(1 - missed, abs=1e-12)


def test_the_numbers_of_the_protocol():
    assert audit.challenges(0.10, 0.99) == 44
    assert audit.challenges(0.01, 0.99) == 459
    assert audit.caught(61, 61, 1) == 1.0


def test_challenges_are_distinct_spread_and_follow_the_receipt(honest):
    large = dataclasses.replace(honest.receipt, state=bytes(32))
    asked = [audit.challenge(honest.receipt, NONCE, 2), audit.challenge(large, NONCE, 2)]
    assert all(len(set(one)) == 2 for one in asked)
    everything = audit.challenge(honest.receipt, NONCE, 99)
    assert everything == list(range(audit.leaves(honest.receipt)))
    counts = np.zeros(3, int)
    for number in range(600):
        counts[audit.challenge(honest.receipt, number.to_bytes(32, "big"), 1)] += 1
    assert counts.sum() == 600
    assert abs(counts - 200).max() < 50


@given(st.binary(max_size=120))
def test_any_bytes_are_read_or_refused(data):
    for kind in (Audit, Chunk):
        try:
            found = kind.from_bytes(data)
        except MalformedMessage:
            continue
        assert found.to_bytes() == data
