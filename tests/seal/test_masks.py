"""Masks: the keystream, that it can be sought, that masks cancel, and packing."""

from __future__ import annotations

import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import given
from hypothesis import strategies as st

from cloister.seal import masks
from cloister.seal.together import apply_together
from cloister.vector.errors import MalformedMessage
from cloister.vector.layout import BITS, word_dtype

KEY = bytes(range(32))


def keystream(key: bytes, blocks: int) -> bytes:
    """CTR mode by its definition: the block cipher of the counters 0, 1, 2 ..., big endian."""
    counters = b"".join(block.to_bytes(16, "big") for block in range(blocks))
    return Cipher(AES256(key), ECB()).encryptor().update(counters)


def vector(size: int, bits: int) -> np.ndarray:
    words = np.frombuffer(os.urandom(size * word_dtype(bits).itemsize), word_dtype(bits)).copy()
    masks.reduce(words, bits)
    return words


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_mask_is_the_keystream_as_little_endian_words(dtype):
    words = np.zeros(100, dtype)
    masks.add_mask(words, KEY)
    assert words.astype(words.dtype.newbyteorder("<")).tobytes() == keystream(KEY, 50)[: words.nbytes]


def test_mask_frozen():
    words = np.zeros(4, np.uint32)
    masks.add_mask(words, KEY)
    assert [f"{word:08x}" for word in words] == ["b60090f2", "d09f492a", "6a9af3a9", "80772edd"]


@given(st.integers(0, 300_000), st.integers(0, 70_000), st.sampled_from([np.uint32, np.uint64]))
def test_any_stretch_can_be_masked_alone(start, size, dtype):
    whole = np.zeros(start + size, dtype)
    masks.add_mask(whole, KEY)
    part = np.zeros(size, dtype)
    masks.add_mask(part, KEY, start=start)
    np.testing.assert_array_equal(part, whole[start:])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads):
    words = vector(300_001, 32)
    expected = words.copy()
    seeds = [(os.urandom(32), sign) for sign in (1, -1, 1)]
    for key, sign in seeds:
        masks.add_mask(expected, key, sign, start=5)
    masks.apply_masks(words, seeds, start=5, threads=threads)
    np.testing.assert_array_equal(words, expected)


@pytest.mark.parametrize("bits", BITS)
def test_pair_masks_cancel_in_the_sum_and_hide_each_summand(bits):
    """Three sites, a mask for each two: the sum mod 2**bits is that of the bare words."""
    size, names = 1000, range(3)
    keys = {(a, b): os.urandom(32) for a in names for b in names if a < b}
    bare = [vector(size, bits) for _ in names]
    masked = [words.copy() for words in bare]
    for name, words in zip(names, masked, strict=True):
        signed = [(key, 1 if name == a else -1) for (a, b), key in keys.items() if name in (a, b)]
        masks.apply_masks(words, signed)
        masks.reduce(words, bits)
        assert (words != bare[name]).mean() > 0.99
        assert int(words.max()) < 1 << bits
    totals = [np.add.reduce(words, dtype=words[0].dtype) for words in (bare, masked)]
    for total in totals:
        masks.reduce(total, bits)
    np.testing.assert_array_equal(*totals)


def test_masked_zeros_are_uniform():
    """Chi-square over byte values of a million masked zeros; the key is fixed, so it passes always or never."""
    words = np.zeros(1_000_000, np.uint32)
    masks.apply_masks(words, [(KEY, 1), (KEY[::-1], -1)])
    counts = np.bincount(words.view(np.uint8), minlength=256)
    chi_square = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    assert 180 < chi_square < 340  # 255 degrees of freedom: mean 255, five standard deviations are 113


@given(st.integers(0, 70), st.sampled_from(BITS))
def test_pack_round_trip(size, bits):
    words = vector(size, bits)
    packed = masks.pack(words, bits)
    assert len(packed) == masks.packed_bytes(size, bits) == -(-size * bits // 8)
    for data in (packed, bytes(packed)):
        unpacked = masks.unpack(data, size, bits)
        np.testing.assert_array_equal(unpacked, words)
        assert unpacked.dtype == words.dtype
        assert unpacked.flags.writeable


@given(st.lists(st.integers(0, (1 << 20) - 1), max_size=20), st.sampled_from(BITS))
def test_packed_bits_are_one_little_endian_number(values, bits):
    values = [value % (1 << bits) for value in values]
    number = sum(value << (bits * place) for place, value in enumerate(values))
    spelled = number.to_bytes(-(-len(values) * bits // 8), "little")
    assert bytes(masks.pack(np.array(values, word_dtype(bits)), bits)) == spelled


@given(st.binary(max_size=40), st.integers(0, 20), st.sampled_from(BITS))
def test_any_bytes_are_unpacked_or_refused(data, size, bits):
    try:
        words = masks.unpack(data, size, bits)
    except MalformedMessage:
        return
    assert bytes(masks.pack(words, bits)) == data


@pytest.mark.parametrize(("data", "size", "bits"), [(b"123", 1, 32), (b"", 1, 16), (b"\x00\x00\xff", 1, 20)])
def test_stray_or_missing_bits_are_refused(data, size, bits):
    with pytest.raises(MalformedMessage):
        masks.unpack(data, size, bits)


@pytest.mark.parametrize("bits", BITS)
def test_packed_words_are_added_as_unpacked_ones(bits: int) -> None:
    rng = np.random.default_rng(bits)
    dtype = np.uint64 if bits == 64 else np.uint32
    values = rng.integers(0, 1 << bits, 1001, dtype=np.uint64).astype(dtype)
    total = rng.integers(0, 1 << 32, 1001, dtype=np.uint64).astype(dtype)
    expected = total + values
    masks.add_packed(total, masks.pack(values, bits), bits)
    assert np.array_equal(total, expected)
    with pytest.raises(MalformedMessage):
        masks.add_packed(total, masks.pack(values[:-2], bits), bits)
    assert np.array_equal(total, expected), "a refused payload changed the sum"


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_masking_together_is_masking_each_alone(dtype, threads, monkeypatch):
    monkeypatch.setattr(masks, "STREAMS", 3)  # so that there are several batches
    size = 2 * masks.CHUNK // np.dtype(dtype).itemsize + 7
    shared = [os.urandom(32) for _ in range(5)]
    seeds = [[(os.urandom(32), 1), *((key, sign) for key in shared[at:])] for at, sign in enumerate((1, -1, 1))]
    alone = [np.arange(size, dtype=dtype) + dtype(at) for at in range(3)]
    together = [vector.copy() for vector in alone]
    for vector, own in zip(alone, seeds, strict=True):
        masks.apply_masks(vector, own)
    apply_together(together, seeds, threads)
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))
