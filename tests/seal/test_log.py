"""The log: notes as the Go tools write them, views that only move forward, and a split view that no site misses."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.seal import merkle
from cloister.seal.identity import Identity, verify_text
from cloister.seal.log import (
    Agreement,
    Checkpoint,
    Entry,
    Log,
    LogView,
    cosign,
    cosigner_of,
    cosigners,
    open_checkpoint,
    origin_of,
    verifier_key,
)
from cloister.vector.errors import BadSignature, MalformedMessage, PeerError, StaleReceipt

ORIGIN = origin_of("hearts")
COORDINATOR, KENT = Identity.from_bytes(b"c" * 32), Identity.from_bytes(b"k" * 32)


def log_of(*receipts: bytes) -> Log:
    return Log(ORIGIN, map(merkle.leaf_hash, receipts))


def grown(size: int, mark: str = "receipt") -> Log:
    return log_of(*(f"{mark} {number}".encode() for number in range(size)))


def view(log: Log | None = None) -> LogView:
    return LogView.resume(ORIGIN, COORDINATOR.public, log.sign(COORDINATOR) if log else b"")


# from the documentation of Go's golang.org/x/mod/sumdb/note, which the specification was written after
NEUMANN = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
NEUMANN_TEXT = (
    b"If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
)
NEUMANN_SIGNATURE = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="


def test_key_ids_and_signatures_are_those_of_the_go_tools():
    public = base64.b64decode(NEUMANN.rpartition("+")[2] + "==")[1:33]
    assert verifier_key("PeterNeumann", public) == NEUMANN
    blob = base64.b64decode(NEUMANN_SIGNATURE)
    assert blob[:4].hex() == NEUMANN.split("+")[1]
    verify_text(public, NEUMANN_TEXT, blob[4:], "PeterNeumann")
    with pytest.raises(BadSignature):
        verify_text(public, NEUMANN_TEXT + b"\n", blob[4:], "PeterNeumann")


def test_a_checkpoint_spelled_out():
    note = log_of(b"one").sign(COORDINATOR)
    root = base64.b64encode(merkle.leaf_hash(b"one")).decode()
    text, _, signature = note.decode().partition("\n\n")
    assert text == f"cloister/hearts\n1\n{root}"
    assert signature.startswith("— cloister/hearts ")
    assert signature.endswith("=\n")
    assert open_checkpoint(note, ORIGIN, COORDINATOR.public) == Checkpoint(ORIGIN, 1, merkle.leaf_hash(b"one"))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n1\nA\n",
        b"a\n01\n" + base64.b64encode(bytes(32)) + b"\n",
        b"a\n-1\n" + base64.b64encode(bytes(32)) + b"\n",
        b"a\n1\n" + base64.b64encode(bytes(31)) + b"\n",
        b"a\n1\n" + base64.b64encode(bytes(32)) + b"\nextension\n",
        b"a\n1\n" + base64.b64encode(bytes(32))[:-2] + b"B=\n",
        b"a\n" + b"9" * 5000 + b"\n" + base64.b64encode(bytes(32)) + b"\n",
    ],
)
def test_a_text_that_is_no_checkpoint(text):
    with pytest.raises(MalformedMessage):
        Checkpoint.from_text(text)


def test_only_the_pinned_key_and_origin_open_a_checkpoint():
    note = grown(3).sign(COORDINATOR)
    with pytest.raises(BadSignature):
        open_checkpoint(note, ORIGIN, KENT.public)
    with pytest.raises(BadSignature):
        open_checkpoint(note, origin_of("lungs"), COORDINATOR.public)
    with pytest.raises(BadSignature):
        open_checkpoint(note.replace(b"\n3\n", b"\n4\n"), ORIGIN, COORDINATOR.public)
    foreign = Checkpoint(origin_of("lungs"), 0, merkle.root([]))
    line = Log(ORIGIN).sign(COORDINATOR).rpartition(b"\n\n")[2]
    with pytest.raises(BadSignature):  # a signature of another text
        open_checkpoint(foreign.text + b"\n" + line, ORIGIN, COORDINATOR.public)


def test_cosignatures():
    name = cosigner_of("hearts", "kent")
    note = grown(3).sign(COORDINATOR)
    both = cosign(note, name, KENT, 1_679_315_147)
    assert open_checkpoint(both, ORIGIN, COORDINATOR.public) == open_checkpoint(note, ORIGIN, COORDINATOR.public)
    keys = {name: KENT.public, cosigner_of("hearts", "lyon"): Identity.from_bytes(b"l" * 32).public}
    assert cosigners(both, keys) == {name}
    assert cosigners(note, keys) == set()
    blob = base64.b64decode(both.rstrip().rpartition(b" ")[2])
    verify_text(KENT.public, b"cosignature/v1\ntime 1679315147\n" + grown(3).checkpoint().text, blob[12:], name)
    forged = grown(4).sign(COORDINATOR) + both.splitlines(keepends=True)[-1]
    with pytest.raises(BadSignature):
        cosigners(forged, keys)


def test_a_text_can_never_pass_for_one_of_our_own_messages():
    with pytest.raises(ValueError, match="character"):
        KENT.sign_text(b"\0\0\0\0\0\0\0\x10cloister/v1/keys")
    signature = KENT.sign("cloister/v1/keys", b"body")
    with pytest.raises(BadSignature):
        verify_text(KENT.public, b"\0\0\0\0\0\0\0\x10cloister/v1/keysbody", signature, "kent")


@given(st.integers(0, 20), st.integers(1, 20))
def test_a_view_follows_a_growing_log(old, new):
    before = grown(old)
    log, seen = grown(old + new), view(before)
    entry = Entry.from_bytes(log.entry(old, old, COORDINATOR).to_bytes())
    after = seen.accept(f"receipt {old}".encode(), entry)
    assert (after.size, after.root) == (old + new, log.checkpoint().root)
    assert LogView.resume(ORIGIN, COORDINATOR.public, after.note) == after
    assert after.accept(b"receipt 0", log.entry(0, after.size, COORDINATOR)) is after
    with pytest.raises(StaleReceipt):
        seen.accept(b"another receipt", entry)


@given(st.integers(1, 20), st.integers(0, 20))
def test_a_view_is_not_moved_to_a_fork_or_back(old, new):
    seen = view(grown(old))
    fork = grown(old + new, "forged")
    proof = merkle.consistency_proof(fork.leaves, old)
    with pytest.raises(StaleReceipt, match="split"):
        seen.advance(fork.sign(COORDINATOR), proof)
    with pytest.raises(StaleReceipt, match="shown before"):
        view(grown(old + 1)).advance(grown(old).sign(COORDINATOR), [])


def test_sites_that_lag_agree_and_a_split_view_names_the_site():
    log = grown(12)
    carried = {"bonn": grown(12).sign(COORDINATOR), "kent": grown(7).sign(COORDINATOR), "lyon": b"", "oslo": b""}
    sizes = [open_checkpoint(note, ORIGIN, COORDINATOR.public).size for note in carried.values() if note]
    agreement = Agreement.from_bytes(log.agreement([*sizes, 9], COORDINATOR).to_bytes())
    for seen in (view(), view(grown(7)), view(grown(9)), view(log)):
        assert seen.agree(carried, agreement).size == 12
    split = {**carried, "lyon": grown(7, "forged").sign(COORDINATOR)}
    with pytest.raises(StaleReceipt) as refusal:
        view(log).agree(split, agreement)
    assert refusal.value.site == "lyon"
    with pytest.raises(StaleReceipt):  # the coordinator's own newest is behind what a site carries
        view(grown(7)).agree(carried, grown(9).agreement([7, 9], COORDINATOR))
    with pytest.raises(StaleReceipt):  # it left out a proof
        view(grown(9)).agree(carried, log.agreement([7], COORDINATOR))


@given(st.data())
def test_any_flipped_byte_is_refused_or_ignored(data):
    note = bytearray(grown(5).sign(COORDINATOR))
    note[data.draw(st.integers(0, len(note) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(PeerError):
        open_checkpoint(bytes(note), ORIGIN, COORDINATOR.public)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    with pytest.raises(PeerError):
        open_checkpoint(data, ORIGIN, COORDINATOR.public)
    for kind in (Entry, Agreement):
        try:
            found = kind.from_bytes(data)
        except MalformedMessage:
            continue
        assert found.to_bytes() == data
