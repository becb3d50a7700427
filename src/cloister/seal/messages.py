"""The ten messages of one round as bytes, and back (docs/protocol.md, "Messages").

    message = LP(label) || body || signature        signature = Ed25519(sender, LP(label) || body), 64 bytes

Every message is signed by who sends it, and every body begins with the round's context. The lists that the
coordinator relays (KeyList, Survivors, Consistency) hold what each site signed, without the label and the fields that
are the same for all; a receiver puts these back in front, so an entry from another round cannot verify.

Parsing is strict: one byte string for each message, `M.from_bytes(data).to_bytes() == data`, anything else is
`MalformedMessage`. It checks form only; what a message may say, and when, is the machines' affair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import ClassVar, NamedTuple, Self, TypeVar

from cloister.seal import labels, merkle
from cloister.seal.identity import SIGNATURE_BYTES, Identity, verify
from cloister.seal.labels import lp
from cloister.seal.masks import packed_bytes
from cloister.vector.errors import BadUpload, MalformedMessage
from cloister.vector.layout import BITS

MAX_NAME_BYTES = 63  # of a site's id, as a DNS label
MAX_PLAN_BYTES = 1 << 20  # a plan names a layout and a cohort; a longer one is an attack
PART_BYTES = 64 * merkle.LEAF_BYTES  # a masked vector travels in parts of 4 MiB, each a whole subtree of its tree
CIPHERTEXT_BYTES = 32 + 32 + 16  # two shares and the tag
MAX_CHARGE = 1 << 62  # of a ledger, so that who keeps the next one needs no more than 64 bits
MAX_CHECKPOINT_BYTES = 512  # a head of the log with the coordinator's signature alone has some 300
MAX_BITMAP_BYTES = 1 << 13  # over more sites than any plan may have
MAX_AGREEMENT_BYTES = 1 << 22  # a consistency proof from the heads of all sites: 4 KiB each, most are the same

Read = TypeVar("Read")


class Reader:
    """Takes fields off bytes, one after the other. Every method raises MalformedMessage where they are cut off."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        field = self._data[self._at : self._at + size]
        if len(field) != size:
            raise MalformedMessage(f"a message of {len(self._data)} bytes is cut off at byte {self._at}")
        self._at += size
        return field

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def prefixed(self, most: int) -> bytes:
        """LP(x) with a length of at most `most`."""
        length = self.number(8)
        if length > most:
            raise MalformedMessage(f"a field of {length} bytes where {most} are the most")
        return self.take(length)

    def name(self) -> str:
        raw = self.prefixed(MAX_NAME_BYTES)
        if not raw or not raw.isascii():
            raise MalformedMessage("a name is empty or not ASCII")
        return raw.decode("ascii")

    def many(self, read: Callable[[], Read]) -> tuple[Read, ...]:
        """A u32 count, then that many."""
        return tuple(read() for _ in range(self.number(4)))

    def names(self, read: Callable[[], Read], name: Callable[[Read], str]) -> tuple[Read, ...]:
        """Like `many`, of things with a name; the names ascend strictly."""
        found = self.many(read)
        if any(name(one) >= name(two) for one, two in pairwise(found)):
            raise MalformedMessage("the sites of a list are not in ascending order, or one is there twice")
        return found

    def end(self) -> None:
        if self._at != len(self._data):
            raise MalformedMessage(f"{len(self._data) - self._at} bytes behind the end of a message")


def _count(items: Iterable[bytes]) -> bytes:
    listed = list(items)
    return len(listed).to_bytes(4, "big") + b"".join(listed)


def _name(site: str) -> bytes:
    return lp(site.encode("ascii"))


def label_of(data: bytes) -> str:
    """Which message this is, by its label. Raises: MalformedMessage: none of the ten, and no receipt."""
    if data[8:9] == b"{":
        return labels.RECEIPT  # readable for people, so it begins with its JSON instead of a label
    for label in KINDS:
        if data.startswith(lp(label.encode("ascii"))):
            return label
    raise MalformedMessage("bytes that begin with no label of a message")


