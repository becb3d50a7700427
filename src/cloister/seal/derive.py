"""What follows from a round's secrets and lists: seeds, keys, digests, and the graph (docs/protocol.md).

Site and coordinator derive the same things from the same bytes, so the derivations stand here once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloister.seal import labels, shamir
from cloister.seal.buckets import partition
from cloister.seal.graph import Degree, Graph, degree, mark
from cloister.seal.labels import h, lp
from cloister.seal.messages import Keys, Sharer, SignedRoot
from cloister.seal.plan import Plan
from cloister.vector.errors import BadCiphertext, BadShare, KeyListConflict

NONCE = bytes(12)  # every channel key encrypts exactly one message, so the zero nonce is never used twice


# Encodings of the points of low order and of their non-canonical twins, without the top bit, which is ignored (RFC
# 7748, section 7; the list is that of libsodium): any exchange with one of them gives zero.
LOW_ORDER = frozenset(
    [value.to_bytes(32, "little") for value in (0, 1, shamir.P - 1, shamir.P, shamir.P + 1)]
    + [
        bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
        bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    ]
)


def neighbours(site: str, sites: Iterable[str]) -> list[str]:
    """The others, ascending."""
    return sorted(other for other in sites if other != site)


def round_graph(plan: Plan, sites: tuple[str, ...], sharers: Iterable[Sharer]) -> Graph:
    """Args: sites: U1. sharers: U2. Raises: MalformedMessage: a site chose as no site may."""
    buckets = partition(plan.query, sites, plan.buckets)
    return Graph(sites, buckets, round_degree(plan, sites), {sharer.site: sharer.chosen for sharer in sharers})


def complete_sharers(u1: Sequence[str], u2: Iterable[str]) -> tuple[Sharer, ...]:
    """U2 in the complete graph, where everybody chose all of U1."""
    return tuple(Sharer(site, mark(u1, u1)) for site in u2)


def round_degree(plan: Plan, sites: Collection[str]) -> Degree:
    """How many sites each of U1 chooses, and how many of them recover its secrets."""
    return degree(plan.graph, len(sites), len(plan.sites), plan.threshold)


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


def sharers_digest(context: bytes, h1: bytes, sharers: Iterable[Sharer]) -> bytes:
    """h2: who is in U2, and who chose whom."""
    fields = [part for sharer in sharers for part in (sharer.site.encode("ascii"), sharer.chosen)]
    return h(labels.U2, context, h1, *fields)


def survivors_digest(context: bytes, h1: bytes, u2: bytes, entries: Sequence[SignedRoot]) -> bytes:
    """What a site signs in message 7: the survivors in ascending order, each with its root."""
    fields = [part for entry in entries for part in (entry.site.encode("ascii"), entry.root)]
    return h(labels.U3, context, h1, u2, *fields)


def survivor_names_digest(buckets: Iterable[Iterable[str]]) -> bytes:
    """Names the survivors of each bucket over several rounds: one query is only ever summed over one survivor set."""
    listed = [[lp(site.encode("ascii")) for site in bucket] for bucket in buckets]
    return h(labels.SURVIVOR_NAMES, *(len(names).to_bytes(4, "big") + b"".join(names) for names in listed))


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
    if public[:31] + bytes([public[31] & 0x7F]) in LOW_ORDER:
        raise KeyListConflict("a public key of low order", site=site)


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
