"""The roster: who is in the federation, signed by root keys that are kept offline (after TUF's root metadata).

A site pins the root keys when it joins and then follows the roster version by version: each names the digest of the
one before and is signed by a quorum of the old roots and of its own, so a coordinator can neither invent a member nor
hide one. The roster's digest is in every round's context.

    signed roster = LP(body) || LP(root key || signature) || ..        body = canonical JSON, keys in hex
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from cloister.seal.identity import KEY_BYTES, SIGNATURE_BYTES, Identity, verify
from cloister.seal.labels import ROSTER, ZERO32, fields, lp
from cloister.vector.bundle import canonical, digest
from cloister.vector.errors import BadSignature, MalformedMessage, NotInRoster, RosterRefused

ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")  # a DNS label's length (RFC 1035)
MAX_ROSTER_BYTES = 4 << 20  # some 20,000 members
MAX_ROOTS = 32

Role = Literal["coordinator", "site", "analyst"]


@dataclass(frozen=True)
class Member:
    """One party. Attributes: id: its name everywhere. key: its Ed25519 public key, 32 bytes."""

    id: str
    key: bytes

    def __post_init__(self) -> None:
        if not ID.fullmatch(self.id):
            raise RosterRefused(
                f"{self.id!r} is no member id.",
                mend="Use 1 to 63 of a-z, 0-9, '.', '_' and '-', a letter or digit first.",
            )
        if len(self.key) != KEY_BYTES:
            raise RosterRefused(f"the key of {self.id!r} has {len(self.key)} bytes, not {KEY_BYTES}")


@dataclass(frozen=True)
class Roster:
    """One version of who is who.

    Attributes:
      federation: its name, of the form of a member id.
      version: 1, 2, ... previous: the digest of the version before, ZERO32 at version 1.
      roots: the public keys that may sign rosters. quorum: how many of them it takes.
      coordinators, sites, analysts: the members; ids and keys are distinct over all of them.
    Raises: RosterRefused: anything that contradicts this.
    """

    federation: str
    version: int
    previous: bytes
    roots: tuple[bytes, ...]
    quorum: int
    coordinators: tuple[Member, ...] = ()
    sites: tuple[Member, ...] = ()
    analysts: tuple[Member, ...] = ()
    _keys: dict[str, dict[str, bytes]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        members = (*self.coordinators, *self.sites, *self.analysts)
        keys = [member.key for member in members] + list(self.roots)
        if not ID.fullmatch(self.federation):
            raise RosterRefused(f"{self.federation!r} is no federation name")
        if type(self.version) is not int or type(self.quorum) is not int:
            raise RosterRefused("a roster's version or quorum is no integer")
        if not 1 <= self.version < 1 << 32 or len(self.previous) != 32:
            raise RosterRefused(f"roster version {self.version} or its previous digest is out of range")
        if (self.version == 1) != (self.previous == ZERO32):
            raise RosterRefused("only version 1 has no previous roster")
        if not 1 <= self.quorum <= len(self.roots) <= MAX_ROOTS or any(len(key) != KEY_BYTES for key in self.roots):
            raise RosterRefused(f"{len(self.roots)} roots with a quorum of {self.quorum}")
        if len({member.id for member in members}) != len(members):
            raise RosterRefused("two members of the roster have the same id")
        if len(set(keys)) != len(keys):
            raise RosterRefused("two members or roots of the roster have the same key")
        by_role = {"coordinator": self.coordinators, "site": self.sites, "analyst": self.analysts}
        keys_by_role = {role: {member.id: member.key for member in those} for role, those in by_role.items()}
        object.__setattr__(self, "_keys", keys_by_role)

    def key_of(self, id: str, role: Role) -> bytes:
        """The public key of the member `id`. Raises: NotInRoster: there is none of that role."""
        try:
            return self._keys[role][id]
        except KeyError:
            raise NotInRoster(f"{id!r} is no {role} of roster version {self.version}.") from None

    @cached_property
    def body(self) -> bytes:
        """The canonical bytes that root keys sign."""
        return canonical(
            {
                "federation": self.federation,
                "version": self.version,
                "previous": self.previous.hex(),
                "roots": [key.hex() for key in self.roots],
                "quorum": self.quorum,
                "coordinators": _members_json(self.coordinators),
                "sites": _members_json(self.sites),
                "analysts": _members_json(self.analysts),
            }
        )

    def to_bytes(self) -> bytes:
        return self.body

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the body: what every round's context names."""
        return digest(self.body)

    @classmethod
    def from_bytes(cls, body: bytes) -> Roster:
        """Raises: MalformedMessage: not canonical. RosterRefused: it contradicts itself."""
        if len(body) > MAX_ROSTER_BYTES:
            raise MalformedMessage(f"a roster of {len(body)} bytes")
        try:
            data = json.loads(body)
            roster = cls(
                federation=data["federation"],
                version=data["version"],
                previous=bytes.fromhex(data["previous"]),
                roots=tuple(bytes.fromhex(key) for key in data["roots"]),
                quorum=data["quorum"],
                coordinators=_members(data["coordinators"]),
                sites=_members(data["sites"]),
                analysts=_members(data["analysts"]),
            )
            same = roster.body == body
        except (ValueError, KeyError, TypeError, RecursionError) as fault:
            raise MalformedMessage(f"a roster does not parse: {type(fault).__name__}") from None
        if not same:
            raise MalformedMessage("a roster is not in canonical form")
        return roster


