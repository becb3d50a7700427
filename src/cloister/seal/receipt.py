"""The receipt: what the coordinator signs for when a round's sum has opened (protocol.md section 5).

It names everything that made the sum: the plan, who took part in which phase, every site's signed root of what it
uploaded, the sum and the state that came of it, and the receipt before it. The receipts of a run form a chain.

    signed receipt = LP(body) || LP(signature)        body = canonical JSON, bytes in hex
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from cloister.seal.identity import SIGNATURE_BYTES, Identity, verify
from cloister.seal.labels import RECEIPT, ZERO32, fields, lp
from cloister.seal.plan import Plan
from cloister.vector.bundle import canonical, digest
from cloister.vector.errors import MalformedMessage, StaleReceipt

MAX_RECEIPT_BYTES = 4 << 20
DIGESTS = ("ctx", "roster", "h1", "h2", "consistency", "state", "previous")


class Upload(NamedTuple):
    """What one survivor signed for. root: of its masked vector, 32 bytes. signature: of message 5, 64 bytes."""

    site: str
    root: bytes
    signature: bytes


@dataclass(frozen=True)
class Receipt:
    """One opened round.

    Attributes:
      plan: of the round. ctx, h1, h2: its context, the hash of its key list, and that of U2 and of who chose whom.
      roster: digest of the roster.
      u1, u2, u3: the sites that sent keys, shared secrets, were summed; each sorted and part of the one before.
      uploads: of each site of u3, in its order.
      consistency: digest of the consistency message that the sites were shown.
      sum_roots: Merkle root over the opened sum of each bucket. words: the length of each.
      state: digest of the state that the algorithm made of it. previous: digest of the run's receipt before.
    """

    plan: Plan
    ctx: bytes
    roster: bytes
    h1: bytes
    h2: bytes
    u1: tuple[str, ...]
    u2: tuple[str, ...]
    u3: tuple[str, ...]
    uploads: tuple[Upload, ...]
    consistency: bytes
    sum_roots: tuple[bytes, ...]
    words: int
    state: bytes
    previous: bytes = ZERO32

    def __post_init__(self) -> None:
        if any(len(digest) != 32 for digest in (*(getattr(self, name) for name in DIGESTS), *self.sum_roots)):
            raise MalformedMessage("a digest of a receipt has another length")
        for inner, outer in ((self.u1, self.plan.sites), (self.u2, self.u1), (self.u3, self.u2)):
            if list(inner) != sorted(set(inner)) or not set(inner) <= set(outer):
                raise MalformedMessage("the sites of a receipt's phases are not sorted or not nested")
        if tuple(upload.site for upload in self.uploads) != self.u3:
            raise MalformedMessage("a receipt's uploads are not those of its survivors")
        if any((len(each.root), len(each.signature)) != (32, SIGNATURE_BYTES) for each in self.uploads):
            raise MalformedMessage("a receipt's upload has a root or signature of another length")
        if len(self.sum_roots) != self.plan.buckets:
            raise MalformedMessage(f"a receipt of {len(self.sum_roots)} sums for a plan of {self.plan.buckets}")
        if type(self.words) is not int or self.words != self.plan.words:
            raise MalformedMessage(f"a receipt of {self.words} words for a plan of {self.plan.words}")

    @cached_property
    def body(self) -> bytes:
        """The canonical bytes that are signed."""
        return canonical(
            {
                **{name: getattr(self, name).hex() for name in DIGESTS},
                "plan": json.loads(self.plan.body),
                "u1": list(self.u1),
                "u2": list(self.u2),
                "u3": list(self.u3),
                "uploads": [[each.site, each.root.hex(), each.signature.hex()] for each in self.uploads],
                "words": self.words,
                "sum_roots": [root.hex() for root in self.sum_roots],
            }
        )

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the body: what the next round's context names."""
        return digest(self.body)

    @classmethod
    def from_bytes(cls, body: bytes) -> Receipt:
        """Raises: MalformedMessage: not canonical, or it contradicts itself. PlanRefused: its plan does."""
        if len(body) > MAX_RECEIPT_BYTES:
            raise MalformedMessage(f"a receipt of {len(body)} bytes")
        try:
            data = json.loads(body)
            receipt = cls(
                **{name: bytes.fromhex(data[name]) for name in DIGESTS},
                plan=Plan.from_bytes(canonical(data["plan"])),
                u1=tuple(data["u1"]),
                u2=tuple(data["u2"]),
                u3=tuple(data["u3"]),
                uploads=tuple(Upload(site, bytes.fromhex(a), bytes.fromhex(b)) for site, a, b in data["uploads"]),
                words=data["words"],
                sum_roots=tuple(bytes.fromhex(root) for root in data["sum_roots"]),
            )
            same = receipt.body == body
        except (ValueError, KeyError, TypeError, RecursionError) as fault:
            raise MalformedMessage(f"a receipt does not parse: {type(fault).__name__}") from None
        if not same:
            raise MalformedMessage("a receipt is not in canonical form")
        return receipt

    def check_follows(self, run: bytes, last_round: int, last_receipt: bytes) -> None:
        """Checks the chain: this receipt is of `run`, of a later round, and names the receipt before it.

        Args: last_round: of the receipt before, or -1. last_receipt: its digest, or ZERO32.
        Raises: StaleReceipt.
        """
        if self.plan.run != run:
            raise StaleReceipt("a receipt of another run")
        if self.plan.round <= last_round or self.previous != last_receipt:
            raise StaleReceipt(
                f"the receipt of round {self.plan.round} does not follow the last one known (round {last_round}).",
                mend="The coordinator's history was changed or rolled back: ask its operator before going on.",
            )


def sign_receipt(receipt: Receipt, coordinator: Identity) -> bytes:
    return lp(receipt.body) + lp(coordinator.sign(RECEIPT, receipt.body))


def open_receipt(data: bytes, coordinator_key: bytes) -> Receipt:
    """Verifies the received bytes, then parses them. Raises: MalformedMessage, BadSignature, PlanRefused."""
    parts = fields(data)
    if len(parts) != 2:
        raise MalformedMessage(f"a signed receipt has two fields, got {len(parts)}")
    body, signature = parts
    verify(coordinator_key, RECEIPT, body, signature)
    return Receipt.from_bytes(body)
