"""No interleaving of lies and crashes opens a sum of too few sites, nor two sums that differ by a site.

A model check of the real machines: the coordinator is the adversary and holds its own signing key. In any order it
opens rounds of a few queries, publishes receipts, shows each site a survivor set of its choice, gathers signatures,
asks for shares with any of these, and lets sites crash and come back with nothing but their journal. Every site
contributes one 1 in a coordinate of its own, so an opened sum shows who is in it.

What the adversary makes of all that it received is worked out by linear algebra over every secret that can be rebuilt
(`attack.spoils`). A random search, no proof; but a search that finds a planted bug: sites that forget.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cloister.attack.record import Record, View
from cloister.attack.spoils import Spoils, spoils
from cloister.seal import SealClient, derive, labels
from cloister.seal.labels import ZERO32
from cloister.seal.messages import Consistency, Consistent, Survivors, Unmask
from cloister.seal.state import SitePhase
from cloister.vector.errors import CloisterError, SurvivorSetConflict

SITES = 4  # t = 3, so 2t > n: two survivor sets cannot both gather t signatures
Subset = st.sets(st.integers(0, SITES - 1), min_size=2)
Agreed = st.sets(st.integers(0, SITES - 1), min_size=SITES - 1)


class Forgetful(SealClient):
    """A planted bug: answers a second survivor set, keeps the shares it released, and its journal forgets."""

    def _next_phase(self, label: str, data: bytes) -> SitePhase:
        told = self.phase in (SitePhase.AGREED, SitePhase.UNMASKED)
        again = {labels.SURVIVORS: SitePhase.AGREED, labels.CONSISTENCY: SitePhase.UNMASKED}
        return again[label] if told and label in again else super()._next_phase(label, data)

    def _consistency(self, data: bytes) -> bytes:
        kept = dict(self._shares)
        answer = super()._consistency(data)
        self._shares = kept
        return answer


class Story:
    """One round, up to where all sites have masked; then whatever the adversary tells. Attributes: record: of it all.

    Args: previous: the receipt that it builds on. kind: of clients.
    """

    def __init__(self, rig: Any, previous: bytes, kind: type[SealClient]) -> None:
        self.rig, self.previous, self.kind = rig, previous, kind
        rig.server = rig.new_server(previous)
        rig.clients = {site: self.client(site) for site in rig.names}
        rig.words = {site: self.contribution(site) for site in rig.names}
        rig.start()
        for _ in ("shares", "ciphertexts"):
            rig.exchange()
        for site in rig.names:
            rig.upload(site)
        rig.close()
        self.record = Record(rig.plan, payloads=rig.payloads)
        for said, site, data in rig.log:
            if said in ("open", "to"):
                self.record.note_sent(site, said, data)
            else:
                self.record.note_heard(site, data)
        self.signed: dict[bytes, dict[str, Consistent]] = defaultdict(dict)
        self.sets: dict[bytes, tuple[str, ...]] = {}
        self.released = 0

    def client(self, site: str) -> SealClient:
        if self.kind is Forgetful:
            self.rig.journals[site].slots.clear()
        made: SealClient = self.rig.client(site, last_receipt=self.previous)
        made.__class__ = self.kind
        return made

    def contribution(self, site: str) -> np.ndarray[Any, Any]:
        words = np.zeros(self.rig.plan.words, self.rig.plan.coder.dtype)
        words[self.rig.names.index(site)] = 1
        return words

    def tell(self, site: str, chosen: list[str]) -> None:
        if self.kind is Forgetful:
            self.rig.journals[site].slots.clear()
        truth = Survivors.from_bytes(self.rig.mail[site])
        entries = tuple(entry for entry in truth.entries if entry.site in chosen)
        lie = Survivors(truth.context, truth.h1, truth.u2, truth.words, truth.bits, entries)
        answer = self._ask(site, "survivors", lie.signed(self.rig.coordinator).to_bytes())
        u3 = derive.survivors_digest(truth.context, truth.h1, truth.u2, entries)
        self.signed[u3][site], self.sets[u3] = Consistent.from_bytes(answer), tuple(chosen)

    def ask(self, site: str, u3: bytes) -> None:
        entries = tuple(self.signed[u3][signer] for signer in sorted(self.signed[u3]))
        message = Consistency(self.rig.server.context, u3, entries).signed(self.rig.coordinator)
        Unmask.from_bytes(self._ask(site, "consistency", message.to_bytes()))
        self.released += 1

    def _ask(self, site: str, type: str, data: bytes) -> bytes:
        self.record.note_sent(site, type, data)
        answer: bytes = self.rig.clients[site].receive(data)
        self.record.note_heard(site, answer)
        return answer

    def crash(self, site: str) -> None:
        """Comes back with its journal alone, and is offered the same round again."""
        self.rig.clients[site] = back = self.client(site)
        back.open(self.rig.server.open())
        self.record.note_heard(site, back.keys(self.rig.plan.query))

    def agreed(self) -> set[tuple[str, ...]]:
        """The survivor sets that a threshold of sites signed."""
        return {self.sets[u3] for u3, signers in self.signed.items() if len(signers) >= self.rig.plan.threshold}


def new_story(
    rig: Any, earlier: list[Story], query: bytes, previous: bytes = ZERO32, kind: type[SealClient] = SealClient
) -> Story:
    """The next round of the run; the sites keep their journals."""
    number, name = len(earlier), hashlib.sha256(query).digest()
    made = rig(sites=SITES, size=SITES, seed=f"model/{number}", round=number, query=name)
    if earlier:
        made.journals = earlier[0].rig.journals
    return Story(made, previous, kind)


def linked(stories: Iterable[Story]) -> Iterator[list[Story]]:
    """The rounds whose sums must not differ by a site: those of one query, and those before the same receipt."""
    groups: dict[tuple[str, bytes], list[Story]] = defaultdict(list)
    for story in stories:
        groups["query", story.rig.plan.query].append(story)
        groups["receipt", story.previous].append(story)
    return iter(groups.values())


def leaks(stories: Iterable[Story]) -> list[Spoils]:
    """Every site of which the adversary can open a sum smaller than the plan allows."""

    def truth(view: View) -> Any:
        return group[0].contribution(view.site)

    found = []
    for group in linked(stories):
        found += [one for one in spoils([story.record for story in group], truth) if one.crowd]
    return found


def opened(stories: list[Story]) -> list[set[tuple[str, ...]]]:
    """Of linked rounds, the survivor sets that a threshold of sites signed: two would differ by somebody's vector."""
    return [{names for story in group for names in story.agreed()} for group in linked(stories)]


