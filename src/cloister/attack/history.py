"""Lies about what was: receipts, their log, opened sums and the models that were learnt from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cloister.attack.liar import Lie
from cloister.seal.labels import ZERO32
from cloister.seal.messages import KeyList, Message, Open
from cloister.seal.receipt import Receipt, open_receipt, sign_receipt
from cloister.vector import digest
from cloister.vector.layout import Words

ALTERED = bytes(31) + b"\1"  # a digest of nothing


class StaleReceipt(Lie):
    """Opens a round as if the last receipt had never been, to tell the run's story a second time.

    Fails: a site keeps the run's last receipt, and builds on no other.
    Refused as: StaleReceipt.
    """

    def open_to(self, site: str, message: Open) -> Message:
        return self.opened_with(self.plan, previous=ZERO32)


class ForkedReceipt(Lie):
    """Gives the victim a receipt of another model, and goes on with it on that fork.

    Fails: the receipt is in the next round's context, so keys of the other fork do not verify.
    Refused as: BadSignature, StaleReceipt.
    """

    rounds, spoils_run = 2, True

    def receipt_to(self, site: str, data: bytes) -> bytes:
        if site != self.victim or self.act == 1:
            return data
        return sign_receipt(replace(self._receipt(data), state=ALTERED), self._identity)

    def open_to(self, site: str, message: Open) -> Message:
        if site != self.victim or self.act == 0:
            return message
        first = self.hub.script.rounds[self.record.key[0], self.record.key[1] - 1]
        forks = [receipt for recipient, receipt in first.record.receipts if recipient == site]
        return self.opened_with(self.plan, previous=self._receipt(forks[-1]).digest)

    def keylist_to(self, site: str, message: KeyList) -> Message:
        return replace(message, context=self._keys[site].context)

    def _receipt(self, data: bytes) -> Receipt:
        return open_receipt(data, self._identity.public)


class RewrittenReceipt(Lie):
    """Signs a receipt in which the victim did not take part.

    Fails: a site compares the receipt with the round that it lived.
    Refused as: StaleReceipt.
    """

    spoils_run = True

    def receipt_to(self, site: str, data: bytes) -> bytes:
        receipt = open_receipt(data, self._identity.public)
        left = tuple(other for other in receipt.u3 if other != self.victim)
        uploads = tuple(upload for upload in receipt.uploads if upload.site != self.victim)
        return sign_receipt(replace(receipt, u3=left, uploads=uploads), self._identity)


class MissingReceipt(Lie):
    """Leaves a receipt out of its log, so that nobody outside ever hears of that sum.

    Fails: a site has each receipt's place in the log proven to it before it takes part again.
    Refused as: StaleReceipt.
    """

    rounds = 2

    def receipt_to(self, site: str, data: bytes) -> bytes:
        if self.act == 0:
            self.hub.lying_log.hidden.add(digest(data).hex())
            self.told.add(site)
        return data


class SplitLog(Lie):
    """Shows one site a log with a receipt in it that the log of the others does not have.

    Fails: the sites carry the log's heads to each other, in the keys of the next round.
    Refused as: StaleReceipt.
    """

    rounds, lasts = 2, True

    def receipt_to(self, site: str, data: bytes) -> bytes:
        if self.act == 0:
            self.hub.lying_log.forked = digest(data).hex()
        return data

    def keylist_to(self, site: str, message: KeyList) -> Message:
        if self.act == 1:
            self.told.add(site)
        return message


class ForgedSum(Lie):
    """Opens the sum, adds one to a word of it, and signs the receipt of that.

    Fails: the sites signed for their masked vectors; an audit adds these up again, and nobody can show others.
    Refused as: BadSum.
    """

    spoils_run, shows = True, False

    def claim(self, opened: Words) -> Words:
        forged = opened.copy()
        forged[0, 0] += forged.dtype.type(1)
        return forged


class ForgedModel(Lie):
    """Opens the sum, and signs a receipt of another model than the one that follows from it.

    Fails: what follows from the sum is computed again, bit by bit, by the same code.
    Refused as: BadModel.
    """

    spoils_run, shows = True, False

    def receipt(self, sum_roots: Sequence[bytes], state_digest: bytes) -> bytes:
        return super().receipt(sum_roots, ALTERED)
