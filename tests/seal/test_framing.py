"""Labels, length prefixes, hashes and signatures."""

from __future__ import annotations

import os
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.seal import labels
from cloister.seal.identity import Identity, fingerprint_words, verify
from cloister.seal.words import WORDS
from cloister.vector.errors import BadSignature, MalformedMessage

ALL = [value for name, value in vars(labels).items() if name.isupper() and isinstance(value, str)]


def test_labels_are_distinct_and_none_begins_another():
    used = [label for label in ALL if label != labels.VERSION]
    assert len(used) >= 20
    assert all(label.startswith(labels.VERSION + "/") for label in used)
    assert not [(a, b) for a, b in permutations(used, 2) if b.startswith(a)]


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_fields_undo_length_prefixes(parts):
    assert labels.fields(b"".join(map(labels.lp, parts))) == parts


@given(st.binary(max_size=64))
def test_fields_refuse_or_read_any_bytes(data):
    try:
        parts = labels.fields(data)
    except MalformedMessage:
        return
    assert b"".join(map(labels.lp, parts)) == data


@given(st.lists(st.binary(max_size=8), max_size=4), st.lists(st.binary(max_size=8), max_size=4))
def test_hash_tells_the_cut_between_its_parts(one, other):
    assert (labels.h(labels.CTX, *one) == labels.h(labels.CTX, *other)) == (one == other)


def test_hash_frozen():
    spelled = labels.h(labels.COMMIT, b"", b"cloister")
    assert spelled.hex() == "db54603b98fec02a2223e697fe5d30fc0936e9542ee27abc60a442c70faf9dab"


def test_context_changes_with_each_of_its_parts():
    same = {"run": bytes(16), "round": 1, "attempt": 0}
    same |= dict.fromkeys(("roster", "plan", "query", "receipt"), bytes(32))
    other = {"run": b"r" * 16, "round": 2, "attempt": 1}
    other |= dict.fromkeys(("roster", "plan", "query", "receipt"), b"x" * 32)
    contexts = {labels.context(**same)} | {labels.context(**{**same, name: other[name]}) for name in same}
    assert len(contexts) == 1 + len(same)


def test_a_signature_serves_one_key_label_and_body():
    identity, other = Identity.generate(os.urandom), Identity.generate(os.urandom)
    signature = identity.sign(labels.KEYS, b"body")
    verify(identity.public, labels.KEYS, b"body", signature)
    for lie in (
        (other.public, labels.KEYS, b"body", signature),
        (identity.public, labels.OPEN, b"body", signature),
        (identity.public, labels.KEYS, b"bodx", signature),
        (identity.public, labels.KEYS, b"body", signature[:-1]),
        (identity.public[:-1], labels.KEYS, b"body", signature),
    ):
        with pytest.raises(BadSignature) as refusal:
            verify(*lie, site="kent")
        assert refusal.value.site == "kent"


def test_identity_survives_bytes_and_hides_its_key():
    identity = Identity.from_bytes(bytes(range(32)))
    assert Identity.from_bytes(identity.to_bytes()).public == identity.public
    assert identity.to_bytes().hex() not in repr(identity)
    assert repr(identity) == f"Identity({fingerprint_words(identity.public)!r})"


def test_fingerprints_are_six_words_of_a_list_of_2048():
    assert len(WORDS) == len(set(WORDS)) == 2048
    assert len({word[:4] for word in WORDS}) == 2048
    words = fingerprint_words(bytes(32))
    assert words == "ticket argue heart bleak actress answer"
    assert fingerprint_words(b"\x01" + bytes(31)) != words