@dataclass(frozen=True)
class Message:
    """What all ten share.

    Attributes: context: 32 bytes, the round's. signature: the sender's, empty before `signed`.
    """

    LABEL: ClassVar[str]
    context: bytes
    signature: bytes = field(default=b"", kw_only=True)

    def body(self) -> bytes:
        """The bytes between the label and the signature: what is signed."""
        raise NotImplementedError

    def signed(self, identity: Identity) -> Self:
        """The same message with its sender's signature."""
        return replace(self, signature=identity.sign(self.LABEL, self.body()))

    def verify(self, public: bytes, site: str = "") -> None:
        """Raises: BadSignature: not signed by `public`; names `site`."""
        verify(public, self.LABEL, self.body(), self.signature, site)

    def to_bytes(self) -> bytes:
        return lp(self.LABEL.encode("ascii")) + self.body() + self.signature

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises: MalformedMessage: not exactly the bytes that `to_bytes` writes."""
        reader = Reader(data)
        if reader.prefixed(MAX_NAME_BYTES) != cls.LABEL.encode("ascii"):
            raise MalformedMessage(f"not a message {cls.LABEL!r}")
        message = cls.read(reader)
        reader.end()
        return message

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Takes body and signature off `reader`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Open(Message):
    """0. Coordinator to each site: here is a plan; `context` follows from it and the digests beside it."""

    LABEL = labels.OPEN
    roster: bytes  # digest
    previous: bytes  # digest of the run's last receipt, ZERO32 before the first
    plan: bytes

    def body(self) -> bytes:
        return self.context + self.roster + self.previous + lp(self.plan)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        return cls(
            reader.take(32),
            reader.take(32),
            reader.take(32),
            reader.prefixed(MAX_PLAN_BYTES),
            signature=reader.take(SIGNATURE_BYTES),
        )


@dataclass(frozen=True)
class Keys(Message):
    """1. Site to coordinator: fresh public keys, and a commitment to the secret of its own mask."""

    LABEL = labels.KEYS
    site: str
    channel: bytes  # X25519 public key c_pk: shares are encrypted to it
    mask: bytes  # X25519 public key s_pk: pairwise masks come from it
    commitment: bytes
    checkpoint: bytes = b""  # the newest head of the log that it verified (a note, see `log`)
    charge: int = 0  # as which charge of its privacy ledger it will pay for this round (see `charges`)

    def body(self) -> bytes:
        return self.context + self._own()

    def _own(self) -> bytes:
        fixed = _name(self.site) + self.channel + self.mask + self.commitment
        return fixed + lp(self.checkpoint) + self.charge.to_bytes(8, "big")

    def entry(self) -> bytes:
        """What a KeyList holds of it."""
        return self._own() + self.signature

    @classmethod
    def read(cls, reader: Reader) -> Self:
        return cls.read_entry(reader, reader.take(32))

    @classmethod
    def read_entry(cls, reader: Reader, context: bytes) -> Self:
        site, channel, mask, commitment = reader.name(), reader.take(32), reader.take(32), reader.take(32)
        checkpoint, charge = reader.prefixed(MAX_CHECKPOINT_BYTES), reader.number(8)
        if charge >= MAX_CHARGE:
            raise MalformedMessage(f"the charge {charge} of a ledger")
        signature = reader.take(SIGNATURE_BYTES)
        return cls(context, site, channel, mask, commitment, checkpoint, charge, signature=signature)


@dataclass(frozen=True)
class KeyList(Message):
    """2. Coordinator to U1: everybody's Keys, and proof that their checkpoints lie in one log; the same for all."""

    LABEL = labels.KEYLIST
    entries: tuple[Keys, ...]
    agreement: bytes = b""  # `log.Agreement`; empty where no log is kept

    def body(self) -> bytes:
        return self.context + _count(entry.entry() for entry in self.entries) + lp(self.agreement)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        context = reader.take(32)
        entries = reader.names(lambda: Keys.read_entry(reader, context), lambda entry: entry.site)
        return cls(context, entries, reader.prefixed(MAX_AGREEMENT_BYTES), signature=reader.take(SIGNATURE_BYTES))


@dataclass(frozen=True)
class Shares(Message):
    """3. Site to coordinator: whom it chose, and its two secrets in shares: a ciphertext for each of them, ascending.

    It keeps its own share, where it chose itself.
    """

    LABEL = labels.SHARES
    h1: bytes
    site: str
    chosen: bytes  # a bitmap over the sites of the key list (see `graph`)
    ciphertexts: tuple[bytes, ...]

    def body(self) -> bytes:
        return self.context + self.h1 + _name(self.site) + lp(self.chosen) + _count(self.ciphertexts)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        context, h1, site, chosen = reader.take(32), reader.take(32), reader.name(), reader.prefixed(MAX_BITMAP_BYTES)
        ciphertexts = reader.many(lambda: reader.take(CIPHERTEXT_BYTES))
        return cls(context, h1, site, chosen, ciphertexts, signature=reader.take(SIGNATURE_BYTES))


