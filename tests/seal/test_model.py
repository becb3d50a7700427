"""No interleaving of lies and crashes gets both secrets of a site out of the others, nor two sums of one query.

A model check of the real machines: the coordinator is the adversary and holds its own signing key. In any order it
opens rounds of a few queries, shows each site a survivor set of its choice, gathers their signatures, asks for shares
with any of these, and lets sites crash and come back with nothing but their journal. Every answer is read as the
adversary would: shares of one owner and round, of both kinds.

A random search, no proof: few of its steps get as far as shares. The rule of one set a query has a control below (a
site that forgets is seen); the rule of one kind of share has none yet, and no sum is opened here.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from contextlib import suppress
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cloister.seal import derive
from cloister.seal.messages import Consistency, Consistent, Survivors, Unmask
from cloister.vector.errors import CloisterError, SurvivorSetConflict

SITES = 4  # t = 3, so 2t > n: two survivor sets cannot both gather t signatures
Subset = st.sets(st.integers(0, SITES - 1), min_size=2)


class Story:
    """One round, up to where all sites have masked; then whatever the adversary tells."""

    def __init__(self, rig: Any) -> None:
        self.rig = rig
        rig.upto("consistent")
        self.signed: dict[bytes, dict[str, Consistent]] = defaultdict(dict)
        self.sets: dict[bytes, tuple[str, ...]] = {}
        self.kinds: dict[str, dict[str, set[str]]] = {site: {"beta": set(), "sigma": set()} for site in rig.names}

    def tell(self, site: str, chosen: list[str]) -> None:
        truth = Survivors.from_bytes(self.rig.mail[site])
        entries = tuple(entry for entry in truth.entries if entry.site in chosen)
        lie = Survivors(truth.context, truth.h1, truth.u2, truth.words, truth.bits, entries)
        answer = self.rig.clients[site].receive(lie.signed(self.rig.coordinator).to_bytes())
        u3 = derive.survivors_digest(truth.context, truth.h1, truth.u2, entries)
        self.signed[u3][site], self.sets[u3] = Consistent.from_bytes(answer), tuple(chosen)

    def ask(self, site: str, u3: bytes) -> None:
        entries = tuple(self.signed[u3][signer] for signer in sorted(self.signed[u3]))
        message = Consistency(self.rig.server.context, u3, entries).signed(self.rig.coordinator)
        answer = Unmask.from_bytes(self.rig.clients[site].receive(message.to_bytes()))
        for owner, _ in zip(self.rig.names, answer.shares, strict=True):
            self.kinds[owner]["beta" if owner in self.sets[answer.u3] else "sigma"].add(site)

    def agreed(self) -> set[tuple[str, ...]]:
        """The survivor sets that a threshold of sites signed."""
        return {self.sets[u3] for u3, signers in self.signed.items() if len(signers) >= self.rig.plan.threshold}


def new_story(rig: Any, earlier: list[Story], query: bytes) -> Story:
    """The next round of the run; the sites keep their journals."""
    number, name = len(earlier), hashlib.sha256(query).digest()
    made = rig(sites=SITES, size=1, seed=f"model/{number}", round=number, query=name)
    if earlier:
        made.journals = earlier[0].rig.journals
        made.clients = {site: made.client(site) for site in made.names}
    return Story(made)


class Adversary(RuleBasedStateMachine):
    rig: ClassVar[Any]

    def __init__(self) -> None:
        super().__init__()
        self.stories: list[Story] = []

    @precondition(lambda self: len(self.stories) < 3)
    @rule(query=st.sampled_from([b"one", b"two"]))
    def open(self, query: bytes) -> None:
        self.stories.append(new_story(type(self).rig, self.stories, query))

    @precondition(lambda self: self.stories)
    @rule(data=st.data(), site=st.integers(0, SITES - 1), chosen=Subset)
    def tell(self, data: st.DataObject, site: int, chosen: set[int]) -> None:
        story = data.draw(st.sampled_from(self.stories))
        names = story.rig.names
        with suppress(CloisterError):
            story.tell(names[site], [names[place] for place in sorted(chosen)])

    @precondition(lambda self: self.stories)
    @rule(data=st.data(), chosen=Subset)
    def agree(self, data: st.DataObject, chosen: set[int]) -> None:
        """All members of one set are shown it, so that rounds do come to an end in this model."""
        story = data.draw(st.sampled_from(self.stories))
        names = [story.rig.names[place] for place in sorted(chosen)]
        for site in names:
            with suppress(CloisterError):
                story.tell(site, names)

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
        """Comes back with its journal alone, and is offered the same round again."""
        story = data.draw(st.sampled_from(self.stories))
        name = story.rig.names[site]
        story.rig.clients[name] = back = story.rig.client(name)
        with suppress(CloisterError):
            back.open(story.rig.server.open())
            back.keys(story.rig.plan.query)

    @invariant()
    def nobody_is_opened_twice(self) -> None:
        for story in self.stories:
            for owner, kinds in story.kinds.items():
                assert min(map(len, kinds.values())) < story.rig.plan.threshold, owner
                assert not kinds["beta"] & kinds["sigma"], f"a site released both shares of {owner}"
            assert len(story.agreed()) <= 1

    @invariant()
    def a_query_opens_over_one_set(self) -> None:
        assert all(len(sets) <= 1 for sets in opened(self.stories).values())


def opened(stories: list[Story]) -> dict[bytes, set[tuple[str, ...]]]:
    """By query, the survivor sets that a threshold of sites signed: two would differ by somebody's vector."""
    found: dict[bytes, set[tuple[str, ...]]] = defaultdict(set)
    for story in stories:
        found[story.rig.plan.query] |= story.agreed()
    return found


def test_no_interleaving_opens_both_secrets(rig: Any) -> None:
    Adversary.rig = rig
    Adversary.TestCase.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
    Adversary.TestCase().runTest()


def test_the_model_would_see_it(rig: Any) -> None:
    """One set a query: sites that forget let it open over two sets, sites that do not refuse the second."""
    for forgetful in (True, False):
        stories: list[Story] = []
        for lost in (0, 1):
            stories.append(new_story(rig, stories, b"one"))
            names = list(stories[-1].rig.names[lost:])
            for site in names:
                if forgetful:
                    stories[-1].rig.journals[site].slots.clear()
                elif lost:
                    with pytest.raises(SurvivorSetConflict):
                        stories[-1].tell(site, names)
                    continue
                stories[-1].tell(site, names)
        assert [len(sets) for sets in opened(stories).values()] == [2 if forgetful else 1]
