"""SealServer: the coordinator's side of one round, without I/O (docs/protocol.md, "A round").

It is deterministic: made anew with the same arguments and given the same messages and closes, it is the same again
and answers with the same bytes, so a coordinator recovers from a crash by replaying what it had accepted. A refused
message raises a typed error and changes nothing; an identical repeat of an accepted one is no event at all.

    server = SealServer(plan, roster, identity, "hub", previous_receipt)
    server.open()                                   # message 0, the same for every site of the plan
    server.receive(site, message)                   # 1, 3, 5, 7, 9, in any order of sites
    server.add(site, read)                          # a masked vector, while it is at hand
    server.close()                                  # 2, 4, 6, 8 by recipient; after 9 the sum can be opened
    server.total(read)                              # the sum, without its masks
    server.receipt(sum_root, state_digest)          # message 10
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, combinations, islice, product
from types import MappingProxyType

import numpy as np

from cloister.seal import derive, labels, shamir
from cloister.seal.audit import Opening
from cloister.seal.buckets import least, partition
from cloister.seal.charges import Charges, charges_after, check_charge
from cloister.seal.graph import check_choice
from cloister.seal.identity import Identity
from cloister.seal.log import open_checkpoint, origin_of
from cloister.seal.masks import STREAMS, Keystreams, Seed, add_packed, packed_bytes, reduce
from cloister.seal.messages import (
    Ciphertexts,
    Consistency,
    Consistent,
    KeyList,
    Keys,
    Masked,
    Open,
    Sharer,
    Shares,
    Survivors,
    Unmask,
    label_of,
)
from cloister.seal.plan import Plan
from cloister.seal.receipt import Receipt, Upload, sign_receipt
from cloister.seal.roster import Roster
from cloister.seal.state import COORDINATOR, Phase, step
from cloister.vector.bundle import digest
from cloister.vector.errors import (
    BadShare,
    BadUpload,
    CloisterError,
    ContextMismatch,
    DuplicateMessage,
    KeyListConflict,
    MalformedMessage,
    MissingConsistency,
    NotInRoster,
    RoundVoid,
    TooFewSurvivors,
    UnexpectedMessage,
)
from cloister.vector.layout import Words

STRETCH = 1 << 18  # words that are read at a time
SUBSETS = 512  # of answers left out, when too few are spare for decoding: enough for one liar, or two of 32
SAID = {
    Phase.KEYS: "sent keys",
    Phase.SHARES: "shared their secrets",
    Phase.MASKED: "sent a masked vector",
    Phase.CONSISTENT: "signed the survivor set",
    Phase.UNMASK: "released their shares",
}

Read = Callable[[str, int, int], bytes | memoryview]
SiteMessage = Keys | Shares | Masked | Consistent | Unmask


class SealServer:
    """One round at the coordinator. It holds no secret of its own but the identity that signs.

    Args: plan: of the round. roster: the current one. identity, coordinator: who signs.
      previous_receipt: digest of the run's last receipt, ZERO32 before the first.
      charges: the least numbers of the sites' charges, as known when the round was opened (see `charges`).
    Attributes: phase. u1, u2, u3: who sent keys, shared, and survived, once each phase is closed. blamed: BadShare
      errors, each naming a site whose share did not fit (set when the sum opens in spite of them).
    Raises: NotInRoster: a site of the plan, or the coordinator, is not in the roster. ContextMismatch: another
      federation.
    """

    def __init__(
        self,
        plan: Plan,
        roster: Roster,
        identity: Identity,
        coordinator: str,
        previous_receipt: bytes,
        charges: Charges = MappingProxyType({}),
    ) -> None:
        if plan.federation != roster.federation:
            raise ContextMismatch(f"a plan of {plan.federation!r} under the roster of {roster.federation!r}")
        if roster.key_of(coordinator, "coordinator") != identity.public:
            raise NotInRoster(f"the key at hand is not the one that the roster has for {coordinator!r}.")
        self._member_keys = {site: roster.key_of(site, "site") for site in plan.sites}
        self.plan, self._roster, self._identity, self._previous = plan, roster, identity, previous_receipt
        self.phase, self._least = Phase.KEYS, charges
        self.context = derive.round_context(plan, roster.digest, previous_receipt)
        self.u1: tuple[str, ...] = ()
        self.u2: tuple[str, ...] = ()
        self.u3: tuple[str, ...] = ()
        self.blamed: list[BadShare] = []
        self._accepted: dict[tuple[str, str], bytes] = {}  # (label, site) -> digest of the accepted bytes
        self._keys: dict[str, Keys] = {}
        self._shares: dict[str, Shares] = {}
        self._masked: dict[str, Masked] = {}
        self._consistent: dict[str, Consistent] = {}
        self._unmask: dict[str, Unmask] = {}
        self._released: dict[str, dict[str, int]] = {}  # by who answered, by whose secret: the share
        self._sum: tuple[set[str], Words] | None = None  # whose masked vectors are added up, [buckets, words]
        self._seeds: list[list[Seed]] = []  # by bucket
        self._opening: list[int] = []
        self._weights: dict[tuple[int, ...], list[int]] = {}  # Lagrange coefficients by points

    def open(self) -> bytes:
        """Message 0, the same for every site of the plan."""
        message = Open(self.context, self._roster.digest, self._previous, self.plan.to_bytes())
        return message.signed(self._identity).to_bytes()

    def awaited(self) -> frozenset[str]:
        """The sites that may answer in this phase."""
        members = {
            Phase.KEYS: self.plan.sites,
            Phase.SHARES: self.u1,
            Phase.MASKED: self.u2,
            Phase.CONSISTENT: self.u3,
            Phase.UNMASK: self.u3,
        }
        return frozenset(members.get(self.phase, ()))

    def answered(self) -> frozenset[str]:
        """The sites whose answer of this phase was accepted."""
        answers: Mapping[Phase, Mapping[str, object]] = {
            Phase.KEYS: self._keys,
            Phase.SHARES: self._shares,
            Phase.MASKED: self._masked,
            Phase.CONSISTENT: self._consistent,
            Phase.UNMASK: self._unmask,
        }
        return frozenset(answers.get(self.phase, ()))

    # What sites send ----------------------------------------------------------------------------------------------

    def receive(self, site: str, data: bytes) -> None:
        """Takes message 1, 3, 5, 7 or 9 of `site`. Of a Masked header the caller has verified the payload before.

        Raises: a PeerError that names the site and what is wrong; nothing has changed then. DuplicateMessage: the
          site answered this phase differently before. UnexpectedMessage: out of phase, or not a site that is awaited.
        """
        try:
            label, name = label_of(data), digest(data)
            if self._accepted.get((label, site)) == name:
                return
            after = step(COORDINATOR, self.phase, label.rpartition("/")[2], site)
            if site not in self.awaited():
                raise UnexpectedMessage(f"no {label!r} is awaited from this site")
            self._take(label, site, data)
        except CloisterError as fault:
            fault.site = site
            raise
        self._accepted[label, site] = name
        self.phase = after

    def _take(self, label: str, site: str, data: bytes) -> None:
        takers: dict[str, Callable[[str, bytes], None]] = {
            labels.KEYS: self._take_keys,
            labels.SHARES: self._take_shares,
            labels.MASKED: self._take_masked,
            labels.CONSISTENT: self._take_consistent,
            labels.UNMASK: self._take_unmask,
        }
        takers[label](site, data)

    def _authentic(self, message: SiteMessage, sender: str, site: str) -> None:
        """By the site that it names, in this round, and the first of its kind."""
        if sender != site:
            raise UnexpectedMessage(f"a message of {sender!r} in the name of another site")
        message.verify(self._member_keys[site], site)
        if message.context != self.context:
            raise ContextMismatch(
                "the site answered in another round, or was shown another plan, query, roster or receipt"
            )
        if (message.LABEL, site) in self._accepted:
            raise DuplicateMessage(f"a second, different {message.LABEL!r}")

    def _take_keys(self, site: str, data: bytes) -> None:
        message = Keys.from_bytes(data)
        self._authentic(message, message.site, site)
        check_charge(message, self._member_keys[site], self._least)
        taken = {key for keys in self._keys.values() for key in (keys.channel, keys.mask)}
        if message.channel == message.mask or taken & {message.channel, message.mask}:
            raise KeyListConflict("a public key that another one repeats")
        derive.check_public(message.channel, site)
        derive.check_public(message.mask, site)
        if message.checkpoint:  # one that was never signed here would make every other site refuse the list
            open_checkpoint(message.checkpoint, origin_of(self.plan.federation), self._identity.public)
        self._keys[site] = message

    def _take_shares(self, site: str, data: bytes) -> None:
        message = Shares.from_bytes(data)
        self._authentic(message, message.site, site)
        self._same_list(message.h1)
        chosen = derive.round_degree(self.plan, self.u1).chosen
        own = check_choice(message.chosen, site, self.u1, chosen) >> self.u1.index(site) & 1
        if len(message.ciphertexts) != chosen - own:
            raise MalformedMessage(f"{len(message.ciphertexts)} ciphertexts for a choice of {chosen} sites")
        self._shares[site] = message

    def _take_masked(self, site: str, data: bytes) -> None:
        message = Masked.from_bytes(data)
        upload = message.upload
        self._authentic(message, upload.site, site)
        self._same_list(upload.h1)
        if upload.u2 != self._u2_digest:
            raise ContextMismatch("the site masked for another U2")
        if (upload.words, upload.bits) != (self.plan.words, self.plan.bits):
            raise BadUpload(
                f"{upload.words} words of {upload.bits} bits for a plan of {self.plan.words} of {self.plan.bits}"
            )
        upload.verify(self._member_keys[site])
        self._masked[site] = message

    def _take_consistent(self, site: str, data: bytes) -> None:
        message = Consistent.from_bytes(data)
        self._authentic(message, message.site, site)
        if message.u3 != self._u3_digest:
            raise MissingConsistency("a signature on another survivor set")
        self._consistent[site] = message

    def _take_unmask(self, site: str, data: bytes) -> None:
        message = Unmask.from_bytes(data)
        self._authentic(message, message.site, site)
        if message.u3 != self._u3_digest:
            raise ContextMismatch("shares for another survivor set")
        if len(message.shares) != len(self._graph.owners(site)):
            raise MalformedMessage(f"{len(message.shares)} shares, of a site that holds another number of them")
        for share in message.shares:
            shamir.from_bytes(share)
        self._unmask[site] = message

    def add(self, site: str, read: Read) -> None:
        """Adds an accepted masked vector to the sum as it arrives, so that `total` need not read it again.

        Of use, not needed: `total` reads those that are missing. Args: read: as for `total`.
        Raises: UnexpectedMessage: none was accepted of this site. What `read` raises: nothing is added yet, then.
        """
        if site not in self._masked:
            raise UnexpectedMessage("no masked vector was accepted from this site", site=site)
        added, sums = self._take_sum()
        if site not in added:
            bucket = next(at for at, sites in enumerate(self._buckets) if site in sites)
            self._add(sums[bucket], [site], 0, read)
            added.add(site)
        self._sum = added, sums

    def _take_sum(self) -> tuple[set[str], Words]:
        """Whose vectors are added up so far, and their sums. Taken: one that a fault cuts off is never used again."""
        taken, self._sum = self._sum, None
        return taken or (set(), np.zeros((self.plan.buckets, self.plan.words), self.plan.coder.dtype))

    def _add(self, part: Words, sites: Sequence[str], first: int, read: Read) -> None:
        """Adds masked vectors of `sites`, from their word `first` on. Raises: BadUpload: one came back short."""
        bits = self.plan.bits
        for at in range(0, len(part), STRETCH):
            stretch = part[at : at + STRETCH]
            length = packed_bytes(len(stretch), bits)
            for site in sites:
                data = read(site, (first + at) * bits // 8, length)
                if len(data) != length:
                    raise BadUpload(f"{len(data)} bytes of its masked vector, not {length}", site=site)
                add_packed(stretch, data, bits)

    def _same_list(self, h1: bytes) -> None:
        if h1 != self._h1:
            raise ContextMismatch("the site was shown another list of keys")

    # What the coordinator sends -----------------------------------------------------------------------------------

    def checkpoints(self) -> dict[str, bytes]:
        """By site, the note of the log that its keys carried, b"" for none: what an agreement must cover."""
        return {site: keys.checkpoint for site, keys in self._keys.items()}

    def charges(self) -> dict[bytes, int]:
        """What the keys and masked vectors of this round show of the sites' ledgers."""
        return charges_after(self._keys.values(), self._masked, self._member_keys.__getitem__)

    def close(self, agreement: bytes = b"") -> dict[str, bytes]:
        """Ends this phase: what to send to each recipient (nothing after the last one).

        Args: agreement: `Log.agreement` over the sizes of `checkpoints()`, as bytes; of use in the first phase only.
          Like a message it is part of the transcript: a machine that is made anew must be given the same.
        Raises: TooFewSurvivors: fewer answers than the plan requires; the round is void and nothing was opened.
          BadShare: a secret that the answers contradict; the round is void. UnexpectedMessage: it is over already.
        """
        after = step(COORDINATOR, self.phase, "close")
        answered = sorted(self.answered())
        if short := self._short(frozenset(answered)):
            missing, said = ", ".join(sorted(self.awaited() - set(answered))), SAID[self.phase]
            self.phase = step(COORDINATOR, self.phase, "void")
            raise TooFewSurvivors(
                f"round {self.plan.round}: {len(answered)} of {len(self.plan.sites)} sites {said}, {short}."
                " Nothing was opened.",
                mend=f"Wait for {missing}, or go on with a cohort without them.",
            )
        closers: dict[Phase, Callable[[tuple[str, ...]], dict[str, bytes]]] = {
            Phase.KEYS: lambda sites: self._close_keys(sites, agreement),
            Phase.SHARES: self._close_shares,
            Phase.MASKED: self._close_masked,
            Phase.CONSISTENT: self._close_consistent,
            Phase.UNMASK: self._close_unmask,
        }
        outgoing = closers[self.phase](tuple(answered))
        self.phase = after
        return outgoing

    def _short(self, answered: Set[str]) -> str:
        """Why these answers are not enough; empty where they are."""
        plan, required = self.plan, self.plan.threshold
        if self.phase is Phase.KEYS and plan.buckets > 1:
            required = max(required, plan.buckets * max(least(), plan.min_survivors))
        if self.phase in (Phase.KEYS, Phase.SHARES, Phase.MASKED):
            required = max(required, plan.min_survivors)
        if len(answered) < required:
            return f"it takes {required}"
        if self.phase in (Phase.SHARES, Phase.MASKED):
            fewest = min(len(answered & set(bucket)) for bucket in self._buckets)
            if fewest < plan.min_survivors:
                return f"{fewest} of one bucket, it takes {plan.min_survivors} of each"
        if self.phase in (Phase.MASKED, Phase.UNMASK):
            for owner in self.u2:
                there = len(answered & set(self._graph.holders(owner)))
                if there < self._graph.degree.threshold:
                    needed = self._graph.degree.threshold
                    return f"{there} of those that hold shares of {owner!r}, it takes {needed}"
        return ""

    def _close_keys(self, sites: tuple[str, ...], agreement: bytes) -> dict[str, bytes]:
        entries = tuple(self._keys[site] for site in sites)
        self.u1, self._h1 = sites, derive.key_list_digest(self.context, entries)
        self._buckets = partition(self.plan.query, sites, self.plan.buckets)
        message = KeyList(self.context, entries, agreement).signed(self._identity).to_bytes()
        return dict.fromkeys(sites, message)

    def _close_shares(self, sites: tuple[str, ...]) -> dict[str, bytes]:
        self._sharers = tuple(Sharer(site, self._shares[site].chosen) for site in sites)
        self.u2, self._u2_digest = sites, derive.sharers_digest(self.context, self._h1, self._sharers)
        self._graph = derive.round_graph(self.plan, self.u1, self._sharers)
        dealt = {}
        for site in sites:
            holders = derive.neighbours(site, self._graph.holders(site))
            dealt[site] = dict(zip(holders, self._shares[site].ciphertexts, strict=True))
        outgoing = {}
        for site in sites:
            senders = derive.neighbours(site, self._graph.owners(site))
            relayed = tuple(dealt[sender][site] for sender in senders)
            message = Ciphertexts(self.context, self._h1, site, self._sharers, relayed)
            outgoing[site] = message.signed(self._identity).to_bytes()
        return outgoing

    def _close_masked(self, sites: tuple[str, ...]) -> dict[str, bytes]:
        entries = tuple(self._masked[site].upload for site in sites)
        digests = (self.context, self._h1, self._u2_digest)
        self.u3, self._u3_digest = sites, derive.survivors_digest(*digests, entries)
        message = Survivors(*digests, self.plan.words, self.plan.bits, entries).signed(self._identity)
        return dict.fromkeys(sites, message.to_bytes())

    def _close_consistent(self, sites: tuple[str, ...]) -> dict[str, bytes]:
        entries = tuple(self._consistent[site] for site in sites)
        message = Consistency(self.context, self._u3_digest, entries).signed(self._identity).to_bytes()
        self._consistency_digest = digest(message)
        return dict.fromkeys(self.u3, message)  # one that signed too late may still unmask

    # Opening ------------------------------------------------------------------------------------------------------

    def _close_unmask(self, sites: tuple[str, ...]) -> dict[str, bytes]:
        """Rebuilds the survivors' own seeds, and the pair seeds of those that dropped out after sharing."""
        for site in sites:
            owned = zip(self._graph.owners(site), self._unmask[site].shares, strict=True)
            self._released[site] = {owner: shamir.from_bytes(share) for owner, share in owned}
        seeds: dict[str, list[Seed]] = {}
        opening, survivors = list[int](), frozenset(self.u3)
        try:
            for site in self.u3:
                beta = self._reveal(site, sites, self._beta_fits)
                opening.append(beta)
                seeds[site] = [(derive.self_seed(beta, self.context, site), -1)]
            for lost in sorted(set(self.u2) - set(self.u3)):
                sigma = self._reveal(lost, sites, self._sigma_fits)
                opening.append(sigma)
                private = derive.mask_private_key(sigma, self.context)
                seeds[lost] = []
                for site in survivors.intersection(self._graph.partners(lost)):
                    shared = derive.exchange(private, self._keys[site].mask, site)
                    seed = derive.pair_seed(shared, self.context, self._h1, site, lost)
                    seeds[lost].append((seed, -derive.pair_sign(site, lost)))
        except BadShare:
            self.phase = step(COORDINATOR, self.phase, "void")
            raise
        self._seeds = [[seed for site in bucket for seed in seeds.get(site, ())] for bucket in self._buckets]
        self._opening = opening
        return {}

    def _beta_fits(self, site: str, beta: int) -> bool:
        return derive.commitment(self.context, site, beta) == self._keys[site].commitment

    def _sigma_fits(self, site: str, sigma: int) -> bool:
        public = derive.mask_private_key(sigma, self.context).public_key().public_bytes_raw()
        return public == self._keys[site].mask

    def _reveal(self, owner: str, answering: tuple[str, ...], fits: Callable[[str, int], bool]) -> int:
        """A secret of `owner` from the answers. Raises: BadShare: they contradict what it committed to."""
        there = frozenset(answering)
        holder = {x: site for x, site in enumerate(self._graph.holders(owner), 1) if site in there}
        shares = {x: self._released[site][owner] for x, site in holder.items()}
        accused = {fault.site for fault in self.blamed}
        order = sorted(shares, key=lambda x: (holder[x] in accused, x))  # who gave a wrong share once is asked last
        first = tuple(order[: self._graph.degree.threshold])
        secret = self._interpolate(first, shares)
        if fits(owner, secret):
            return secret
        for secret, good in self._other_readings(order, shares):
            if fits(owner, secret):
                self._blame(owner, secret, good, shares, holder)
                return secret
        raise BadShare(
            f"round {self.plan.round}: the answers contradict what this site committed to: it dealt wrong shares,"
            " or too many others answered with wrong ones. Nothing was opened.",
            mend="Go on with a cohort without it; if that happens again, look at those who answered.",
            site=owner,
        )

    def _other_readings(self, order: list[int], shares: dict[int, int]) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Secrets that the shares may mean if some are wrong, each with t points that say so.

        Decoding corrects half as many wrong shares as there are spare ones; leaving out some and looking whether the
        rest fits the commitment corrects all that are spare, if it finds them.
        """
        t = self._graph.degree.threshold
        try:
            secret, wrong = shamir.correct(shares, t)
            yield secret, tuple(x for x in order if x not in wrong)[:t]
        except BadShare:
            pass
        left_out = chain.from_iterable(combinations(order, size) for size in range(1, len(order) - t + 1))
        for out in islice(left_out, SUBSETS):
            chosen = tuple(x for x in order if x not in out)[:t]
            yield self._interpolate(chosen, shares), chosen

    def _interpolate(self, chosen: tuple[int, ...], shares: Mapping[int, int]) -> int:
        if chosen not in self._weights:
            self._weights[chosen] = shamir.weights(chosen)
        return shamir.interpolate(self._weights[chosen], [shares[x] for x in chosen])

    def _blame(
        self, owner: str, secret: int, good: tuple[int, ...], shares: Mapping[int, int], holder: Mapping[int, str]
    ) -> None:
        """Names those whose share does not lie on the polynomial that the `good` ones define."""
        for x in shares.keys() - set(good):
            if self._interpolate((*good[1:], x), shares) != secret:
                fault = f"its share of a secret of {owner!r} is wrong: it, or {owner!r} which dealt it, lied"
                self.blamed.append(BadShare(fault, site=holder[x]))

    def total(self, read: Read, threads: int = 1) -> Words:
        """The sum over u3 in each bucket, mod 2**bits, without its masks.

        Args: read: (site, offset, length) -> bytes of the payload that the site's header announced; called for one
          stretch at a time, from `threads` threads, so memory stays at the result and one stretch for each thread.
          Nothing is read of a vector that was added as it arrived.
        Returns: uint32 or uint64 [plan.buckets, plan.words].
        Raises: RoundVoid: nothing was opened. UnexpectedMessage: not opened yet. BadUpload: `read` came back short.
        """
        if self.phase is Phase.VOID:
            raise RoundVoid(f"round {self.plan.round} ended without a sum: nothing was opened.")
        if self.phase is not Phase.OPEN:
            raise UnexpectedMessage(f"round {self.plan.round} is in the phase {self.phase.value!r}: no sum yet.")
        added, sums = self._take_sum()
        left = set(self.u3) - added
        missing = [[site for site in bucket if site in left] for bucket in self._buckets]
        share = -(-self.plan.words // threads)
        share += -share % 8  # packed words align
        pieces = product(range(self.plan.buckets), range(0, self.plan.words, share))
        with ThreadPoolExecutor(threads) as pool:
            for done in [
                pool.submit(self._open, sums[at][first : first + share], first, missing[at], self._seeds[at], read)
                for at, first in pieces
            ]:
                done.result()
        return sums

    def _open(self, part: Words, first: int, missing: Sequence[str], seeds: Sequence[Seed], read: Read) -> None:
        """Adds the missing vectors to a piece of a bucket's sum, and takes off all masks, stretch by stretch."""
        for batch in range(0, max(len(seeds), 1), STREAMS):
            streams = Keystreams(seeds[batch : batch + STREAMS], first, part.dtype)
            for at in range(0, len(part), streams.stretch):
                stretch = part[at : at + streams.stretch]
                if batch == 0:
                    self._add(stretch, missing, first + at, read)
                streams.apply(stretch)
        reduce(part, self.plan.bits)

    def counts(self) -> list[int]:
        """How many survivors each bucket has."""
        return [len(set(bucket) & set(self.u3)) for bucket in self._buckets]

    def opening(self) -> Opening:
        """Who chose whom, and the secrets that the answers opened, for `audit`.

        Raises: UnexpectedMessage: the round has not opened.
        """
        if self.phase is not Phase.OPEN:
            raise UnexpectedMessage(f"round {self.plan.round} is in the phase {self.phase.value!r}: nothing is open.")
        return Opening(self._sharers, tuple(shamir.to_bytes(secret) for secret in self._opening))

    def receipt(self, sum_roots: Sequence[bytes], state_digest: bytes) -> bytes:
        """Message 10, signed. Args: sum_roots: Merkle root over each opened sum. state_digest: of the state after it.

        Raises: UnexpectedMessage: the round has not opened.
        """
        if self.phase is not Phase.OPEN:
            raise UnexpectedMessage(f"round {self.plan.round} is in the phase {self.phase.value!r}: no receipt.")
        receipt = Receipt(
            plan=self.plan,
            ctx=self.context,
            roster=self._roster.digest,
            h1=self._h1,
            h2=self._u2_digest,
            u1=self.u1,
            u2=self.u2,
            u3=self.u3,
            uploads=tuple(
                Upload(site, self._masked[site].upload.root, self._masked[site].upload.signature) for site in self.u3
            ),
            consistency=self._consistency_digest,
            sum_roots=tuple(sum_roots),
            words=self.plan.words,
            state=state_digest,
            previous=self._previous,
        )
        return sign_receipt(receipt, self._identity)
