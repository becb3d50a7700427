"""Whole rounds on the sparse graph and in buckets: exact sums whoever drops out, or nothing; every lie is named."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.seal import Phase, audit
from cloister.seal.buckets import partition
from cloister.seal.graph import mark
from cloister.seal.identity import remembering
from cloister.seal.merkle import MerkleBuilder, root_of
from cloister.seal.messages import Ciphertexts, Shares
from cloister.seal.receipt import open_receipt, sign_receipt
from cloister.vector.errors import (
    BadSum,
    CloisterError,
    MalformedMessage,
    PlanRefused,
    StaleReceipt,
    SurvivorSetConflict,
    ThresholdTooLow,
    TooFewSites,
    TooFewSurvivors,
)

PHASES = ("keys", "shares", "masked", "consistent", "unmask")
SPARSE = {"sites": 39, "size": 3, "graph": "sparse-80-20"}  # k = 8, t' = 7, and 27 of 39 signatures
CUT = {"sites": 13, "size": 3, "buckets": 2}


def expected(federation: Any, survivors: list[str]) -> np.ndarray:
    """By bucket."""
    plan, server = federation.plan, federation.server
    buckets = partition(plan.query, server.u1, plan.buckets)
    return np.array([federation.expected(set(bucket) & set(survivors)) for bucket in buckets])


def counted(federation: Any, lost: dict[str, list[str]]) -> list[str]:
    gone = {site for phase in PHASES[:3] for site in lost.get(phase, ())}
    return [site for site in federation.names if site not in gone]


@settings(max_examples=6, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("shape", [SPARSE, CUT], ids=["sparse", "buckets"])
def test_any_dropouts_open_the_exact_sums_or_nothing(rig: Any, shape: dict[str, Any], data: st.DataObject) -> None:
    federation = rig(**shape)
    gone = data.draw(st.lists(st.sampled_from(federation.names), unique=True, max_size=5))
    lost: dict[str, list[str]] = {}
    for site in gone:
        lost.setdefault(data.draw(st.sampled_from(PHASES)), []).append(site)
    try:
        with remembering(set()):  # signatures that all sites verify
            total = federation.run(lost)
    except TooFewSurvivors:
        assert federation.server.phase is Phase.VOID
        assert len(gone) > 1  # one is withstood wherever it is
        if federation.plan.buckets > 1:  # 13 sites in two buckets stand 4 dropouts, if no bucket is left with two
            kept = [len(set(b) - set(gone)) for b in partition(federation.plan.query, federation.names, 2)]
            assert len(gone) > 4 or min(kept) < 3 or lost.get("keys")
    else:
        assert np.array_equal(np.atleast_2d(total), expected(federation, counted(federation, lost)))


@pytest.mark.parametrize("shape", [SPARSE, CUT], ids=["sparse", "buckets"])
def test_an_audit_follows_the_graph(rig: Any, shape: dict[str, Any]) -> None:
    federation = rig(**{**shape, "size": 20_000})
    total = np.atleast_2d(federation.run({"masked": ["cork"]}))
    for altered in (False, True):
        if altered:
            total[-1, 17_000] ^= 1
        sums = [part.tobytes() for part in total]
        signed = federation.server.receipt([root_of(data) for data in sums], bytes(32))
        receipt, nonce = open_receipt(signed, federation.coordinator.public), hashlib.sha256(b"nonce").digest()
        hashed = [leaf for data in sums for leaf in leaves_of(data)]
        uploads = {site: leaves_of(payload) for site, payload in federation.payloads.items()}
        assert audit.leaves(receipt) == 2 * len(sums)
        asked = audit.challenge(receipt, nonce, 99)
        shown = [audit.prove(receipt, index, hashed, uploads, federation.read) for index in asked]
        keys = next(data for kind, _, data in federation.log if kind == "to")
        answer = audit.Audit.from_bytes(audit.Audit(nonce, keys, federation.server.opening(), shown).to_bytes())
        if altered:
            with pytest.raises(BadSum, match="are not the sum of what"):
                audit.verify(answer, receipt, federation.roster)
        else:
            assert audit.verify(answer, receipt, federation.roster) == len(asked)


def leaves_of(data: bytes) -> list[bytes]:
    builder = MerkleBuilder()
    builder.update(data)
    return builder.leaves()


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_a_flipped_byte_of_message_three_or_four_is_refused(rig: Any, data: st.DataObject) -> None:
    federation = rig(**SPARSE)
    if data.draw(st.booleans()):
        federation.upto("shares")
        answer = federation.deliver("cork")
        take = lambda raw: federation.give("cork", raw)  # noqa: E731
    else:
        federation.upto("masked")
        answer, take = federation.mail["cork"], federation.clients["cork"].receive
    at = data.draw(st.integers(0, len(answer) - 1))
    with pytest.raises(CloisterError):
        take(answer[:at] + bytes([answer[at] ^ data.draw(st.integers(1, 255))]) + answer[at + 1 :])


def test_a_coordinator_that_changes_who_chose_whom_is_refused(rig: Any) -> None:
    federation = rig(**SPARSE)
    federation.upto("masked")
    told = Ciphertexts.from_bytes(federation.mail["cork"])
    choosers = federation.server._graph.owners("cork")
    others = [site for site in told.sites if site not in choosers and site != "cork"]

    def lie(site: str, toggled: tuple[str, ...]) -> bytes:
        place = {name: at for at, name in enumerate(federation.names)}
        bits = int.from_bytes(dict(told.sharers)[site], "little")
        for name in toggled:
            bits ^= 1 << place[name]
        changed = bits.to_bytes(5, "little")
        sharers = tuple(each._replace(chosen=changed) if each.site == site else each for each in told.sharers)
        return replace(told, sharers=sharers).signed(federation.coordinator).to_bytes()

    own = federation.server._graph.holders("cork")
    swap = (own[0], next(site for site in federation.names if site not in own and site != "cork"))
    with pytest.raises(SurvivorSetConflict):
        federation.clients["cork"].receive(lie("cork", swap))  # another choice than its own
    chose = federation.server._graph.holders(choosers[0])
    hidden = ("cork", next(site for site in federation.names if site not in chose and site != choosers[0]))
    with pytest.raises(MalformedMessage, match="ciphertexts from"):
        federation.clients["cork"].receive(lie(choosers[0], hidden))  # one that chose it is kept from it
    with pytest.raises(MalformedMessage, match="a choice of 9"):
        federation.clients["cork"].receive(lie(others[0], ("cork",)))  # one more than anybody may choose
    chose = federation.server._graph.holders(others[0])
    elsewhere = (chose[0], next(s for s in federation.names if s not in chose and s not in ("cork", others[0])))
    federation.clients["cork"].receive(lie(others[0], elsewhere))  # of no concern to it: but h2 tells it apart
    assert federation.clients["cork"]._u2_digest != federation.server._u2_digest


def test_a_site_that_chooses_too_many_too_few_or_itself_is_refused(rig: Any) -> None:
    federation = rig(**SPARSE)
    federation.upto("shares")
    honest = Shares.from_bytes(federation.deliver("cork"))
    names, chosen = federation.names, [site for site in federation.names if site != "cork"]
    for choice in (chosen[:7], chosen[:9], ["cork", *chosen[:7]], names):
        lie = replace(honest, chosen=mark(choice, names)).signed(federation.identities["cork"])
        with pytest.raises(MalformedMessage, match="a choice of"):
            federation.give("cork", lie.to_bytes())
    federation.give("cork", honest.to_bytes())


def test_a_site_refuses_weak_graphs_and_small_buckets(rig: Any) -> None:
    def opened(error: type[CloisterError], client: dict[str, Any], **plan: Any) -> None:
        federation = rig(**plan)
        with pytest.raises(error):
            federation.client("cork", **client).open(federation.server.open())

    opened(ThresholdTooLow, {}, sites=39, graph="sparse-49-20")
    opened(ThresholdTooLow, {"assume_colluders": 5}, **SPARSE)
    opened(TooFewSites, {}, sites=9, buckets=2)
    opened(TooFewSites, {"assume_colluders": 4}, **CUT)
    opened(TooFewSites, {"min_survivors": 7}, **CUT)
    with pytest.raises(PlanRefused):
        rig(sites=9, graph="sparse-0-0")
    with pytest.raises(PlanRefused):
        rig(sites=9, buckets=0)


def test_each_bucket_keeps_the_sites_own_minimum(rig: Any) -> None:
    federation = rig(**CUT)
    federation.clients["cork"] = federation.client("cork", min_survivors=5)
    bucket = next(b for b in partition(federation.plan.query, federation.names, 2) if "cork" in b)
    gone = [site for site in bucket if site != "cork"][: len(bucket) - 4]
    with pytest.raises(TooFewSurvivors, match="5 in each bucket; one has 4"):
        federation.run({"masked": gone})


def test_buckets_that_a_coordinator_draws_otherwise_open_noise_or_are_refused(rig: Any) -> None:
    """Nobody tells a site its bucket: who cuts otherwise adds vectors whose masks stay on."""
    federation = rig(**CUT)
    federation.run()
    server = federation.server
    one, other = server._buckets
    server._buckets = (tuple(sorted((*one[1:], other[0]))), tuple(sorted((*other[1:], one[0]))))
    total = server.total(federation.read)
    assert not any(
        np.array_equal(part, federation.expected(b)) for part, b in zip(total, server._buckets, strict=True)
    )
    receipt = server.receipt([bytes(32), bytes(32)], bytes(32))
    federation.clients["cork"].receive(receipt)
    forged = replace(open_receipt(receipt, federation.coordinator.public), h2=bytes(32))
    with pytest.raises(StaleReceipt):
        federation.clients["delft"].receive(sign_receipt(forged, federation.coordinator))
