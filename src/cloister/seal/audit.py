"""The honest-sum audit: any site makes the coordinator show that an opened sum is that of the signed masked vectors.

Protocol.md section 5, without homomorphic cryptography. A masked vector is uniformly random to everyone, so the
coordinator can show pieces of it; each is proven against the Merkle root that its site signed. It also shows the
*opening*: the secrets that it has rebuilt from the survivors' shares, beta of each survivor and sigma of each site
that dropped out after sharing. From these anyone computes that stretch of the sum and finds it under the receipt's
sum root.

The secrets are shown, and not the seeds that follow from them, because the sites committed to the secrets in message
1 (beta by a hash, sigma by a public key): the coordinator cannot show others, and neither roots nor secrets nor sum
leave it a choice. Nothing is opened but the challenged words of the sum. Beta and sigma of a site are what any
t of the sites and the coordinator hold together once the round has opened; of each site it is one of the two, never
both; the pair masks among survivors, which hide their vectors, depend on the sigmas of survivors, which stay unknown;
what a site that dropped out may still have sent stays under its own mask, whose beta stays unknown.

Which leaves of the sum are shown follows from H("cloister/v1/audit", receipt, nonce, ..) with a nonce of the asking
site; the receipt fixed everything before. A coordinator that altered a fraction f of the leaves escapes c challenges
with a chance under (1 - f)**c: 44 catch 10% with 99%, all of them are certainty (`caught`, `challenges`).

    audit   = LP(nonce) LP(message 2) LP(opening) LP(chunk)..
    opening = LP(U2 and who chose whom, as in message 4) LP(betas of U3 || sigmas of U2 without U3)
    chunk   = LP(u64 index) LP(path in the sum) and, for each survivor of the bucket and each leaf of its upload:
              LP(leaf) LP(path)

The leaves of a round in buckets are numbered through: those of the first bucket's sum, then the second's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.seal import derive, merkle, shamir
from cloister.seal.buckets import partition
from cloister.seal.labels import AUDIT, fields, h, lp
from cloister.seal.masks import Seed, apply_masks, packed_bytes, reduce, unpack
from cloister.seal.merkle import LEAF_BYTES
from cloister.seal.messages import KeyList, Keys, Reader, Sharer, SignedRoot, read_sharers, write_sharers
from cloister.seal.receipt import Receipt, Upload
from cloister.seal.roster import Roster
from cloister.vector.errors import BadShare, BadSignature, BadSum, BadUpload, MalformedMessage

NONCE_BYTES = 32
MAX_PATH = 64

Read = Callable[[str, int, int], bytes]  # (site, offset, length) -> bytes of its masked vector


# What is challenged ------------------------------------------------------------------------------------------------


def leaves(receipt: Receipt) -> int:
    """Of the Merkle trees of all opened sums: LEAF_BYTES of words each, 4 or 8 bytes a word, little endian."""
    return _leaves_of_one(receipt) * receipt.plan.buckets


def _leaves_of_one(receipt: Receipt) -> int:
    return -(-receipt.words * receipt.plan.coder.dtype.itemsize // LEAF_BYTES)


def summed(receipt: Receipt) -> list[list[Upload]]:
    """The uploads that were summed, in each bucket."""
    buckets = partition(receipt.plan.query, receipt.u1, receipt.plan.buckets)
    return [[upload for upload in receipt.uploads if upload.site in set(bucket)] for bucket in buckets]


def challenge(receipt: Receipt, nonce: bytes, count: int) -> list[int]:
    """The `count` leaves of the sum that this nonce asks for, distinct, ascending; all where count is larger."""
    total, found, draw = leaves(receipt), set[int](), 0
    if count >= total:
        return list(range(total))
    while len(found) < count:
        digest = h(AUDIT, receipt.digest, nonce, draw.to_bytes(8, "big"))
        found.add(int.from_bytes(digest, "big") % total)  # of 256 bits: no leaf is likelier by 2**-200
        draw += 1
    return sorted(found)


def caught(total: int, altered: int, challenged: int) -> float:
    """The chance that `challenged` distinct leaves of `total` hold one of the `altered` ones: exact."""
    return 1.0 - math.comb(total - altered, challenged) / math.comb(total, challenged)


def challenges(fraction: float, confidence: float) -> int:
    """How many leaves catch an alteration of this fraction of them with this chance, however many there are."""
    return math.ceil(math.log(1.0 - confidence) / math.log(1.0 - fraction))


# What is shown -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunk:
    """One leaf of the sum: every survivor's masked words of that stretch, with proofs.

    Attributes: index: of the leaf. path: from it to the sum's root. pieces: in the order of U3, the leaves of the
      upload that hold the stretch (one, or two at packed widths), each with its path to the root the site signed.
    """

    index: int
    path: Sequence[bytes]
    pieces: Sequence[tuple[bytes, Sequence[bytes]]] = field(repr=False)

    def to_bytes(self) -> bytes:
        shown = (lp(data) + lp(b"".join(path)) for data, path in self.pieces)
        return lp(self.index.to_bytes(8, "big")) + lp(b"".join(self.path)) + b"".join(shown)

    @classmethod
    def from_bytes(cls, data: bytes) -> Chunk:
        """Raises: MalformedMessage."""
        parts = fields(data)
        if len(parts) < 2 or len(parts) % 2 or len(parts[0]) != 8:
            raise MalformedMessage(f"a chunk of an audit has {len(parts)} fields")
        pieces = list(zip(parts[2::2], map(_path, parts[3::2]), strict=True))
        return cls(int.from_bytes(parts[0], "big"), _path(parts[1]), pieces)


def _path(data: bytes) -> list[bytes]:
    if len(data) % 32 or len(data) > MAX_PATH * 32:
        raise MalformedMessage(f"a path of {len(data)} bytes")
    return [data[at : at + 32] for at in range(0, len(data), 32)]


@dataclass(frozen=True)
class Opening:
    """What takes the masks off. Attributes: sharers: U2 and who chose whom. secrets: 32 bytes each: beta of each of
    U3, then sigma of each of U2 without U3."""

    sharers: tuple[Sharer, ...]
    secrets: tuple[bytes, ...] = field(repr=False)

    def to_bytes(self) -> bytes:
        return lp(write_sharers(self.sharers)) + lp(b"".join(self.secrets))

    @classmethod
    def from_bytes(cls, data: bytes) -> Opening:
        """Raises: MalformedMessage."""
        parts = fields(data)
        if len(parts) != 2 or len(parts[1]) % 32:
            raise MalformedMessage(f"an opening has {len(parts)} fields")
        reader = Reader(parts[0])
        sharers = read_sharers(reader)
        reader.end()
        return cls(sharers, tuple(parts[1][at : at + 32] for at in range(0, len(parts[1]), 32)))


@dataclass(frozen=True)
class Audit:
    """A coordinator's answer to one nonce.

    Attributes: nonce: of the asking site, 32 bytes. keys: message 2 as it was sent. opening: graph and secrets.
      chunks: what `challenge` asks for, in its order.
    """

    nonce: bytes
    keys: bytes = field(repr=False)
    opening: Opening
    chunks: Sequence[Chunk]

    def to_bytes(self) -> bytes:
        shown = b"".join(lp(chunk.to_bytes()) for chunk in self.chunks)
        return lp(self.nonce) + lp(self.keys) + lp(self.opening.to_bytes()) + shown

    @classmethod
    def from_bytes(cls, data: bytes) -> Audit:
        """Raises: MalformedMessage."""
        parts = fields(data)
        if len(parts) < 3 or len(parts[0]) != NONCE_BYTES:
            raise MalformedMessage(f"an audit has {len(parts)} fields")
        return cls(parts[0], parts[1], Opening.from_bytes(parts[2]), [Chunk.from_bytes(part) for part in parts[3:]])


@dataclass(frozen=True)
class _Stretch:
    """Where leaf `index` lies: in the sum of which bucket, its words [start, stop), and in the packed uploads."""

    bucket: int
    start: int
    stop: int
    offset: int  # of its first byte in the first of these leaves
    length: int
    leaves: range

    @classmethod
    def of(cls, receipt: Receipt, index: int) -> _Stretch:
        step = LEAF_BYTES // receipt.plan.coder.dtype.itemsize  # even, so packed words begin at a whole byte
        bucket, index = divmod(index, _leaves_of_one(receipt))
        start, stop = index * step, min((index + 1) * step, receipt.words)
        first = start * receipt.plan.bits // 8
        length = packed_bytes(stop - start, receipt.plan.bits)
        covering = range(first // LEAF_BYTES, (first + length - 1) // LEAF_BYTES + 1)
        return cls(bucket, start, stop, first - covering.start * LEAF_BYTES, length, covering)


# The coordinator's side --------------------------------------------------------------------------------------------


def prove(
    receipt: Receipt, index: int, sum_leaves: Sequence[bytes], uploads: Mapping[str, Sequence[bytes]], read: Read
) -> Chunk:
    """Shows one leaf of the sum.

    Args: sum_leaves, uploads: leaf hashes (`MerkleBuilder.leaves`) of each bucket's sum, one after the other, and, by
      site, of each masked vector.
    """
    size, pieces = packed_bytes(receipt.words, receipt.plan.bits), []
    stretch, one = _Stretch.of(receipt, index), _leaves_of_one(receipt)
    for site, _, _ in summed(receipt)[stretch.bucket]:
        for leaf in stretch.leaves:
            data = read(site, leaf * LEAF_BYTES, min(LEAF_BYTES, size - leaf * LEAF_BYTES))
            pieces.append((data, merkle.inclusion_proof(uploads[site], leaf)))
    own = sum_leaves[stretch.bucket * one : (stretch.bucket + 1) * one]
    return Chunk(index, merkle.inclusion_proof(own, index % one), pieces)


# The asking site's side --------------------------------------------------------------------------------------------


def signed_roots(receipt: Receipt) -> Iterator[SignedRoot]:
    """What each survivor signed for its masked vector, put together from the receipt: to be verified by its key."""
    for site, root, signature in receipt.uploads:
        yield SignedRoot(receipt.ctx, receipt.h1, receipt.h2, receipt.words, receipt.plan.bits, site, root, signature)


def verify(audit: Audit, receipt: Receipt, roster: Roster) -> int:
    """Checks an answer in full: signatures, secrets against commitments, and every challenged leaf of the sum.

    Args: receipt: opened before. roster: the one that the receipt names. The caller knows that the nonce is its own.
    Returns: how many of the `leaves(receipt)` were shown, and are right.
    Raises: BadSum: the sum, or a secret, is not what the sites signed for. BadUpload: a piece is not of the vector
      that its site signed for. BadSignature, NotInRoster, MalformedMessage.
    """
    for signed in signed_roots(receipt):
        signed.verify(roster.key_of(signed.site, "site"))
    entries = {entry.site: entry for entry in key_entries(audit.keys, receipt, roster)}
    seeds = _seeds(audit.opening, receipt, entries)
    asked = challenge(receipt, audit.nonce, len(audit.chunks))
    if [chunk.index for chunk in audit.chunks] != asked or not asked:
        raise BadSum(f"round {receipt.plan.round}: other leaves of the sum were shown than the nonce asks for.")
    for chunk in audit.chunks:
        _check_chunk(chunk, receipt, seeds)
    return len(asked)


def key_entries(keys: bytes, receipt: Receipt, roster: Roster) -> tuple[Keys, ...]:
    """The key list that the receipt names, every entry signed by its site, and all of it by the coordinator."""
    message = KeyList.from_bytes(keys)
    for key in [member.key for member in roster.coordinators]:
        with suppress(BadSignature):
            message.verify(key)
            break
    else:
        raise BadSignature("the key list shown is signed by no coordinator of its roster")
    listed = tuple(entry.site for entry in message.entries)
    if listed != receipt.u1 or derive.key_list_digest(receipt.ctx, message.entries) != receipt.h1:
        raise BadSum(f"round {receipt.plan.round}: the key list shown is not the one that the receipt names.")
    for entry in message.entries:
        entry.verify(roster.key_of(entry.site, "site"), entry.site)
    return message.entries


def _seeds(opening: Opening, receipt: Receipt, entries: Mapping[str, Keys]) -> list[list[Seed]]:
    """The masks that are left in the sum of each bucket's uploads, to be taken off; from secrets that fit the
    commitments, along the graph that the sites signed for."""
    lost, survivors = [site for site in receipt.u2 if site not in receipt.u3], frozenset(receipt.u3)
    if len(opening.secrets) != len(receipt.u2):
        raise BadSum(f"round {receipt.plan.round}: {len(opening.secrets)} secrets of {len(receipt.u2)} were shown.")
    shown_digest = derive.sharers_digest(receipt.ctx, receipt.h1, opening.sharers)
    if tuple(sharer.site for sharer in opening.sharers) != receipt.u2 or shown_digest != receipt.h2:
        raise BadSum(f"round {receipt.plan.round}: U2, or who chose whom, is not what the sites signed for.")
    graph = derive.round_graph(receipt.plan, receipt.u1, opening.sharers)
    seeds: dict[str, list[Seed]] = {}
    for site, shown in zip((*receipt.u3, *lost), opening.secrets, strict=True):
        secret, keys = _secret(shown, site), entries[site]
        if site in survivors:
            if derive.commitment(receipt.ctx, site, secret) != keys.commitment:
                raise BadSum("the secret shown for this site's own mask is not the committed one", site=site)
            seeds[site] = [(derive.self_seed(secret, receipt.ctx, site), -1)]
            continue
        private = derive.mask_private_key(secret, receipt.ctx)
        if private.public_key().public_bytes_raw() != keys.mask:
            raise BadSum("the secret shown for this site's pair masks is not that of its public key", site=site)
        seeds[site] = []
        for other in survivors.intersection(graph.partners(site)):
            shared = derive.exchange(private, entries[other].mask, other)
            pair = derive.pair_seed(shared, receipt.ctx, receipt.h1, site, other)
            seeds[site].append((pair, -derive.pair_sign(other, site)))
    buckets = partition(receipt.plan.query, receipt.u1, receipt.plan.buckets)
    return [[seed for site in bucket for seed in seeds.get(site, ())] for bucket in buckets]


def _secret(shown: bytes, site: str) -> int:
    try:
        return shamir.from_bytes(shown)
    except BadShare:
        raise BadSum("a secret shown is no number below p", site=site) from None


def _check_chunk(chunk: Chunk, receipt: Receipt, seeds: Sequence[Sequence[Seed]]) -> None:
    stretch, coder = _Stretch.of(receipt, chunk.index), receipt.plan.coder
    wide, uploads, one = len(stretch.leaves), summed(receipt)[stretch.bucket], _leaves_of_one(receipt)
    if len(chunk.pieces) != wide * len(uploads):
        raise BadSum(f"{len(chunk.pieces)} pieces of {len(uploads)} uploads were shown for one leaf of the sum")
    part: npt.NDArray[Any] = np.zeros(stretch.stop - stretch.start, coder.dtype)
    for place, upload in enumerate(uploads):
        pieces = chunk.pieces[place * wide : (place + 1) * wide]
        data = _proven(pieces, stretch.leaves, receipt, upload.root, upload.site)
        part += unpack(data[stretch.offset : stretch.offset + stretch.length], len(part), receipt.plan.bits)
    apply_masks(part, seeds[stretch.bucket], start=stretch.start)
    reduce(part, receipt.plan.bits)
    leaf = merkle.leaf_hash(part.astype(coder.dtype.newbyteorder("<"), copy=False).view(np.uint8).data)
    if not merkle.verify_inclusion(leaf, chunk.index % one, one, chunk.path, receipt.sum_roots[stretch.bucket]):
        raise BadSum(
            f"round {receipt.plan.round}: words {stretch.start} to {stretch.stop} of the sum are not the sum of what"
            " the survivors signed for.",
            mend="The coordinator altered the sum: keep receipt and audit, they prove it.",
        )


def _proven(
    pieces: Sequence[tuple[bytes, Sequence[bytes]]], where: range, receipt: Receipt, root: bytes, site: str
) -> bytes:
    total = -(-packed_bytes(receipt.words, receipt.plan.bits) // LEAF_BYTES)
    for leaf, (data, path) in zip(where, pieces, strict=True):
        if not merkle.verify_inclusion(merkle.leaf_hash(data), leaf, total, path, root):
            raise BadUpload("a piece shown is not of the masked vector that this site signed for", site=site)
    return b"".join(data for data, _ in pieces)
