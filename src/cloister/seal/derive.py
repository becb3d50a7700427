"""What follows from a round's secrets and lists: seeds, keys, digests, and who neighbours whom (docs/protocol.md).

Site and coordinator derive the same things from the same bytes, so the derivations stand here once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloister.seal import labels, shamir
from cloister.seal.labels import h, lp
from cloister.seal.messages import Keys, SignedRoot
from cloister.seal.plan import Plan
from cloister.vector.errors import BadCiphertext, BadShare, KeyListConflict

PROBE = bytes(range(32))  # any private key shows whether a public one is of low order
NONCE = bytes(12)  # every channel key encrypts exactly one message, so the zero nonce is never used twice


def neighbours(site: str, sites: Iterable[str]) -> list[str]:
    """Whom of `sites` a site shares masks and secrets with, ascending: in the complete graph all the others."""
    return sorted(other for other in sites if other != site)


def circle(owner: str, sites: Iterable[str]) -> list[str]:
    """Who holds shares of `owner`'s secrets, ascending: its neighbours and itself. The first has the point 1."""
    return sorted([owner, *neighbours(owner, sites)])


def round_context(plan: Plan, roster: bytes, receipt: bytes) -> bytes:
    """ctx of a round. Args: roster, receipt: digests of the roster and of the run's last receipt."""
    return labels.context(
        run=plan.run,
        round=plan.round,
        attempt=plan.attempt,
        roster=roster,
        plan=plan.digest,
        query=plan.query,
        receipt=receipt,
    )


def commitment(context: bytes, site: str, beta: int) -> bytes:
    return h(labels.COMMIT, context, site.encode("ascii"), shamir.to_bytes(beta))


def key_list_digest(context: bytes, entries: Sequence[Keys]) -> bytes:
    """h1: from here on it salts every key, so two sites that were shown two key lists share nothing."""
    return h(labels.U1, context, *(entry.entry() for entry in entries))


def sharers_digest(context: bytes, h1: bytes, sites: Iterable[str]) -> bytes:
    """H(U2), over the ascending names."""
    return h(labels.U2, context, h1, *(site.encode("ascii") for site in sites))


def survivors_digest(context: bytes, h1: bytes, u2: bytes, entries: Sequence[SignedRoot]) -> bytes:
    """What a site signs in message 7: the survivors in ascending order, each with its root."""
    fields = [part for entry in entries for part in (entry.site.encode("ascii"), entry.root)]
    return h(labels.U3, context, h1, u2, *fields)


def survivor_names_digest(sites: Iterable[str]) -> bytes:
    """Names a survivor set over several rounds, for the rule that one query is only ever summed over one set."""
    return h(labels.SURVIVOR_NAMES, *(site.encode("ascii") for site in sites))


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA256, 32 bytes (RFC 5869)."""
    return HKDF(SHA256(), 32, salt, info).derive(secret)


def _info(label: str, *parts: bytes | str) -> bytes:
    encoded = [part.encode("ascii") if isinstance(part, str) else part for part in (label, *parts)]
    return b"".join(lp(part) for part in encoded)


def mask_private_key(sigma: int, context: bytes) -> X25519PrivateKey:
    """s_sk: whoever has the mask secret sigma can remove its site's pair masks."""
    raw = hkdf(shamir.to_bytes(sigma), context, _info(labels.MASK_KEY))
    return X25519PrivateKey.from_private_bytes(raw)


def self_seed(beta: int, context: bytes, site: str) -> bytes:
    """b_u: the seed of a site's own mask."""
    return hkdf(shamir.to_bytes(beta), context, _info(labels.SELF, site))


def exchange(private: X25519PrivateKey, public: bytes, site: str) -> bytes:
    """X25519. Raises: KeyListConflict: `site`'s key is of low order (the result would be all zero)."""
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise KeyListConflict("a public key of low order", site=site) from None


def check_public(public: bytes, site: str) -> None:
    """Raises: KeyListConflict: a key of low order, which makes every exchange with it zero."""
    exchange(X25519PrivateKey.from_private_bytes(PROBE), public, site)


def pair_seed(shared: bytes, context: bytes, h1: bytes, one: str, other: str) -> bytes:
    """s_uv: the seed of the mask that two sites share; the same from both ends. `shared`: of their mask keys."""
    return hkdf(shared, h1, _info(labels.PAIR, context, min(one, other), max(one, other)))


def pair_sign(site: str, other: str) -> int:
    """+1 where `site` adds the mask it shares with `other`, -1 where it subtracts it."""
    return 1 if site < other else -1


def channel_key(shared: bytes, h1: bytes, sender: str, recipient: str) -> bytes:
    """K_(u->v), one for each direction. `shared`: of their channel keys."""
    return hkdf(shared, h1, _info(labels.CHANNEL, sender, recipient))


def _associated(context: bytes, h1: bytes, sender: str, recipient: str) -> bytes:
    return h(labels.SHARE_AAD, context, h1, sender.encode("ascii"), recipient.encode("ascii"))


def encrypt_shares(
    key: bytes, context: bytes, h1: bytes, sender: str, recipient: str, beta: int, sigma: int
) -> bytes:
    """One recipient's shares of the sender's two secrets: 80 bytes. `key` must never encrypt anything else."""
    plain = shamir.to_bytes(beta) + shamir.to_bytes(sigma)
    return ChaCha20Poly1305(key).encrypt(NONCE, plain, _associated(context, h1, sender, recipient))


def decrypt_shares(
    key: bytes, context: bytes, h1: bytes, sender: str, recipient: str, ciphertext: bytes
) -> tuple[int, int]:
    """The shares of (beta, sigma). Raises: BadCiphertext, BadShare: both name the sender."""
    try:
        plain = ChaCha20Poly1305(key).decrypt(NONCE, ciphertext, _associated(context, h1, sender, recipient))
    except InvalidTag:
        raise BadCiphertext(
            "the shares that were relayed from this site do not open: it or the coordinator altered them.",
            site=sender,
        ) from None
    try:
        return shamir.from_bytes(plain[:32]), shamir.from_bytes(plain[32:])
    except BadShare as fault:
        raise BadShare(fault.message, site=sender) from None
