"""The log of receipts as the database holds it, and what is shown of it to sites and analysts (`seal.log`)."""

from __future__ import annotations

from collections.abc import Iterable

from cloister.coordinator.store import Store
from cloister.seal.identity import Identity
from cloister.seal.labels import lp
from cloister.seal.log import Log, open_checkpoint, origin_of
from cloister.vector.errors import UsageError

REMEMBERED = 64  # entries; all sites of a roster ask for the same one


class ReceiptLog:
    """Only what is committed is ever signed: after a crash no head has to be taken back.

    Args: identity: the coordinator's, which signs the heads.
    """

    def __init__(self, store: Store, federation: str, identity: Identity) -> None:
        self._store, self._identity, self._log = store, identity, Log(origin_of(federation))
        self._entries: dict[tuple[int, int, int], bytes] = {}
        self._shown = -1, b""  # the size that it was made for

    def _current(self) -> Log:
        self._log.leaves += self._store.look(lambda tx: tx.log_after(len(self._log.leaves)))
        return self._log

    def entry(self, receipt: str, since: int) -> bytes:
        """A receipt's place, and that the log only grew since the asker's head of `since` receipts (`log.Entry`).

        Args: receipt: digest (hex) of its signed bytes. Raises: UsageError: it is not there, or there are fewer.
        """
        log = self._current()
        place = self._store.look(lambda tx: tx.place_in_log(receipt))
        if place is None or since > len(log.leaves):
            raise UsageError(f"the log of {len(log.leaves)} receipts does not hold this one, or not so many.")
        key = (len(log.leaves), place, since)
        if key not in self._entries:
            while len(self._entries) >= REMEMBERED:
                del self._entries[next(iter(self._entries))]
            self._entries[key] = log.entry(place, since, self._identity).to_bytes()
        return self._entries[key]

    def agreement(self, notes: Iterable[bytes]) -> bytes:
        """The end of message 2 (`log.Agreement`): the newest head, and that those the sites carry lead to it.

        Args: notes: as they came in message 1, verified there; b"" for none.
        """
        log, key = self._current(), self._identity.public
        sizes = {open_checkpoint(note, log.origin, key).size for note in notes if note}
        known = [size for size in sizes if size <= len(log.leaves)]  # a larger one, and the sites find it out
        return log.agreement(known, self._identity).to_bytes()

    def shown(self) -> bytes:
        """LP(the newest head, as a note) || LP(all leaf hashes)."""
        log = self._current()
        if self._shown[0] != len(log.leaves):
            self._shown = len(log.leaves), lp(log.sign(self._identity)) + lp(b"".join(log.leaves))
        return self._shown[1]
