"""Merkle trees after RFC 9162, section 2.1: roots, inclusion proofs and consistency proofs.

    leaf = SHA-256(0x00 || data)        node = SHA-256(0x01 || left || right)        no leaves: SHA-256("")

A masked vector is hashed as it streams by (`MerkleBuilder`, leaves of 64 KiB), so that a site signs for each piece of
it; the log of receipts proves with the same hashes that it holds a receipt and only ever grew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

LEAF_BYTES = 1 << 16  # of a masked vector in one leaf


def leaf_hash(data: bytes | memoryview) -> bytes:
    state = hashlib.sha256(b"\x00")
    state.update(data)
    return state.digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _split(size: int) -> int:
    """k of the RFC: the largest power of two below `size` (size > 1)."""
    return 1 << ((size - 1).bit_length() - 1)


def root(leaves: Sequence[bytes]) -> bytes:
    """MTH: the root over leaf hashes, in order."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = _split(len(leaves))
    return node_hash(root(leaves[:k]), root(leaves[k:]))


class MerkleBuilder:
    """The root over a stream in leaves of LEAF_BYTES (the last may be shorter), however it is cut into updates."""

    def __init__(self) -> None:
        self._leaves: list[bytes] = []
        self._leaf = hashlib.sha256(b"\x00")
        self._filled = 0  # bytes of the leaf that is being filled

    def update(self, data: bytes | memoryview) -> None:
        view, at = memoryview(data).cast("B"), 0
        while at < len(view):
            part = view[at : at + LEAF_BYTES - self._filled]
            self._leaf.update(part)
            self._filled += len(part)
            at += len(part)
            if self._filled == LEAF_BYTES:
                self._close_leaf()

    def _close_leaf(self) -> None:
        self._leaves.append(self._leaf.digest())
        self._leaf, self._filled = hashlib.sha256(b"\x00"), 0

    def leaves(self) -> list[bytes]:
        """The leaf hashes of the whole stream, the unfinished leaf included."""
        return self._leaves + ([self._leaf.digest()] if self._filled else [])

    def root(self) -> bytes:
        return root(self.leaves())


def root_of(data: bytes | memoryview) -> bytes:
    """The root over bytes that are all at hand."""
    builder = MerkleBuilder()
    builder.update(data)
    return builder.root()


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """PATH (RFC 9162, 2.1.3.1): the hashes that lead from leaf `index` to the root. Raises: IndexError."""
    if not 0 <= index < len(leaves):
        raise IndexError(f"leaf {index} of {len(leaves)}")
    if len(leaves) == 1:
        return []
    k = _split(len(leaves))
    if index < k:
        return [*inclusion_proof(leaves[:k], index), root(leaves[k:])]
    return [*inclusion_proof(leaves[k:], index - k), root(leaves[:k])]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether `leaf` is number `index` of the `size` leaves under `root` (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    fn, sn, found = index, size - 1, leaf
    for sibling in proof:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            found = node_hash(sibling, found)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            found = node_hash(found, sibling)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and found == root


def consistency_proof(leaves: Sequence[bytes], old_size: int) -> list[bytes]:
    """PROOF (RFC 9162, 2.1.4.1): that the first `old_size` leaves are what they were. Raises: IndexError."""
    if not 0 < old_size <= len(leaves):
        raise IndexError(f"{old_size} of {len(leaves)} leaves")
    return _subproof(leaves, old_size, whole=True)


def _subproof(leaves: Sequence[bytes], m: int, whole: bool) -> list[bytes]:
    if m == len(leaves):
        return [] if whole else [root(leaves)]
    k = _split(len(leaves))
    if m <= k:
        return [*_subproof(leaves[:k], m, whole), root(leaves[k:])]
    return [*_subproof(leaves[k:], m - k, whole=False), root(leaves[:k])]


def verify_consistency(
    old_size: int, new_size: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes
) -> bool:
    """Whether the tree of `new_size` leaves begins with the `old_size` leaves of the old one (RFC 9162, 2.1.4.2)."""
    if not 0 < old_size <= new_size:
        return False
    if old_size == new_size:
        return not proof and old_root == new_root
    path = [old_root, *proof] if old_size & (old_size - 1) == 0 else list(proof)
    if not path:
        return False
    fn, sn = old_size - 1, new_size - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    old_found = new_found = path[0]
    for sibling in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            old_found, new_found = node_hash(sibling, old_found), node_hash(sibling, new_found)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            new_found = node_hash(new_found, sibling)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and old_found == old_root and new_found == new_root