class Adversary(RuleBasedStateMachine):
    rig: ClassVar[Any]
    kind: ClassVar[type[SealClient]] = SealClient
    opened: ClassVar[int] = 0  # rounds whose sum opened, over all examples

    def __init__(self) -> None:
        super().__init__()
        self.stories: list[Story] = []
        self.receipts = self.looked = 0

    @precondition(lambda self: len(self.stories) < 3)
    @rule(query=st.sampled_from([b"one", b"two"]))
    def open(self, query: bytes) -> None:
        previous = hashlib.sha256(b"%d" % self.receipts).digest() if self.receipts else ZERO32
        self.stories.append(new_story(type(self).rig, self.stories, query, previous, type(self).kind))

    @precondition(lambda self: self.stories)
    @rule()
    def publish(self) -> None:
        """A receipt, whatever it says."""
        self.receipts += 1

    @precondition(lambda self: self.stories)
    @rule(data=st.data(), site=st.integers(0, SITES - 1), chosen=Subset)
    def tell(self, data: st.DataObject, site: int, chosen: set[int]) -> None:
        story = data.draw(st.sampled_from(self.stories))
        names = story.rig.names
        with suppress(CloisterError):
            story.tell(names[site], [names[place] for place in sorted(chosen)])

    @precondition(lambda self: self.stories)
    @rule(data=st.data(), chosen=Agreed)
    def agree(self, data: st.DataObject, chosen: set[int]) -> None:
        """All members of one set are shown it and asked, so that sums do open in this model."""
        story = data.draw(st.sampled_from(self.stories))
        names = [story.rig.names[place] for place in sorted(chosen)]
        for site in names:
            with suppress(CloisterError):
                story.tell(site, names)
        for u3 in [u3 for u3, told in story.sets.items() if told == tuple(names)]:
            for site in names:
                with suppress(CloisterError):
                    story.ask(site, u3)

    @precondition(lambda self: any(story.signed for story in self.stories))
    @rule(data=st.data(), site=st.integers(0, SITES - 1))
    def ask(self, data: st.DataObject, site: int) -> None:
        story = data.draw(st.sampled_from([story for story in self.stories if story.signed]))
        u3 = data.draw(st.sampled_from(sorted(story.signed)))
        with suppress(CloisterError):
            story.ask(story.rig.names[site], u3)

    @precondition(lambda self: self.stories)
    @rule(data=st.data(), site=st.integers(0, SITES - 1))
    def crash(self, data: st.DataObject, site: int) -> None:
        story = data.draw(st.sampled_from(self.stories))
        with suppress(CloisterError):
            story.crash(story.rig.names[site])

    @invariant()
    def no_small_sum_opens(self) -> None:
        released = sum(story.released for story in self.stories)
        if released > self.looked:  # without a share nothing more opens than before
            self.looked = released
            found = leaks(self.stories)
            assert not found, found

    @invariant()
    def linked_rounds_open_over_one_set(self) -> None:
        assert all(len(sets) <= 1 for sets in opened(self.stories))

    def teardown(self) -> None:
        type(self).opened += sum(story.released >= story.rig.plan.threshold for story in self.stories)


