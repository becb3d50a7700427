"""Randomised Hadamard rotation: spreads a vector's length evenly over its coordinates, so that each stays small.

x -> H D x / sqrt(2**m), piece by piece (`vector.layout.padded`), with D random signs that are public: the same at
every site, from the seed in the block's `Noise`. Kairouz, Liu, Steinke, ICML 2021, section 3,
https://arxiv.org/abs/2102.06387.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from cloister.privacy.noise import CHUNK, Stream
from cloister.vector import digest
from cloister.vector.layout import padded

Floats32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
FACTOR_BITS = 5  # of the transform in one matrix product: 32 x 32


def rotate(values: Floats32 | Floats, seed: str) -> Floats32:
    """Args: values: [d]. Returns: float32[padded(d)], of the same length."""
    pieces, piece = padded(values.size)
    found = np.zeros(pieces * piece, np.float32)
    found[: values.size] = values
    found *= _signs(seed, found.size)
    return _products(found.reshape(pieces, piece)).reshape(-1)


def rotate_back(rotated: Floats, seed: str, size: int) -> Floats:
    """Undoes `rotate`, bit for bit the same on every machine: what is learnt from a sum is verified elsewhere.

    Args: rotated: float64[padded(size)], what the sum opened to. Returns: float64[size].
    """
    found = _butterflies(rotated.astype(np.float64), padded(size)[1])
    found *= _signs(seed, found.size)
    return found[:size]


def _products(x: Floats32) -> Floats32:
    """Each row times the orthonormal Hadamard matrix. A large one is the Kronecker product of small ones, so it is a
    few products with matrices that stay in a core's cache; in which order these add up is the library's affair."""
    pieces, piece = x.shape
    bits = piece.bit_length() - 1
    steps = -(-bits // FACTOR_BITS)
    left, right = pieces, piece
    for step in range(steps - 1):
        factor = 1 << (bits // steps + (step < bits % steps))
        right //= factor
        x = np.matmul(_matrix(factor, 1.0), x.reshape(left, factor, right))
        left *= factor
    turned: Floats32 = np.matmul(x.reshape(left, right), _matrix(right, 1.0 / math.sqrt(piece)))
    return turned.reshape(pieces, piece)


def _butterflies(x: Floats, piece: int) -> Floats:
    """The same of float64[pieces * piece] by sums and differences alone, in one order. Overwrites x."""
    here, there, half = x, np.empty_like(x), 1
    while half < piece:
        pairs, into = here.reshape(-1, 2, half), there.reshape(-1, 2, half)
        np.add(pairs[:, 0], pairs[:, 1], out=into[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=into[:, 1])
        here, there, half = there, here, 2 * half
    here *= 1.0 / math.sqrt(piece)
    return here


@lru_cache(maxsize=32)
def _matrix(size: int, scale: float) -> Floats32:
    """The Hadamard matrix of this size, times the scale."""
    found = np.ones((1, 1), np.float32)
    while len(found) < size:
        found = np.block([[found, found], [found, -found]])
    return found * np.float32(scale)


def _signs(seed: str, size: int) -> Floats32:
    """float32[size] of -1 and 1."""
    key = digest(b"cloister/v1/rotation" + bytes.fromhex(seed))
    stream, words = Stream(lambda count: key[:count]), -(-size // 64)
    drawn = [stream.words(min(CHUNK, words - at)) for at in range(0, words, CHUNK)]
    bits = np.unpackbits(np.concatenate(drawn).view(np.uint8), count=size, bitorder="little")
    return 1.0 - 2.0 * bits.astype(np.float32)
