"""Every lie of a coordinator that this suite tells, one class each. What each of them shows is all that differs.

Messages are numbered as in docs/protocol.md, "A round". Each lie is signed by the coordinator and otherwise true:
what refuses it is the check that it is there for, and not another one before it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cloister.attack import history
from cloister.attack.liar import Lie, LyingHub, name_of
from cloister.coordinator.folder import COORDINATOR
from cloister.seal import derive
from cloister.seal.identity import Identity
from cloister.seal.messages import (
    CIPHERTEXT_BYTES,
    Ciphertexts,
    Consistency,
    Consistent,
    KeyList,
    Keys,
    Message,
    Open,
    Survivors,
)
from cloister.seal.state import Phase
from cloister.seal.threshold import threshold
from cloister.vector import Query
from cloister.vector.errors import TooFewSurvivors
from cloister.vector.layout import Block, Layout
from cloister.wire import api

Kind = TypeVar("Kind", bound=Message)
SYBIL = "sybil"


class SurvivorAndDropped(Lie):
    """Lists the victim as a survivor to two sites, and as dropped out to the others, to be told both of its secrets.

    Fails: a story opens nothing without the signatures of t survivors, and a site signs one story a round.
    Refused as: MissingConsistency.
    """

    spoils_run = True

    def survivors_to(self, site: str, message: Survivors) -> Message:
        return message if site in self.u3[:2] else _without(message, self.victim)

    def consistency_to(self, site: str, message: Consistency) -> Message:
        mine = self._consistent[site].u3
        signed = (self._consistent[one.site] for one in message.entries)
        return Consistency(self.context, mine, tuple(one for one in signed if one.u3 == mine))


class SecondSurvivorSet(Lie):
    """Opens the sum, then says that the victim had dropped out after all, to be told its other secret as well.

    Fails: a site answers one survivor set a round for ever; the second is proof of the lie.
    Refused as: SurvivorSetConflict.
    """

    def close(self, agreement: bytes = b"") -> dict[str, bytes]:
        outgoing = super().close(agreement)
        if self.phase is Phase.OPEN and not self.told:
            story = _without(self._survivors(), self.u3[0])
            self.u3, self.phase = tuple(entry.site for entry in story.entries), Phase.CONSISTENT
            self._u3_digest = derive.survivors_digest(story.context, story.h1, story.u2, story.entries)
            self._consistent, self._unmask, self._accepted = {}, {}, {}
            for site in self.u3:
                self.tell(site, "survivors", self.signed(story))
        return outgoing

    def _survivors(self) -> Survivors:
        entries = tuple(self._masked[site].upload for site in self.u3)
        return Survivors(self.context, self._h1, self._u2_digest, self.plan.words, self.plan.bits, entries)


class DifferenceOfSums(Lie):
    """Opens the sum in secret, voids the round, and asks the same again without the victim: the sums differ by it.

    Fails: a site lets one question be summed over one survivor set only, in however many rounds.
    Refused as: SurvivorSetConflict.
    """

    rounds = 2

    def close(self, agreement: bytes = b"") -> dict[str, bytes]:
        outgoing = super().close(agreement)
        if self.phase is Phase.OPEN:
            raise TooFewSurvivors("so the liar says.")
        return outgoing

    def _close_masked(self, sites: tuple[str, ...]) -> dict[str, bytes]:
        if self.act == 1:
            sites = tuple(site for site in sites if site != self.victim)
            self.told |= set(sites)
        return super()._close_masked(sites)


class RewordedQuestion(DifferenceOfSums):
    """The same with a question that differs in a word which nobody reads: another digest, and the same answers.

    Fails: a site sums over one survivor set only until it has the next receipt, whatever is asked.
    Refused as: SurvivorSetConflict.
    """

    def begin(self, hub: LyingHub, act: int) -> None:
        if act == 1:
            query = Query.from_bytes(hub.blobs.read(self.plan.query.hex()))
            other = replace(query, config={**query.config, "unread": 1})
            name = bytes.fromhex(hub.blobs.put(other.to_bytes()))
            plan = replace(self.plan, query=name)
            super().__init__(plan, self._roster, self._identity, COORDINATOR, self._previous)
        super().begin(hub, act)


class WithheldConsistency(Lie):
    """Shows one signature on the survivor set too few, to have shares released that others would contradict.

    Fails: a site releases nothing without t signatures on what it signed itself.
    Refused as: MissingConsistency.
    """

    def consistency_to(self, site: str, message: Consistency) -> Message:
        return replace(message, entries=message.entries[: self.plan.threshold - 1])


class BorrowedSignature(Lie):
    """Fills up the signatures on the survivor set with one that it makes itself.

    Fails: a site verifies each of them with the key that the roster gives its signer.
    Refused as: BadSignature.
    """

    def consistency_to(self, site: str, message: Consistency) -> Message:
        forged = Consistent(self.context, message.u3, message.entries[-1].site).signed(self._identity)
        return replace(message, entries=(*message.entries[:-1], forged))


def _without(message: Survivors, site: str) -> Survivors:
    return replace(message, entries=tuple(entry for entry in message.entries if entry.site != site))


class TwoModels(Lie):
    """Shows the victim another model than the others, to read its answer out of the sum.

    Fails: the question's digest is in the context that every key is signed in; the others' keys do not verify.
    Refused as: BadSignature.
    """

    def open_to(self, site: str, message: Open) -> Message:
        if site != self.victim:
            return message
        query = Query.from_bytes(self.hub.blobs.read(self.plan.query.hex()))
        other = replace(query, tensors={name: tensor + 1 for name, tensor in query.tensors.items()})
        name = bytes.fromhex(self.hub.blobs.put(other.to_bytes()))
        return self.opened_with(replace(self.plan, query=name))

    def keylist_to(self, site: str, message: KeyList) -> Message:
        return replace(message, context=self._keys[site].context)


class SwappedModel(Lie):
    """Hands out another model under the digest of the one that was announced.

    Fails: a site hashes what it fetched.
    Refused as: ContextMismatch.
    """

    def open_to(self, site: str, message: Open) -> Message:
        name = self.plan.query.hex()
        query = Query.from_bytes(self.hub.blobs.read(name))
        other = replace(query, tensors={key: tensor + 1 for key, tensor in query.tensors.items()})
        self.hub.lying_blobs.swapped[name] = self.hub.blobs.put(other.to_bytes())
        self.told.add(site)
        return message


class ManInTheMiddle(Lie):
    """Plays all the others towards each site, with keys of its own under their names, and so knows every mask.

    Fails: a site verifies each key with the identity that the roster gives its owner.
    Refused as: BadSignature.
    """

    def keylist_to(self, site: str, message: KeyList) -> Message:
        self._players = getattr(self, "_players", {})
        players = {other: _Player(other, self) for other in self.u1 if other != site}
        own = {entry.site: entry for entry in message.entries}[site]
        entries = [own, *(player.keys for player in players.values())]
        shown = replace(message, entries=tuple(sorted(entries, key=lambda entry: entry.site)))
        self._players[site] = shown, players
        return shown

    def ciphertexts_to(self, site: str, message: Ciphertexts) -> Message:
        shown, players = self._players[site]
        keys = {entry.site: entry for entry in shown.entries}
        h1 = derive.key_list_digest(self.context, shown.entries)
        dealt = dict(zip(derive.neighbours(site, self.u1), self._shares[site].ciphertexts, strict=True))
        relayed = []
        for other, player in players.items():
            shared = derive.exchange(player.channel, keys[site].channel, site)
            inbound = derive.channel_key(shared, h1, site, other)
            beta, sigma = derive.decrypt_shares(inbound, self.context, h1, site, other, dealt[other])
            point = self.u1.index(other) + 1
            self.record.shares[site, "beta"][point], self.record.shares[site, "sigma"][point] = beta, sigma
            outbound = derive.channel_key(shared, h1, other, site)
            relayed.append(derive.encrypt_shares(outbound, self.context, h1, other, site, 1, 1))
            pair = derive.exchange(player.mask, keys[site].mask, site)
            self.record.pairs[site, other] = derive.pair_seed(pair, self.context, h1, site, other)
        return Ciphertexts(self.context, h1, site, message.sharers, tuple(relayed))


class _Player:
    """One whom the man in the middle plays."""

    def __init__(self, site: str, lie: Lie) -> None:
        self.channel, self.mask = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        channel, mask = (key.public_key().public_bytes_raw() for key in (self.channel, self.mask))
        self.keys = Keys(lie.context, site, channel, mask, os.urandom(32)).signed(lie.hub.identity)


class TwoKeyLists(Lie):
    """Shows half of the sites a list of keys without one of the others, so that they share different masks.

    Fails: the list salts every key, so what a site of the other list encrypted does not open.
    Refused as: BadCiphertext.
    """

    def keylist_to(self, site: str, message: KeyList) -> Message:
        entries = tuple(entry for entry in message.entries if entry.site in self._list_of(site))
        return replace(message, entries=entries)

    def _list_of(self, site: str) -> tuple[str, ...]:
        left_out = self.u1[-1]
        return tuple(one for one in self.u1 if one != left_out) if site in self.u1[:2] else self.u1

    def _close_shares(self, sites: tuple[str, ...]) -> dict[str, bytes]:
        outgoing = {}
        for site in sites:
            mine = self._list_of(site)
            relayed = tuple(self._relayed(other, site) for other in derive.neighbours(site, mine))
            sharers = derive.complete_sharers(mine, mine)
            message = Ciphertexts(self.context, self._shares[site].h1, site, sharers, relayed)
            outgoing[site] = self.signed(message)
        self.u2, self.told = sites, set(sites)
        return outgoing

    def _relayed(self, sender: str, recipient: str) -> bytes:
        recipients = derive.neighbours(sender, self._list_of(sender))
        dealt = dict(zip(recipients, self._shares[sender].ciphertexts, strict=True))
        return dealt.get(recipient, os.urandom(CIPHERTEXT_BYTES))


class SecondKeyList(Lie):
    """Sends a second list of keys after the first was answered, to have the same secrets shared anew.

    Fails: a site answers one list of keys a round; the second is proof of the lie.
    Refused as: KeyListConflict.
    """

    def ciphertexts_to(self, site: str, message: Ciphertexts) -> Message:
        left_out = next(other for other in reversed(self.u1) if other != site)
        return KeyList(self.context, tuple(self._keys[one] for one in self.u1 if one != left_out))


class SwappedCiphertexts(Lie):
    """Hands the victim the others' shares in another order, to have it answer with shares of the wrong secret.

    Fails: each is encrypted from one site to one other, by name.
    Refused as: BadCiphertext.
    """

    def ciphertexts_to(self, site: str, message: Ciphertexts) -> Message:
        return replace(message, ciphertexts=message.ciphertexts[::-1]) if site == self.victim else message


class ReplayedCiphertexts(Lie):
    """Hands out the shares of an earlier round again, whose secrets it has opened by now.

    Fails: they are encrypted under keys that live for one round.
    Refused as: BadCiphertext.
    """

    def ciphertexts_to(self, site: str, message: Ciphertexts) -> Message:
        return replace(message, ciphertexts=_earlier(self, site, Ciphertexts).ciphertexts)


class MisdirectedCiphertexts(Lie):
    """Hands each site the shares that are for its neighbour.

    Fails: the message names its recipient.
    Refused as: UnexpectedMessage.
    """

    def ciphertexts_to(self, site: str, message: Ciphertexts) -> Message:
        return replace(message, recipient=derive.neighbours(site, self.u1)[0])


class SwappedRoots(Lie):
    """Names other masked vectors in the survivor set than those that the sites sent.

    Fails: each vector's root is signed by its site, for this round alone.
    Refused as: BadSignature.
    """

    def survivors_to(self, site: str, message: Survivors) -> Message:
        swapped = (entry if entry.site == site else replace(entry, root=history.ALTERED) for entry in message.entries)
        return replace(message, entries=tuple(swapped))


class ReplayedRound(Lie):
    """Opens an earlier round of the run again, byte by byte.

    Fails: a site keeps the number of its last round on disk, and takes later ones only.
    Refused as: RoundReplayed.
    """

    def open_to(self, site: str, message: Open) -> Message:
        return _earlier(self, site, Open)


class ReplayedSurvivors(Lie):
    """Sends the survivor set of an earlier round again, which all had signed.

    Fails: it names another round.
    Refused as: ContextMismatch.
    """

    def survivors_to(self, site: str, message: Survivors) -> Message:
        return _earlier(self, site, Survivors)


def _earlier(lie: Lie, site: str, kind: type[Kind]) -> Kind:
    """The newest message of this kind that an earlier, true round of the run sent to the site."""
    run, number = lie.record.key
    for (other, round_), machine in reversed(lie.hub.script.rounds.items()):
        if other == run and round_ < number and not isinstance(machine, Lie):
            for recipient, message in machine.record.sent:
                if recipient == site and isinstance(message, kind):
                    return message
    raise AssertionError("a true round comes first")


class LoweredThreshold(Lie):
    """Plans a sum that two answers open, to do with two stories what one threshold would prevent.

    Fails: each site computes the threshold itself.
    Refused as: ThresholdTooLow.
    """

    def open_to(self, site: str, message: Open) -> Message:
        return self.opened_with(replace(self.plan, threshold=2, min_survivors=2))


class SybilInPlan(Lie):
    """Plans a round with a site that it invented.

    Fails: who is a site is signed by the root key, which the coordinator does not have.
    Refused as: NotInRoster.
    """

    def open_to(self, site: str, message: Open) -> Message:
        sites = tuple(sorted((*self.plan.sites, SYBIL)))
        return self.opened_with(replace(self.plan, sites=sites, threshold=threshold(len(sites))))


class SybilInKeyList(Lie):
    """Slips a site that it invented into the list of keys, to be dealt shares of everybody's secrets.

    Fails: who is a site is signed by the root key, which the coordinator does not have.
    Refused as: NotInRoster.
    """

    def keylist_to(self, site: str, message: KeyList) -> Message:
        channel, mask = (X25519PrivateKey.generate().public_key().public_bytes_raw() for _ in range(2))
        sybil = Keys(self.context, SYBIL, channel, mask, os.urandom(32)).signed(Identity.generate(os.urandom))
        return replace(message, entries=tuple(sorted((*message.entries, sybil), key=lambda entry: entry.site)))


class OneSiteCohort(Lie):
    """Plans the round with one site alone: the sum is its contribution.

    Fails: a site is summed among three others at the least, whatever the plan says.
    Refused as: TooFewSites.
    """

    def open_to(self, site: str, message: Open) -> Message:
        return self.opened_with(replace(self.plan, sites=(site,), threshold=1, min_survivors=1))


class InsiderCohort(Lie):
    """Plans the round with the victim and two real sites of which it assumes that they tell it theirs.

    Fails: the victim's policy assumes two colluders, and asks for two honest sites beside them.
    Refused as: TooFewSites.
    """

    def open_to(self, site: str, message: Open) -> Message:
        if site != self.victim:
            return message
        sites = self.plan.sites[:3]
        return self.opened_with(replace(self.plan, sites=sites, threshold=threshold(3), min_survivors=3))


class ShrunkenKeyList(Lie):
    """Lists each site's own key alone: the only mask left on its vector would be its own.

    Fails: a site counts who sent keys, against its own threshold.
    Refused as: TooFewSurvivors.
    """

    def keylist_to(self, site: str, message: KeyList) -> Message:
        return replace(message, entries=tuple(entry for entry in message.entries if entry.site == site))


class ShrunkenSharers(Lie):
    """Says that nobody else shared secrets: the only mask left on each vector would be its own.

    Fails: a site counts who shared, against its own threshold.
    Refused as: TooFewSurvivors.
    """

    def ciphertexts_to(self, site: str, message: Ciphertexts) -> Message:
        own = tuple(sharer for sharer in message.sharers if sharer.site == site)
        return replace(message, sharers=own, ciphertexts=())


class ShrunkenSurvivors(Lie):
    """Says that nobody else survived: the sum to be opened is one contribution.

    Fails: a site counts the survivors, against its own threshold and its policy.
    Refused as: TooFewSurvivors.
    """

    def survivors_to(self, site: str, message: Survivors) -> Message:
        return replace(message, entries=tuple(entry for entry in message.entries if entry.site == site))


class TruncatedVectors(Lie):
    """Asks the sites to agree to vectors that are one word short, so that the row counts are cut off.

    Fails: a site knows the length that it sent.
    Refused as: ContextMismatch.
    """

    def survivors_to(self, site: str, message: Survivors) -> Message:
        return replace(message, words=message.words - 1)


class RetypedVectors(Lie):
    """Plans words of 64 bits for a job whose words have 32.

    Fails: the width is the job's, which the site's policy allowed.
    Refused as: ContextMismatch.
    """

    def open_to(self, site: str, message: Open) -> Message:
        return self.opened_with(replace(self.plan, bits=64))


class OversizedVectors(Lie):
    """Plans a vector of 240 MB, to fill disks and lines.

    Fails: the site's policy bounds what leaves in one round, and says no before anything is fetched.
    Refused as: PolicyRefused.
    """

    def open_to(self, site: str, message: Open) -> Message:
        return self.opened_with(replace(self.plan, layout=Layout((Block("delta", (60_000_000,), bound=1.0),))))


class ChangedLayout(Lie):
    """Plans one more coordinate than the question asks for.

    Fails: a site compares the plan with the question that it fetched.
    Refused as: ContextMismatch.
    """

    def open_to(self, site: str, message: Open) -> Message:
        layout = Layout((*self.plan.layout.blocks, Block("more", (), bound=1.0)))
        return self.opened_with(replace(self.plan, layout=layout))


class ChangedJob(Lie):
    """Opens a round of another job than the one that was announced and allowed.

    Fails: the plan names the job's digest, and a site compares it with the announcement.
    Refused as: ContextMismatch.
    """

    def open_to(self, site: str, message: Open) -> Message:
        return self.opened_with(replace(self.plan, job=history.ALTERED))


class SecondAnnouncement(Lie):
    """Announces another job under the name of a run that the sites agreed to.

    Fails: a run is announced once; the announcement is journalled.
    Refused as: RoundReplayed.
    """

    def open_to(self, site: str, message: Open) -> Message:
        altered = history.ALTERED.hex()
        notice = api.JobNotice(run=self.plan.run.hex(), job=altered, submission=altered, roster=1, analyst="analyst")
        self.tell(site, "job", notice.to_bytes())
        return message


LIES: dict[str, type[Lie]] = {
    name_of(kind): kind
    for kind in [*globals().values(), *vars(history).values()]
    if isinstance(kind, type) and issubclass(kind, Lie) and kind is not Lie
}
