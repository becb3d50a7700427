"""Masks: AES-256-CTR keystreams added to a vector of words, mod 2**32 or 2**64 (protocol.md 2.2 message 5).

    PRG(key) = AES-256-CTR(key, counter block 0) read as little-endian words of 32 bits (64 where bits = 64)

Words of fewer than 32 bits are masked as 32-bit words and reduced mod 2**bits at the end: reduction commutes with
addition, so the sums are the same. Keystreams are seekable: any stretch of a long vector can be (un)masked alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

from cloister.vector.errors import MalformedMessage
from cloister.vector.layout import Words, word_dtype

BLOCK = 16  # bytes of one AES block
CHUNK = 1 << 17  # bytes of keystream at a time: with the words they meet, these stay in a core's L2 cache
ZEROS = bytes(CHUNK)
STREAMS = 4096  # keystreams that are open at a time, where many vectors are masked together

Seed = tuple[bytes, int]  # a key of 32 bytes, and +1 to add its keystream or -1 to subtract it


def keystream(key: bytes, offset: int) -> CipherContext:
    """The keystream of `key` from byte `offset` on."""
    stream = Cipher(AES256(key), CTR((offset // BLOCK).to_bytes(BLOCK, "big"))).encryptor()
    if offset % BLOCK:
        stream.update(ZEROS[: offset % BLOCK])
    return stream


def add_mask(words: Words, key: bytes, sign: int = 1, start: int = 0) -> None:
    """Adds (sign +1) or subtracts (-1) the keystream of one key, in place. See `apply_masks`."""
    apply_masks(words, [(key, sign)], start)


def apply_masks(words: Words, seeds: Sequence[Seed], start: int = 0, threads: int = 1) -> None:
    """Adds or subtracts the keystreams of many keys, in place, wrapping mod 2**32 or 2**64.

    Args:
      words: contiguous uint32 or uint64: the stretch of a vector that begins at its word `start`.
      seeds: the keys and signs.
      threads: how many cores share the work (AES and numpy release the interpreter's lock).
    """
    if threads == 1 or words.nbytes < threads * CHUNK:
        return _apply(words, seeds, start)
    share = -(-len(words) // threads)
    with ThreadPoolExecutor(threads) as pool:
        pieces = range(0, len(words), share)
        for done in [pool.submit(_apply, words[at : at + share], seeds, start + at) for at in pieces]:
            done.result()
    return None


def _apply(words: Words, seeds: Sequence[Seed], start: int) -> None:
    streams = Keystreams(seeds, start, words.dtype)
    for at in range(0, len(words), streams.stretch):
        streams.apply(words[at : at + streams.stretch])


class Keystreams:
    """The keystreams of many keys, applied to one stretch of a vector after the other.

    Args: seeds: the keys and signs. start: the word at which the first stretch begins. dtype: of the words.
    Attributes: stretch: words at a time, at most; the stretch and a mask stay in a core's cache.
    """

    def __init__(self, seeds: Sequence[Seed], start: int, dtype: np.dtype[Any]) -> None:
        self._streams = [(keystream(key, start * dtype.itemsize).update_into, sign) for key, sign in seeds]
        self._scratch = np.empty(CHUNK, np.uint8)
        self._mask = self._scratch.view(dtype.newbyteorder("<"))
        self.stretch = len(self._mask)

    def apply(self, part: npt.NDArray[Any]) -> None:
        """Adds or subtracts the next words of all keystreams, in place. Args: part: the next stretch."""
        zeros, mask, scratch = memoryview(ZEROS)[: part.nbytes], self._mask[: len(part)], self._scratch.data
        for fill, sign in self._streams:
            fill(zeros, scratch)
            (np.add if sign > 0 else np.subtract)(part, mask, out=part)


def reduce(words: Words, bits: int) -> None:
    """Reduces every word mod 2**bits, in place."""
    if bits not in (32, 64):
        words &= words.dtype.type((1 << bits) - 1)


def packed_bytes(size: int, bits: int) -> int:
    """Bytes that `size` packed words take."""
    return -(-size * bits // 8)


def pack(words: Words, bits: int) -> memoryview:
    """Words below 2**bits as a little-endian stream of bits, `packed_bytes` long; shares memory at 32 and 64 bits."""
    little = np.ascontiguousarray(words, word_dtype(bits).newbyteorder("<"))
    if bits in (32, 64):
        return little.view(np.uint8).data
    if bits == 16:
        return little.astype("<u2").view(np.uint8).data
    octets = little.view(np.uint8).reshape(-1, 4)
    if bits == 24:
        return octets[:, :3].reshape(-1).data
    # 20 bits: two words make five bytes
    pairs = np.zeros(-(-len(words) // 2) * 2, np.uint64)
    pairs[: len(words)] = little
    joined = (pairs[::2] | (pairs[1::2] << np.uint64(20))).astype("<u8")
    return joined.view(np.uint8).reshape(-1, 8)[:, :5].reshape(-1)[: packed_bytes(len(words), bits)].data


def add_packed(words: Words, data: bytes | memoryview, bits: int) -> None:
    """Adds what `unpack` would give to `words`, in place, wrapping; without a copy where words are whole bytes.

    Raises: MalformedMessage: another length than that of so many words, or stray bits.
    """
    if bits in (16, 32, 64) and len(data) == packed_bytes(len(words), bits):
        words += np.frombuffer(data, f"<u{bits // 8}")
    else:
        words += unpack(data, len(words), bits)


def unpack(data: bytes | memoryview, size: int, bits: int) -> Words:
    """Undoes `pack`; the words are the caller's own. Raises: MalformedMessage: another length, or stray bits."""
    if len(data) != packed_bytes(size, bits):
        raise MalformedMessage(f"{len(data)} bytes for {size} words of {bits} bits")
    octets = np.frombuffer(data, np.uint8)
    if bits in (16, 32, 64):
        return octets.view(f"<u{bits // 8}").astype(word_dtype(bits))
    if bits == 24:
        padded = np.zeros((size, 4), np.uint8)
        padded[:, :3] = octets.reshape(size, 3)
        return padded.view("<u4").reshape(size).astype(np.uint32)
    if size % 2 and octets[-1] >> 4:
        raise MalformedMessage("stray bits behind the last word")
    grouped = np.zeros((-(-size // 2), 8), np.uint8)
    whole = np.zeros(len(grouped) * 5, np.uint8)
    whole[: len(octets)] = octets
    grouped[:, :5] = whole.reshape(-1, 5)
    joined = grouped.view("<u8").reshape(-1)
    words = np.empty(len(joined) * 2, np.uint32)
    words[::2] = joined & np.uint64(0xFFFFF)
    words[1::2] = joined >> np.uint64(20)
    return words[:size]
