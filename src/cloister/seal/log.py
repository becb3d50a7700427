"""The log of receipts: append-only, RFC 9162 hashing, heads signed as C2SP checkpoints, carried from site to site.

The coordinator appends every signed receipt (its exact bytes are the leaf) and signs the tree's head as a
*checkpoint*, a note that standard tools read (c2sp.org/tlog-checkpoint, c2sp.org/signed-note):

    cloister/hearts                                     the origin: which log this is
    12                                                  receipts in it
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=        the Merkle root over them
                                                        an empty line, then the signatures
    — cloister/hearts Az3grlgtz...                      base64(key id || Ed25519 over the lines above)
    — cloister/hearts/kent jWbPPwAAAABk...              a site's cosignature (c2sp.org/tlog-cosignature, Ed25519)

    key id = SHA-256(name || 0x0A || type || public key)[:4]        type: 1 the log itself, 4 a cosignature

A site follows the log in a `LogView`. It moves only along consistency proofs, and takes a receipt only with a proof
of its place (`Entry`, which travels behind message 10). So that the coordinator cannot show two sites two logs, sites
carry their checkpoints to each other:

    message 1  Keys     has a field LP(note): the newest checkpoint that the site has verified, with the
                        coordinator's signature only, empty before the first. It is under the site's signature; the
                        coordinator refuses one that it did not sign itself (a site's lie stops no round).
    message 2  KeyList  shows these notes, as they are part of its entries, and gets a last field LP(Agreement): the
                        coordinator's newest checkpoint, and a consistency proof to it from each older size shown.

Every site checks them all (`agree`) before it shares anything: a split view ends the next round at the latest, and
the two notes, both signed by the coordinator, prove who lied.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cloister.seal import merkle
from cloister.seal.identity import Identity, verify_text
from cloister.seal.labels import fields, lp
from cloister.vector.errors import MalformedMessage, StaleReceipt

MAX_NOTE_BYTES = 1 << 17  # a cosignature of each of some 800 sites; the specification asks for 16 at least
MAX_RECEIPTS = 1 << 62
PLAIN, COSIGNATURE = 1, 4  # the types of signature that the specifications number
TIME_BYTES = 8
EMPTY = merkle.root([])
LINE = re.compile("— ([^\\s+]+) ([A-Za-z0-9+/]+={0,2})")
MEND = "Keep both checkpoints: they prove that the coordinator lies. Take no further part."


def origin_of(federation: str) -> str:
    """The name of a federation's log, and of the key that signs it."""
    return f"cloister/{federation}"


def cosigner_of(federation: str, site: str) -> str:
    return f"cloister/{federation}/{site}"


@dataclass(frozen=True)
class Checkpoint:
    """A head of the log. Attributes: origin: which log. size: receipts. root: over them, 32 bytes."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> bytes:
        """The three lines that are signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n".encode()

    @classmethod
    def from_text(cls, text: bytes) -> Checkpoint:
        """Raises: MalformedMessage: not what `text` writes; extension lines, which we never write, are refused."""
        try:
            origin, size, root, end = text.decode("ascii").split("\n")
            found = cls(origin, int(size[:20]), base64.b64decode(root, validate=True))
        except (ValueError, binascii.Error):
            raise MalformedMessage("a checkpoint is not three lines of origin, size and root") from None
        if end or found.text != text or not origin or not 0 <= found.size <= MAX_RECEIPTS or len(found.root) != 32:
            raise MalformedMessage("a checkpoint is not in canonical form, or out of range")
        return found


# Notes ------------------------------------------------------------------------------------------------------------


def _key_id(name: str, kind: int, public: bytes) -> bytes:
    return hashlib.sha256(f"{name}\n".encode() + bytes([kind]) + public).digest()[:4]


def verifier_key(name: str, public: bytes, kind: int = PLAIN) -> str:
    """The key in the form that standard tools are configured with ("vkey")."""
    blob = base64.b64encode(bytes([kind]) + public).decode()
    return f"{name}+{_key_id(name, kind, public).hex()}+{blob}"


def _line(name: str, kind: int, public: bytes, signature: bytes) -> bytes:
    return f"— {name} {base64.b64encode(_key_id(name, kind, public) + signature).decode()}\n".encode()


def _read_note(note: bytes) -> tuple[bytes, list[tuple[str, bytes]]]:
    """The text, and (name, key id || signature) of each line. Raises: MalformedMessage."""
    text, blank, block = note.rpartition(b"\n\n")
    if len(note) > MAX_NOTE_BYTES or not blank or not block.endswith(b"\n"):
        raise MalformedMessage(f"a note of {len(note)} bytes has no signatures")
    found = []
    for line in block[:-1].split(b"\n"):
        try:
            matched = LINE.fullmatch(line.decode())
            if matched is None:
                raise ValueError("no signature line")
            found.append((matched[1], base64.b64decode(matched[2], validate=True)))
        except (ValueError, binascii.Error):
            raise MalformedMessage("a line of a note is no signature") from None
    return text + b"\n", found


