"""Envelopes: what is signed is what is read, and nothing else passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.seal.identity import SIGNATURE_BYTES, Identity
from cloister.seal.labels import ENVELOPE, lp
from cloister.vector import canonical
from cloister.vector.errors import BadSignature, EnvelopeReplayed, MalformedMessage, NotInRoster
from cloister.wire import Envelope, ReplayWindow, open_envelope, sign_envelope
from cloister.wire.envelope import MAX_NUMBER, WINDOW, join, split

KENT = Identity.from_bytes(bytes(range(32)))
EVE = Identity.from_bytes(bytes(32))
SAMPLE = Envelope("keys", "kent", "coordinator", "0f" * 16, 7, 3, b"body")


def key_of(sender: str) -> bytes:
    if sender != "kent":
        raise NotInRoster(f"{sender!r} is no member")
    return KENT.public


envelopes = st.builds(
    Envelope,
    type=st.text(max_size=20),
    sender=st.just("kent"),
    recipient=st.just("coordinator"),
    run=st.sampled_from(["", "ab" * 16]),
    round=st.integers(0, MAX_NUMBER),
    seq=st.integers(0, MAX_NUMBER),
    body=st.binary(max_size=200),
)


@given(envelopes)
def test_round_trip(envelope: Envelope) -> None:
    assert open_envelope(sign_envelope(KENT, envelope), key_of, "coordinator") == envelope


@given(st.binary(max_size=300))
def test_junk_is_malformed_or_unsigned(junk: bytes) -> None:
    with pytest.raises((MalformedMessage, BadSignature, NotInRoster)):
        open_envelope(junk, key_of, "coordinator")


@given(st.data())
def test_any_flipped_byte_is_refused(data: st.DataObject) -> None:
    signed = bytearray(sign_envelope(KENT, SAMPLE))
    signed[data.draw(st.integers(0, len(signed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises((MalformedMessage, BadSignature, NotInRoster)):
        open_envelope(bytes(signed), key_of, "coordinator")


@given(st.integers(0, 300))
def test_cut_off_is_refused(length: int) -> None:
    signed = sign_envelope(KENT, SAMPLE)
    with pytest.raises((MalformedMessage, BadSignature)):
        open_envelope(signed[: min(length, len(signed) - 1)], key_of, "coordinator")


def test_strangers_other_keys_and_other_recipients_are_refused() -> None:
    with pytest.raises(NotInRoster):
        open_envelope(sign_envelope(EVE, replace(SAMPLE, sender="eve")), key_of, "coordinator")
    with pytest.raises(BadSignature):
        open_envelope(sign_envelope(EVE, SAMPLE), key_of, "coordinator")
    with pytest.raises(BadSignature):
        open_envelope(sign_envelope(KENT, SAMPLE), key_of, "lyon")


GOOD = {"type": "keys", "from": "kent", "to": "coordinator", "run": "", "round": 0, "seq": 1}


@pytest.mark.parametrize(
    "header",
    [
        b"\xff",
        b"[]",
        b"[" * 4000,
        canonical({**GOOD, "seq": True}),
        canonical({**GOOD, "seq": -1}),
        canonical({**GOOD, "round": MAX_NUMBER + 1}),
        canonical({**GOOD, "run": "../../etc"}),
        canonical({**GOOD, "run": "AB" * 16}),
        canonical({**GOOD, "more": 1}),
        canonical({**GOOD, "from": None}),
        canonical({**GOOD, "type": "x" * 5000}),
    ],
)
def test_a_signed_header_must_still_be_well_formed(header: bytes) -> None:
    signed = lp(header) + lp(b"")
    with pytest.raises(MalformedMessage):
        open_envelope(signed + KENT.sign(ENVELOPE, signed), key_of, "coordinator")


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_join_and_split(parts: list[bytes]) -> None:
    assert split(join(parts)) == parts


@given(st.lists(st.integers(1, 2 * WINDOW), max_size=200))
def test_replay_window_accepts_each_number_once(numbers: list[int]) -> None:
    window, seen, highest = ReplayWindow(), set[int](), 0
    for number in numbers:
        if number in seen or number <= highest - WINDOW:
            with pytest.raises(EnvelopeReplayed):
                window.accept(number, "kent")
        else:
            window = window.accept(number, "kent")
            seen.add(number)
            highest = max(highest, number)
    assert window.seen.bit_length() <= WINDOW
    with pytest.raises(EnvelopeReplayed):
        window.accept(0, "kent")


def test_the_signature_has_the_length_the_framing_assumes() -> None:
    assert len(sign_envelope(KENT, SAMPLE)) - len(lp(SAMPLE.body)) > SIGNATURE_BYTES
