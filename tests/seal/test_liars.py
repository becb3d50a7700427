"""One spoiler for each lie of a malicious coordinator or site: a named refusal, and no state has moved."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cloister.seal import SitePhase
from cloister.seal.derive import complete_sharers
from cloister.seal.identity import Identity
from cloister.seal.labels import ZERO32
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
)
from cloister.seal.plan import Plan
from cloister.seal.receipt import open_receipt, sign_receipt
from cloister.vector.errors import (
    BadCiphertext,
    BadShare,
    BadSignature,
    BadUpload,
    CloisterError,
    ContextMismatch,
    DuplicateMessage,
    KeyListConflict,
    LayoutError,
    MalformedMessage,
    MissingConsistency,
    NotInRoster,
    PlanRefused,
    ReusedSecret,
    RoundReplayed,
    StaleReceipt,
    SurvivorSetConflict,
    ThresholdTooLow,
    TooFewSites,
    TooFewSurvivors,
    UnexpectedMessage,
)

VICTIM = "cork"


def snapshot(machine: Any) -> dict[str, Any]:
    """A machine's attributes, its containers copied."""
    return {k: copy.copy(v) if isinstance(v, dict | list | set) else v for k, v in machine.__dict__.items()}


def refused(client: Any, error: type[CloisterError], data: bytes, take: str = "receive") -> CloisterError:
    """The client refuses by name, and is bit for bit the machine that it was."""
    before = snapshot(client)
    with pytest.raises(error) as caught:
        getattr(client, take)(data)
    assert client.__dict__ == before
    assert type(caught.value) is error
    return caught.value


# Message 0: the plan ------------------------------------------------------------------------------------------------


def opening(federation: Any, plan: Plan | None = None, **fields: Any) -> bytes:
    message = Open.from_bytes(federation.server.open())
    if plan is not None:
        message = replace(message, plan=plan.to_bytes())
    return replace(message, **fields).signed(federation.coordinator).to_bytes()


PLANS: dict[str, tuple[type[CloisterError], dict[str, Any]]] = {
    "a threshold under the site's own": (ThresholdTooLow, {"threshold": 3}),
    "another federation": (ContextMismatch, {"federation": "others"}),
    "a Sybil that the root never signed": (NotInRoster, {"sites": ("amsterdam", "basel", VICTIM, "mallory", "zoe")}),
    "a cohort without the site": (PlanRefused, {"sites": ("amsterdam", "basel", "delft", "essen")}),
    "two sites": (TooFewSites, {"sites": ("basel", VICTIM), "threshold": 2, "min_survivors": 2}),
    "another context than the plan's": (ContextMismatch, {"round": 7}),
}


@pytest.mark.parametrize("lie", PLANS)
def test_plans_that_a_site_refuses(rig: Any, lie: str) -> None:
    federation = rig()
    error, changes = PLANS[lie]
    refused(federation.clients[VICTIM], error, opening(federation, replace(federation.plan, **changes)), "open")
    assert federation.journals[VICTIM].slots == {}


def test_another_roster_is_refused(rig: Any) -> None:
    federation = rig()
    refused(federation.clients[VICTIM], ContextMismatch, opening(federation, roster=bytes(32)), "open")


def test_a_stale_receipt_is_refused(rig: Any) -> None:
    federation = rig()
    refused(federation.clients[VICTIM], StaleReceipt, opening(federation, previous=b"\1" * 32), "open")
    later = federation.client(VICTIM, last_receipt=b"\1" * 32)
    refused(later, StaleReceipt, opening(federation, previous=ZERO32), "open")


def test_a_plan_signed_by_a_stranger_is_refused(rig: Any) -> None:
    federation = rig()
    stranger = Identity.from_bytes(b"\7" * 32)
    forged = Open.from_bytes(federation.server.open()).signed(stranger).to_bytes()
    refused(federation.clients[VICTIM], BadSignature, forged, "open")
    federation.roster = replace(federation.roster, coordinators=())
    refused(federation.client(VICTIM), NotInRoster, forged, "open")


