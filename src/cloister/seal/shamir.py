"""Shamir's secret sharing over the integers mod p = 2**255 - 19 (Shamir 1979; protocol.md 2.2 messages 3 and 10).

Any t shares give the secret, t - 1 give nothing. Survivors answer for many secrets at the same points, so the
Lagrange coefficients are computed once (`weights`) and serve all of them. Where some shares may be wrong, `correct`
finds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from operator import mul

from cloister.seal.identity import Randomness
from cloister.vector.errors import BadShare, TooFewSurvivors

P = 2**255 - 19
SHARE_BYTES = 32
REDUCE_EVERY = 8  # Horner steps between reductions mod p: a product with a point of few bits grows slowly


def to_bytes(value: int) -> bytes:
    """A share or secret as 32 bytes, little endian."""
    return value.to_bytes(SHARE_BYTES, "little")


def from_bytes(data: bytes) -> int:
    """Raises: BadShare: not 32 bytes, or not below p."""
    value = int.from_bytes(data, "little")
    if len(data) != SHARE_BYTES or value >= P:
        raise BadShare("a share is not a number below p")
    return value


def random_element(randomness: Randomness) -> int:
    """A uniform element of the field: rejection, so that no residue is likelier than another."""
    while True:
        value = int.from_bytes(randomness(SHARE_BYTES), "little") & ((1 << 255) - 1)
        if value < P:
            return value


def split(secret: int, t: int, xs: Sequence[int], randomness: Randomness) -> list[int]:
    """Shares `secret` so that any t of the shares determine it.

    Args: secret: in [0, p). xs: the distinct points, never 0 (the share at 0 is the secret).
    Returns: the polynomial's value at each point, in the order of xs.
    Raises: ValueError: points or threshold that share nothing safely.
    """
    if not 1 <= t <= len(xs) or len(set(xs)) != len(xs) or any(not 0 < x < P for x in xs) or not 0 <= secret < P:
        raise ValueError("t points at least, all distinct and not 0, and a secret below p")
    coefficients = [random_element(randomness) for _ in range(t - 1)]
    return [_evaluate(coefficients, secret, x) for x in xs]


def _evaluate(coefficients: Sequence[int], constant: int, x: int) -> int:
    value = 0
    for step, coefficient in enumerate(coefficients):
        value = (value + coefficient) * x
        if step % REDUCE_EVERY == 0:
            value %= P
    return (value + constant) % P


def weights(xs: Sequence[int]) -> list[int]:
    """The Lagrange coefficients w with f(0) = sum w_i f(x_i) for every f of degree below len(xs)."""
    found = []
    for x in xs:
        above, below = 1, 1
        for other in xs:
            if other != x:
                above = above * other % P
                below = below * (other - x) % P
        found.append(above * pow(below, -1, P) % P)
    return found


def interpolate(weights: Sequence[int], ys: Sequence[int]) -> int:
    """f(0) from the values at the points of `weights`, in the same order."""
    products: int = sum(map(mul, weights, ys))  # one reduction for all: the sum grows by a few bits only
    return products % P


def combine(shares: Mapping[int, int], t: int) -> int:
    """The secret, from the t shares at the smallest points. Raises: TooFewSurvivors: fewer than t."""
    if len(shares) < t:
        raise TooFewSurvivors(f"{len(shares)} shares of a secret that {t} open.")
    xs = sorted(shares)[:t]
    return interpolate(weights(xs), [shares[x] for x in xs])


def correct(shares: Mapping[int, int], t: int) -> tuple[int, frozenset[int]]:
    """The secret and the points whose shares are wrong: of m shares, up to (m - t) // 2 may be.

    Gao 2003, "A new algorithm for decoding Reed-Solomon codes": interpolate all m points, then stop Euclid's
    algorithm between that polynomial and prod (z - x_i) half-way; the quotient is the sharing polynomial. O(m**2).
    Where more are wrong they may agree on another polynomial: check the secret against its commitment.
    Raises: TooFewSurvivors: fewer than t shares. BadShare: too many are wrong to tell which.
    """
    if len(shares) < t:
        raise TooFewSurvivors(f"{len(shares)} shares of a secret that {t} open.")
    xs = sorted(shares)
    locator, received = _vanishing(xs), _interpolation(xs, [shares[x] for x in xs])
    older, newer, v_older, v_newer = locator, received, list[int](), [1]
    while 2 * (len(newer) - 1) >= len(xs) + t:
        quotient, remainder = _divide(older, newer)
        older, newer = newer, remainder
        v_older, v_newer = v_newer, _subtract(v_older, _product(quotient, v_newer))
    polynomial, remainder = _divide(newer, v_newer)
    if not remainder and len(polynomial) <= t:
        wrong = frozenset(x for x in xs if _value(polynomial, x) != shares[x])
        if 2 * len(wrong) <= len(xs) - t:
            return _value(polynomial, 0), wrong
    raise BadShare(f"too many of {len(xs)} shares are wrong to tell which")


# Polynomials over the field: coefficients from the constant term up, the last never 0; [] is zero.


def _trim(a: list[int]) -> list[int]:
    while a and a[-1] == 0:
        a.pop()
    return a


def _value(a: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in reversed(a):
        value = (value * x + coefficient) % P
    return value


def _subtract(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return _trim([(x - y) % P for x, y in zip_longest(a, b, fillvalue=0)])


def _product(a: Sequence[int], b: Sequence[int]) -> list[int]:
    found = [0] * (len(a) + len(b) - 1) if a and b else []
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            found[i + j] += x * y
    return _trim([value % P for value in found])


def _divide(a: Sequence[int], b: Sequence[int]) -> tuple[list[int], list[int]]:
    """Quotient and remainder of a by b != 0."""
    rest, inverse = list(a), pow(b[-1], -1, P)
    quotient = [0] * max(len(a) - len(b) + 1, 0)
    for at in reversed(range(len(quotient))):
        factor = quotient[at] = rest[at + len(b) - 1] * inverse % P
        for j, y in enumerate(b):
            rest[at + j] = (rest[at + j] - factor * y) % P
    return _trim(quotient), _trim(rest)


def _vanishing(xs: Sequence[int]) -> list[int]:
    """prod (z - x) over xs."""
    found = [1]
    for x in xs:
        found = [(up - x * here) % P for up, here in zip([0, *found], [*found, 0], strict=True)]
    return found


def _interpolation(xs: Sequence[int], ys: Sequence[int]) -> list[int]:
    """The polynomial of degree below len(xs) through the points: Newton's divided differences."""
    differences, inverses = list(ys), dict[int, int]()  # the points are small numbers, so few distances occur
    for order in range(1, len(xs)):
        for i in reversed(range(order, len(xs))):
            rise, run = differences[i] - differences[i - 1], xs[i] - xs[i - order]
            if run not in inverses:
                inverses[run] = pow(run, -1, P)
            differences[i] = rise * inverses[run] % P
    found: list[int] = []
    for x, difference in zip(reversed(xs), reversed(differences), strict=True):
        found = [(up - x * here) % P for up, here in zip([0, *found], [*found, 0], strict=True)]
        found[0] = (found[0] + difference) % P
    return _trim(found)
