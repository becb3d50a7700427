"""Whole rounds: exact sums whoever drops out when, nothing under the threshold, and no loss by a crash."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.seal import Phase, SitePhase
from cloister.seal.masks import packed_bytes
from cloister.seal.receipt import open_receipt
from cloister.vector.errors import BadShare, BadUpload, RoundVoid, TooFewSurvivors, UnexpectedMessage

PHASES = ("keys", "shares", "masked", "consistent", "unmask")


@pytest.mark.parametrize("sites", [3, 4, 5, 10])
@pytest.mark.parametrize("bits", [16, 20, 24, 32, 64])
def test_a_round_of_all_sites_opens_the_exact_sum(rig: Any, sites: int, bits: int) -> None:
    federation = rig(sites=sites, bits=bits)
    assert np.array_equal(federation.run(), federation.expected(federation.names))
    receipt = federation.server.receipt([bytes(32)], bytes(range(32)))
    for client in federation.clients.values():
        client.receive(receipt)
        assert client.phase is SitePhase.DONE
        assert client.receipt == open_receipt(receipt, federation.coordinator.public)


@pytest.mark.parametrize("phase", PHASES)
def test_a_site_may_drop_out_in_any_phase(rig: Any, phase: str) -> None:
    federation = rig(sites=6)
    total = federation.run({phase: ["cork"]})
    counted = [site for site in federation.names if site != "cork" or phase in ("consistent", "unmask")]
    assert federation.server.u3 == tuple(counted)
    assert np.array_equal(total, federation.expected(counted))


def test_several_sites_drop_out_in_several_phases(rig: Any) -> None:
    federation = rig(sites=10)
    total = federation.run({"shares": ["basel"], "masked": ["jena"], "unmask": ["essen"]})
    counted = sorted(set(federation.names) - {"basel", "jena"})
    assert np.array_equal(total, federation.expected(counted))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_dropout_pattern_opens_the_exact_sum_or_nothing(rig: Any, data: st.DataObject) -> None:
    sites = data.draw(st.integers(3, 7))
    federation = rig(sites=sites, size=3)
    fates = data.draw(st.lists(st.sampled_from((*PHASES, "never")), min_size=sites, max_size=sites))
    lost = {phase: [s for s, fate in zip(federation.names, fates, strict=True) if fate == phase] for phase in PHASES}
    shuffled = data.draw(st.permutations(federation.names))
    if fates.count("never") >= federation.plan.threshold:
        total = federation.run(lost, order=lambda those: sorted(those, key=shuffled.index))
        counted = [s for s, fate in zip(federation.names, fates, strict=True) if fate not in PHASES[:3]]
        assert np.array_equal(total, federation.expected(counted))
    else:
        with pytest.raises(TooFewSurvivors, match="Nothing was opened"):
            federation.run(lost)
        assert federation.server.phase is Phase.VOID
        with pytest.raises(RoundVoid):
            federation.server.total(federation.read)
        with pytest.raises(UnexpectedMessage):
            federation.server.receipt([bytes(32)], bytes(32))


def test_the_order_of_arrival_changes_no_byte(rig: Any) -> None:
    forward, backward = rig(sites=5), rig(sites=5)
    total = forward.run()
    assert np.array_equal(total, backward.run(order=lambda those: sorted(those, reverse=True)))
    assert forward.server.receipt([bytes(32)], bytes(32)) == backward.server.receipt([bytes(32)], bytes(32))


def test_a_server_replayed_from_its_accepted_messages_is_the_same(rig: Any) -> None:
    federation, events = rig(sites=5), list[tuple[str, bytes]]()
    give, close = federation.give, federation.close
    sent: list[dict[str, bytes]] = []
    federation.give = lambda site, data: (give(site, data), events.append((site, data)))[0]
    federation.close = lambda: (events.append(("", b"")), sent.append(close()))[0]
    total = federation.run({"masked": ["delft"]})
    again = federation.new_server()
    replayed = []
    for site, data in events:
        if site:
            again.receive(site, data)
        else:
            replayed.append(again.close())
    assert replayed == sent
    assert np.array_equal(again.total(federation.read, threads=2)[0], total)
    assert again.receipt([bytes(32)], bytes(32)) == federation.server.receipt([bytes(32)], bytes(32))


def test_a_long_vector_opens_in_stretches(rig: Any) -> None:
    federation = rig(sites=4, size=700_001, bits=20)
    lengths: list[int] = []

    def read(site: str, offset: int, length: int) -> bytes:
        lengths.append(length)
        return federation.read(site, offset, length)

    federation.run({"masked": ["basel"]})
    total = federation.server.total(read, threads=2)[0]
    assert np.array_equal(total, federation.expected(["amsterdam", "cork", "delft"]))
    assert max(lengths) < 1 << 18
    assert sum(lengths) == 3 * packed_bytes(federation.plan.words, 20)


@pytest.mark.parametrize("bits", [20, 32, 64])
def test_vectors_that_were_added_as_they_arrived_are_not_read_again(rig: Any, bits: int) -> None:
    federation = rig(sites=5, size=1001, bits=bits)
    federation.upto("opened")
    asked: list[str] = []

    def read(site: str, offset: int, length: int) -> bytes:
        asked.append(site)
        return federation.read(site, offset, length)

    for site in ("basel", "delft", "basel"):
        federation.server.add(site, federation.read)
    federation.close()
    assert np.array_equal(federation.server.total(read)[0], federation.expected(federation.names))
    assert set(asked) == {"amsterdam", "cork", "essen"}
    assert np.array_equal(federation.server.total(read)[0], federation.expected(federation.names))
    assert set(asked) == set(federation.names)


def test_an_addition_that_was_cut_off_leaves_no_trace(rig: Any) -> None:
    federation = rig(sites=4, size=700_001)

    def broken(site: str, offset: int, length: int) -> bytes:
        return federation.read(site, offset, length if offset == 0 else length - 1)

    federation.upto("opened")
    with pytest.raises(UnexpectedMessage, match="no masked vector"):
        federation.server.add("nobody", federation.read)
    federation.server.add("cork", federation.read)
    with pytest.raises(BadUpload):
        federation.server.add("basel", broken)
    federation.server.add("delft", federation.read)
    federation.close()
    assert np.array_equal(federation.server.total(federation.read)[0], federation.expected(federation.names))


def test_two_rounds_of_a_run_are_chained_and_share_no_bytes(rig: Any) -> None:
    first = rig(sites=3)
    first.run()
    receipt = first.server.receipt([bytes(32)], bytes(32))
    digest = open_receipt(receipt, first.coordinator.public).digest
    second = rig(sites=3, round=1, query=hashlib.sha256(b"next").digest())
    second.server = second.new_server(digest)
    second.journals = first.journals
    second.clients = {site: second.client(site, last_round=0, last_receipt=digest) for site in second.names}
    assert np.array_equal(second.run(), second.expected(second.names))
    assert (
        second.payloads["basel"] != first.payloads["basel"]
    )  # the test's randomness is the same; the context is not


@pytest.mark.parametrize(
    ("sites", "liars"), [(4, ["basel"]), (5, ["amsterdam"]), (10, ["basel"]), (10, ["amsterdam", "cork", "fano"])]
)
def test_wrong_shares_are_corrected_and_blamed(rig: Any, sites: int, liars: list[str]) -> None:
    federation = rig(sites=sites)
    federation.upto("opened")
    spoil_shares(federation, liars)
    federation.close()
    assert np.array_equal(federation.server.total(federation.read)[0], federation.expected(federation.names))
    assert {fault.site for fault in federation.server.blamed} == set(liars)


def test_wrong_shares_without_a_spare_answer_open_nothing(rig: Any) -> None:
    federation = rig(sites=3)
    federation.upto("opened")
    spoil_shares(federation, ["cork"])
    with pytest.raises(BadShare, match="Nothing was opened"):
        federation.close()
    assert federation.server.phase is Phase.VOID


def spoil_shares(federation: Any, liars: list[str]) -> None:
    """Makes these sites answer message 9 with shares that nobody dealt."""
    for site in liars:
        message = federation.server._unmask[site]
        wrong = tuple(hashlib.sha256(share).digest()[:31] + b"\0" for share in message.shares)
        federation.server._unmask[site] = type(message)(message.context, message.u3, site, wrong)


def test_masked_words_look_uniform_and_tell_nothing_of_the_words(rig: Any) -> None:
    federation = rig(sites=3, size=200_000)
    federation.words = {site: np.zeros_like(words) for site, words in federation.words.items()}
    federation.run()
    for site in federation.names:
        octets = np.frombuffer(federation.payloads[site], np.uint8)
        counts = np.bincount(octets, minlength=256)
        expected = len(octets) / 256
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert 140 < chi_square < 400  # 255 degrees of freedom: outside with probability 1e-8
        ones = int(np.unpackbits(octets).sum())
        assert abs(ones - 4 * len(octets)) < 6 * np.sqrt(2 * len(octets))  # six standard deviations of a fair coin
    one, other = (np.frombuffer(federation.payloads[site], "<u4").astype(float) for site in federation.names[:2])
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.015