class Sharer(NamedTuple):
    """A site of U2, and the bitmap of those it chose."""

    site: str
    chosen: bytes


def write_sharers(sharers: Iterable[Sharer]) -> bytes:
    """U2 and who chose whom, as in message 4 and in an audit."""
    return _count(_name(site) + lp(chosen) for site, chosen in sharers)


def read_sharers(reader: Reader) -> tuple[Sharer, ...]:
    """Undoes `write_sharers`. Raises: MalformedMessage."""

    def read() -> Sharer:
        return Sharer(reader.name(), reader.prefixed(MAX_BITMAP_BYTES))

    return reader.names(read, lambda sharer: sharer.site)


@dataclass(frozen=True)
class Ciphertexts(Message):
    """4. Coordinator to each of U2: who is in U2 and chose whom, and what those that chose it encrypted to it."""

    LABEL = labels.CIPHERTEXTS
    h1: bytes
    recipient: str
    sharers: tuple[Sharer, ...]  # U2
    ciphertexts: tuple[bytes, ...]

    @property
    def sites(self) -> tuple[str, ...]:
        """U2."""
        return tuple(sharer.site for sharer in self.sharers)

    def body(self) -> bytes:
        sharers = write_sharers(self.sharers)
        return self.context + self.h1 + _name(self.recipient) + sharers + _count(self.ciphertexts)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        context, h1, recipient = reader.take(32), reader.take(32), reader.name()
        sharers = read_sharers(reader)
        ciphertexts = reader.many(lambda: reader.take(CIPHERTEXT_BYTES))
        return cls(context, h1, recipient, sharers, ciphertexts, signature=reader.take(SIGNATURE_BYTES))


@dataclass(frozen=True)
class SignedRoot:
    """What a site signs for its masked vector: the round so far, the vector's shape, and its Merkle root.

    It has a signature of its own because the coordinator shows it to all: in Survivors and in the receipt.

    Attributes: h1, u2: digests of the key list and of U2. words, bits: of the vector. root: over its packed bytes.
    """

    context: bytes
    h1: bytes
    u2: bytes
    words: int
    bits: int
    site: str
    root: bytes
    signature: bytes = b""

    def common(self) -> bytes:
        """The fields that are the same for every site."""
        return self.context + self.h1 + self.u2 + self.words.to_bytes(8, "big") + self.bits.to_bytes(4, "big")

    def _signed_bytes(self) -> bytes:
        return self.common() + _name(self.site) + self.root

    def signed(self, identity: Identity) -> SignedRoot:
        return replace(self, signature=identity.sign(labels.UPLOAD, self._signed_bytes()))

    def verify(self, public: bytes) -> None:
        """Raises: BadSignature."""
        verify(public, labels.UPLOAD, self._signed_bytes(), self.signature, self.site)

    def entry(self) -> bytes:
        return _name(self.site) + self.root + self.signature

    @classmethod
    def read_entry(cls, reader: Reader, common: tuple[bytes, bytes, bytes, int, int]) -> SignedRoot:
        return cls(*common, reader.name(), reader.take(32), reader.take(SIGNATURE_BYTES))


def _read_common(reader: Reader) -> tuple[bytes, bytes, bytes, int, int]:
    return reader.take(32), reader.take(32), reader.take(32), reader.number(8), reader.number(4)


