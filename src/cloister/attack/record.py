"""What a coordinator has of one round: every message sent and received, every upload, every secret of its own.

A cheater forgets nothing: what was refused, what came late and what a second story brought is all here, so that
`spoils` can make the most of it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property

from cloister.seal import derive
from cloister.seal.messages import KINDS, Ciphertexts, KeyList, Keys, Masked, Message, Open, Survivors, label_of
from cloister.seal.plan import Plan
from cloister.vector.errors import MalformedMessage
from cloister.vector.layout import Words

Secret = tuple[str, str]  # (owner, "beta" or "sigma")


@dataclass
class Record:
    """One round, as its coordinator lived it.

    Attributes: plan: the true one. sent, heard: (site, message) in order. receipts: the same of receipts.
      payloads: packed masked words by site.
      opened: the sum, once it is. pairs: seeds of the masks between a site and one whom the coordinator played.
      shares: of secrets, by point, beyond those in the sites' messages 9.
    """

    plan: Plan
    sent: list[tuple[str, Message]] = field(default_factory=list, repr=False)
    heard: list[tuple[str, Message]] = field(default_factory=list, repr=False)
    receipts: list[tuple[str, bytes]] = field(default_factory=list, repr=False)
    payloads: dict[str, bytes] = field(default_factory=dict, repr=False)
    opened: Words | None = field(default=None, repr=False)
    pairs: dict[tuple[str, str], bytes] = field(default_factory=dict, repr=False)
    shares: dict[Secret, dict[int, int]] = field(default_factory=lambda: defaultdict(dict), repr=False)

    @property
    def key(self) -> tuple[str, int]:
        """(run, round)."""
        return self.plan.run.hex(), self.plan.round

    def note_sent(self, site: str, type: str, body: bytes) -> None:
        if type == "receipt":
            self.receipts.append((site, body))
        elif (message := _parsed(body)) is not None:
            self.sent.append((site, message))

    def note_heard(self, site: str, body: bytes) -> Message | None:
        if (message := _parsed(body)) is not None:
            self.heard.append((site, message))
        return message

    def view(self, site: str) -> View | None:
        """The round as the site that uploaded in it was shown it; None if it never uploaded."""
        for sender, message in self.heard:
            if sender == site and isinstance(message, Masked) and site in self.payloads:
                return View(self, site, message)
        return None

    def stories(self, site: str) -> dict[bytes, tuple[str, ...]]:
        """Every survivor set that the site was told, by the digest that it signs."""
        return {
            derive.survivors_digest(message.context, message.h1, message.u2, message.entries): tuple(
                entry.site for entry in message.entries
            )
            for recipient, message in self.sent
            if recipient == site and isinstance(message, Survivors)
        }


@dataclass(frozen=True)
class View:
    """A round as one site saw it: two sites that were told different things have different views of it."""

    record: Record
    site: str
    masked: Masked

    @cached_property
    def plan(self) -> Plan:
        """The plan that this site agreed to."""
        context = self.masked.context
        bodies = [one.plan for one in self._told(Open) if isinstance(one, Open) and one.context == context]
        return Plan.from_bytes(bodies[-1])

    @cached_property
    def keys(self) -> dict[str, Keys]:
        """U1 with the public keys, as this site was shown them."""
        for message in self._told(KeyList):
            assert isinstance(message, KeyList)
            if derive.key_list_digest(message.context, message.entries) == self.masked.upload.h1:
                return {entry.site: entry for entry in message.entries}
        return {}

    @cached_property
    def u2(self) -> tuple[str, ...]:
        for message in self._told(Ciphertexts):
            assert isinstance(message, Ciphertexts)
            if derive.sharers_digest(message.context, message.h1, message.sharers) == self.masked.upload.u2:
                return message.sites
        return ()

    def _told(self, kind: type[Message]) -> list[Message]:
        return [message for site, message in self.record.sent if site == self.site and isinstance(message, kind)]


def _parsed(body: bytes) -> Message | None:
    try:
        return KINDS[label_of(body)].from_bytes(body)
    except (MalformedMessage, KeyError):
        return None
