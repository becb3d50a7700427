"""Who becomes a member: invited with a one-time token, enrolled with an own key, admitted by the offline root.

The coordinator's approval alone is never enough: what makes a member is the root's signature on the next roster.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from cloister.coordinator.folder import Folder, open_folder, read_key
from cloister.coordinator.store import Store, Tx
from cloister.seal.identity import fingerprint_words, verify
from cloister.seal.labels import ENROLL, fields
from cloister.seal.roster import ID, Member, Role, Roster, TrustedRoster, sign_roster
from cloister.vector import digest
from cloister.vector.errors import InvitationError, RosterRefused, UsageError
from cloister.wire import Invitation, api
from cloister.wire.invitation import TOKEN_BYTES

INVITATION_SECONDS = 72 * 3600.0
ASK_AGAIN = "Ask the operator for a new invitation."


@dataclass(frozen=True)
class Enrolled:
    """Someone who waits for admission. words: six, to be compared by telephone before the root signs."""

    id: str
    role: str
    words: str


def invite(
    folder: Path,
    ids: Iterable[str],
    role: str = "site",
    *,
    randomness: Callable[[int], bytes] = os.urandom,
    now: Callable[[], float] = time.time,
) -> list[Invitation]:
    """A one-time invitation for each id, good for 72 hours. An earlier one for the same id stays good.

    Raises: UsageError: an id that is no name, or that is a member already.
    """
    opened, names = open_folder(folder), list(ids)
    store = opened.store()
    roster = current_roster(store)
    taken = {member.id for member in (*roster.coordinators, *roster.sites, *roster.analysts)}
    for id in names:
        if not ID.fullmatch(id):
            raise UsageError(f"{id!r} is no member id.", mend="Use 1 to 63 of a-z, 0-9, '.', '_' and '-'.")
        if id in taken:
            raise UsageError(f"{id!r} is a member already.", mend="Choose another id.")
    made = [
        Invitation(
            url=opened.url,
            federation=opened.federation,
            role=role,
            id=id,
            token=randomness(TOKEN_BYTES),
            certificate=opened.certificate_digest(),
            root=roster.roots[0],
        )
        for id in names
    ]

    def write(tx: Tx) -> None:
        for each in made:
            tx.add_invitation(_hashed(each.token), each.id, role, now() + INVITATION_SECONDS)

    store.run_tx("invite", write)
    store.close()
    return made


def _hashed(token: bytes) -> str:
    return digest(token).hex()


def enroll(store: Store, federation: str, request: api.Enroll, now: float) -> None:
    """Takes a new member's key, in the running coordinator. The same request again changes nothing.

    Raises: InvitationError: the token is unknown, spent, expired or another's. BadSignature: no proof of the key.
    """
    token, key = bytes.fromhex(request.token), bytes.fromhex(request.key)
    proven = api.enrol_proof_body(token, federation, request.id, request.role, key)
    verify(key, ENROLL, proven, bytes.fromhex(request.proof), site=request.id)

    def write(tx: Tx) -> None:
        found = tx.invitation(_hashed(token))
        if found is None or (found.id, found.role) != (request.id, request.role):
            raise InvitationError("the coordinator does not know this invitation.", mend=ASK_AGAIN)
        known = {row.id: row.key for row in tx.enrolments()}
        if found.spent:
            if known.get(request.id) == key:
                return  # the answer was lost on the way: the same key may ask again
            raise InvitationError("the invitation was used before.", mend=ASK_AGAIN)
        if found.expires < now:
            raise InvitationError("the invitation has expired.", mend=ASK_AGAIN)
        tx.spend(_hashed(token))
        tx.add_enrolment(request.id, request.role, key)

    store.run_tx("enroll", write)


def pending(folder: Path) -> list[Enrolled]:
    """Who enrolled and waits for the root's signature."""
    store = open_folder(folder).store()
    rows = store.look(lambda tx: tx.enrolments())
    store.close()
    return [Enrolled(row.id, row.role, fingerprint_words(row.key)) for row in rows]


def admit(folder: Path, root_path: Path, ids: Iterable[str] | None = None) -> Roster:
    """Signs those who wait (or only `ids` of them) into the next roster; a running coordinator takes it up at once.

    Raises: UsageError: an id that does not wait, or a key that is not the root's.
    """
    store, root = open_folder(folder).store(), read_key(root_path)
    current = current_roster(store)
    if root.public not in current.roots:
        raise UsageError(f"{root_path} is not the root key of this federation.", mend="`init` wrote the right one.")

    def write(tx: Tx) -> Roster:
        waiting = {row.id: row for row in tx.enrolments()}
        chosen = sorted(waiting if ids is None else ids)
        if unknown := [id for id in chosen if id not in waiting]:
            raise UsageError(f"{unknown[0]!r} does not wait for admission.", mend="`pending` lists who does.")
        if not chosen:
            raise UsageError("nobody waits for admission.", mend="Members wait once they used their invitation.")
        members = {role: [Member(id, waiting[id].key) for id in chosen if waiting[id].role == role] for role in ROLES}
        roster = replace(
            current,
            version=current.version + 1,
            previous=current.digest,
            sites=_sorted(current.sites, members["site"]),
            analysts=_sorted(current.analysts, members["analyst"]),
        )
        tx.add_roster(roster.version, sign_roster(roster, [root]))
        for id in chosen:
            tx.drop_enrolment(id)
        return roster

    try:
        return store.run_tx("admit", write)
    finally:
        store.close()


ROLES = ("site", "analyst")


def _sorted(members: tuple[Member, ...], more: list[Member]) -> tuple[Member, ...]:
    return tuple(sorted((*members, *more), key=lambda member: member.id))


def current_roster(store: Store) -> Roster:
    """The newest roster of this coordinator's own database. Raises: RosterRefused: there is none."""
    signed = store.look(lambda tx: tx.roster(None))
    if signed is None:
        raise RosterRefused("the database holds no roster.", mend="Restore it, or found the federation anew.")
    return Roster.from_bytes(fields(signed)[0])


class Members:
    """The roster as the running coordinator knows it; looks for a newer version where it does not know a sender."""

    def __init__(self, folder: Folder, store: Store) -> None:
        self._store = store
        self._by_version: dict[int, Roster] = {}
        self._roles: dict[str, Role] = {}
        self._trusted = TrustedRoster(current_roster(store).roots, federation=folder.federation)
        self.refresh()

    @property
    def current(self) -> Roster:
        return self.at(max(self._by_version))

    def at(self, version: int) -> Roster:
        return self._by_version[version]

    def refresh(self) -> Roster:
        """Takes up versions that `admit` signed since. Raises: RosterRefused: one that does not follow."""
        newest = max(self._by_version, default=0)
        for signed in self._store.look(lambda tx: tx.rosters_after(newest)):
            roster = self._trusted.update(signed)
            self._by_version[roster.version] = roster
        analysts, sites = self.current.analysts, self.current.sites
        self._roles = dict.fromkeys((member.id for member in analysts), "analyst")
        self._roles |= dict.fromkeys((member.id for member in sites), "site")
        return self.current

    def role_of(self, id: str) -> Role | None:
        """ "site" or "analyst" by the newest roster, None for a stranger."""
        return self._roles.get(id)

    def key_of(self, id: str) -> bytes:
        """The public key of a site or an analyst. Raises: NotInRoster."""
        if id not in self._roles:
            self.refresh()
        return self.current.key_of(id, self._roles.get(id, "site"))
