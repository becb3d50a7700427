"""How a simulated round is summed: `Ideal` adds the integers, `Masks` runs the real machines, bytes handed over.

Both open to the same words, bit for bit: masks cancel mod 2**bits exactly.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import numpy as np

from cloister.job import Job, SiteDP
from cloister.round.evidence import SIMULATION, Content, RoundEvidence, file_of, round_files, trust_file
from cloister.round.loop import cores
from cloister.seal.buckets import check_buckets, partition
from cloister.seal.client import SealClient
from cloister.seal.graph import default_graph
from cloister.seal.identity import Identity, remembering
from cloister.seal.labels import ZERO32
from cloister.seal.log import Log, origin_of
from cloister.seal.masks import reduce
from cloister.seal.merkle import root_of
from cloister.seal.plan import MAX_SITES, Plan
from cloister.seal.receipt import Receipt
from cloister.seal.roster import Member, Roster, sign_roster
from cloister.seal.server import SealServer
from cloister.seal.threshold import MIN_SITES, threshold
from cloister.seal.together import mask_together
from cloister.vector import FixedPoint, Query, State, digest
from cloister.vector.errors import RoundReplayed, SurvivorSetConflict, UsageError
from cloister.vector.layout import Words

COORDINATOR = "coordinator"


def buckets_of(query: Query, sites: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Who is summed with whom, all of `sites` having sent their keys. Raises: TooFewSites: for so many buckets."""
    check_buckets(query.buckets, len(sites))
    asked = digest(query.to_bytes()) if query.buckets > 1 else b""
    return partition(asked, tuple(sorted(sites)), query.buckets)


class Sum(Protocol):
    """One round: contributions are added as they come, then the sum is opened."""

    def add(self, sites: Sequence[str], words: Words) -> None:
        """Args: sites: of one bucket. words: the sum of their contributions."""
        ...

    def open(self) -> Words:
        """Returns: [buckets, words]: the sum of each bucket of `buckets_of`."""
        ...

    def settle(self, state: State) -> None:
        """The round's end, once its total has become this state."""
        ...

    def traffic(self) -> dict[str, dict[str, int]]:
        """Bytes by direction and site; empty where nothing was sent."""
        ...


class Seal(Protocol):
    """Attributes: receipts: signed, in order. apart: whether each site's contribution has to come by itself."""

    receipts: list[bytes]
    apart: bool

    def round(self, query: Query, sites: Sequence[str], coder: FixedPoint) -> Sum: ...


class Ideal:
    """The sum itself, without masks: what a simulation needs, at the speed of an addition."""

    apart = False

    def __init__(self) -> None:
        self.receipts: list[bytes] = []

    def round(self, query: Query, sites: Sequence[str], coder: FixedPoint) -> Sum:
        return _IdealSum(coder, buckets_of(query, sites))


class _IdealSum:
    def __init__(self, coder: FixedPoint, buckets: Sequence[Sequence[str]]) -> None:
        self._bits = coder.bits
        self._bucket = {site: at for at, bucket in enumerate(buckets) for site in bucket}
        self._total: Words = np.zeros((len(buckets), coder.size), coder.dtype)

    def add(self, sites: Sequence[str], words: Words) -> None:
        self._total[self._bucket[sites[0]]] += words

    def open(self) -> Words:
        reduce(self._total, self._bits)
        return self._total

    def settle(self, state: State) -> None:
        pass

    def traffic(self) -> dict[str, dict[str, int]]:
        return {}


class Masks:
    """The federation's own machines: identities, a roster, signed messages, a receipt for each round.

    Args:
      keep: takes the files of the evidence (`round.evidence`) as they come into being.
      graph: of every round, instead of the one for its number of sites.
    Attributes: receipts: signed, in order.
    Raises: UsageError: more sites than one sealed sum carries; noise that comes after the sum, under no receipt.
    """

    apart = True

    def __init__(
        self,
        job: Job,
        sites: Collection[str],
        keep: Callable[[str, Content], None] = lambda path, data: None,
        graph: str = "",
    ) -> None:
        if len(sites) > MAX_SITES:
            raise UsageError(
                f'seal="masks" carries at most {MAX_SITES} sites, not {len(sites)}.',
                mend='Use seal="ideal": it gives the same model, bit for bit.',
            )
        if isinstance(job.privacy, SiteDP) and job.privacy.central:
            raise UsageError(
                'seal="masks" opens a sum that holds its noise; central noise comes after it.',
                mend='Use seal="ideal".',
            )
        self.receipts: list[bytes] = []
        self._job, self._run, self._round, self._keep = job, os.urandom(16), 0, keep
        self._graph = graph
        root = Identity.generate(os.urandom)
        self.coordinator = Identity.generate(os.urandom)
        self.identities = {site: Identity.generate(os.urandom) for site in sorted(sites)}
        self.journals = {site: MemoryJournal() for site in self.identities}
        self.roster = Roster(
            federation=SIMULATION,
            version=1,
            previous=ZERO32,
            roots=(root.public,),
            quorum=1,
            coordinators=(Member(COORDINATOR, self.coordinator.public),),
            sites=tuple(Member(site, identity.public) for site, identity in self.identities.items()),
        )
        self.last_round, self.last_receipt = -1, ZERO32
        self._log = Log(origin_of(SIMULATION))
        keep("trust.json", trust_file(self.roster.roots, self.roster.quorum))
        keep(file_of("rosters", 1), sign_roster(self.roster, [root]))

    def settled(self, round: int, verified: Receipt, evidence: RoundEvidence) -> None:
        """Receipts a round. Args: verified: the receipt as a site opened it."""
        self.last_round, self.last_receipt = round, verified.digest
        for path, data in round_files(len(self.receipts), evidence).items():
            self._keep(path, data)
        self.receipts.append(evidence.receipt)
        self._log.append(evidence.receipt)
        self._keep("log/leaves", b"".join(self._log.leaves))
        self._keep("log/newest.checkpoint", self._log.sign(self.coordinator))

    def round(self, query: Query, sites: Sequence[str], coder: FixedPoint) -> Sum:
        plan = Plan(
            federation=self.roster.federation,
            run=self._run,
            round=self._round,
            attempt=0,
            job=self._job.digest,
            query=digest(query.to_bytes()),
            algorithm=self._job.algorithm.name.lower(),
            bits=coder.bits,
            layout=query.sealed_layout,
            max_rows=query.max_rows,
            sites=tuple(sorted(sites)),
            threshold=threshold(len(sites)),
            min_survivors=MIN_SITES,
            graph=self._graph or default_graph(len(sites)),
            buckets=query.buckets,
        )
        self._round += 1
        return _MaskedSum(self, plan)