def search(rig: Any, kind: type[SealClient], examples: int) -> type[Adversary]:
    machine = type("Search", (Adversary,), {"rig": rig, "kind": kind, "opened": 0})
    machine.TestCase.settings = settings(
        max_examples=examples,
        stateful_step_count=20,
        deadline=None,
        phases=(Phase.generate, Phase.shrink) if kind is SealClient else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    machine.TestCase().runTest()
    return machine


def test_no_interleaving_opens_more_than_one_sum(rig: Any) -> None:
    assert search(rig, SealClient, 25).opened > 10, "too few sums opened for the search to mean anything"


def test_the_search_finds_sites_that_forget(rig: Any) -> None:
    with pytest.raises(AssertionError):
        search(rig, Forgetful, 200)


def test_both_secrets_of_a_site_give_it_away(rig: Any) -> None:
    """The victim is in the first set and not in the second: sites that answer both hand over both of its secrets."""
    story = new_story(rig, [], b"one", kind=Forgetful)
    victim, *others = story.rig.names
    for names in ([victim, *others], others):
        for site in names:
            story.tell(site, names)
        u3 = next(u3 for u3, told in story.sets.items() if told == tuple(names))
        for site in names:
            story.ask(site, u3)
    found = {one.site: one for one in leaks([story])}
    assert found[victim].crowd == 1
    assert found[victim].removed == found[victim].masks == SITES
    assert found[victim].correlation > 0.999  # what opened is the victim's own vector


@pytest.mark.parametrize(("queries", "receipts"), [((b"one", b"one"), (1, 2)), ((b"one", b"two"), (1, 1))])
def test_two_sums_that_differ_by_a_site_are_refused_and_would_be_seen(
    rig: Any, queries: tuple[bytes, bytes], receipts: tuple[int, int]
) -> None:
    """One query under two receipts, and two queries before the next receipt: the difference is one site's vector."""
    for kind in (SealClient, Forgetful):
        stories: list[Story] = []
        for lost, query, receipt in zip((0, 1), queries, receipts, strict=True):
            stories.append(new_story(rig, stories, query, hashlib.sha256(b"%d" % receipt).digest(), kind))
            story = stories[-1]
            names = list(story.rig.names[lost:])
            for site in names:
                if lost and kind is SealClient:
                    with pytest.raises(SurvivorSetConflict):
                        story.tell(site, names)
                else:
                    story.tell(site, names)
            for u3 in story.sets:
                for site in names:
                    story.ask(site, u3)
        assert max(map(len, opened(stories))) == (1 if kind is SealClient else 2)
        assert {one.crowd for one in leaks(stories)} == (set() if kind is SealClient else {1})