def _signatures(note: bytes, name: str, kind: int, public: bytes) -> list[bytes]:
    """The signatures of one known key; others are ignored, as the specification asks."""
    wanted = _key_id(name, kind, public)
    return [blob[4:] for other, blob in _read_note(note)[1] if other == name and blob[:4] == wanted]


def open_checkpoint(note: bytes, origin: str, public: bytes) -> Checkpoint:
    """Verifies the coordinator's signature on the received bytes, then parses them.

    Raises: MalformedMessage, BadSignature. StaleReceipt: the checkpoint of another log.
    """
    text, _ = _read_note(note)
    signatures = _signatures(note, origin, PLAIN, public)
    for signature in signatures or [b""]:
        verify_text(public, text, signature, origin)
    checkpoint = Checkpoint.from_text(text)
    if checkpoint.origin != origin:
        raise StaleReceipt(f"a checkpoint of the log {checkpoint.origin[:80]!r}, this is {origin!r}")
    return checkpoint


def _cosigned(text: bytes, time: int) -> bytes:
    return f"cosignature/v1\ntime {time}\n".encode() + text


def cosign(note: bytes, name: str, site: Identity, time: int) -> bytes:
    """The note with a site's cosignature: it followed the log up to here, append-only, and knows no larger head.

    Args: note: opened and found consistent before. name: `cosigner_of`. time: seconds since 1970, from the edge.
    """
    text, _ = _read_note(note)
    signature = time.to_bytes(TIME_BYTES, "big") + site.sign_text(_cosigned(text, time))
    return note + _line(name, COSIGNATURE, site.public, signature)


def cosigners(note: bytes, keys: Mapping[str, bytes]) -> frozenset[str]:
    """Which of `keys` (name -> public key) have cosigned.

    Raises: MalformedMessage. BadSignature: one of them has a signature there that does not verify.
    """
    text, _ = _read_note(note)
    found = set()
    for name, public in keys.items():
        for signature in _signatures(note, name, COSIGNATURE, public):
            time = int.from_bytes(signature[:TIME_BYTES], "big")
            verify_text(public, _cosigned(text, time), signature[TIME_BYTES:], name)
            found.add(name)
    return frozenset(found)


# The coordinator's side -------------------------------------------------------------------------------------------


class Log:
    """The coordinator's log. Args: origin: its name. leaves: leaf hashes of the receipts so far, in order."""

    def __init__(self, origin: str, leaves: Iterable[bytes] = ()) -> None:
        self.origin, self.leaves = origin, list(leaves)

    def append(self, receipt: bytes) -> int:
        """Adds a signed receipt; returns its index."""
        self.leaves.append(merkle.leaf_hash(receipt))
        return len(self.leaves) - 1

    def checkpoint(self, size: int | None = None) -> Checkpoint:
        """The head now, or that of the first `size` receipts."""
        first = self.leaves if size is None else self.leaves[:size]
        return Checkpoint(self.origin, len(first), merkle.root(first))

    def sign(self, coordinator: Identity) -> bytes:
        """The checkpoint of now as a note. One key must never sign two heads of which neither begins the other."""
        text = self.checkpoint().text
        return text + b"\n" + _line(self.origin, PLAIN, coordinator.public, coordinator.sign_text(text))

    def entry(self, index: int, since: int, coordinator: Identity) -> Entry:
        """Receipt `index` for a site whose view has `since` receipts. Raises: IndexError."""
        return Entry(
            self.sign(coordinator), index, merkle.inclusion_proof(self.leaves, index), self._consistency(since)
        )

    def agreement(self, sizes: Iterable[int], coordinator: Identity) -> Agreement:
        """What sites need to see that checkpoints of these sizes lie in one log. Raises: IndexError: a larger one."""
        proofs = {size: self._consistency(size) for size in sorted(set(sizes) - {0})}
        return Agreement(self.sign(coordinator), proofs)

    def _consistency(self, since: int) -> list[bytes]:
        return merkle.consistency_proof(self.leaves, since) if since else []


# What travels -----------------------------------------------------------------------------------------------------


def _hashes(data: bytes) -> list[bytes]:
    if len(data) % 32 or len(data) > 128 * 32:
        raise MalformedMessage(f"a proof of {len(data)} bytes")
    return [data[at : at + 32] for at in range(0, len(data), 32)]


def _number(data: bytes) -> int:
    if len(data) != 8:
        raise MalformedMessage(f"a number of {len(data)} bytes")
    return int.from_bytes(data, "big")


