"""Answers to honest-sum challenges: pieces of the masked vectors that are still kept (`seal.audit`)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cloister.coordinator.hub import Hub
from cloister.coordinator.store import Tx
from cloister.coordinator.uploads import Uploads
from cloister.seal import audit
from cloister.seal.labels import lp
from cloister.seal.merkle import MerkleBuilder
from cloister.seal.messages import masked_header
from cloister.seal.receipt import Receipt, open_receipt
from cloister.vector.errors import UsageError
from cloister.wire import api

READ_BYTES = 1 << 20


class _Stored(NamedTuple):
    """What an answer takes: the digests of blobs, the rebuilt secrets, and the headers of the masked vectors."""

    receipt: str
    total: str
    keylist: str
    opening: bytes
    headers: Mapping[str, bytes]


@dataclass(frozen=True)
class _Kept:
    """A round whose masked vectors are still there. Attributes: head: the answer's fields that all challenges share.
    sum_leaves, leaves: leaf hashes of the sums, one after the other, and by site of each masked vector."""

    receipt: Receipt
    head: bytes
    uploads: Uploads
    sum_leaves: Sequence[bytes]
    leaves: Mapping[str, Sequence[bytes]]


class Auditor:
    """One answer at a time, whoever asks: each reads masked vectors from the disk and is made in memory.

    What is hashed of a round is remembered until another one is asked about, as a challenge of many leaves takes many
    requests.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub, self._lock = hub, asyncio.Lock()
        self._last: tuple[tuple[str, int], _Kept] | None = None

    async def answer(self, asked: api.Challenge) -> bytes:
        """As much of a `seal.audit.Audit` as one answer may hold: the challenged leaves from `asked.skip` on.

        Raises: UsageError: there is no such round, or its masked vectors are not kept any more.
        """
        async with self._lock:
            found = self._hub.store.look(lambda tx: _look_up(tx, asked))
            try:
                return await asyncio.to_thread(self._answer, asked, found)
            except FileNotFoundError:  # dropped while it was read
                raise _forgotten(asked) from None

    def _answer(self, asked: api.Challenge, found: _Stored) -> bytes:
        key = (asked.run, asked.round)
        if self._last is None or self._last[0] != key:
            self._last = key, self._hashed(found)
        kept, nonce = self._last[1], bytes.fromhex(asked.nonce)
        shown, size = [lp(nonce) + kept.head], 0
        for index in audit.challenge(kept.receipt, nonce, asked.count)[asked.skip :][: api.MAX_AUDIT_LEAVES]:
            chunk = audit.prove(kept.receipt, index, kept.sum_leaves, kept.leaves, kept.uploads.read).to_bytes()
            size += len(chunk)
            if size > api.MAX_AUDIT_BYTES and len(shown) > 1:
                break
            shown.append(lp(chunk))
        return b"".join(shown)

    def _hashed(self, found: _Stored) -> _Kept:
        blobs = self._hub.blobs
        receipt = open_receipt(blobs.read(found.receipt), self._hub.identity.public)
        uploads = Uploads(self._hub.parts, {site: masked_header(found.headers[site]) for site in receipt.u3})
        leaves = {site: uploads.hashed(site)[0].leaves() for site in receipt.u3}
        size = receipt.words * receipt.plan.coder.dtype.itemsize
        sums = _leaves(blobs.path(found.total), size)
        return _Kept(receipt, lp(blobs.read(found.keylist)) + lp(found.opening), uploads, sums, leaves)


def _leaves(path: Path, size: int) -> list[bytes]:
    """The leaf hashes of the sums in a file, each of `size` bytes and a tree of its own; one after the other."""
    leaves: list[bytes] = []
    with path.open("rb") as file:
        for _ in range(0, path.stat().st_size, size):
            builder, left = MerkleBuilder(), size
            while left and (piece := file.read(min(READ_BYTES, left))):
                builder.update(piece)
                left -= len(piece)
            leaves += builder.leaves()
    return leaves


def _look_up(tx: Tx, asked: api.Challenge) -> _Stored:
    row = next((each for each in tx.rounds(asked.run) if each.number == asked.round), None)
    if row is None or row.outcome != "done":
        raise UsageError(f"the run {asked.run[:12]} opened no round {asked.round}.")
    headers = tx.uploads(asked.run, asked.round)
    if not (row.blob and row.total and row.keylist and row.opening and headers):
        raise _forgotten(asked)
    return _Stored(row.blob, row.total, row.keylist, row.opening, headers)


def _forgotten(asked: api.Challenge) -> UsageError:
    return UsageError(
        f"the masked vectors of round {asked.round} are not kept any more.",
        mend="The coordinator keeps the newest rounds of each run: `keep_rounds` in its coordinator.toml.",
    )
