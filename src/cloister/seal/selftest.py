"""Known answers of every primitive, computed once when the room is imported (a few milliseconds; protocol.md 2.8).

A library that computes one of them wrongly (a bad build, a broken accelerator) must stop the process before any key
is made. The vectors are those of NIST SP 800-38A F.5.5, RFC 7748 5.2, RFC 5869 A.1, RFC 8439 2.8.2 and RFC 8032 7.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloister.vector.errors import EnvironmentFailure

SUNSCREEN = (
    b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
    b"sunscreen would be it."
)


def _aes256_ctr() -> bytes:
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    return Cipher(AES256(key), CTR(counter)).encryptor().update(bytes.fromhex("6bc1bee22e409f96e93d7e117393172a"))


def _x25519() -> bytes:
    scalar = bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    point = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    return X25519PrivateKey.from_private_bytes(scalar).exchange(X25519PublicKey.from_public_bytes(point))


def _hkdf_sha256() -> bytes:
    return HKDF(SHA256(), 42, bytes(range(13)), bytes(range(0xF0, 0xFA))).derive(b"\x0b" * 22)


def _chacha20_poly1305() -> bytes:
    nonce, aad = bytes.fromhex("070000004041424344454647"), bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    aead = ChaCha20Poly1305(bytes(range(0x80, 0xA0)))
    sealed = aead.encrypt(nonce, SUNSCREEN, aad)
    return sealed[:16] + sealed[-16:] if aead.decrypt(nonce, sealed, aad) == SUNSCREEN else b""


def _ed25519() -> bytes:
    seed = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    key = Ed25519PrivateKey.from_private_bytes(seed)
    signature = key.sign(b"\x72")
    key.public_key().verify(signature, b"\x72")
    return signature


ANSWERS: Mapping[str, tuple[Callable[[], bytes], str]] = {
    "AES-256-CTR": (_aes256_ctr, "601ec313775789a5b7a7f504bbf3d228"),
    "X25519": (_x25519, "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"),
    "HKDF-SHA256": (
        _hkdf_sha256,
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    "ChaCha20-Poly1305": (
        _chacha20_poly1305,
        "d31a8d34648e60db7b86afbc53ef7ec21ae10b594f09e26a7e902ecbd0600691",
    ),
    "Ed25519": (
        _ed25519,
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
}


def check() -> None:
    """Raises: EnvironmentFailure: a primitive gives another answer than its standard, or fails."""
    for name, (compute, expected) in ANSWERS.items():
        try:
            right = compute().hex() == expected
        except Exception:  # whatever a broken library raises, the finding is the same
            right = False
        if not right:
            raise EnvironmentFailure(
                f"{name} of the installed package `cryptography` fails its known answer.",
                mend="Install the package anew, or run on another machine; seal nothing here.",
            )