def test_a_replayed_round_is_refused(rig: Any) -> None:
    federation = rig()
    refused(federation.client(VICTIM, last_round=0), RoundReplayed, federation.server.open(), "open")


def test_a_site_that_crashed_sends_no_second_keys_in_the_round(rig: Any) -> None:
    federation = rig()
    federation.start()
    reborn = federation.client(VICTIM, randomness=lambda size: b"\5" * size)
    reborn.open(federation.server.open())
    with pytest.raises(RoundReplayed):
        reborn.keys(federation.plan.query)
    assert reborn.phase is SitePhase.OPENED


def test_another_model_than_the_plans_is_refused(rig: Any) -> None:
    federation = rig()
    client = federation.clients[VICTIM]
    client.open(federation.server.open())
    with pytest.raises(ContextMismatch):
        client.keys(bytes(32))
    assert client.phase is SitePhase.OPENED


def test_two_models_for_two_sites_leave_nothing_to_sum(rig: Any) -> None:
    honest, lying = rig(), rig(query=b"\3" * 32)
    lying.start()
    honest.start(lost=[VICTIM])
    with pytest.raises(ContextMismatch):
        honest.server.receive(VICTIM, lying.log[2 * 2 + 1][2])


def test_a_site_that_expects_more_survivors_or_colluders_is_heard(rig: Any) -> None:
    federation = rig()
    refused(federation.client(VICTIM, min_survivors=6), TooFewSites, federation.server.open(), "open")
    refused(federation.client(VICTIM, assume_colluders=3), ThresholdTooLow, federation.server.open(), "open")


# Message 2: the list of keys ----------------------------------------------------------------------------------------


def key_list(federation: Any, change: Callable[[dict[str, Keys]], None]) -> bytes:
    entries = {entry.site: entry for entry in KeyList.from_bytes(federation.mail[VICTIM]).entries}
    change(entries)
    listed = tuple(entries[site] for site in sorted(entries))
    return KeyList(federation.server.context, listed).signed(federation.coordinator).to_bytes()


def forge(federation: Any, site: str, **fields: Any) -> Callable[[dict[str, Keys]], None]:
    def change(entries: dict[str, Keys]) -> None:
        known = federation.identities.get(site, Identity.from_bytes(b"\6" * 32))
        entries[site] = replace(entries.get(site, entries["basel"]), site=site, **fields).signed(known)

    return change


LOW_ORDER = bytes([1] + [0] * 31)
FRESH = X25519PrivateKey.from_private_bytes(bytes(range(32))).public_key().public_bytes_raw()

KEY_LISTS: dict[str, tuple[type[CloisterError], Callable[[Any], Callable[[dict[str, Keys]], None]]]] = {
    "the site is left out": (KeyListConflict, lambda f: lambda e: e.pop(VICTIM)),
    "the site's own key is another": (KeyListConflict, lambda f: forge(f, VICTIM, channel=FRESH)),
    "a key twice": (KeyListConflict, lambda f: forge(f, "basel", channel=f.mailed["delft"].mask)),
    "a key of low order": (KeyListConflict, lambda f: forge(f, "basel", mask=LOW_ORDER)),
    "a key that its site never signed": (
        BadSignature,
        lambda f: lambda e: e.update(basel=replace(e["basel"], channel=FRESH)),
    ),
    "a Sybil": (NotInRoster, lambda f: forge(f, "mallory", channel=FRESH, mask=bytes([9] + [0] * 31))),
    "a site of the roster that the plan has not": (
        KeyListConflict,
        lambda f: forge(f, "jena", channel=FRESH, mask=bytes([9] + [0] * 31)),
    ),
    "a shrunken cohort": (TooFewSurvivors, lambda f: lambda e: [e.pop(site) for site in ("amsterdam", "basel")]),
}


