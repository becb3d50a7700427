"""One piece of evidence at a time: who signed it, and whether it says what the other pieces do (`verify`)."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from cloister.round.evidence import RoundEvidence, file_of
from cloister.seal import audit, derive, merkle
from cloister.seal.graph import COMPLETE
from cloister.seal.identity import verify
from cloister.seal.labels import ENVELOPE, fields, lp
from cloister.seal.log import Checkpoint, cosigner_of, cosigners, open_checkpoint, origin_of
from cloister.seal.messages import Consistency
from cloister.seal.plan import check_plan
from cloister.seal.receipt import Receipt, open_receipt
from cloister.seal.roster import Roster, TrustedRoster
from cloister.seal.threshold import MIN_SITES
from cloister.vector import digest
from cloister.vector.errors import (
    BadSignature,
    CloisterError,
    ContextMismatch,
    MalformedMessage,
    MissingConsistency,
    RosterRefused,
    TooFewSurvivors,
)


@dataclass(frozen=True)
class ReceiptedRound:
    """One round whose receipt the coordinator signed."""

    place: int
    receipt: Receipt
    roster: Roster
    evidence: RoundEvidence

    @property
    def where(self) -> str:
        return f"round {self.receipt.plan.round}"

    def file(self, kind: str, nonce: str = "") -> str:
        return file_of(kind, self.place, nonce)


def vouches_for_itself(signed: bytes) -> bool:
    """Whether a roster is signed as it says itself: then it is whole, and who does not trust its roots means another
    federation."""
    try:
        roster = Roster.from_bytes((fields(signed) or [b""])[0])
        TrustedRoster(roster.roots, roster.quorum).update(signed)
    except CloisterError:
        return False
    return True


def opened(signed: bytes, rosters: Mapping[bytes, Roster]) -> tuple[Receipt, Roster]:
    """The receipt and its roster. Raises: BadSignature: no coordinator signed it. RosterRefused: no such roster."""
    for key in {member.key for roster in rosters.values() for member in roster.coordinators}:
        try:
            receipt = open_receipt(signed, key)
        except BadSignature:
            continue
        if receipt.roster not in rosters:
            raise RosterRefused("a receipt under a roster that no root key signed, or that is not there")
        if key in [member.key for member in rosters[receipt.roster].coordinators]:
            return receipt, rosters[receipt.roster]
    raise BadSignature("a receipt that no coordinator of its roster signed")


def checkpoint(note: bytes, rosters: Mapping[bytes, Roster]) -> tuple[Checkpoint, frozenset[str]]:
    """The head that a coordinator signed, and which sites cosigned it. Raises: BadSignature, MalformedMessage."""
    for roster in reversed(list(rosters.values())):
        names = {cosigner_of(roster.federation, member.id): member.id for member in roster.sites}
        keys = {cosigner_of(roster.federation, member.id): member.key for member in roster.sites}
        for coordinator in roster.coordinators:
            try:
                head = open_checkpoint(note, origin_of(roster.federation), coordinator.key)
            except BadSignature:
                continue
            return head, frozenset(names[name] for name in cosigners(note, keys))
    raise BadSignature("a checkpoint that no coordinator signed")


def check_receipt(receipt: Receipt, roster: Roster) -> None:
    """A site's checks of the plan, for every site of it, and of the context. Raises: PeerError."""
    plan = receipt.plan
    for site in plan.sites:
        check_plan(plan, roster, site, MIN_SITES, 0)
    if receipt.ctx != derive.round_context(plan, receipt.roster, receipt.previous):
        raise ContextMismatch("the context is not that of the plan, the roster and the receipt before")
    if len(receipt.u3) < max(plan.threshold, plan.min_survivors):
        raise TooFewSurvivors(f"{len(receipt.u3)} survivors opened a sum that takes {plan.threshold}")
    if min(map(len, audit.summed(receipt))) < plan.min_survivors:
        raise TooFewSurvivors(f"a bucket's sum opened that takes {plan.min_survivors} survivors")
    everybody = derive.complete_sharers(receipt.u1, receipt.u2)
    if plan.graph == COMPLETE and derive.sharers_digest(receipt.ctx, receipt.h1, everybody) != receipt.h2:
        raise ContextMismatch("the sites signed for another U2 than the receipt names")


def check_signatures(each: ReceiptedRound, data: bytes) -> None:
    """Message 8: a threshold of U3 signed exactly this U3, with these roots. Raises: PeerError."""
    receipt, message = each.receipt, Consistency.from_bytes(data)
    roots = tuple(audit.signed_roots(receipt))
    agreed = derive.survivors_digest(receipt.ctx, receipt.h1, receipt.h2, roots)
    if digest(data) != receipt.consistency or (message.context, message.u3) != (receipt.ctx, agreed):
        raise MissingConsistency("the signatures are on another survivor set than the receipt's")
    signers = {entry.site for entry in message.entries}
    if len(signers) < receipt.plan.threshold or not signers <= set(receipt.u3):
        raise MissingConsistency(f"{len(signers)} signatures of survivors, it takes {receipt.plan.threshold}")
    for entry in message.entries:
        entry.verify(each.roster.key_of(entry.site, "site"), entry.site)


def check_submission(data: bytes, job: bytes, run: bytes, roster: Roster) -> str:
    """Who signed for this job as this run, in the envelope that it was submitted in (protocol.md, "Transport").

    Raises: MalformedMessage, NotInRoster, BadSignature. ContextMismatch: for another run, or something else.
    """
    try:
        header, signature = fields(data)
        said = json.loads(header)
        kind, sender, named = said["type"], str(said["from"]), said["run"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise MalformedMessage("the signature of the job does not parse") from None
    verify(roster.key_of(sender, "analyst"), ENVELOPE, lp(header) + lp(job), signature)
    if (kind, named) != ("submit", run.hex()):
        raise ContextMismatch("the analyst signed for this job in another run, or for something else")
    return sender


def heads(leaves: Sequence[bytes], sizes: Collection[int]) -> dict[int, bytes]:
    """The roots over the first `size` leaves, for each of the sizes that there are; in one pass."""
    found: dict[int, bytes] = {0: merkle.root([])} if 0 in sizes else {}
    peaks: list[tuple[int, bytes]] = []  # of perfect trees, the largest first: (leaves, root)
    for size, leaf in enumerate(leaves, 1):
        peaks.append((1, leaf))
        while len(peaks) > 1 and peaks[-2][0] == peaks[-1][0]:
            (width, right), (_, left) = peaks.pop(), peaks.pop()
            peaks.append((2 * width, merkle.node_hash(left, right)))
        if size in sizes:
            root = peaks[-1][1]
            for _, left in reversed(peaks[:-1]):
                root = merkle.node_hash(left, root)
            found[size] = root
    return found
