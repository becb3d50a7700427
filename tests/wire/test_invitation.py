"""Invitations: round trip, and every kind of damage is one typed refusal that repeats no secret."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.vector.errors import InvitationError
from cloister.wire import Invitation

SAMPLE = Invitation("https://127.0.0.1:8443", "heart", "site", "kent", b"t" * 16, b"c" * 32, b"r" * 32)


@given(
    st.text(min_size=1, max_size=30, alphabet=st.characters(exclude_categories=["Cs"])),
    st.sampled_from(["site", "analyst"]),
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=32, max_size=32),
)
def test_round_trip(name: str, role: str, token: bytes, key: bytes) -> None:
    invitation = Invitation("https://example.org", name, role, "kent", token, key, key)
    text = invitation.encode()
    assert Invitation.decode(text) == invitation
    assert Invitation.decode("  " + text[:40] + "\n  " + text[40:] + "\n") == invitation


@given(st.one_of(st.text(max_size=200), st.text(max_size=200).map(lambda text: "cloister1:" + text)))
def test_junk(text: str) -> None:
    with pytest.raises(InvitationError):
        Invitation.decode(text)


@given(st.data())
def test_a_changed_or_missing_character(data: st.DataObject) -> None:
    text = SAMPLE.encode()
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from([c for c in "aZ5-_!" if c != text[at]] + [""]))
    with contextlib.suppress(InvitationError):  # else it was a spare bit of the last character
        assert Invitation.decode(text[:at] + other + text[at + 1 :]) == SAMPLE


@pytest.mark.parametrize(
    "bad",
    [
        Invitation("http://127.0.0.1", "heart", "site", "kent", b"t" * 16, b"c" * 32, b"r" * 32),
        Invitation("https://x", "heart", "root", "kent", b"t" * 16, b"c" * 32, b"r" * 32),
        Invitation("https://x", "heart", "site", "kent", b"t" * 15, b"c" * 32, b"r" * 32),
        Invitation("https://x", "heart", "site", "kent", b"t" * 16, b"c" * 32, b"r" * 31),
    ],
)
def test_well_formed_but_wrong(bad: Invitation) -> None:
    with pytest.raises(InvitationError):
        Invitation.decode(bad.encode())


def test_repr_hides_the_token() -> None:
    assert "tttt" not in repr(SAMPLE)
