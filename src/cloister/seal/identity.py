"""Identities: Ed25519 keys that live for years and only ever sign (nothing is encrypted to them).

A signature is Ed25519(LP(label) || body): over received bytes and for one purpose (RFC 8032; protocol.md 2.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cloister.seal.labels import FINGERPRINT, h, lp
from cloister.seal.words import WORDS
from cloister.vector.errors import BadSignature

Randomness = Callable[[int], bytes]  # n -> n bytes nobody can predict: `os.urandom`, handed in from the edge
KEY_BYTES, SIGNATURE_BYTES = 32, 64
FINGERPRINT_WORDS, WORD_BITS = 6, 11


class Identity:
    """A private key that signs for one member of the federation. Its `repr` shows the public fingerprint only."""

    __slots__ = ("_key", "public")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public: bytes = key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, randomness: Randomness) -> Identity:
        return cls.from_bytes(randomness(KEY_BYTES))

    @classmethod
    def from_bytes(cls, raw: bytes) -> Identity:
        """Args: raw: the 32-byte RFC 8032 seed that `to_bytes` gave. Raises: ValueError: another length."""
        return cls(Ed25519PrivateKey.from_private_bytes(raw))

    def to_bytes(self) -> bytes:
        """The secret itself: write it to a file that only its owner can read, and nowhere else."""
        return self._key.private_bytes_raw()

    def sign(self, label: str, body: bytes) -> bytes:
        """Returns: 64 bytes over LP(label) || body."""
        return self._key.sign(lp(label.encode("ascii")) + body)

    def sign_text(self, text: bytes) -> bytes:
        """Signs bytes of a format that is not ours (a C2SP note), as they are.

        Raises: ValueError: they begin with a zero byte, as LP(label) does: nothing signed here can serve as ours.
        """
        if text[:1] in (b"", b"\0"):
            raise ValueError("a text begins with a character")
        return self._key.sign(text)

    def __repr__(self) -> str:
        return f"Identity({fingerprint_words(self.public)!r})"


def verify(public: bytes, label: str, body: bytes, signature: bytes, site: str = "") -> None:
    """Raises: BadSignature: `signature` is not that of `public` over LP(label) || body; names `site`."""
    if not _verifies(public, lp(label.encode("ascii")) + body, signature):
        raise BadSignature(f"a signature for {label!r} does not verify", site=site)


def verify_text(public: bytes, text: bytes, signature: bytes, name: str) -> None:
    """Raises: BadSignature: `signature` is not that of `public` over exactly `text`. Args: name: of that key."""
    if text[:1] in (b"", b"\0") or not _verifies(public, text, signature):
        raise BadSignature(f"the signature of {name!r} on a note does not verify")


_KNOWN: ContextVar[set[tuple[bytes, bytes, bytes]] | None] = ContextVar("signatures that verified", default=None)


@contextmanager
def remembering(known: set[tuple[bytes, bytes, bytes]]) -> Iterator[None]:
    """In this block and thread, a signature that verified once is not computed again; `known` holds those that did.

    For simulations alone, where all sites of a round share a process and check the same bytes; a site never uses it.
    """
    token = _KNOWN.set(known)
    try:
        yield
    finally:
        _KNOWN.reset(token)


def _verifies(public: bytes, signed: bytes, signature: bytes) -> bool:
    known, checked = _KNOWN.get(), (public, signed, signature)
    if known is not None and checked in known:
        return True
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, signed)
    except (InvalidSignature, ValueError):
        return False
    if known is not None:
        known.add(checked)
    return True


def fingerprint_words(public: bytes) -> str:
    """Six words (66 bits) that two people can compare by telephone."""
    bits = int.from_bytes(h(FINGERPRINT, public), "big") >> (256 - FINGERPRINT_WORDS * WORD_BITS)
    indices = [(bits >> (WORD_BITS * place)) % (1 << WORD_BITS) for place in reversed(range(FINGERPRINT_WORDS))]
    return " ".join(WORDS[index] for index in indices)
