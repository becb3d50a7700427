"""Merkle trees: RFC 9162's example tree, the known roots of its test data, and proofs that cannot be bent."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.seal import merkle
from cloister.seal.merkle import LEAF_BYTES, MerkleBuilder, leaf_hash, node_hash
from cloister.seal.messages import PART_BYTES

# the test data of certificate transparency's reference implementation, and the roots of its first 0 to 8 entries
ENTRIES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LEAVES = [leaf_hash(bytes.fromhex(entry)) for entry in ENTRIES]
BYTES = hashlib.shake_128(b"parts").digest(6 * PART_BYTES)


@pytest.mark.parametrize("size", range(9))
def test_known_roots(size):
    assert merkle.root(LEAVES[:size]).hex() == ROOTS[size]


def test_rfc9162_2_1_5_example_proofs():
    """The RFC's tree of seven leaves d0..d6, its nodes named as there."""
    a, b, c, d, e, f, j = LEAVES[:7]
    g, h, i = node_hash(a, b), node_hash(c, d), node_hash(e, f)
    k, left = node_hash(i, j), node_hash(g, h)
    tree = LEAVES[:7]
    assert merkle.root(tree) == node_hash(left, k)
    assert merkle.inclusion_proof(tree, 0) == [b, h, k]
    assert merkle.inclusion_proof(tree, 3) == [c, g, k]
    assert merkle.inclusion_proof(tree, 4) == [f, j, left]
    assert merkle.inclusion_proof(tree, 6) == [i, left]
    assert merkle.consistency_proof(tree, 3) == [c, d, g, k]
    assert merkle.consistency_proof(tree, 4) == [k]
    assert merkle.consistency_proof(tree, 6) == [i, j, left]


@given(st.integers(1, 40), st.data())
def test_inclusion_proofs_hold_for_their_leaf_only(size, data):
    leaves = [leaf_hash(bytes([place])) for place in range(size)]
    index = data.draw(st.integers(0, size - 1))
    proof, root = merkle.inclusion_proof(leaves, index), merkle.root(leaves)
    assert merkle.verify_inclusion(leaves[index], index, size, proof, root)
    assert not merkle.verify_inclusion(leaf_hash(b"another"), index, size, proof, root)
    assert not merkle.verify_inclusion(leaves[index], index, size, [*proof, root], root)
    assert not merkle.verify_inclusion(leaves[index], size, size, proof, root)
    if proof:
        assert not merkle.verify_inclusion(leaves[index], index, size, proof[:-1], root)
        assert not merkle.verify_inclusion(leaves[index], index ^ 1, size, proof, root)


@given(st.integers(1, 40), st.data())
def test_consistency_proofs_hold_for_their_trees_only(size, data):
    leaves = [leaf_hash(bytes([place])) for place in range(size)]
    old = data.draw(st.integers(1, size))
    roots = merkle.root(leaves[:old]), merkle.root(leaves)
    proof = merkle.consistency_proof(leaves, old)
    assert merkle.verify_consistency(old, size, proof, *roots)
    assert not merkle.verify_consistency(old, size, proof, leaf_hash(b"other"), roots[1])
    assert not merkle.verify_consistency(old, size, proof, roots[0], leaf_hash(b"other"))
    assert not merkle.verify_consistency(old, size, [*proof, roots[0]], *roots)
    assert not merkle.verify_consistency(size + 1, size, proof, *roots)
    if proof:
        assert not merkle.verify_consistency(old, size, proof[:-1], *roots)


def test_proofs_of_leaves_that_are_not_there():
    with pytest.raises(IndexError):
        merkle.inclusion_proof(LEAVES, 8)
    with pytest.raises(IndexError):
        merkle.consistency_proof(LEAVES, 9)


@given(st.integers(0, 200_000), st.lists(st.integers(1, 90_000), max_size=6))
def test_a_stream_has_the_root_of_its_leaves_however_it_is_cut(size, cuts):
    data = hashlib.shake_128(b"stream").digest(size)
    builder, at = MerkleBuilder(), 0
    for cut in cuts:
        builder.update(data[at : at + cut])
        at += cut
    builder.update(data[at:])
    leaves = [leaf_hash(data[at : at + merkle.LEAF_BYTES]) for at in range(0, size, merkle.LEAF_BYTES)]
    assert builder.leaves() == leaves
    assert builder.root() == merkle.root(leaves) == merkle.root_of(memoryview(data))


@given(st.integers(0, 1500), st.integers(0, 8))
def test_the_root_follows_from_the_roots_of_whole_subtrees(size, height):
    leaves, width = [place.to_bytes(32, "big") for place in range(size)], 1 << height
    parts = [merkle.root(leaves[at : at + width]) for at in range(0, size, width)]
    assert merkle.root(parts) == merkle.root(leaves)


@pytest.mark.parametrize("parts", range(6))
@pytest.mark.parametrize("more", [0, 1, LEAF_BYTES - 1, LEAF_BYTES, LEAF_BYTES + 1, 3 * LEAF_BYTES, PART_BYTES - 1])
def test_the_root_of_a_masked_vector_follows_from_those_of_its_parts(parts, more):
    data = memoryview(BYTES)[: parts * PART_BYTES + more]
    roots = [merkle.root_of(data[at : at + PART_BYTES]) for at in range(0, len(data), PART_BYTES)]
    assert len(data) == parts * PART_BYTES + more
    assert merkle.root(roots) == merkle.root_of(data)


def test_parts_that_are_no_whole_subtrees_give_another_root():
    roots = [merkle.root(LEAVES[at : at + 3]) for at in range(0, 8, 3)]
    assert merkle.root(roots) != merkle.root(LEAVES)
