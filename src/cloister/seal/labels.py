"""The framing under every hash, key and signature: length prefixes and labels (docs/protocol.md, 2.1).

    LP(x) = u64be(len x) || x                   H(label, x1..xk) = SHA-256(LP(label) || LP(x1) || .. || LP(xk))

Each use of a hash, a key derivation or a signature has its own label, so that bytes made for one purpose never
serve another. No label is a prefix of another (a test holds it).
"""

from __future__ import annotations

import hashlib
from typing import Final

from cloister.vector.errors import MalformedMessage

VERSION: Final = "cloister/v1"
ZERO32: Final = bytes(32)  # "none yet": the previous roster of the first, the previous receipt of a run's first round

# signatures
ROSTER: Final = "cloister/v1/roster"
ENROLL: Final = "cloister/v1/enroll"
ENVELOPE: Final = "cloister/v1/envelope"
OPEN: Final = "cloister/v1/open"
KEYS: Final = "cloister/v1/keys"
MASKED: Final = "cloister/v1/masked"
UPLOAD: Final = "cloister/v1/upload"
CONSISTENT: Final = "cloister/v1/consistent"
RECEIPT: Final = "cloister/v1/receipt"
KEYLIST: Final = "cloister/v1/list-of-keys"
SHARES: Final = "cloister/v1/shares"
CIPHERTEXTS: Final = "cloister/v1/ciphertexts"
SURVIVORS: Final = "cloister/v1/survivors"
CONSISTENCY: Final = "cloister/v1/consistency"
UNMASK: Final = "cloister/v1/unmask"
VERDICT: Final = "cloister/v1/verdict"  # a steward's, on a job; it stays at the site
BUDGET: Final = "cloister/v1/budget"  # a site's, on what its datasets have spent

# hashes
CTX: Final = "cloister/v1/ctx"
COMMIT: Final = "cloister/v1/commit"
U1: Final = "cloister/v1/u1"
U2: Final = "cloister/v1/u2"
U3: Final = "cloister/v1/u3"
SURVIVOR_NAMES: Final = "cloister/v1/survivor-names"
PARTITION: Final = "cloister/v1/partition"
PLACE: Final = "cloister/v1/place"
SHARE_AAD: Final = "cloister/v1/share-aad"
AUDIT: Final = "cloister/v1/audit"
FINGERPRINT: Final = "cloister/v1/fingerprint"

# key derivations (HKDF info)
MASK_KEY: Final = "cloister/v1/mask-key"
CHANNEL: Final = "cloister/v1/chan"
SELF: Final = "cloister/v1/self"
PAIR: Final = "cloister/v1/pair"


def lp(data: bytes) -> bytes:
    """LP(x): the bytes behind their own length."""
    return len(data).to_bytes(8, "big") + data


def fields(data: bytes) -> list[bytes]:
    """Undoes a concatenation of LP(x).

    Raises: MalformedMessage: a length that runs past the end, or bytes left over.
    """
    found, at = [], 0
    while at < len(data):
        start = at + 8
        stop = start + int.from_bytes(data[at:start], "big")
        if stop > len(data) or start > len(data):
            raise MalformedMessage(f"a field at byte {at} of {len(data)} is cut off")
        found.append(data[start:stop])
        at = stop
    return found


def h(label: str, *parts: bytes) -> bytes:
    """H(label, x1..xk): 32 bytes."""
    state = hashlib.sha256(lp(label.encode("ascii")))
    for part in parts:
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return state.digest()


def context(
    *, run: bytes, round: int, attempt: int, roster: bytes, plan: bytes, query: bytes, receipt: bytes
) -> bytes:
    """`ctx`, the name of one round, in every key, tag and signature of it.

    Args: run: 16 bytes. round: u64. attempt: u32. The others: the digests of the roster, of the plan, of the query
      exactly as this site received it, and of the last receipt of the run (ZERO32 before the first).
    Returns: 32 bytes. Two sites that were shown different things have different contexts, and their masks stay on.
    """
    return h(
        CTX,
        VERSION.encode("ascii"),
        run,
        round.to_bytes(8, "big"),
        attempt.to_bytes(4, "big"),
        roster,
        plan,
        query,
        receipt,
    )
