"""Shamir's secret sharing over the integers mod p = 2**255 - 19 (Shamir 1979; protocol.md 2.2 messages 3 and 10).

Any t shares give the secret, t - 1 give nothing. Survivors answer for many secrets at the same points, so the
Lagrange coefficients are computed once (`weights`) and serve all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
