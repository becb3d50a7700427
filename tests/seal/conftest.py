"""A federation in miniature: real machines, real signatures, bytes handed over in the test."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import pytest

from cloister.seal import SealClient, SealServer, masked_header
from cloister.seal.identity import Identity
from cloister.seal.labels import ZERO32
from cloister.seal.log import Log, origin_of
from cloister.seal.merkle import root_of
from cloister.seal.plan import Plan
from cloister.seal.roster import Member, Roster
from cloister.seal.threshold import threshold
from cloister.vector.errors import RoundReplayed, SurvivorSetConflict
from cloister.vector.layout import Block, Layout

NAMES = ("amsterdam", "basel", "cork", "delft", "essen", "fano", "ghent", "hull", "izola", "jena")
PHASES = ("keys", "shares", "masked", "consistent", "unmask")


class Drbg:
    """SHA-256 in counter mode: the randomness of tests, the same on every machine."""

    def __init__(self, seed: str) -> None:
        self._seed, self._count = hashlib.sha256(seed.encode()).digest(), 0

    def __call__(self, size: int) -> bytes:
        first, self._count = self._count, self._count + -(-size // 32)
        counters = range(first, self._count)
        return b"".join(hashlib.sha256(self._seed + at.to_bytes(8, "big")).digest() for at in counters)[:size]


class MemoryJournal:
    def __init__(self) -> None:
        self.slots: dict[str, bytes] = {}

    def once(self, slot: str, value: bytes) -> None:
        if self.slots.setdefault(slot, value) != value:
            raise (SurvivorSetConflict if slot.endswith("survivors") else RoundReplayed)(f"slot {slot!r} is taken")


class Rig:
    """A coordinator and its sites in one round of a run.

    Args: sites: how many. size: coordinates of the one block. bits: of a word. seed: of everything random.
      carried: by site, how many receipts the log had at the checkpoint it carries.
      charges: by site, as which charge of its ledger it pays; the others expect no smaller one.
    Attributes: log: every message that was handed over, as (kind, site, bytes).
    """

    def __init__(
        self,
        sites: int = 5,
        size: int = 7,
        bits: int = 32,
        seed: str = "rig",
        carried: Mapping[str, int] | None = None,
        charges: Mapping[str, int] | None = None,
        **plan: Any,
    ) -> None:
        everybody = (*NAMES, *(f"kent-{number:03d}" for number in range(len(NAMES), sites)))
        self.names, self.seed = everybody[:sites], seed
        self.receipts, self.carried = Log(origin_of("tests")), dict(carried or {})
        random = Drbg(f"{seed}/identities")
        self.coordinator = Identity.generate(random)
        self.identities = {site: Identity.generate(random) for site in everybody}
        self.journals = {site: MemoryJournal() for site in everybody}
        self.roster = Roster(
            federation="tests",
            version=1,
            previous=ZERO32,
            roots=(Identity.generate(random).public,),
            quorum=1,
            coordinators=(Member("hub", self.coordinator.public),),
            sites=tuple(Member(site, self.identities[site].public) for site in everybody),
        )
        facts: dict[str, Any] = {
            "federation": "tests",
            "run": bytes(range(16)),
            "round": 0,
            "attempt": 0,
            "job": hashlib.sha256(b"job").digest(),
            "query": hashlib.sha256(b"query").digest(),
            "algorithm": "fedavg",
            "bits": bits,
            "layout": Layout((Block("delta", (size,), bound=1.0),)),
            "max_rows": 100,
            "sites": self.names,
            "threshold": threshold(sites) if sites >= 3 else 2,
            "min_survivors": min(3, sites),
        }
        self.plan = Plan(**{**facts, **plan})
        notes = {0: b""}
        for place in range(max(self.carried.values(), default=0)):
            self.receipts.append(f"receipt {place}".encode())
            notes[place + 1] = self.receipts.sign(self.coordinator)
        self.charges = dict(charges or {})
        self.least = {self.identities[site].public: number for site, number in self.charges.items()}
        self.notes = {site: notes[self.carried.get(site, 0)] for site in everybody}
        self.server = self.new_server()
        self.clients = {site: self.client(site) for site in self.plan.sites}
        self.words = {site: self.contribution(site) for site in self.plan.sites}
        self.payloads: dict[str, bytes] = {}
        self.mail: dict[str, bytes] = {}
        self.log: list[tuple[str, str, bytes]] = []

    def new_server(self, previous: bytes = ZERO32) -> SealServer:
        return SealServer(self.plan, self.roster, self.coordinator, "hub", previous, self.least)

    def client(self, site: str, **settings: Any) -> SealClient:
        given = {"journal": self.journals[site], "randomness": Drbg(f"{self.seed}/{site}"), **settings}
        given.setdefault("checkpoint", self.notes[site])
        given = {"charge": self.charges.get(site, 0), "least": self.least, **given}
        return SealClient(site, self.identities[site], self.roster, self.coordinator.public, **given)

    def contribution(self, site: str) -> np.ndarray[Any, Any]:
        values = np.frombuffer(Drbg(f"{self.seed}/{site}/x")(8 * self.plan.words), np.uint64)
        return (values & np.uint64((1 << self.plan.bits) - 1)).astype(self.plan.coder.dtype)

    def expected(self, survivors: Collection[str]) -> np.ndarray[Any, Any]:
        total = np.zeros(self.plan.words, self.plan.coder.dtype)
        for site in survivors:
            total += self.words[site]
        return total & total.dtype.type((1 << self.plan.bits) - 1)

    # one step at a time

    def give(self, site: str, data: bytes) -> None:
        """A site's message to the coordinator."""
        self.server.receive(site, data)

    def start(self, lost: Collection[str] = ()) -> None:
        """Messages 0 and 1."""
        opening = self.server.open()
        for site in self.plan.sites:
            if site not in lost:
                self.log.append(("open", site, opening))
                self.clients[site].open(opening)
                answer = self.clients[site].keys(self.plan.query)
                self.log.append(("keys", site, answer))
                self.give(site, answer)

    def agreement(self) -> bytes:
        """The log's own, where there is one."""
        return self.receipts.agreement(self.carried.values(), self.coordinator).to_bytes() if self.carried else b""

    def close(self) -> dict[str, bytes]:
        self.mail = self.server.close(self.agreement())
        return self.mail

    def deliver(self, site: str) -> bytes | None:
        """What the coordinator sent to `site` in this phase; returns the answer."""
        self.log.append(("to", site, self.mail[site]))
        return self.clients[site].receive(self.mail[site])

    def exchange(self, lost: Collection[str] = (), order: Callable[[list[str]], list[str]] = sorted) -> None:
        """Closes a phase, and hands each message over and each answer back, but those of the lost."""
        self.close()
        for site in order(list(self.mail)):
            if site in lost:
                continue
            answer = self.deliver(site)
            if answer is not None:
                self.log.append(("from", site, answer))
                self.give(site, answer)

    def upload(self, site: str) -> None:
        header, payload = self.clients[site].mask(self.words[site])
        self.payloads[site] = bytes(payload)
        masked_header(header).check(root_of(payload), len(payload))
        self.log.append(("masked", site, header))
        self.give(site, header)

    def read(self, site: str, offset: int, length: int) -> bytes:
        return self.payloads[site][offset : offset + length]

    def run(
        self, lost: Mapping[str, Collection[str]] | None = None, order: Callable[[list[str]], list[str]] = sorted
    ) -> np.ndarray[Any, Any]:
        """A whole round. Args: lost: by phase of PHASES, who drops out before answering in it."""
        gone: set[str] = set()
        steps = {phase: set((lost or {}).get(phase, ())) for phase in PHASES}
        gone |= steps["keys"]
        self.start(gone)
        gone |= steps["shares"]
        self.exchange(gone, order)
        gone |= steps["masked"]
        self.exchange(gone, order)
        for site in order(sorted(self.server.awaited() - gone)):
            self.upload(site)
        gone |= steps["consistent"]
        self.exchange(gone, order)
        gone |= steps["unmask"]
        self.exchange(gone, order)
        self.close()
        total = self.server.total(self.read)
        return total[0] if len(total) == 1 else total

    def upto(self, phase: str) -> None:
        """Brings everybody to where the coordinator's message before `phase` is closed and in `mail`, undelivered."""
        self.start()
        if phase == "keys":
            return
        self.close()
        if phase == "shares":
            return
        self._answer_all()
        self.close()
        if phase == "masked":
            return
        self._answer_all()
        for site in self.plan.sites:
            self.upload(site)
        self.close()
        if phase == "consistent":
            return
        self._answer_all()
        self.close()
        if phase == "unmask":
            return
        self._answer_all()

    def _answer_all(self) -> None:
        for site in self.mail:
            answer = self.deliver(site)
            if answer is not None:
                self.give(site, answer)


@pytest.fixture(scope="session")
def rig() -> type[Rig]:
    return Rig