class _MaskedSum:
    """Keys and shares are exchanged with the whole cohort at once, as they are while real sites train.

    A site that never adds anything has dropped out: its masks are taken off with the others' shares. What two sites
    compute alike, each at its own end (the keystream of the pair), is computed once, and what all of them verify
    (lists of keys, survivors, signatures on both) is verified once.
    """

    def __init__(self, federation: Masks, plan: Plan) -> None:
        self._federation, self._plan = federation, plan
        self._server = SealServer(
            plan, federation.roster, federation.coordinator, COORDINATOR, federation.last_receipt
        )
        self._clients = {site: self._client(site) for site in plan.sites}
        self._answers: dict[str, Words] = {}
        self._payloads: dict[str, memoryview] = {}
        self._known: set[tuple[bytes, bytes, bytes]] = set()
        self._sent: list[bytes] = []  # the first message that closed each phase
        self._up = dict.fromkeys(plan.sites, 0)
        self._down = dict.fromkeys(plan.sites, 0)
        opening = self._server.open()
        with remembering(self._known):
            for site, client in self._clients.items():
                self._down[site] += len(opening)
                client.open(opening)
                self._hand_over(site, client.keys(plan.query))
            self._exchange()
            self._exchange()

    def _client(self, site: str) -> SealClient:
        own = self._federation
        return SealClient(
            site,
            own.identities[site],
            own.roster,
            own.coordinator.public,
            journal=own.journals[site],
            randomness=os.urandom,
            last_round=own.last_round,
            last_receipt=own.last_receipt,
        )

    def _hand_over(self, site: str, message: bytes) -> None:
        self._up[site] += len(message)
        self._server.receive(site, message)

    def _exchange(self) -> None:
        """Ends a phase at the server, hands each message over, and each answer back."""
        outgoing = sorted(self._server.close().items())
        self._sent.append(outgoing[0][1])
        for site, message in outgoing:
            self._down[site] += len(message)
            answer = self._clients[site].receive(message)
            if answer is not None:
                self._hand_over(site, answer)

    def add(self, sites: Sequence[str], words: Words) -> None:
        (site,) = sites
        self._answers[site] = words

    def open(self) -> Words:
        sites, answers = list(self._answers), list(self._answers.values())
        masked = mask_together([self._clients[site] for site in sites], answers, cores()) if sites else []
        self._answers = {}
        with remembering(self._known):
            for site, (header, payload) in zip(sites, masked, strict=True):
                self._payloads[site] = payload
                self._up[site] += len(payload)
                self._hand_over(site, header)
            self._exchange()  # survivors -> consistent
            self._exchange()  # consistency -> unmask
            self._server.close()
        words = self._server.total(self._read, threads=cores())
        little = words.astype(words.dtype.newbyteorder("<"))
        self._sum_roots, self._total = [root_of(part.tobytes()) for part in little], little.tobytes()
        return words

    def _read(self, site: str, start: int, length: int) -> memoryview:
        return self._payloads[site][start : start + length]

    def settle(self, state: State) -> None:
        receipt = self._server.receipt(self._sum_roots, digest(state.to_bytes()))
        with remembering(self._known):
            for site in self._payloads:
                self._down[site] += len(receipt)
                self._clients[site].receive(receipt)
        verified = self._clients[next(iter(self._payloads))].receipt
        assert verified is not None, "a client that took the receipt holds it"
        keys, consistency = self._sent[0], self._sent[3]  # the messages 2 and 8
        evidence = RoundEvidence(receipt, self._total, consistency=consistency, keys=keys)
        self._federation.settled(self._plan.round, verified, evidence)

    def traffic(self) -> dict[str, dict[str, int]]:
        return {"bytes_up": self._up, "bytes_down": self._down}


class MemoryJournal:
    """A site's journal for as long as the simulation lives."""

    def __init__(self) -> None:
        self._slots: dict[str, bytes] = {}

    def once(self, slot: str, value: bytes) -> None:
        """Raises: SurvivorSetConflict, RoundReplayed: the slot holds another value."""
        if self._slots.setdefault(slot, value) != value:
            conflict = SurvivorSetConflict if slot.endswith("survivors") else RoundReplayed
            raise conflict(f"the slot {slot!r} was written before, with another value")
