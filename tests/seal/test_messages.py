"""The bytes: strict round trips, every cut refused, any flipped byte refused and the round unharmed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.seal import labels, masked_header
from cloister.seal.merkle import root, root_of
from cloister.seal.messages import KINDS, PART_BYTES, Masked, SignedRoot, label_of
from cloister.seal.receipt import open_receipt
from cloister.seal.state import COORDINATOR, SITE, Phase, SitePhase, diagram, step
from cloister.vector.errors import BadUpload, CloisterError, MalformedMessage, PeerError, UnexpectedMessage


@pytest.fixture(scope="module")
def one_of_each(rig: Any) -> dict[str, bytes]:
    """A message of each kind, by label."""
    federation = rig(sites=3)
    federation.run()
    return {label_of(data): data for _, _, data in federation.log}


def test_a_round_sends_all_ten_kinds(one_of_each: dict[str, bytes]) -> None:
    assert set(one_of_each) == set(KINDS)


def test_messages_survive_the_round_trip(one_of_each: dict[str, bytes]) -> None:
    for label, data in one_of_each.items():
        assert KINDS[label].from_bytes(data).to_bytes() == data


def test_every_cut_and_every_tail_is_malformed(one_of_each: dict[str, bytes]) -> None:
    for label, data in one_of_each.items():
        for size in range(len(data)):
            with pytest.raises(MalformedMessage):
                KINDS[label].from_bytes(data[:size])
        with pytest.raises(MalformedMessage):
            KINDS[label].from_bytes(data + b"\0")


@given(st.binary(max_size=400))
def test_junk_is_malformed_and_nothing_else(junk: bytes) -> None:
    for kind in KINDS.values():
        for data in (junk, labels.lp(kind.LABEL.encode()) + junk):
            with pytest.raises(MalformedMessage):
                kind.from_bytes(data)
    if junk[7:8] != b"{":  # where a receipt's JSON begins
        with pytest.raises(MalformedMessage):
            label_of(b"\xff" + junk)


@given(data=st.data())
def test_a_mutated_message_parses_or_is_malformed(one_of_each: dict[str, bytes], data: st.DataObject) -> None:
    label = data.draw(st.sampled_from(sorted(KINDS)))
    mutated = bytearray(one_of_each[label])
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    try:
        parsed = KINDS[label].from_bytes(bytes(mutated))
    except MalformedMessage:
        return
    assert parsed.to_bytes() == mutated


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_of_any_message_is_refused_and_the_round_goes_on(rig: Any, data: st.DataObject) -> None:
    """The truth is given after each lie, so a lie that moved any state would be seen in the sum."""
    federation = rig(sites=4, size=2)
    at, place, flip = (
        data.draw(st.integers(0, 35)),
        data.draw(st.integers(0, 1 << 20)),
        data.draw(st.integers(1, 255)),
    )
    handed = [0]

    def spoiled(message: bytes) -> bytes | None:
        handed[0] += 1
        if handed[0] != at + 1:
            return None
        changed = bytearray(message)
        changed[place % len(message)] ^= flip
        return bytes(changed)

    def give(site: str, message: bytes, truth: Any = federation.give) -> None:
        if (lie := spoiled(message)) is not None:
            with pytest.raises(PeerError):
                truth(site, lie)
        truth(site, message)

    def deliver(site: str, truth: Any = federation.deliver) -> bytes | None:
        if (lie := spoiled(federation.mail[site])) is not None:
            with pytest.raises(PeerError):
                federation.clients[site].receive(lie)
        return truth(site)

    federation.give, federation.deliver = give, deliver
    total = federation.run()
    assert handed[0] == 36
    assert np.array_equal(total, federation.expected(federation.names))


def test_any_flipped_byte_of_the_opening_or_the_receipt_is_refused(rig: Any) -> None:
    federation = rig(sites=3)
    opening, client = federation.server.open(), federation.clients["cork"]
    for place in range(len(opening)):
        with pytest.raises(PeerError):
            client.open(opening[:place] + bytes([opening[place] ^ 1]) + opening[place + 1 :])
    federation.run()
    receipt = federation.server.receipt([bytes(32)], bytes(32))
    for place in range(0, len(receipt), 7):
        with pytest.raises(PeerError):
            client.receive(receipt[:place] + bytes([receipt[place] ^ 1]) + receipt[place + 1 :])
    client.receive(receipt)


def test_any_flipped_byte_of_an_upload_is_found(rig: Any) -> None:
    federation = rig(sites=3, size=2)
    federation.upto("masked")
    federation.deliver("cork")
    header, payload = federation.clients["cork"].mask(federation.words["cork"])
    told = masked_header(header)
    assert told.site == "cork"
    assert sum(length for _, length in told.parts) == told.payload_bytes == len(payload)
    told.check(root_of(payload), len(payload))
    for place in range(len(payload)):
        changed = bytearray(payload)
        changed[place] ^= 1
        with pytest.raises(BadUpload):
            told.check(root_of(changed), len(changed))
    with pytest.raises(BadUpload):
        told.check(root_of(payload), len(payload) - 1)


@pytest.mark.parametrize("bits", [16, 20, 32, 64])
def test_masks_that_are_laid_ahead_give_the_same_bytes(rig: Any, bits: int) -> None:
    ahead, at_once = rig(bits=bits), rig(bits=bits)
    for federation in (ahead, at_once):
        federation.upto("masked")
        federation.deliver("cork")
    for _ in range(2):  # a second time makes no second mask
        ahead.clients["cork"].lay()
    words = ahead.words["cork"].copy()
    assert ahead.clients["cork"].mask(words) == at_once.clients["cork"].mask(words)
    assert np.array_equal(words, ahead.words["cork"]), "the words are the caller's"


def test_masks_are_laid_after_the_shares_and_once(rig: Any) -> None:
    federation = rig()
    client = federation.clients["cork"]
    federation.upto("masked")
    with pytest.raises(UnexpectedMessage):
        client.lay()
    federation.deliver("cork")
    client.mask(federation.words["cork"])
    with pytest.raises(UnexpectedMessage):
        client.lay()


def test_the_parts_of_a_header_make_up_its_length() -> None:
    assert [length for _, length in masked_header(header_of(b"a" * 32, b"b" * 32)).parts] == [PART_BYTES, 4]
    with pytest.raises(MalformedMessage, match="length"):
        masked_header(header_of(b"a" * 32))


def header_of(*parts: bytes, signed: bytes | None = None) -> bytes:
    """For a word more than a part holds. Args: signed: the root, where it is not that of the parts."""
    words = PART_BYTES // 4 + 1
    upload = SignedRoot(bytes(32), bytes(32), bytes(32), words, 32, "cork", signed or root(parts), bytes(64))
    return Masked(bytes(32), upload, parts, signature=bytes(64)).to_bytes()


@pytest.mark.parametrize("signed", [bytes(32), b"a" * 32, root([b"b" * 32, b"a" * 32])])
def test_the_parts_of_a_header_make_its_root(signed: bytes) -> None:
    with pytest.raises(MalformedMessage, match="root"):
        masked_header(header_of(b"a" * 32, b"b" * 32, signed=signed))


def test_a_repeat_gets_the_same_answer_and_changes_nothing(rig: Any) -> None:
    federation = rig(sites=4)
    deliver, give = federation.deliver, federation.give

    def twice(site: str) -> bytes | None:
        answer = deliver(site)
        assert deliver(site) == answer
        return answer

    federation.deliver = twice
    federation.give = lambda site, data: (give(site, data), give(site, data))[0]
    assert np.array_equal(federation.run(), federation.expected(federation.names))


def test_every_event_that_a_table_does_not_list_is_refused() -> None:
    for table in (SITE, COORDINATOR):
        events = {event for those in table.values() for event in those}
        for phase, listed in table.items():
            for event in events - set(listed):
                with pytest.raises(UnexpectedMessage, match=phase.value):
                    step(table, phase, event)


def test_every_phase_is_reached_and_drawn() -> None:
    for table, phases, first in ((SITE, SitePhase, SitePhase.NEW), (COORDINATOR, Phase, Phase.KEYS)):
        reached, drawn = {first}, diagram(table)
        for events in table.values():
            reached |= set(events.values())
        assert reached == set(phases) == set(table)
        assert all(f" {phase.value}" in drawn for phase in phases)


def test_messages_of_the_wrong_direction_or_time_are_refused(rig: Any, one_of_each: dict[str, bytes]) -> None:
    federation = rig(sites=3)
    for data in one_of_each.values():
        with pytest.raises(CloisterError):
            federation.clients["cork"].receive(data)
        if label_of(data) not in (labels.KEYS,):
            with pytest.raises(UnexpectedMessage):
                federation.server.receive("cork", data)
    with pytest.raises(MalformedMessage):
        open_receipt(b"", federation.coordinator.public)
