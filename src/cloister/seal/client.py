"""SealClient: a site's side of one round, without I/O (docs/protocol.md, "A round"; Bonawitz et al. 2017, figure 4).

Bytes in, bytes out. Whatever is malformed, lied about, repeated differently or out of phase raises a typed error of
the tree and leaves the machine as it was. A byte-for-byte repeat of an answered message gets the same answer again.

    client = SealClient("kent", identity, roster, coordinator_key, journal=journal, randomness=os.urandom)
    plan = client.open(message_0)                   # the caller decides by its policy, fetches the query, trains
    message_1 = client.keys(query_digest)
    message_3 = client.receive(message_2)           # list of keys -> shares
    client.receive(message_4)                       # ciphertexts
    message_5, payload = client.mask(words)
    message_7 = client.receive(message_6)           # survivors -> consistent
    message_9 = client.receive(message_8)           # consistency -> unmask
    client.receive(message_10)                      # receipt, verified: client.receipt
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from types import MappingProxyType
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cloister.seal import derive, labels, shamir
from cloister.seal.buckets import check_buckets, partition
from cloister.seal.charges import Charges, charges_after, check_charge
from cloister.seal.graph import draw, mark
from cloister.seal.identity import Identity, Randomness
from cloister.seal.log import Agreement, LogView, origin_of
from cloister.seal.masks import Seed, apply_masks, pack, reduce
from cloister.seal.merkle import root, root_of
from cloister.seal.messages import (
    KINDS,
    PART_BYTES,
    Ciphertexts,
    Consistency,
    Consistent,
    KeyList,
    Keys,
    Masked,
    Open,
    Sharer,
    Shares,
    SignedRoot,
    Survivors,
    Unmask,
    label_of,
)
from cloister.seal.plan import Plan, check_plan
from cloister.seal.receipt import Receipt, open_receipt
from cloister.seal.roster import Roster
from cloister.seal.state import SITE, SitePhase, step
from cloister.seal.threshold import MIN_SITES
from cloister.vector.bundle import digest
from cloister.vector.errors import (
    ContextMismatch,
    KeyListConflict,
    LayoutError,
    MalformedMessage,
    MissingConsistency,
    NotInRoster,
    PeerError,
    ReusedSecret,
    RoundReplayed,
    StaleReceipt,
    SurvivorSetConflict,
    TooFewSurvivors,
    UnexpectedMessage,
)
from cloister.vector.layout import Words

Buckets = Sequence[Sequence[str]]
NOTHING: Words = np.zeros(0, np.uint32)

# Two different ones in one round prove that the coordinator told two stories.
SECOND_STORY: dict[str, tuple[type[PeerError], str]] = {
    labels.KEYLIST: (KeyListConflict, "list of keys"),
    labels.SURVIVORS: (SurvivorSetConflict, "survivor set"),
}


class Journal(Protocol):
    """The port to a site's durable memory of what it may say only once, whatever crashes in between."""

    def once(self, slot: str, value: bytes) -> None:
        """Durable before it returns; the same value again is fine.

        Slots: "RUN/ROUND/open", "RUN/ROUND/survivors", "RUN/ROUND/unmask", "RUN/query/QUERY/survivors",
        "RUN/after/RECEIPT/survivors", with the run, the query's digest and that of the last receipt in hex.
        Raises: RoundReplayed (open, unmask), SurvivorSetConflict (survivors): the slot holds another value.
        """