@dataclass(frozen=True)
class Masked(Message):
    """5. Site to coordinator: the header of its masked vector; the vector itself travels beside it, in parts."""

    LABEL = labels.MASKED
    upload: SignedRoot
    parts: tuple[bytes, ...]  # Merkle root of each stretch of PART_BYTES; the upload's root is that over these

    def body(self) -> bytes:
        return self.upload.common() + self.upload.entry() + _count(self.parts)

    @property
    def payload_bytes(self) -> int:
        return packed_bytes(self.upload.words, self.upload.bits)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        upload = SignedRoot.read_entry(reader, _read_common(reader))
        parts = reader.many(lambda: reader.take(32))
        header = cls(upload.context, upload, parts, signature=reader.take(SIGNATURE_BYTES))
        if upload.bits not in BITS or len(parts) != -(-header.payload_bytes // PART_BYTES):
            raise MalformedMessage("a masked vector's parts do not make up its length")
        return header


@dataclass(frozen=True)
class Survivors(Message):
    """6. Coordinator to U3: whose masked vectors it holds, each with the root and signature of its site."""

    LABEL = labels.SURVIVORS
    h1: bytes
    u2: bytes
    words: int
    bits: int
    entries: tuple[SignedRoot, ...]

    def body(self) -> bytes:
        shape = self.words.to_bytes(8, "big") + self.bits.to_bytes(4, "big")
        return self.context + self.h1 + self.u2 + shape + _count(entry.entry() for entry in self.entries)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        common = _read_common(reader)
        entries = reader.names(lambda: SignedRoot.read_entry(reader, common), lambda entry: entry.site)
        return cls(*common, entries, signature=reader.take(SIGNATURE_BYTES))


@dataclass(frozen=True)
class Consistent(Message):
    """7. Site to coordinator: this is the one survivor set that I sign in this round."""

    LABEL = labels.CONSISTENT
    u3: bytes  # the digest of the survivor set and its roots
    site: str

    def body(self) -> bytes:
        return self.context + self.u3 + _name(self.site)

    def entry(self) -> bytes:
        """What a Consistency list holds of it."""
        return _name(self.site) + self.signature

    @classmethod
    def read(cls, reader: Reader) -> Self:
        return cls.read_entry(reader, reader.take(32), reader.take(32))

    @classmethod
    def read_entry(cls, reader: Reader, context: bytes, u3: bytes) -> Self:
        return cls(context, u3, reader.name(), signature=reader.take(SIGNATURE_BYTES))


@dataclass(frozen=True)
class Consistency(Message):
    """8. Coordinator to U3: at least t signatures on one survivor set."""

    LABEL = labels.CONSISTENCY
    u3: bytes
    entries: tuple[Consistent, ...]

    def body(self) -> bytes:
        return self.context + self.u3 + _count(entry.entry() for entry in self.entries)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        context, u3 = reader.take(32), reader.take(32)
        entries = reader.names(lambda: Consistent.read_entry(reader, context, u3), lambda entry: entry.site)
        return cls(context, u3, entries, signature=reader.take(SIGNATURE_BYTES))


@dataclass(frozen=True)
class Unmask(Message):
    """9. Site to coordinator: one share for each of U2 that chose it, in ascending order.

    Of a survivor it is the share of beta (its own mask), of one that dropped out that of sigma (its pair masks). The
    format has room for one share a site, so nobody can be asked for both.
    """

    LABEL = labels.UNMASK
    u3: bytes
    site: str
    shares: tuple[bytes, ...]

    def body(self) -> bytes:
        return self.context + self.u3 + _name(self.site) + _count(self.shares)

    def __repr__(self) -> str:
        return f"Unmask({self.site!r}, {len(self.shares)} shares)"

    @classmethod
    def read(cls, reader: Reader) -> Self:
        context, u3, site = reader.take(32), reader.take(32), reader.name()
        shares = reader.many(lambda: reader.take(32))
        return cls(context, u3, site, shares, signature=reader.take(SIGNATURE_BYTES))


KINDS: dict[str, type[Message]] = {
    kind.LABEL: kind
    for kind in (Open, Keys, KeyList, Shares, Ciphertexts, Masked, Survivors, Consistent, Consistency, Unmask)
}


@dataclass(frozen=True)
class MaskedHeader:
    """What a transport needs of message 5, whose signature it leaves to `SealServer.receive`.

    Attributes: root: of the payload's Merkle tree. parts: (Merkle root, length) of each part. payload_bytes: of all.
    """

    context: bytes
    site: str
    root: bytes
    parts: tuple[tuple[bytes, int], ...]
    payload_bytes: int

    def check(self, root: bytes, length: int) -> None:
        """Raises: BadUpload: the payload that arrived (its Merkle root and length) is not the one announced."""
        if root != self.root or length != self.payload_bytes:
            raise BadUpload(
                f"the {length} bytes that arrived are not the {self.payload_bytes} bytes that were signed for.",
                mend="Upload the parts again.",
                site=self.site,
            )


def masked_header(data: bytes) -> MaskedHeader:
    """Reads message 5 for the transport. Raises: MalformedMessage: also where the parts do not make the root."""
    message = Masked.from_bytes(data)
    if merkle.root(message.parts) != message.upload.root:
        raise MalformedMessage("a masked vector's parts do not make up its root")
    size = message.payload_bytes
    lengths = [min(PART_BYTES, size - at) for at in range(0, size, PART_BYTES)]
    parts = tuple(zip(message.parts, lengths, strict=True))
    return MaskedHeader(message.context, message.upload.site, message.upload.root, parts, size)
