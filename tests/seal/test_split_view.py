"""Sites carry the log's heads to each other in messages 1 and 2: a coordinator with two logs is found out at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cloister.seal.identity import Identity
from cloister.seal.log import Agreement, Log, LogView, origin_of
from cloister.seal.messages import KeyList, Keys
from cloister.vector.errors import BadSignature, MalformedMessage, StaleReceipt

CARRIED = {"basel": 2, "cork": 5, "delft": 5}


def test_every_site_comes_to_the_newest_head(rig: Any) -> None:
    federation = rig(sites=4, carried=CARRIED)
    assert {site: client.log.size for site, client in federation.clients.items()} == {"amsterdam": 0, **CARRIED}
    assert np.array_equal(federation.run(), federation.expected(federation.names))
    assert {client.log.size for client in federation.clients.values()} == {5}
    assert federation.server.checkpoints() == {site: federation.notes[site] for site in federation.names}
    again = LogView.resume(
        origin_of("tests"), federation.coordinator.public, federation.clients["amsterdam"].log.note
    )
    assert again == federation.clients["amsterdam"].log


def test_without_a_log_there_is_nothing_to_agree_on(rig: Any) -> None:
    federation = rig(sites=3)
    federation.run()
    assert {client.log.note for client in federation.clients.values()} == {b""}


@pytest.mark.parametrize("victim", ["amsterdam", "basel", "cork"])
def test_a_site_that_was_shown_another_log_is_named(rig: Any, victim: str) -> None:
    federation = rig(sites=4, carried=CARRIED)
    federation.upto("keys")
    fork = Log(origin_of("tests"))
    fork.append(b"a receipt of another story")
    told = federation.server._keys["delft"]
    told = replace(told, checkpoint=fork.sign(federation.coordinator)).signed(federation.identities["delft"])
    mail = KeyList.from_bytes(federation.close()[victim])
    proofs = federation.receipts.agreement([2, 5], federation.coordinator).proofs
    agreement = Agreement(federation.notes["cork"], {**proofs, 1: ()}).to_bytes()
    entries = tuple(told if entry.site == "delft" else entry for entry in mail.entries)
    lie = replace(mail, entries=entries, agreement=agreement).signed(federation.coordinator).to_bytes()
    with pytest.raises(StaleReceipt, match="split") as caught:
        federation.clients[victim].receive(lie)
    assert caught.value.site == "delft"
    assert federation.clients[victim].receive(federation.mail[victim]) is not None


def test_a_log_that_was_rolled_back_or_is_hidden_is_refused(rig: Any) -> None:
    federation = rig(sites=4, carried=CARRIED)
    federation.upto("keys")
    mail = KeyList.from_bytes(federation.close()["cork"])
    for agreement in (b"", Agreement(federation.notes["basel"], {2: ()}).to_bytes()):
        lie = replace(mail, agreement=agreement).signed(federation.coordinator).to_bytes()
        with pytest.raises(StaleReceipt):
            federation.clients["cork"].receive(lie)
    assert federation.clients["cork"].log.size == 5


def test_a_checkpoint_that_the_coordinator_never_signed_stops_nobody(rig: Any) -> None:
    federation = rig(sites=4, carried=CARRIED)
    stranger = Log(origin_of("tests")).sign(Identity.from_bytes(bytes(32)))
    other = Log(origin_of("others")).sign(federation.coordinator)
    client = federation.clients["basel"]
    client.open(federation.server.open())
    honest = Keys.from_bytes(client.keys(federation.plan.query))
    for note, error in ((stranger, BadSignature), (other, BadSignature), (b"no note", MalformedMessage)):
        forged = replace(honest, checkpoint=note).signed(federation.identities["basel"])
        with pytest.raises(error) as caught:
            federation.give("basel", forged.to_bytes())
        assert caught.value.site == "basel"
    federation.give("basel", honest.to_bytes())