@dataclass(frozen=True)
class Entry:
    """A receipt's place in the log, behind message 10: LP(note) LP(u64 index) LP(inclusion) LP(consistency).

    Attributes: note: the newest checkpoint. inclusion: from the receipt to its root. consistency: from the head that
      the recipient last verified to it (empty where that was the empty log).
    """

    note: bytes
    index: int
    inclusion: Sequence[bytes]
    consistency: Sequence[bytes]

    def to_bytes(self) -> bytes:
        proofs = lp(b"".join(self.inclusion)) + lp(b"".join(self.consistency))
        return lp(self.note) + lp(self.index.to_bytes(8, "big")) + proofs

    @classmethod
    def from_bytes(cls, data: bytes) -> Entry:
        """Raises: MalformedMessage."""
        parts = fields(data)
        if len(parts) != 4:
            raise MalformedMessage(f"an entry of the log has four fields, got {len(parts)}")
        return cls(parts[0], _number(parts[1]), _hashes(parts[2]), _hashes(parts[3]))


@dataclass(frozen=True)
class Agreement:
    """The end of message 2: LP(note), then LP(u64 size) LP(consistency) for each older size, ascending.

    Attributes: note: the coordinator's newest checkpoint. proofs: from each older size that a site carries to it.
    """

    note: bytes
    proofs: Mapping[int, Sequence[bytes]]

    def to_bytes(self) -> bytes:
        listed = (lp(size.to_bytes(8, "big")) + lp(b"".join(self.proofs[size])) for size in sorted(self.proofs))
        return lp(self.note) + b"".join(listed)

    @classmethod
    def from_bytes(cls, data: bytes) -> Agreement:
        """Raises: MalformedMessage."""
        parts = fields(data)
        note, rest = parts[:1], parts[1:]
        sizes = [_number(size) for size in rest[::2]]
        if not note or len(rest) % 2 or sizes != sorted(set(sizes)):
            raise MalformedMessage("the sizes of an agreement do not ascend, or one has no proof")
        return cls(note[0], dict(zip(sizes, map(_hashes, rest[1::2]), strict=True)))


# A site's side ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogView:
    """What one party last verified of the log; a new one comes of each step, and is kept durably.

    Attributes: origin, key: of the log, pinned. note: the newest checkpoint as received, b"" before the first.
      size, root: what it says.
    """

    origin: str
    key: bytes = field(repr=False)
    note: bytes = field(default=b"", repr=False)
    size: int = 0
    root: bytes = EMPTY

    @classmethod
    def resume(cls, origin: str, key: bytes, note: bytes) -> LogView:
        """From the note that this party itself verified before and kept. Raises: MalformedMessage, BadSignature."""
        if not note:
            return cls(origin, key)
        head = open_checkpoint(note, origin, key)
        return cls(origin, key, note, head.size, head.root)

    def advance(self, note: bytes, proof: Sequence[bytes]) -> LogView:
        """The view after a newer checkpoint, or this one for the head that it has already.

        Args: proof: the consistency proof from this view's size.
        Raises: StaleReceipt: the log was rolled back, or forked. MalformedMessage, BadSignature.
        """
        head = open_checkpoint(note, self.origin, self.key)
        if head.size < self.size:
            raise StaleReceipt(f"the log has {head.size} receipts, {self.size} were shown before.", mend=MEND)
        _require_prefix(Checkpoint(self.origin, self.size, self.root), head, proof, "")
        return self if head.size == self.size else replace(self, note=note, size=head.size, root=head.root)

    def accept(self, receipt: bytes, entry: Entry) -> LogView:
        """The view after a signed receipt, which the entry proves to be in the log. Raises: what `advance` does."""
        after = self.advance(entry.note, entry.consistency)
        leaf = merkle.leaf_hash(receipt)
        if not merkle.verify_inclusion(leaf, entry.index, after.size, entry.inclusion, after.root):
            raise StaleReceipt("the receipt is not in the log at the place that the coordinator says.", mend=MEND)
        return after

    def agree(self, carried: Mapping[str, bytes], agreement: Agreement) -> LogView:
        """The view after message 2: what all sites of the key list carry lies in one log.

        Args: carried: by site, its note; b"" for one that has none yet.
        Raises: StaleReceipt: a split view; names the site that was shown another log. MalformedMessage, BadSignature.
        """
        after = self.advance(agreement.note, agreement.proofs.get(self.size, ()))
        newest = Checkpoint(self.origin, after.size, after.root)
        for site, note in carried.items():
            if note:
                head = open_checkpoint(note, self.origin, self.key)
                _require_prefix(head, newest, agreement.proofs.get(head.size, ()), site)
        return after


def _require_prefix(older: Checkpoint, newer: Checkpoint, proof: Sequence[bytes], site: str) -> None:
    if older.size == 0 and older.root == EMPTY:
        return
    same = older.size == newer.size  # no proof is needed, and one from a size to itself is empty
    if not merkle.verify_consistency(older.size, newer.size, () if same else proof, older.root, newer.root):
        raise StaleReceipt(
            f"the log is split: its head of {older.size} receipts is no beginning of that of {newer.size}.",
            mend=MEND,
            site=site,
        )
