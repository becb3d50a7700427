"""The roster: who may sign it, what may follow it, and that no bytes break its parser."""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.seal.identity import Identity
from cloister.seal.labels import ZERO32, lp
from cloister.seal.roster import Member, Roster, TrustedRoster, sign_roster
from cloister.vector.bundle import canonical
from cloister.vector.errors import MalformedMessage, NotInRoster, PeerError, RosterRefused

ROOTS = [Identity.from_bytes(bytes([place]) * 32) for place in range(1, 4)]
PARTIES = [Identity.from_bytes(bytes([place]) * 32) for place in range(10, 16)]


def roster(**changes) -> Roster:
    base = Roster(
        federation="hearts",
        version=1,
        previous=ZERO32,
        roots=(ROOTS[0].public,),
        quorum=1,
        coordinators=(Member("hub", PARTIES[0].public),),
        sites=tuple(Member(name, PARTIES[i].public) for i, name in enumerate(("kent", "lyon", "oslo"), 1)),
        analysts=(Member("dr.lee", PARTIES[4].public),),
    )
    return dataclasses.replace(base, **changes)


def following(before: Roster, **changes) -> Roster:
    return dataclasses.replace(before, version=before.version + 1, previous=before.digest, **changes)


def test_bytes_round_trip_and_keys_by_role():
    one = roster()
    assert Roster.from_bytes(one.to_bytes()) == one
    assert one.key_of("kent", "site") == PARTIES[1].public
    for id, role in (("kent", "coordinator"), ("bonn", "site"), ("hub", "site")):
        with pytest.raises(NotInRoster):
            one.key_of(id, role)


@pytest.mark.parametrize(
    "changes",
    [
        {"federation": "No Name"},
        {"version": 0},
        {"version": True},
        {"version": 2},
        {"previous": b"x" * 32},
        {"quorum": 2},
        {"quorum": 0},
        {"roots": ()},
        {"roots": (b"short",)},
        {"roots": (PARTIES[1].public,)},
        {"analysts": (Member("kent", PARTIES[5].public),)},
        {"analysts": (Member("eve", PARTIES[1].public),)},
    ],
)
def test_a_roster_that_contradicts_itself_is_refused(changes):
    with pytest.raises(RosterRefused):
        roster(**changes)


@pytest.mark.parametrize("id", ["", "Kent", "-kent", "a" * 64, "kent\n", "k/../ent", "å"])
def test_ids_that_are_refused(id):
    with pytest.raises(RosterRefused):
        Member(id, bytes(32))


def test_update_follows_version_by_version():
    trusted = TrustedRoster([ROOTS[0].public])
    first = trusted.update(sign_roster(roster(), [ROOTS[0]]))
    second = following(first, sites=(*first.sites, Member("bonn", PARTIES[5].public)))
    signed = sign_roster(second, [ROOTS[0]])
    assert trusted.update(signed) == second
    assert trusted.update(signed) == second  # the same once more changes nothing
    assert trusted.signed == signed
    resumed = TrustedRoster.resume(trusted.signed)
    third = following(second)
    assert resumed.update(sign_roster(third, [ROOTS[0]])) == third


def test_a_site_may_join_at_any_version():
    late = following(following(roster()))
    assert TrustedRoster([ROOTS[0].public]).update(sign_roster(late, [ROOTS[0]])).version == 3


@pytest.mark.parametrize(
    "spoil",
    [
        lambda first: following(following(first)),  # skips one
        lambda first: first.__class__(**{**vars_of(first), "analysts": ()}),  # another version 1
        lambda first: dataclasses.replace(following(first), previous=b"x" * 32),
        lambda first: following(first, federation="lungs"),
    ],
)
def test_a_roster_that_does_not_follow_is_refused_and_changes_nothing(spoil):
    trusted = TrustedRoster([ROOTS[0].public])
    first = trusted.update(sign_roster(roster(), [ROOTS[0]]))
    with pytest.raises(RosterRefused):
        trusted.update(sign_roster(spoil(first), [ROOTS[0]]))
    assert trusted.current is first


def vars_of(one: Roster) -> dict:
    return {each.name: getattr(one, each.name) for each in dataclasses.fields(one) if each.init}


def test_only_the_pinned_roots_sign():
    trusted = TrustedRoster([ROOTS[0].public])
    for signers in ([], [ROOTS[1]], [PARTIES[0]]):
        with pytest.raises(RosterRefused):
            trusted.update(sign_roster(roster(), signers))
    body = roster().to_bytes()
    forged = lp(body) + lp(ROOTS[0].public + bytes(64))
    with pytest.raises(RosterRefused):
        trusted.update(forged)
    assert trusted.current is None


def test_roots_rotate_when_old_and_new_both_sign():
    trusted = TrustedRoster([ROOTS[0].public])
    first = trusted.update(sign_roster(roster(), [ROOTS[0]]))
    new = following(first, roots=(ROOTS[1].public, ROOTS[2].public), quorum=2)
    for signers in ([ROOTS[0]], [ROOTS[1], ROOTS[2]], [ROOTS[0], ROOTS[1], ROOTS[1]]):
        with pytest.raises(RosterRefused):
            trusted.update(sign_roster(new, signers))
    trusted.update(sign_roster(new, ROOTS))
    with pytest.raises(RosterRefused):
        trusted.update(sign_roster(following(new), [ROOTS[0]]))
    trusted.update(sign_roster(following(new), ROOTS[1:]))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    for parse in (Roster.from_bytes, TrustedRoster([ROOTS[0].public]).update, TrustedRoster.resume):
        with pytest.raises(PeerError):
            parse(data)


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


@given(st.sampled_from(sorted(json.loads(roster().to_bytes()))), JSON)
def test_any_json_in_any_place_is_read_or_refused(name, value):
    data = json.loads(roster().to_bytes())
    data[name] = value
    with suppress(PeerError):
        assert Roster.from_bytes(canonical(data)).to_bytes() == canonical(data)


@given(st.data())
def test_any_flipped_byte_of_a_signed_roster_is_refused(data):
    signed = bytearray(sign_roster(roster(), [ROOTS[0]]))
    signed[data.draw(st.integers(0, len(signed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(PeerError):
        TrustedRoster([ROOTS[0].public]).update(bytes(signed))


def test_other_spellings_of_a_roster_are_refused():
    body = roster().to_bytes()
    for spelled in (
        body + b" ",
        json.dumps(json.loads(body)).encode(),
        body.replace(b'"version":1', b'"version":1.0'),
    ):
        with pytest.raises((MalformedMessage, RosterRefused)):
            Roster.from_bytes(spelled)
