"""Secret sharing: any t shares open, fewer do not, and wrong ones are found."""

from __future__ import annotations

import os
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.seal import shamir
from cloister.seal.shamir import P
from cloister.vector.errors import BadShare, TooFewSurvivors

ELEMENTS = st.integers(0, P - 1)


@st.composite
def sharings(draw):
    """(secret, t, shares by point) of up to 12 points."""
    n = draw(st.integers(1, 12))
    t, secret = draw(st.integers(1, n)), draw(ELEMENTS)
    xs = draw(st.lists(st.integers(1, 1000), min_size=n, max_size=n, unique=True))
    return secret, t, dict(zip(xs, shamir.split(secret, t, xs, os.urandom), strict=True))


@given(sharings(), st.randoms())
def test_any_t_shares_open(sharing, rng):
    secret, t, shares = sharing
    some = dict(rng.sample(sorted(shares.items()), t))
    assert shamir.combine(some, t) == secret
    xs = list(some)
    assert shamir.interpolate(shamir.weights(xs), [some[x] for x in xs]) == secret
    if t > 1:
        some.popitem()
        with pytest.raises(TooFewSurvivors):
            shamir.combine(some, t)


def test_shares_of_frozen_coefficients():
    """f(x) = 7 + 2x + 3x**2, the coefficients drawn in this order of powers from the top."""
    stream = iter([(3).to_bytes(32, "little"), (2).to_bytes(32, "little")])
    assert shamir.split(7, 3, [1, 2, 3], lambda size: next(stream)) == [12, 23, 40]


@given(st.integers(0, 255))
def test_one_share_too_few_fits_every_secret(guess):
    """t - 1 shares of one secret are as well shares of any other: there is a polynomial through both."""
    shares = dict(zip([1, 2, 3], shamir.split(42, 3, [1, 2, 3], os.urandom), strict=True))
    known = {1: shares[1], 2: shares[2]}
    weights = shamir.weights([1, 2, 3])
    third = (guess - shamir.interpolate(weights[:2], list(known.values()))) * pow(weights[2], -1, P) % P
    assert shamir.combine({**known, 3: third}, 3) == guess


@given(sharings(), st.data())
def test_wrong_shares_are_corrected_and_named(sharing, data):
    secret, t, shares = sharing
    errors = data.draw(st.integers(0, (len(shares) - t) // 2))
    wrong = data.draw(st.permutations(sorted(shares)))[:errors]
    for x in wrong:
        shares[x] = (shares[x] + data.draw(st.integers(1, P - 1))) % P
    assert shamir.correct(shares, t) == (secret, frozenset(wrong))


def test_too_many_wrong_shares_are_refused():
    shares = dict(enumerate(shamir.split(5, 3, range(1, 6), os.urandom), 1))
    for pair in combinations(shares, 2):
        spoilt = {x: (y + 10**x) % P if x in pair else y for x, y in shares.items()}
        with pytest.raises(BadShare):
            shamir.correct(spoilt, 3)
    with pytest.raises(TooFewSurvivors):
        shamir.correct({1: 1, 2: 2}, 3)


@pytest.mark.parametrize("value", [0, 1, P - 1])
def test_extreme_secrets(value):
    shares = dict(enumerate(shamir.split(value, 2, [1, 2, 3], os.urandom), 1))
    assert shamir.correct(shares, 2) == (value, frozenset())
    assert shamir.from_bytes(shamir.to_bytes(value)) == value


@given(st.binary(max_size=40) | st.integers(P, 2**256 - 1).map(lambda value: value.to_bytes(32, "little")))
def test_any_bytes_are_a_share_or_refused(data):
    try:
        assert shamir.to_bytes(shamir.from_bytes(data)) == data
    except BadShare:
        assert len(data) != 32 or int.from_bytes(data, "little") >= P


@pytest.mark.parametrize(
    ("secret", "t", "xs"),
    [(1, 2, [0, 1]), (1, 2, [1, 1]), (1, 3, [1, 2]), (1, 0, [1]), (P, 1, [1]), (-1, 1, [1]), (1, 1, [P])],
)
def test_unsafe_sharings_are_refused(secret, t, xs):
    with pytest.raises(ValueError, match="points"):
        shamir.split(secret, t, xs, os.urandom)


def test_random_elements_are_drawn_again_above_p():
    draws = iter([P.to_bytes(32, "little"), b"\xff" * 32, (9).to_bytes(32, "little")])
    assert shamir.random_element(lambda size: next(draws)) == 9
