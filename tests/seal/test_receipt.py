"""Receipts: signed bytes, contradictions, the chain, and a parser that no bytes break."""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.seal.identity import Identity
from cloister.seal.labels import ZERO32, lp
from cloister.seal.plan import Plan
from cloister.seal.receipt import Receipt, Upload, open_receipt, sign_receipt
from cloister.vector import Block, Layout
from cloister.vector.bundle import canonical
from cloister.vector.errors import BadSignature, MalformedMessage, PeerError, StaleReceipt

COORDINATOR = Identity.from_bytes(b"c" * 32)
PLAN = Plan(
    federation="hearts",
    run=b"r" * 16,
    round=0,
    attempt=0,
    job=b"j" * 32,
    query=b"q" * 32,
    algorithm="fedavg",
    bits=32,
    layout=Layout((Block("delta", (4,), 8.0),)),
    max_rows=100,
    sites=("bonn", "kent", "lyon", "oslo"),
    threshold=3,
    min_survivors=3,
)


def receipt(**changes) -> Receipt:
    survivors = ("bonn", "kent", "oslo")
    base = Receipt(
        plan=PLAN,
        ctx=b"x" * 32,
        roster=b"m" * 32,
        h1=b"h" * 32,
        h2=b"h" * 32,
        u1=PLAN.sites,
        u2=PLAN.sites,
        u3=survivors,
        uploads=tuple(Upload(site, b"u" * 32, b"s" * 64) for site in survivors),
        consistency=b"k" * 32,
        sum_roots=(b"t" * 32,),
        words=4,
        state=b"n" * 32,
        previous=ZERO32,
    )
    return dataclasses.replace(base, **changes)


def test_signed_round_trip():
    one = receipt()
    assert open_receipt(sign_receipt(one, COORDINATOR), COORDINATOR.public) == one
    assert receipt(state=b"o" * 32).digest != one.digest


def test_another_signer_is_refused():
    with pytest.raises(BadSignature):
        open_receipt(sign_receipt(receipt(), Identity.from_bytes(b"e" * 32)), COORDINATOR.public)


@pytest.mark.parametrize(
    "changes",
    [
        {"ctx": b"x"},
        {"u1": ("kent", "bonn", "lyon", "oslo")},
        {"u1": (*PLAN.sites, "york")},
        {"u2": ("bonn", "kent")},
        {"u3": ("bonn", "kent")},
        {"uploads": ()},
        {"uploads": tuple(Upload(site, b"u" * 31, b"s" * 64) for site in ("bonn", "kent", "oslo"))},
        {"words": 5},
        {"words": 4.0},
    ],
)
def test_a_receipt_that_contradicts_itself_is_refused(changes):
    with pytest.raises(MalformedMessage):
        receipt(**changes)


def test_receipts_form_a_chain():
    first = receipt()
    first.check_follows(PLAN.run, -1, ZERO32)
    second = receipt(plan=dataclasses.replace(PLAN, round=2), previous=first.digest)
    second.check_follows(PLAN.run, 0, first.digest)
    for run, last_round, last_receipt in (
        (b"o" * 16, 0, first.digest),  # another run
        (PLAN.run, 2, first.digest),  # a round that was before
        (PLAN.run, 0, receipt(state=b"o" * 32).digest),  # a fork
        (PLAN.run, -1, ZERO32),  # one left out
    ):
        with pytest.raises(StaleReceipt):
            second.check_follows(run, last_round, last_receipt)


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(data):
    with pytest.raises(PeerError):
        open_receipt(data, COORDINATOR.public)
    with pytest.raises(PeerError):
        open_receipt(lp(data) + lp(COORDINATOR.sign("cloister/v1/receipt", data)), COORDINATOR.public)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.just("00" * 32),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(json.loads(receipt().body))), JSON)
def test_any_json_in_any_place_is_read_or_refused(name, value):
    data = json.loads(receipt().body)
    data[name] = value
    with suppress(PeerError):
        assert Receipt.from_bytes(canonical(data)).body == canonical(data)


@given(st.data())
def test_any_flipped_byte_is_refused(data):
    signed = bytearray(sign_receipt(receipt(), COORDINATOR))
    signed[data.draw(st.integers(0, len(signed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(PeerError):
        open_receipt(bytes(signed), COORDINATOR.public)