class SealClient:
    """One site in one round; make a new one for each round. Secrets live in it alone, and are erased with message 9.

    Args:
      site: this site's id. identity: signs. roster: as verified by this site. coordinator_key: pinned, 32 bytes.
      journal: durable. randomness: n -> n bytes nobody can predict.
      min_survivors: this site's own fewest sites of a sum. assume_colluders: of them, how many may work against it.
      last_round, last_receipt: of this run: the last round that this site saw, and the digest of the last receipt it
        verified; -1 and ZERO32 before the first.
      checkpoint: of the coordinator's log: the newest one that this site verified (`LogView.note`), b"" before that.
      charge: as which charge of this site's privacy ledger an answer will be paid, 0 without one.
      least: the least such numbers of other sites (see `charges`), as known when the round was announced.
    Attributes: phase. plan: after `open`. receipt: after message 10. log: what this site knows of the log; moves on
      with message 2, to be kept durably then. charges: what messages 2 and 6 showed of the sites' ledgers.
    Raises: MalformedMessage, BadSignature, StaleReceipt: a checkpoint that this coordinator never signed.
    """

    plan: Plan

    def __init__(
        self,
        site: str,
        identity: Identity,
        roster: Roster,
        coordinator_key: bytes,
        *,
        journal: Journal,
        randomness: Randomness,
        min_survivors: int = MIN_SITES,
        assume_colluders: int = 0,
        last_round: int = -1,
        last_receipt: bytes = labels.ZERO32,
        checkpoint: bytes = b"",
        charge: int = 0,
        least: Charges = MappingProxyType({}),
    ) -> None:
        self.site, self.phase = site, SitePhase.NEW
        self.receipt: Receipt | None = None
        self.log = LogView.resume(origin_of(roster.federation), coordinator_key, checkpoint)
        self._identity, self._roster, self._coordinator_key = identity, roster, coordinator_key
        self._journal, self._randomness = journal, randomness
        self._min_survivors, self._colluders = max(MIN_SITES, min_survivors), assume_colluders
        self._last_round, self._last_receipt = last_round, last_receipt
        self._charge, self._least = charge, least
        self.charges: dict[bytes, int] = {}
        self._heard: set[str] = set()  # labels of the messages that `receive` took
        self._answers: dict[bytes, bytes | None] = {}  # digest of a message -> what was answered
        self._own: Keys
        self._channel: X25519PrivateKey | None = None  # None again once all channel keys are derived
        self._sigma = self._beta = 0
        self._list = b""  # message 2, until all keys are derived: one copy in a process, however many sites it plays
        self._inbound: dict[str, bytes] = {}  # channel keys by sender
        self._pairs: dict[str, bytes] = {}  # pair seeds by partner
        self._shares: dict[str, tuple[int, int]] = {}  # by owner: its shares of (beta, sigma)
        self._laid: Words = NOTHING  # the sum of all masks, once it is made and until it is used

    def __repr__(self) -> str:
        return f"SealClient({self.site!r}, phase={self.phase.value!r})"

    # 0 and 1 ------------------------------------------------------------------------------------------------------

    def open(self, data: bytes) -> Plan:
        """Takes message 0: verified and checked against this site's own limits, not yet answered.

        Raises: NotInRoster, BadSignature, MalformedMessage, ContextMismatch, RoundReplayed, StaleReceipt,
          PlanRefused, TooFewSites, ThresholdTooLow, UnexpectedMessage.
        """
        after = step(SITE, self.phase, "open", self.site)
        message = Open.from_bytes(data)
        if self._coordinator_key not in [member.key for member in self._roster.coordinators]:
            raise NotInRoster("the coordinator's key is not in the roster.", mend="Fetch the newest signed roster.")
        message.verify(self._coordinator_key)
        if message.roster != self._roster.digest:
            raise ContextMismatch(
                f"the round is opened under another roster than this site's version {self._roster.version}.",
                mend="Fetch the newest signed roster.",
            )
        plan = Plan.from_bytes(message.plan)
        check_plan(plan, self._roster, self.site, self._min_survivors, self._colluders)
        if plan.round <= self._last_round:
            raise RoundReplayed(f"round {plan.round} after round {self._last_round} of the same run")
        if message.previous != self._last_receipt:
            raise StaleReceipt(f"round {plan.round} does not build on the last receipt that this site verified.")
        context = derive.round_context(plan, self._roster.digest, self._last_receipt)
        if message.context != context:
            raise ContextMismatch("the context of the opened round is not that of its plan, roster and receipt")
        self.plan, self._context, self.phase = plan, context, after
        return plan

    def keys(self, query_digest: bytes) -> bytes:
        """Message 1: fresh public keys. One such message a round, ever: a site that crashed after it is a dropout.

        Args: query_digest: SHA-256 of the query's bytes exactly as this site received them.
        Raises: ContextMismatch: the plan names another query (the coordinator may be showing sites different models).
          RoundReplayed: this site sent keys in this round before. UnexpectedMessage: out of phase.
        """
        after = step(SITE, self.phase, "keys", self.site)
        if query_digest != self.plan.query:
            raise ContextMismatch("the query that arrived is not the one that the plan names")
        channel = X25519PrivateKey.from_private_bytes(self._randomness(32))
        sigma, beta = shamir.random_element(self._randomness), shamir.random_element(self._randomness)
        mask = derive.mask_private_key(sigma, self._context)
        own = Keys(
            self._context,
            self.site,
            channel.public_key().public_bytes_raw(),
            mask.public_key().public_bytes_raw(),
            derive.commitment(self._context, self.site, beta),
            self.log.note,
            self._charge,
        ).signed(self._identity)
        answer = own.to_bytes()
        self._once("open", self._context + digest(answer))
        self._own, self._channel, self._sigma, self._beta = own, channel, sigma, beta
        self.phase = after
        return answer

    # 2 to 4, 6 to 8, 10 -------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> bytes | None:
        """Takes one of the coordinator's messages 2, 4, 6, 8 and the receipt; returns the answer, if there is one.

        Raises: a PeerError that names the lie (see docs/protocol.md, "Refusals"); the machine is then as it was.
        """
        name = digest(data)
        if name in self._answers:
            return self._answers[name]
        label = label_of(data)
        handlers: dict[str, Callable[[bytes], bytes | None]] = {
            labels.KEYLIST: self._key_list,
            labels.CIPHERTEXTS: self._ciphertexts,
            labels.SURVIVORS: self._survivors,
            labels.CONSISTENCY: self._consistency,
            labels.RECEIPT: self._receipt,
        }
        if label not in handlers:
            raise UnexpectedMessage(f"a site receives no {label!r}", site=self.site)
        after = self._next_phase(label, data)
        answer = handlers[label](data)
        self.phase = after
        self._heard.add(label)
        self._answers[name] = answer
        return answer

    def _next_phase(self, label: str, data: bytes) -> SitePhase:
        if label in SECOND_STORY and label in self._heard:
            KINDS[label].from_bytes(data).verify(self._coordinator_key)
            conflict, what = SECOND_STORY[label]
            raise conflict(
                f"round {self.plan.round}: the coordinator signed a second {what}; this site answered another one.",
                mend="Keep both: they prove that the coordinator lies. Take no further part.",
                site=self.site,
            )
        return step(SITE, self.phase, label.rpartition("/")[2], self.site)

    def _check(self, message: KeyList | Ciphertexts | Survivors | Consistency) -> None:
        """Signed by the pinned coordinator, and of this round."""
        message.verify(self._coordinator_key)
        if message.context != self._context:
            raise ContextMismatch(f"a {message.LABEL!r} of another round or plan than this site's")
        if isinstance(message, Ciphertexts | Survivors) and message.h1 != self._h1:
            raise ContextMismatch(f"a {message.LABEL!r} that rests on another list of keys than this site was shown")

    def _enough(self, sites: Collection[str], buckets: Buckets, what: str) -> None:
        """Enough to open secrets, and in each sum that opens enough for this site's own rules."""
        least = max(self.plan.min_survivors, self._min_survivors, self._colluders + 2)
        fewest = min(len(set(bucket) & set(sites)) for bucket in buckets)
        if len(sites) < self.plan.threshold or fewest < least:
            required = max(self.plan.threshold, least) if len(buckets) == 1 else self.plan.threshold
            bucket = f", {least} in each bucket; one has {fewest}" if len(buckets) > 1 else ""
            raise TooFewSurvivors(
                f"round {self.plan.round}: {len(sites)} of {len(self.plan.sites)} sites {what}, this site requires"
                f" {required}{bucket}. Nothing was opened."
            )

    def _key_list(self, data: bytes) -> bytes:
        message = KeyList.from_bytes(data)
        self._check(message)
        entries, sites = message.entries, tuple(entry.site for entry in message.entries)
        for entry in entries:
            key = self._roster.key_of(entry.site, "site")
            entry.verify(key, entry.site)
            if entry.site not in self.plan.sites:
                raise KeyListConflict("the list of keys has a site that the plan's cohort has not", site=entry.site)
            check_charge(entry, key, self._least)
        if self._own not in entries:
            raise KeyListConflict("the list of keys omits or alters this site's own", site=self.site)
        if len({key for entry in entries for key in (entry.channel, entry.mask)}) != 2 * len(entries):
            raise KeyListConflict("a public key is in the list of keys twice")
        for entry in entries:
            derive.check_public(entry.channel, entry.site)
            derive.check_public(entry.mask, entry.site)
        check_buckets(self.plan.buckets, len(sites), self._colluders)
        buckets = partition(self.plan.query, sites, self.plan.buckets)
        self._enough(sites, buckets, "sent keys")
        log = self._one_log(message)
        h1, keys_of = derive.key_list_digest(self._context, entries), {entry.site: entry for entry in entries}
        degree = derive.round_degree(self.plan, sites)
        chosen = draw(self.site, sites, degree.chosen, self._randomness)
        dealt = self._deal(chosen, degree.threshold)
        assert self._channel is not None
        inbound, ciphertexts = {}, []
        for other in derive.neighbours(self.site, chosen):
            shared = derive.exchange(self._channel, keys_of[other].channel, other)
            inbound[other] = derive.channel_key(shared, h1, other, self.site)
            outbound = derive.channel_key(shared, h1, self.site, other)
            ciphertexts.append(derive.encrypt_shares(outbound, self._context, h1, self.site, other, *dealt[other]))
        bitmap = mark(chosen, sites)
        answer = Shares(self._context, h1, self.site, bitmap, tuple(ciphertexts)).signed(self._identity).to_bytes()
        self._u1, self._buckets, self._h1, self.log = sites, buckets, h1, log
        self._list, self._chosen = data, bitmap
        self.charges = charges_after(entries, (), self._key_of)
        self._inbound, self._shares = inbound, {self.site: dealt[self.site]} if self.site in dealt else {}
        return answer

    def _one_log(self, message: KeyList) -> LogView:
        """The view after message 2. Raises: StaleReceipt: the sites were shown different logs, or one is hidden."""
        carried = {entry.site: entry.checkpoint for entry in message.entries}
        if message.agreement:
            return self.log.agree(carried, Agreement.from_bytes(message.agreement))
        if any(carried.values()):
            raise StaleReceipt("sites carry checkpoints of the log, and the coordinator shows none.")
        return self.log

    def _deal(self, holders: Sequence[str], threshold: int) -> dict[str, tuple[int, int]]:
        """Shares of (beta, sigma) for each holder."""
        points = range(1, len(holders) + 1)
        betas = shamir.split(self._beta, threshold, points, self._randomness)
        sigmas = shamir.split(self._sigma, threshold, points, self._randomness)
        return dict(zip(holders, zip(betas, sigmas, strict=True), strict=True))

    def _ciphertexts(self, data: bytes) -> None:
        message = Ciphertexts.from_bytes(data)
        self._check(message)
        if message.recipient != self.site:
            raise UnexpectedMessage(f"ciphertexts for {message.recipient!r}", site=self.site)
        if not set(message.sites) <= set(self._u1) or Sharer(self.site, self._chosen) not in message.sharers:
            raise SurvivorSetConflict(
                "U2 omits this site, alters whom it chose, or is not part of U1", site=self.site
            )
        self._enough(message.sites, self._buckets, "shared their secrets")
        graph = derive.round_graph(self.plan, self._u1, message.sharers)
        senders = derive.neighbours(self.site, graph.owners(self.site))
        if len(senders) != len(message.ciphertexts):
            raise MalformedMessage(f"{len(message.ciphertexts)} ciphertexts from {len(senders)} sites")
        keys_of = {entry.site: entry for entry in KeyList.from_bytes(self._list).entries}
        shares = {
            sender: derive.decrypt_shares(
                self._inbound_key(keys_of[sender]), self._context, self._h1, sender, self.site, ciphertext
            )
            for sender, ciphertext in zip(senders, message.ciphertexts, strict=True)
        }
        mask = derive.mask_private_key(self._sigma, self._context)
        self._pairs = {
            other: derive.pair_seed(
                derive.exchange(mask, keys_of[other].mask, other), self._context, self._h1, self.site, other
            )
            for other in graph.partners(self.site)
        }
        self._u2 = message.sites
        self._u2_digest = derive.sharers_digest(self._context, self._h1, message.sharers)
        self._shares |= shares
        self._inbound, self._list = {}, b""
        self._channel, self._sigma = None, 0  # all that they are for has been derived from them

    def _inbound_key(self, sender: Keys) -> bytes:
        """What `sender` encrypted its shares with: known already if this site chose it too."""
        if sender.site in self._inbound:
            return self._inbound[sender.site]
        assert self._channel is not None
        shared = derive.exchange(self._channel, sender.channel, sender.site)
        return derive.channel_key(shared, self._h1, sender.site, self.site)

    # 5 ------------------------------------------------------------------------------------------------------------

    def mask(self, words: Words) -> tuple[bytes, memoryview]:
        """Message 5: the signed header, and the payload that it announces (packed masked words).

        Args: words: the encoded contribution, uint32 or uint64 [plan.words], every word below 2**bits; not changed.
        Raises: LayoutError: not a vector of this plan. ReusedSecret: masked once already. UnexpectedMessage.
        """
        self.check_words(words)
        self.lay()
        masked, self._laid = self._laid, NOTHING
        masked += words
        return self.announced(masked)

    def lay(self) -> None:
        """Adds this round's masks up, once, as a site does while it trains; then `mask` has only to add their sum.

        Raises: UnexpectedMessage: shares are not exchanged yet, or the masks were used.
        """
        step(SITE, self.phase, "mask", self.site)
        if self._laid is NOTHING:
            laid = np.zeros(self.plan.words, self.plan.coder.dtype)
            apply_masks(laid, self.mask_seeds())
            self._laid = laid

    # the steps of `mask`; `together` takes them for all sites of a simulation

    def check_words(self, words: Words) -> None:
        """Raises: see `mask`."""
        if self.phase in (SitePhase.MASKED, SitePhase.AGREED, SitePhase.UNMASKED, SitePhase.DONE):
            raise ReusedSecret("the masks of this round were used already.", mend="Wait for the next round.")
        step(SITE, self.phase, "mask", self.site)
        plan = self.plan
        if words.shape != (plan.words,) or words.dtype != plan.coder.dtype:
            raise LayoutError(f"{words.shape} {words.dtype} for a plan of {plan.words} {plan.coder.dtype}")
        if plan.bits < 32 and int(words.max()) >> plan.bits:
            raise LayoutError(f"a word does not fit {plan.bits} bits")

    def mask_seeds(self) -> list[Seed]:
        seeds = [(derive.self_seed(self._beta, self._context, self.site), 1)]
        return seeds + [(seed, derive.pair_sign(self.site, other)) for other, seed in self._pairs.items()]

    def announced(self, masked: Words) -> tuple[bytes, memoryview]:
        """Args: masked: becomes the payload."""
        after, plan = step(SITE, self.phase, "mask", self.site), self.plan
        reduce(masked, plan.bits)
        payload = pack(masked, plan.bits)
        parts = tuple(root_of(payload[at : at + PART_BYTES]) for at in range(0, len(payload), PART_BYTES))
        upload = SignedRoot(
            self._context, self._h1, self._u2_digest, plan.words, plan.bits, self.site, root(parts)
        ).signed(self._identity)
        header = Masked(self._context, upload, parts).signed(self._identity)
        self._upload, self._pairs, self._beta = upload, {}, 0
        self.phase = after
        return header.to_bytes(), payload

    # 6 to 10 ------------------------------------------------------------------------------------------------------

    def _survivors(self, data: bytes) -> bytes:
        message = Survivors.from_bytes(data)
        self._check(message)
        entries, sites = message.entries, tuple(entry.site for entry in message.entries)
        if message.u2 != self._u2_digest:
            raise ContextMismatch("survivors that rest on another U2 than this site was shown")
        if (message.words, message.bits) != (self.plan.words, self.plan.bits):
            raise ContextMismatch("survivors with vectors of another shape than the plan's")
        if not set(sites) <= set(self._u2):
            raise SurvivorSetConflict(f"survivors that never shared secrets: {sorted(set(sites) - set(self._u2))}")
        if self._upload not in entries:
            raise SurvivorSetConflict("the survivors omit this site, or alter what it signed", site=self.site)
        self._enough(sites, self._buckets, "survived")
        for entry in entries:
            entry.verify(self._roster.key_of(entry.site, "site"))
        u3_digest = derive.survivors_digest(self._context, self._h1, self._u2_digest, entries)
        answer = Consistent(self._context, u3_digest, self.site).signed(self._identity).to_bytes()
        kept = [[site for site in bucket if site in sites] for bucket in self._buckets]
        names, run = derive.survivor_names_digest(kept), self.plan.run.hex()
        self._journal.once(f"{run}/after/{self._last_receipt.hex()}/survivors", names)
        self._journal.once(f"{run}/query/{self.plan.query.hex()}/survivors", names)
        self._once("survivors", u3_digest)
        self._u3, self._u3_digest, self._uploads = sites, u3_digest, entries
        paid = {self._key_of(site) for site in sites}
        self.charges = {key: number + (key in paid) for key, number in self.charges.items()}
        return answer

    def _consistency(self, data: bytes) -> bytes:
        message = Consistency.from_bytes(data)
        self._check(message)
        if message.u3 != self._u3_digest:
            raise MissingConsistency("signatures on another survivor set than the one that this site signed")
        signers = [entry.site for entry in message.entries]
        if not set(signers) <= set(self._u3) or len(signers) < self.plan.threshold:
            raise MissingConsistency(
                f"round {self.plan.round}: {len(signers)} signatures on the survivor set, it takes"
                f" {self.plan.threshold} of its members. Nothing was opened."
            )
        for entry in message.entries:
            entry.verify(self._roster.key_of(entry.site, "site"), entry.site)
        released = [self._shares[owner][0 if owner in self._u3 else 1] for owner in sorted(self._shares)]
        shares = tuple(shamir.to_bytes(share) for share in released)
        answer = Unmask(self._context, self._u3_digest, self.site, shares).signed(self._identity).to_bytes()
        self._once("unmask", digest(answer))
        self._consistency_digest, self._shares = digest(data), {}
        return answer

    def _receipt(self, data: bytes) -> None:
        receipt = open_receipt(data, self._coordinator_key)
        if receipt.ctx != self._context or receipt.plan.body != self.plan.body:
            raise ContextMismatch("a receipt of another round or plan")
        receipt.check_follows(self.plan.run, self._last_round, self._last_receipt)
        digests = (self._roster.digest, self._h1, self._u2_digest, self._consistency_digest)
        told = (receipt.roster, receipt.h1, receipt.h2, receipt.consistency)
        if digests != told or (self._u1, self._u2, self._u3) != (receipt.u1, receipt.u2, receipt.u3):
            raise StaleReceipt(f"the receipt of round {self.plan.round} tells another story than this site saw.")
        signed = [(each.site, each.root, each.signature) for each in receipt.uploads]
        if signed != [(each.site, each.root, each.signature) for each in self._uploads]:
            raise StaleReceipt(f"the receipt of round {self.plan.round} has other uploads than this site agreed to.")
        self.receipt = receipt

    def _key_of(self, site: str) -> bytes:
        return self._roster.key_of(site, "site")

    def _once(self, kind: str, value: bytes) -> None:
        self._journal.once(f"{self.plan.run.hex()}/{self.plan.round}/{kind}", value)