def _members_json(members: Iterable[Member]) -> list[dict[str, str]]:
    return [{"id": member.id, "key": member.key.hex()} for member in members]


def _members(data: Any) -> tuple[Member, ...]:
    return tuple(Member(entry["id"], bytes.fromhex(entry["key"])) for entry in data)


def sign_roster(roster: Roster, roots: Sequence[Identity]) -> bytes:
    """The signed roster; sign with the old roots too where they change."""
    return lp(roster.body) + b"".join(lp(root.public + root.sign(ROSTER, roster.body)) for root in roots)


def _signers(body: bytes, entries: list[bytes]) -> set[bytes]:
    """The root keys that signed `body`. Raises: MalformedMessage, BadSignature: an entry that is no signature."""
    if len(entries) > 2 * MAX_ROOTS or any(len(entry) != KEY_BYTES + SIGNATURE_BYTES for entry in entries):
        raise MalformedMessage("a signed roster has entries that are no signatures")
    for entry in entries:
        verify(entry[:KEY_BYTES], ROSTER, body, entry[KEY_BYTES:])
    return {entry[:KEY_BYTES] for entry in entries}


class TrustedRoster:
    """The roster as one party trusts it: starts from pinned root keys and moves by verified updates only.

    Args: roots: the pinned root keys. quorum: how many must sign. federation: its name, "" for any.
    Attributes: current: the newest verified roster, None before the first. signed: its signed bytes, to be kept.
    """

    def __init__(self, roots: Iterable[bytes], quorum: int = 1, federation: str = "") -> None:
        self._roots, self._quorum, self._federation = frozenset(roots), quorum, federation
        self.current: Roster | None = None
        self.signed = b""

    @classmethod
    def resume(cls, signed: bytes) -> TrustedRoster:
        """From bytes that this party itself verified before and kept: their own roots are taken as pinned.

        Raises: MalformedMessage, RosterRefused: the kept bytes were damaged.
        """
        roster = Roster.from_bytes((fields(signed) or [b""])[0])
        trusted = cls(roster.roots, roster.quorum, roster.federation)
        trusted.update(signed)
        return trusted

    def update(self, signed: bytes) -> Roster:
        """Verifies a roster and makes it the current one; the current one again is accepted and changes nothing.

        The first may have any version (a site may join late); each later one must follow from the one before.

        Raises:
          RosterRefused: too few signatures of the trusted roots, another federation, or it does not follow.
          MalformedMessage, BadSignature: the bytes are not a signed roster.
        """
        if len(signed) > 2 * MAX_ROSTER_BYTES:
            raise MalformedMessage(f"a signed roster of {len(signed)} bytes")
        body, *entries = fields(signed) or [b""]
        try:
            signers = _signers(body, entries)
        except BadSignature:
            raise RosterRefused("a root's signature on the roster does not verify") from None
        if len(signers & self._roots) < self._quorum:
            raise RosterRefused(
                f"the roster is signed by {len(signers & self._roots)} of the pinned roots, it takes {self._quorum}.",
                mend="Ask the operator for a roster signed with the federation's root key.",
            )
        roster = Roster.from_bytes(body)
        if self.current is not None and roster.body == self.current.body:
            return self.current
        self._check_follows(roster, signers)
        self._roots, self._quorum = frozenset(roster.roots), roster.quorum
        self.current, self.signed, self._federation = roster, signed, roster.federation
        return roster

    def _check_follows(self, roster: Roster, signers: set[bytes]) -> None:
        if self._federation not in ("", roster.federation):
            raise RosterRefused(f"a roster of {roster.federation!r}, this is {self._federation!r}")
        if len(signers & set(roster.roots)) < roster.quorum:
            raise RosterRefused("the roster is not signed by a quorum of its own roots")
        if self.current is None:
            return
        if roster.version != self.current.version + 1:
            raise RosterRefused(f"roster version {roster.version} does not follow version {self.current.version}")
        if roster.previous != self.current.digest:
            raise RosterRefused(f"roster version {roster.version} does not name the version before it")
