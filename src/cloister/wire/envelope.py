"""Signed envelopes: what every message travels in, so that trust does not end where TLS does.

    LP(header JSON) || LP(body) || Ed25519 signature over LP("cloister/v1/envelope") || LP(header JSON) || LP(body)

The received bytes are verified first and parsed after (ADR "sign bytes"). A header says who wrote to whom, about
which run and round, and carries a number that its receiver accepts once (`ReplayWindow`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from cloister.seal.identity import SIGNATURE_BYTES, Identity, verify
from cloister.seal.labels import ENVELOPE, fields, lp
from cloister.vector import canonical
from cloister.vector.errors import BadSignature, EnvelopeReplayed, MalformedMessage

MAX_HEADER_BYTES = 4096  # nginx reads a request header into 4 x 8 KiB, Apache into 8 KiB; ours has six short fields
WINDOW = 256  # numbers that may arrive out of order (IPsec keeps 64, RFC 4303; WireGuard 8,192, RFC 6479)
MAX_NUMBER = (1 << 63) - 1
HEADER = {"type": str, "from": str, "to": str, "run": str, "round": int, "seq": int}
RUN = re.compile(r"[0-9a-f]{32}\Z|\Z")


@dataclass(frozen=True)
class Envelope:
    """One message from `sender` to `recipient`.

    Attributes: type: "poll", "keys", "open" ... run: 32 hex digits, or "" outside a run. round: u63, 0 outside one.
      seq: counts up at the sender; in a mailbox it is the message's number there. body: what `type` says.
    """

    type: str
    sender: str
    recipient: str
    run: str
    round: int
    seq: int
    body: bytes


def sign_envelope(identity: Identity, envelope: Envelope) -> bytes:
    header = canonical(
        {
            "type": envelope.type,
            "from": envelope.sender,
            "to": envelope.recipient,
            "run": envelope.run,
            "round": envelope.round,
            "seq": envelope.seq,
        }
    )
    signed = lp(header) + lp(envelope.body)
    return signed + identity.sign(ENVELOPE, signed)


def open_envelope(data: bytes, key_of: Callable[[str], bytes], recipient: str) -> Envelope:
    """Verifies and parses one envelope.

    Args: key_of: the public key of a sender's id by the roster; raises NotInRoster. recipient: who reads it.
    Raises: MalformedMessage; NotInRoster: a stranger; BadSignature: not signed by its sender, or for someone else.
      A replay is the caller's to refuse, since only it can remember (`ReplayWindow`).
    """
    signed, signature = data[:-SIGNATURE_BYTES], data[-SIGNATURE_BYTES:]
    parts = fields(signed)
    if len(parts) != 2 or len(parts[0]) > MAX_HEADER_BYTES:
        raise MalformedMessage(f"an envelope of {len(data)} bytes has no header and body")
    header, body = _parse(parts[0]), parts[1]
    # the sender's name is read before it is verified: it only picks the key that must have signed these bytes
    verify(key_of(header["from"]), ENVELOPE, signed, signature, site=header["from"])
    if header["to"] != recipient:
        raise BadSignature(f"an envelope for {header['to']!r} was handed to {recipient!r}", site=header["from"])
    return Envelope(
        type=header["type"],
        sender=header["from"],
        recipient=header["to"],
        run=header["run"],
        round=header["round"],
        seq=header["seq"],
        body=body,
    )


def _parse(data: bytes) -> dict[str, Any]:
    try:
        header = json.loads(data)
    except (ValueError, RecursionError):
        raise MalformedMessage("the header of an envelope is no JSON") from None
    if not isinstance(header, dict) or set(header) != set(HEADER):
        raise MalformedMessage("the header of an envelope has unknown or missing fields")
    if any(type(header[name]) is not kind for name, kind in HEADER.items()):
        raise MalformedMessage("a field of an envelope's header has another type")
    if not RUN.match(header["run"]) or not all(0 <= header[name] <= MAX_NUMBER for name in ("round", "seq")):
        raise MalformedMessage("the run, round or number of an envelope is out of range")
    return header


def join(envelopes: Iterable[bytes]) -> bytes:
    """Several envelopes as one body: LP(envelope) each."""
    return b"".join(lp(data) for data in envelopes)


def split(data: bytes) -> list[bytes]:
    """Undoes `join`. Raises: MalformedMessage."""
    return fields(data)


@dataclass(frozen=True)
class ReplayWindow:
    """Which numbers of one sender were seen: each is accepted once, in any order within the last WINDOW.

    Long polls and messages overlap, so numbers overtake each other; a plain "must grow" would refuse honest ones.

    Attributes: highest: the largest number accepted, 0 before any. seen: bit i says that `highest - i` was.
    """

    highest: int = 0
    seen: int = 1

    def accept(self, seq: int, sender: str) -> ReplayWindow:
        """The window after `seq`. Raises: EnvelopeReplayed: seen before, or too old to tell."""
        if seq > self.highest:
            seen = (self.seen << min(seq - self.highest, WINDOW)) | 1
            return ReplayWindow(seq, seen & ((1 << WINDOW) - 1))
        back = self.highest - seq
        if back >= WINDOW or self.seen >> back & 1:
            raise EnvelopeReplayed(f"envelope {seq} arrived before (the highest is {self.highest})", site=sender)
        return ReplayWindow(self.highest, self.seen | 1 << back)
