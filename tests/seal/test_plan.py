"""Plans: canonical bytes, contradictions, a site's own checks, and the threshold."""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.seal.identity import Identity
from cloister.seal.labels import ZERO32
from cloister.seal.plan import Plan, check_plan
from cloister.seal.roster import Member, Roster
from cloister.seal.threshold import colluders_tolerated, dropouts_survived, threshold
from cloister.vector import Block, Layout
from cloister.vector.bundle import canonical
from cloister.vector.errors import (
    ContextMismatch,
    MalformedMessage,
    NotInRoster,
    PeerError,
    PlanRefused,
    ThresholdTooLow,
    TooFewSites,
)

SITES = ("bonn", "kent", "lyon", "oslo", "riga")
LAYOUT = Layout((Block("delta", (3, 2), 8.0, clip=4.0, weighted=True), Block("loss", (), 64.0, wide=True)))


def plan(**changes) -> Plan:
    base = Plan(
        federation="hearts",
        run=b"r" * 16,
        round=3,
        attempt=0,
        job=b"j" * 32,
        query=b"q" * 32,
        algorithm="fedavg",
        bits=32,
        layout=LAYOUT,
        max_rows=1000,
        sites=SITES,
        threshold=4,
        min_survivors=3,
    )
    return dataclasses.replace(base, **changes)


def roster(sites=SITES) -> Roster:
    keys = [Identity.from_bytes(bytes([place]) * 32).public for place in range(1, 10)]
    members = tuple(Member(site, key) for site, key in zip(sites, keys[2:], strict=False))
    return Roster("hearts", 1, ZERO32, (keys[0],), 1, (Member("hub", keys[1]),), members)


def test_bytes_round_trip_without_floats():
    one = plan()
    assert Plan.from_bytes(one.to_bytes()) == one
    assert one.words == one.coder.size == 6 + 2
    assert plan(round=4).digest != one.digest

    def floats(value):
        if isinstance(value, dict | list):
            return any(map(floats, value.values() if isinstance(value, dict) else value))
        return isinstance(value, float)

    assert not floats(json.loads(one.to_bytes()))


@pytest.mark.parametrize(
    "changes",
    [
        {"federation": "HEARTS"},
        {"algorithm": ""},
        {"run": b"r"},
        {"query": b""},
        {"round": -1},
        {"round": 1 << 64},
        {"round": 1.0},
        {"round": True},
        {"attempt": 1 << 32},
        {"max_rows": 0},
        {"bits": 31},
        {"sites": SITES[::-1]},
        {"sites": (*SITES, "riga")},
        {"sites": ()},
        {"sites": tuple(f"site-{i:03}" for i in range(2049))},
        {"threshold": 6},
        {"threshold": 0},
        {"min_survivors": 6},
        {"graph": "ring"},
        {"layout": Layout((Block("delta", (1 << 40,), 8.0),))},
        {"layout": Layout((Block("delta", (0,), 8.0),))},
        {"layout": Layout((Block("delta", (1,), 1e-300),))},
        {"layout": Layout((Block("delta", (1,), 1e300),))},
        {"sites": tuple(f"site-{i:03}" for i in range(100)), "bits": 16, "layout": Layout((Block("a", (), 1.0),))}
        | {"threshold": 129},
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(changes):
    with pytest.raises(PlanRefused):
        plan(**changes)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    with pytest.raises(MalformedMessage):
        Plan.from_bytes(data)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.just("00" * 32),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(json.loads(plan().to_bytes()))), JSON)
def test_any_json_in_any_place_is_read_or_refused(name, value):
    data = json.loads(plan().to_bytes())
    data[name] = value
    with suppress(PeerError):
        assert Plan.from_bytes(canonical(data)).to_bytes() == canonical(data)


@given(st.sampled_from(sorted(LAYOUT.as_json()[0])), JSON)
def test_any_json_in_a_block_of_the_layout_is_read_or_refused(name, value):
    data = json.loads(plan().to_bytes())
    data["layout"][0][name] = value
    with suppress(PeerError):
        assert Plan.from_bytes(canonical(data)).to_bytes() == canonical(data)


@given(st.data())
def test_any_flipped_byte_gives_another_plan_or_a_refusal(data):
    body = bytearray(plan().to_bytes())
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(PeerError):
        assert Plan.from_bytes(bytes(body)) != plan()


def test_other_spellings_of_a_plan_are_refused():
    body = plan().to_bytes()
    twice = body.replace(b'"round":3', b'"round":9,"round":3')
    for spelled in (body + b"\n", twice, body.replace(b'"round":3', b'"round":3e0')):
        with pytest.raises((MalformedMessage, PlanRefused)):
            Plan.from_bytes(spelled)


def test_a_site_accepts_a_sound_plan():
    check_plan(plan(), roster(), "kent", min_survivors=3, assume_colluders=2)


@pytest.mark.parametrize(
    ("changes", "site", "min_survivors", "colluders", "error"),
    [
        ({"federation": "lungs"}, "kent", 3, 0, ContextMismatch),
        ({"sites": ("kent", "lyon"), "threshold": 2, "min_survivors": 2}, "kent", 2, 0, TooFewSites),
        ({"threshold": 3}, "kent", 3, 0, ThresholdTooLow),
        ({}, "kent", 3, 3, ThresholdTooLow),
        ({}, "kent", 6, 0, TooFewSites),
        ({}, "york", 3, 0, PlanRefused),
        ({"sites": ("bonn", "kent", "lyon", "york"), "threshold": 3}, "kent", 3, 0, NotInRoster),
        ({"sites": ("bonn", "kent", "lyon"), "threshold": 3}, "kent", 3, 2, TooFewSites),
    ],
)
def test_a_site_refuses(changes, site, min_survivors, colluders, error):
    with pytest.raises(error):
        check_plan(plan(**changes), roster(), site, min_survivors, colluders)


# protocol.md 2.5: sites, threshold, dropouts survived, colluders tolerated
TABLE = [
    (3, 3, 0, 2),
    (4, 3, 1, 1),
    (5, 4, 1, 2),
    (6, 5, 1, 3),
    (7, 5, 2, 2),
    (8, 6, 2, 3),
    (10, 7, 3, 3),
    (16, 11, 5, 5),
    (20, 14, 6, 7),
    (32, 22, 10, 11),
    (50, 34, 16, 17),
    (64, 43, 21, 21),
    (100, 67, 33, 33),
]


@pytest.mark.parametrize(("n", "t", "dropouts", "colluders"), TABLE)
def test_threshold_table(n, t, dropouts, colluders):
    assert threshold(n) == t
    assert dropouts_survived(n, t) == dropouts
    assert colluders_tolerated(n, t) == colluders


@given(st.integers(3, 10_000))
def test_two_stories_about_one_victim_never_both_find_enough_answers(n):
    t = threshold(n)
    c = colluders_tolerated(n, t)
    assert t > c
    assert 2 * (t - c) > n - c
    assert t <= n


@pytest.mark.parametrize("n", [0, 1, 2])
def test_two_sites_are_refused(n):
    with pytest.raises(TooFewSites, match="one site's answer"):
        threshold(n)