@pytest.mark.parametrize("lie", KEY_LISTS)
def test_lists_of_keys_that_a_site_refuses(rig: Any, lie: str) -> None:
    federation = rig()
    federation.upto("shares")
    federation.mailed = {entry.site: entry for entry in KeyList.from_bytes(federation.mail[VICTIM]).entries}
    error, change = KEY_LISTS[lie]
    refused(federation.clients[VICTIM], error, key_list(federation, change(federation)))
    assert federation.deliver(VICTIM) is not None  # the truth is still taken


def test_a_second_list_of_keys_is_refused_and_the_first_answered_again(rig: Any) -> None:
    federation = rig()
    federation.upto("shares")
    answer = federation.deliver(VICTIM)
    refused(federation.clients[VICTIM], KeyListConflict, key_list(federation, lambda e: e.pop("basel")))
    assert federation.deliver(VICTIM) == answer


def test_two_lists_of_keys_break_every_share(rig: Any) -> None:
    federation = rig()
    federation.upto("shares")
    other = key_list(federation, lambda entries: entries.pop("basel"))
    answers = {site: federation.deliver(site) for site in federation.names if site != VICTIM}
    answers[VICTIM] = federation.clients[VICTIM].receive(other)
    with pytest.raises(ContextMismatch, match="another list of keys"):
        federation.give(VICTIM, answers[VICTIM])
    honest = Shares.from_bytes(answers["essen"])
    relayed = tuple(Shares.from_bytes(answers[s]).ciphertexts[2] for s in ("amsterdam", "delft", "essen"))
    h1 = Shares.from_bytes(answers[VICTIM]).h1
    sites = ("amsterdam", VICTIM, "delft", "essen")
    unsigned = Ciphertexts(honest.context, h1, VICTIM, complete_sharers(sites, sites), relayed)
    sent = unsigned.signed(federation.coordinator).to_bytes()
    refused(federation.clients[VICTIM], BadCiphertext, sent)


# Message 4: the ciphertexts -----------------------------------------------------------------------------------------


def ciphertexts(federation: Any, **fields: Any) -> bytes:
    message = Ciphertexts.from_bytes(federation.mail[VICTIM])
    return replace(message, **fields).signed(federation.coordinator).to_bytes()


def test_swapped_ciphertexts_are_refused_and_name_the_sender(rig: Any) -> None:
    federation = rig()
    federation.upto("masked")
    one, two, *rest = Ciphertexts.from_bytes(federation.mail[VICTIM]).ciphertexts
    fault = refused(federation.clients[VICTIM], BadCiphertext, ciphertexts(federation, ciphertexts=(two, one, *rest)))
    assert fault.site == "amsterdam"


def test_ciphertexts_for_another_recipient_are_refused(rig: Any) -> None:
    federation = rig()
    federation.upto("masked")
    refused(federation.clients[VICTIM], UnexpectedMessage, federation.mail["basel"])
    mine = Ciphertexts.from_bytes(federation.mail["basel"]).ciphertexts
    refused(federation.clients[VICTIM], BadCiphertext, ciphertexts(federation, ciphertexts=mine))


def test_other_sharers_are_refused(rig: Any) -> None:
    federation = rig()
    federation.upto("masked")
    client, kept = federation.clients[VICTIM], Ciphertexts.from_bytes(federation.mail[VICTIM])
    without = tuple(sharer for sharer in kept.sharers if sharer.site != VICTIM)
    refused(client, SurvivorSetConflict, ciphertexts(federation, sharers=without))
    refused(client, SurvivorSetConflict, ciphertexts(federation, sharers=(*kept.sharers, Sharer("jena", b"\x1f"))))
    few = ciphertexts(federation, sharers=kept.sharers[:3], ciphertexts=kept.ciphertexts[:2])
    refused(client, TooFewSurvivors, few)
    refused(client, MalformedMessage, ciphertexts(federation, ciphertexts=kept.ciphertexts[1:]))
    for site, error in ((VICTIM, SurvivorSetConflict), ("essen", MalformedMessage)):
        rechosen = tuple(s._replace(chosen=b"\x0f") if s.site == site else s for s in kept.sharers)
        refused(client, error, ciphertexts(federation, sharers=rechosen))
    refused(client, ContextMismatch, ciphertexts(federation, h1=bytes(32)))


