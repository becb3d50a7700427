"""Noise for privacy: the discrete Gaussian over the integers, drawn exactly, from a stream that nobody can predict.

No floating-point noise anywhere: its low bits give away what it was added to (Mironov, CCS 2012; Jin et al., S&P
2022). The discrete Gaussian: Canonne, Kamath, Steinke, NeurIPS 2020, https://arxiv.org/abs/2004.00010. It is drawn by
inverting its distribution function, a table of 128-bit integers made by integer arithmetic alone, the same on every
machine. A draw looks at 64 random bits; only where these tie with an entry of the table (one draw in 2**48 or fewer)
at 64 more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

Randomness = Callable[[int], bytes]  # so many unpredictable bytes: os.urandom
Integers = npt.NDArray[np.int64]

TAILS = 12  # deviations kept on each side: what is cut off has probability exp(-72), 2**-103
PRECISION = 384  # bits of the table's arithmetic; its entries have 128
CHUNK = 1 << 14  # draws at a time: scratch stays in a core's L2 cache
GUIDE_BITS = 16
LARGEST_DEVIATION = 1 << 16  # of one table
LARGEST_TABLE = 1 << 12  # deviation up to which the table is small enough for a core's cache
COARSE_STEP, FINE_DEVIATION = 64, 256.0


class Stream:
    """Unpredictable bytes, fast: the AES-256-CTR keystream of a fresh key. Args: randomness: of that key."""

    def __init__(self, randomness: Randomness) -> None:
        self._cipher = Cipher(AES256(randomness(32)), CTR(bytes(16))).encryptor()
        self._zeros = bytes(8 * CHUNK)

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """uint64[count], uniform; count is at most CHUNK."""
        scratch = np.empty(8 * count, np.uint8)
        self._cipher.update_into(memoryview(self._zeros)[: 8 * count], scratch.data)
        return scratch.view("<u8")

    def coins(self, chance: float, count: int) -> npt.NDArray[np.bool_]:
        """bool[count]: each is true with this chance (rounded down to a multiple of 2**-64), independently."""
        if chance >= 1.0:
            return np.ones(count, np.bool_)
        limit = np.uint64(math.floor(Fraction(chance) * 2**64))
        return np.concatenate([self.words(size) < limit for size in _sizes(count)] or [np.ones(0, np.bool_)])

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """float64[count] in [0, 1), multiples of 2**-53."""
        parts = [(self.words(size) >> np.uint64(11)) * 2.0**-53 for size in _sizes(count)]
        return np.concatenate(parts or [np.zeros(0)])


class DiscreteGaussian:
    """P(X = x) proportional to exp(-x**2 / (2 deviation**2)) on the integers, cut off at TAILS deviations.

    Args: deviation: of the untruncated distribution's formula, at least 0.5 and at most LARGEST_DEVIATION.
    """

    def __init__(self, deviation: float) -> None:
        if not 0.5 <= deviation <= LARGEST_DEVIATION:
            raise ValueError(f"a deviation of {deviation} steps is not between 0.5 and {LARGEST_DEVIATION}")
        self.deviation = deviation
        table = distribution(deviation)
        self._offset = (len(table) - 1) // 2
        self._table = table
        self._high = np.array([entry >> 64 for entry in table[:-1]], np.uint64)  # the last is 2**128
        # for each value of the top bits: how many entries lie below, and whether more than one lies within
        starts = np.arange(1 << GUIDE_BITS, dtype=np.uint64) << np.uint64(64 - GUIDE_BITS)
        self._guide = np.searchsorted(self._high, starts, side="left").astype(np.int32)
        within = np.diff(np.append(self._guide, len(self._high)))
        self._crowded = within > 1
        self._high = np.append(self._high, np.uint64(2**64 - 1))  # so that looking one further is looking somewhere

    def sample(self, stream: Stream, count: int) -> Integers:
        """int64[count], independent draws."""
        drawn = np.empty(count, np.int64)
        at = 0
        for size in _sizes(count):
            self._draw(stream, drawn[at : at + size])
            at += size
        return drawn

    def _draw(self, stream: Stream, into: Integers) -> None:
        """The number of entries of the table that are at most the drawn number, less the table's middle."""
        word = stream.words(len(into))
        bucket = (word >> np.uint64(64 - GUIDE_BITS)).astype(np.int32)
        place = self._guide[bucket]
        entry = self._high[place]
        tied = entry == word
        place += entry <= word
        crowded = np.flatnonzero(self._crowded[bucket])
        if crowded.size:
            place[crowded] = np.searchsorted(self._high[:-1], word[crowded], side="right")
            tied[crowded] = self._high[np.maximum(place[crowded] - 1, 0)] == word[crowded]
        for at in np.flatnonzero(tied):  # the entry's lower half decides
            place[at] = self._place((int(word[at]) << 64) | int(stream.words(1)[0]))
        np.subtract(place, self._offset, out=into)

    def _place(self, number: int) -> int:
        """The same for a number of 128 bits, without numpy."""
        low, high = 0, len(self._table) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self._table[middle] <= number else (low, middle)
        return low


class WideGaussian:
    """Of a deviation whose table would be large: COARSE_STEP times one discrete Gaussian, plus another of
    FINE_DEVIATION.

    The sum is a discrete Gaussian to within a factor of 1 +- exp(-2 pi**2 (FINE_DEVIATION / COARSE_STEP)**2), 2**-455
    (Micciancio, Walter, CRYPTO 2017, theorem 3, https://eprint.iacr.org/2017/259).
    """

    def __init__(self, deviation: float) -> None:
        self.deviation = deviation
        self._coarse = DiscreteGaussian(math.sqrt(deviation**2 - FINE_DEVIATION**2) / COARSE_STEP)
        self._fine = DiscreteGaussian(FINE_DEVIATION)

    def sample(self, stream: Stream, count: int) -> Integers:
        """int64[count], independent draws."""
        return COARSE_STEP * self._coarse.sample(stream, count) + self._fine.sample(stream, count)


@lru_cache(maxsize=16)
def gaussian(deviation: float) -> DiscreteGaussian | WideGaussian:
    """The sampler of this deviation, in steps; made once."""
    return DiscreteGaussian(deviation) if deviation <= LARGEST_TABLE else WideGaussian(deviation)


def distribution(deviation: float) -> list[int]:
    """floor(2**128 P(X <= x)) for x from -m to m, m = ceil(TAILS * deviation); the last is 2**128."""
    variance = Fraction(deviation) ** 2
    most = math.ceil(TAILS * deviation)
    ratio, square = _exp(1 / (2 * variance)), _exp(1 / variance)
    weights = [1 << PRECISION]  # exp(-x**2 / (2 variance)), each from the one before
    for _ in range(most):
        weights.append(weights[-1] * ratio >> PRECISION)
        ratio = ratio * square >> PRECISION
    both = [*weights[:0:-1], *weights]
    total, summed, table = sum(both), 0, []
    for weight in both:
        summed += weight
        table.append((summed << 128) // total)
    return table


def _exp(x: Fraction) -> int:
    """floor(2**PRECISION exp(-x)) to within a few units, for 0 <= x <= 4."""
    term, total, order = 1 << PRECISION, 1 << PRECISION, 0
    while term:
        order += 1
        term = term * x.numerator // (x.denominator * order)
        total += -term if order % 2 else term
    return total


def _sizes(count: int) -> list[int]:
    return [min(CHUNK, count - at) for at in range(0, count, CHUNK)]
