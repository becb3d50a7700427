"""All sites of a simulation masked at once: the same bytes, in less time, since both ends of a pair are here.

For simulations alone: a site has no business with another's seeds, and never imports this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from cloister.seal.client import SealClient
from cloister.seal.masks import CHUNK, STREAMS, ZEROS, Seed, keystream
from cloister.vector.layout import Words


def mask_together(
    clients: Sequence[SealClient], contributions: Sequence[Words], threads: int
) -> list[tuple[bytes, memoryview]]:
    """`SealClient.mask` of all these sites, but both ends of a pair share one keystream."""
    for client, words in zip(clients, contributions, strict=True):
        client.check_words(words)
    vectors = [words.copy() for words in contributions]
    apply_together(vectors, [client.mask_seeds() for client in clients], threads)
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(SealClient.announced, clients, vectors))


def apply_together(vectors: Sequence[Words], seeds: Sequence[Sequence[Seed]], threads: int = 1) -> None:
    """What `apply_masks` does to each vector, in place; a keystream that several vectors meet is made once.

    Args: vectors: contiguous, all of one length and dtype. seeds: of each vector.
    """
    meets: dict[bytes, list[tuple[int, int]]] = {}
    for place, own in enumerate(seeds):
        for key, sign in own:
            meets.setdefault(key, []).append((place, sign))
    size = len(vectors[0])
    share = max(CHUNK, -(-size // threads))
    with ThreadPoolExecutor(threads) as pool:
        pieces = [(at, min(at + share, size)) for at in range(0, size, share)]
        for done in [pool.submit(_apply_together, vectors, meets, *piece) for piece in pieces]:
            done.result()


def _apply_together(
    vectors: Sequence[Words], meets: Mapping[bytes, Sequence[tuple[int, int]]], first: int, last: int
) -> None:
    width, dtype = vectors[0].dtype.itemsize, vectors[0].dtype.newbyteorder("<")
    scratch = np.empty(CHUNK, np.uint8)
    mask, step, waiting = scratch.view(dtype), CHUNK // width, iter(meets.items())
    while batch := list(islice(waiting, STREAMS)):
        streams = [(keystream(key, first * width).update_into, uses) for key, uses in batch]
        for at in range(first, last, step):
            parts = [vector[at : min(at + step, last)] for vector in vectors]
            zeros, stretch = memoryview(ZEROS)[: parts[0].nbytes], mask[: len(parts[0])]
            for fill, uses in streams:
                fill(zeros, scratch.data)
                for place, sign in uses:
                    (np.add if sign > 0 else np.subtract)(parts[place], stretch, out=parts[place])