# Message 5: the site's own vector -----------------------------------------------------------------------------------


def test_a_vector_of_another_shape_or_a_second_one_is_refused(rig: Any) -> None:
    federation = rig(bits=20)
    federation.upto("masked")
    federation.deliver(VICTIM)
    client, words = federation.clients[VICTIM], federation.words[VICTIM]
    for wrong in (words[:-1], words.astype(np.uint64), words | np.uint32(1 << 20), words[:0]):
        with pytest.raises(LayoutError):
            client.mask(wrong)
    client.mask(words)
    with pytest.raises(ReusedSecret):
        client.mask(words)


# Message 6: the survivors -------------------------------------------------------------------------------------------


def survivors(federation: Any, **fields: Any) -> bytes:
    message = Survivors.from_bytes(federation.mail[VICTIM])
    return replace(message, **fields).signed(federation.coordinator).to_bytes()


def test_survivor_sets_that_a_site_refuses(rig: Any) -> None:
    federation = rig()
    federation.upto("consistent")
    client, entries = federation.clients[VICTIM], Survivors.from_bytes(federation.mail[VICTIM]).entries
    mine = next(entry for entry in entries if entry.site == VICTIM)
    refused(client, SurvivorSetConflict, survivors(federation, entries=tuple(e for e in entries if e is not mine)))
    refused(client, TooFewSurvivors, survivors(federation, entries=entries[:3]))
    stranger = replace(entries[-1], site="jena").signed(federation.identities["jena"])
    refused(client, SurvivorSetConflict, survivors(federation, entries=(*entries, stranger)))
    altered = replace(mine, root=bytes(32))
    swapped = tuple(altered if e is mine else e for e in entries)
    refused(client, SurvivorSetConflict, survivors(federation, entries=swapped))
    unsigned = (replace(entries[0], root=bytes(32)), *entries[1:])
    refused(client, BadSignature, survivors(federation, entries=unsigned))
    refused(client, ContextMismatch, survivors(federation, u2=bytes(32)))
    refused(client, ContextMismatch, survivors(federation, h1=bytes(32)))
    refused(client, ContextMismatch, survivors(federation, words=federation.plan.words - 1))
    refused(client, ContextMismatch, survivors(federation, bits=20))
    assert federation.deliver(VICTIM) is not None


def test_a_second_survivor_set_is_refused(rig: Any) -> None:
    """A victim that is a survivor to some and a dropout to others would lose both its secrets."""
    federation = rig()
    federation.upto("consistent")
    federation.deliver(VICTIM)
    entries = Survivors.from_bytes(federation.mail[VICTIM]).entries
    without = tuple(entry for entry in entries if entry.site != "basel")
    refused(federation.clients[VICTIM], SurvivorSetConflict, survivors(federation, entries=without))


def test_a_second_survivor_set_is_refused_after_a_crash_too(rig: Any) -> None:
    federation = rig()
    federation.upto("consistent")
    twin = copy.copy(federation.clients[VICTIM])  # as if memory had been restored to before it signed
    twin._answers, twin._heard = dict(twin._answers), set(twin._heard)
    federation.deliver(VICTIM)
    entries = Survivors.from_bytes(federation.mail[VICTIM]).entries
    without = tuple(entry for entry in entries if entry.site != "basel")
    refused(twin, SurvivorSetConflict, survivors(federation, entries=without))


def test_one_query_is_only_ever_summed_over_one_survivor_set(rig: Any) -> None:
    first, again = rig(), rig(round=1)
    first.run({"masked": ["basel"]})
    again.journals = first.journals
    again.clients = {site: again.client(site, last_round=0) for site in again.names}
    again.upto("consistent")
    with pytest.raises(SurvivorSetConflict):
        again.deliver(VICTIM)


# Message 8: the signatures ------------------------------------------------------------------------------------------


