"""A site whose privacy ledger was put back to an older copy is found by the coordinator, and by every other site."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cloister.seal.labels import ZERO32
from cloister.seal.messages import MAX_CHARGE, KeyList, Keys
from cloister.vector.errors import LedgerRolledBack, MalformedMessage

CHARGES = {"amsterdam": 5, "basel": 9}


def said_by(federation: Any, site: str, charge: int) -> bytes:
    """A site's keys with another charge, signed by it."""
    client = federation.client(site)
    client.open(federation.server.open())
    honest = Keys.from_bytes(client.keys(federation.plan.query))
    signed: bytes = replace(honest, charge=charge).signed(federation.identities[site]).to_bytes()
    return signed


def test_the_coordinator_refuses_an_older_ledger_and_takes_the_newest(rig: Any) -> None:
    federation = rig(sites=4, charges=CHARGES)
    with pytest.raises(LedgerRolledBack, match="come to its charge 4 here, charge 4 was seen") as caught:
        federation.give("amsterdam", said_by(federation, "amsterdam", 4))
    assert caught.value.site == "amsterdam"
    assert "--lost 4`" in caught.value.mend
    with pytest.raises(LedgerRolledBack):
        federation.give("basel", said_by(federation, "basel", 0))  # a ledger that is kept no more
    with pytest.raises(MalformedMessage, match="ledger"):
        federation.give("basel", said_by(federation, "basel", MAX_CHARGE))
    federation.give("amsterdam", said_by(federation, "amsterdam", 5))


def test_a_coordinator_that_lets_it_by_is_overruled_by_the_sites(rig: Any) -> None:
    federation = rig(sites=4, charges=CHARGES)
    federation.upto("keys")
    mail = KeyList.from_bytes(federation.close()["cork"])
    older = replace(mail.entries[1], charge=8).signed(federation.identities["basel"])
    lie = replace(mail, entries=(mail.entries[0], older, *mail.entries[2:])).signed(federation.coordinator).to_bytes()
    with pytest.raises(LedgerRolledBack) as caught:
        federation.clients["cork"].receive(lie)
    assert caught.value.site == "basel"
    assert federation.clients["cork"].receive(federation.mail["cork"]) is not None


def test_who_was_summed_has_paid(rig: Any) -> None:
    """The numbers that all keep: one more of each site that answered, the same of one that was lost."""
    federation = rig(sites=4, charges=CHARGES)
    federation.run(lost={"masked": ["basel"]})
    key = {site: federation.identities[site].public for site in CHARGES}
    after = {key["amsterdam"]: 6, key["basel"]: 9}
    assert federation.server.charges() == after
    for site in ("amsterdam", "cork", "delft"):
        assert federation.clients[site].charges == after
    later = rig(sites=4, seed="rig", charges={**CHARGES, "amsterdam": 5}, round=1)
    later.server = type(later.server)(later.plan, later.roster, later.coordinator, "hub", ZERO32, after)
    with pytest.raises(LedgerRolledBack):
        later.give("amsterdam", said_by(later, "amsterdam", 5))
    later.give("basel", said_by(later, "basel", 9))
