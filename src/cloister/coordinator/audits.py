"""Answers to honest-sum challenges: pieces of the masked vectors that are still kept (`seal.audit`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

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


def audited(hub: Hub, asked: api.Challenge) -> Callable[[], Iterator[bytes]]:
    """Looks the round up, for the event loop. Returns: what makes the answer, for another thread: first hashes all
    that is kept of the round, then yields one leaf of the sum after the other, so memory stays at one.

    Raises: UsageError: there is no such round, or its masked vectors are not kept any more.
    """

    def look(tx: Tx) -> tuple[str | None, str | None, bytes | None, str | None, dict[str, bytes]]:
        row = next((each for each in tx.rounds(asked.run) if each.number == asked.round), None)
        if row is None or row.outcome != "done":
            raise UsageError(f"the run {asked.run[:12]} opened no round {asked.round}.")
        return row.blob, row.keylist, row.opening, row.total, tx.uploads(asked.run, asked.round)

    receipt_name, keylist, opening, total, headers = hub.store.run_tx("audited", look)
    if not (receipt_name and keylist and opening and total and headers):
        raise UsageError(
            f"the masked vectors of round {asked.round} are not kept any more.",
            mend="The coordinator keeps the newest rounds of each run: `keep_rounds` in its coordinator.toml.",
        )
    receipt = open_receipt(hub.blobs.read(receipt_name), hub.identity.public)
    uploads = Uploads(hub.parts, {site: masked_header(headers[site]) for site in receipt.u3})
    head = lp(bytes.fromhex(asked.nonce)) + lp(hub.blobs.read(keylist)) + lp(opening)

    def answer() -> Iterator[bytes]:
        sum_leaves = _hashed(hub, total)
        leaves = {site: uploads.hashed(site)[0].leaves() for site in receipt.u3}
        yield head
        for index in _challenged(receipt, asked):
            yield lp(audit.prove(receipt, index, sum_leaves, leaves, uploads.read).to_bytes())

    return answer


def _challenged(receipt: Receipt, asked: api.Challenge) -> list[int]:
    return audit.challenge(receipt, bytes.fromhex(asked.nonce), asked.count)


def _hashed(hub: Hub, name: str) -> list[bytes]:
    builder = MerkleBuilder()
    with hub.blobs.path(name).open("rb") as file:
        while chunk := file.read(READ_BYTES):
            builder.update(chunk)
    return builder.leaves()