def consistency(federation: Any, **fields: Any) -> bytes:
    message = Consistency.from_bytes(federation.mail[VICTIM])
    return replace(message, **fields).signed(federation.coordinator).to_bytes()


def test_missing_or_other_consistency_signatures_are_refused(rig: Any) -> None:
    federation = rig()
    federation.upto("unmask")
    client, message = federation.clients[VICTIM], Consistency.from_bytes(federation.mail[VICTIM])
    entries = message.entries
    refused(client, MissingConsistency, consistency(federation, entries=entries[:3]))
    refused(client, MissingConsistency, consistency(federation, u3=bytes(32)))
    outsider = Consistent(message.context, message.u3, "jena").signed(federation.identities["jena"])
    refused(client, MissingConsistency, consistency(federation, entries=(*entries, outsider)))
    elsewhere = replace(entries[0], u3=bytes(32)).signed(federation.identities[entries[0].site])
    refused(client, BadSignature, consistency(federation, entries=(elsewhere, *entries[1:])))
    assert federation.deliver(VICTIM) is not None


def test_nothing_is_released_before_the_signatures_and_only_once(rig: Any) -> None:
    federation = rig()
    federation.upto("unmask")
    first = federation.deliver(VICTIM)
    assert federation.deliver(VICTIM) == first  # byte for byte: the same shares of the same secrets
    fewer = consistency(federation, entries=Consistency.from_bytes(federation.mail[VICTIM]).entries[:4])
    refused(federation.clients[VICTIM], UnexpectedMessage, fewer)


def test_no_answer_holds_both_shares_of_anyone(rig: Any) -> None:
    federation = rig()
    federation.upto("unmask")
    held = dict(federation.clients[VICTIM]._shares)
    released = Unmask.from_bytes(federation.deliver(VICTIM)).shares
    for beta, sigma in held.values():
        assert (beta.to_bytes(32, "little") in released) + (sigma.to_bytes(32, "little") in released) == 1


def test_secrets_are_gone_once_they_have_served(rig: Any) -> None:
    federation = rig()
    federation.run()
    client = federation.clients[VICTIM]
    assert (client._channel, client._sigma, client._beta) == (None, 0, 0)
    assert (client._inbound, client._pairs, client._shares) == ({}, {}, {})
    assert "key" not in repr(client)


# Message 10: the receipt --------------------------------------------------------------------------------------------


def test_a_receipt_that_tells_another_story_is_refused(rig: Any) -> None:
    federation = rig()
    federation.run()
    truth = federation.server.receipt([bytes(32)], bytes(32))
    receipt, client = open_receipt(truth, federation.coordinator.public), federation.clients[VICTIM]
    other = receipt.uploads[0]._replace(root=bytes(32))
    stories: dict[type[CloisterError], list[dict[str, Any]]] = {
        ContextMismatch: [{"ctx": bytes(32)}, {"plan": replace(receipt.plan, round=3)}],
        StaleReceipt: [
            {"previous": b"\1" * 32},
            {"h1": bytes(32)},
            {"consistency": bytes(32)},
            {"roster": bytes(32)},
            {"u3": receipt.u3[1:], "uploads": receipt.uploads[1:]},
            {"uploads": (other, *receipt.uploads[1:])},
        ],
    }
    for error, changes in stories.items():
        for change in changes:
            refused(client, error, sign_receipt(replace(receipt, **change), federation.coordinator))
    refused(client, BadSignature, sign_receipt(receipt, federation.identities["basel"]))
    client.receive(truth)
    assert client.receipt == receipt


# Lies of sites, at the coordinator ----------------------------------------------------------------------------------


def turned_away(server: Any, error: type[CloisterError], site: str, data: bytes) -> None:
    before = snapshot(server)
    with pytest.raises(error) as caught:
        server.receive(site, data)
    assert server.__dict__ == before
    assert type(caught.value) is error
    assert caught.value.site == site


