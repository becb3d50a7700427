"""Randomised Hadamard rotation: spreads a vector's length evenly over its coordinates, so that each stays small.

x -> H D x / sqrt(2**m), piece by piece (`vector.layout.padded`), with D random signs that are public: the same at
every site, from the seed in the block's `Noise`. Kairouz, Liu, Steinke, ICML 2021, section 3,
https://arxiv.org/abs/2102.06387.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.privacy.noise import CHUNK, Stream
from cloister.vector import digest
from cloister.vector.layout import padded

Floats32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
FACTOR = 64  # the lowest bits of the transform are one matrix product


def rotate(values: Floats32 | Floats, seed: str) -> Floats32:
    """Args: values: [d]. Returns: float32[padded(d)], of the same length."""
    pieces, piece = padded(values.size)
    found = np.zeros(pieces * piece, np.float32)
    found[: values.size] = values
    found *= _signs(seed, found.size)
    return _hadamard(found.reshape(pieces, piece)).reshape(-1)


def rotate_back(rotated: npt.NDArray[np.float64], seed: str, size: int) -> npt.NDArray[np.float64]:
    """Undoes `rotate`. Args: rotated: [padded(size)], what the sum opened to. Returns: float64[size]."""
    pieces, piece = padded(size)
    found = _hadamard(rotated.astype(np.float32).reshape(pieces, piece)).reshape(-1)
    found *= _signs(seed, found.size)
    return found[:size].astype(np.float64)


def _hadamard(x: Floats32) -> Floats32:
    """Each row times the orthonormal Hadamard matrix; overwrites x. The transform is its own inverse."""
    piece = x.shape[1]
    low = min(FACTOR, piece)
    scratch = np.empty(piece, np.float32)
    for row in x:
        np.matmul(row.reshape(-1, low), _matrix(low, piece), out=scratch.reshape(-1, low))
        here, there, half = scratch, row, low
        while half < piece:
            pairs, into = here.reshape(-1, 2, half), there.reshape(-1, 2, half)
            np.add(pairs[:, 0], pairs[:, 1], out=into[:, 0])
            np.subtract(pairs[:, 0], pairs[:, 1], out=into[:, 1])
            here, there, half = there, here, 2 * half
        if here is scratch:
            row[:] = scratch
    return x


@lru_cache(maxsize=8)
def _matrix(size: int, piece: int) -> Floats32:
    """The Hadamard matrix of this size, over the square root of the piece's."""
    found = np.ones((1, 1), np.float32)
    while len(found) < size:
        found = np.block([[found, found], [found, -found]])
    return found * np.float32(piece**-0.5)


def _signs(seed: str, size: int) -> Floats32:
    """float32[size] of -1 and 1."""
    key = digest(b"cloister/v1/rotation" + bytes.fromhex(seed))
    stream, words = Stream(lambda count: key[:count]), -(-size // 64)
    drawn = [stream.words(min(CHUNK, words - at)) for at in range(0, words, CHUNK)]
    bits = np.unpackbits(np.concatenate(drawn).view(np.uint8), count=size, bitorder="little")
    return 1.0 - 2.0 * bits.astype(np.float32)


def _butterflies(x: Any, first: int) -> Any:
    """Sums and differences of the coordinates `first`, 2 * first, 4 * first ... apart. Overwrites x, float[2**m]."""
    here, there, half = x, np.empty_like(x), first
    while half < x.size:
        pairs, into = here.reshape(-1, 2, half), there.reshape(-1, 2, half)
        np.add(pairs[:, 0], pairs[:, 1], out=into[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=into[:, 1])
        here, there, half = there, here, 2 * half
    return here