def test_keys_that_the_coordinator_refuses(rig: Any) -> None:
    federation = rig()
    federation.start(lost=["essen"])
    server, identities = federation.server, federation.identities
    mine = Keys.from_bytes(federation.log[2 * 2 + 1][2])
    assert mine.site == VICTIM
    federation.give(VICTIM, mine.to_bytes())  # the same again is no event

    def wrong(error: type[CloisterError], site: str, message: Any, signer: str = "") -> None:
        turned_away(server, error, site, message.signed(identities[signer or site]).to_bytes())

    essen = replace(mine, site="essen")
    wrong(DuplicateMessage, VICTIM, replace(mine, commitment=bytes(32)))
    wrong(KeyListConflict, "essen", essen)
    wrong(KeyListConflict, "essen", replace(essen, channel=LOW_ORDER, mask=FRESH))
    wrong(BadSignature, "essen", replace(essen, channel=FRESH), signer="basel")
    wrong(UnexpectedMessage, "essen", mine, signer=VICTIM)
    wrong(UnexpectedMessage, "jena", replace(mine, site="jena"))
    wrong(ContextMismatch, "essen", replace(essen, context=bytes(32)))
    wrong(UnexpectedMessage, "essen", Consistent(server.context, bytes(32), "essen"))
    turned_away(server, MalformedMessage, "essen", mine.to_bytes()[:-1])
    turned_away(server, MalformedMessage, "essen", b"")


def test_shares_uploads_and_signatures_that_the_coordinator_refuses(rig: Any) -> None:
    federation = rig()
    federation.upto("shares")
    me = federation.identities[VICTIM]
    shares = Shares.from_bytes(federation.deliver(VICTIM))
    few = replace(shares, ciphertexts=shares.ciphertexts[1:]).signed(me).to_bytes()
    turned_away(federation.server, MalformedMessage, VICTIM, few)
    turned_away(federation.server, ContextMismatch, VICTIM, replace(shares, h1=bytes(32)).signed(me).to_bytes())

    federation = rig()
    federation.upto("masked")
    federation.deliver(VICTIM)
    masked = Masked.from_bytes(federation.clients[VICTIM].mask(federation.words[VICTIM])[0])
    shorter = replace(masked, upload=replace(masked.upload, words=3).signed(me)).signed(me)
    turned_away(federation.server, BadUpload, VICTIM, shorter.to_bytes())
    elsewhere = replace(masked, upload=replace(masked.upload, u2=bytes(32)).signed(me)).signed(me)
    turned_away(federation.server, ContextMismatch, VICTIM, elsewhere.to_bytes())
    unsigned = replace(masked, upload=replace(masked.upload, root=bytes(32))).signed(me)
    turned_away(federation.server, BadSignature, VICTIM, unsigned.to_bytes())

    federation = rig()
    federation.upto("consistent")
    signed = Consistent.from_bytes(federation.deliver(VICTIM))
    turned_away(federation.server, MissingConsistency, VICTIM, replace(signed, u3=bytes(32)).signed(me).to_bytes())

    federation = rig()
    federation.upto("unmask")
    released = Unmask.from_bytes(federation.deliver(VICTIM))
    too_large = replace(released, shares=(b"\xff" * 32, *released.shares[1:]))
    turned_away(federation.server, BadShare, VICTIM, too_large.signed(me).to_bytes())
    turned_away(federation.server, MalformedMessage, VICTIM, replace(released, shares=()).signed(me).to_bytes())
    turned_away(federation.server, ContextMismatch, VICTIM, replace(released, u3=bytes(32)).signed(me).to_bytes())


def test_a_site_that_deals_shares_which_nobody_can_use_voids_the_round_and_is_named(rig: Any) -> None:
    federation = rig()
    federation.clients["basel"]._deal = lambda to, threshold: {site: (at, at + 1) for at, site in enumerate(to, 1)}
    with pytest.raises(BadShare) as caught:
        federation.run()
    assert caught.value.site == "basel"


def test_a_short_read_of_an_upload_is_found(rig: Any) -> None:
    federation = rig()
    federation.run()
    with pytest.raises(BadUpload):
        federation.server.total(lambda site, offset, length: b"\0" * (length - 1))
