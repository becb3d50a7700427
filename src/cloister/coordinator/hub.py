"""What every part of the running coordinator shares: identity, members, database, blobs, presence, open rounds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cloister.coordinator.folder import COORDINATOR, Folder
from cloister.coordinator.log import ReceiptLog
from cloister.coordinator.membership import Members
from cloister.coordinator.presence import Presence, Signals, Traffic
from cloister.seal.charges import Charges
from cloister.seal.plan import Plan
from cloister.seal.roster import Roster
from cloister.seal.server import SealServer
from cloister.vector.errors import EnvironmentFailure
from cloister.wire import Envelope, api, sign_envelope


class Stopping(EnvironmentFailure):
    """The coordinator's process is about to end; a run goes on where it was when it is started again."""


@dataclass(frozen=True)
class Patience:
    """How long the coordinator waits, in seconds.

    Attributes:
      answer: for one exchange (keys, shares, consistency, unmask); TLS servers give a handshake 60.
      training: for the masked vectors, which wait for local training.
      gather: at a run's start, for sites that are not there yet, once enough are.
      cohort: for enough sites to be there, before a run fails.
      restart: for sites to come back after a restart of the coordinator; above the client's longest backoff.
      again: before a question is asked again whose round was void, and twice that the next time; above the grace in
        which a site still counts as there.
      disk: between two attempts while the disk is full.
    """

    answer: float = 60.0
    training: float = 3600.0
    gather: float = 10.0
    cohort: float = 600.0
    restart: float = 5.0
    again: float = 4.0
    disk: float = 5.0


class Hub:
    """Everything shared. Only the event loop's thread touches it, except for `blobs` and `folder`."""

    def __init__(self, folder: Folder, patience: Patience) -> None:
        self.folder, self.patience = folder, patience
        self.identity = folder.identity()
        self.store = folder.store()
        self.members = Members(folder, self.store)
        self.log = ReceiptLog(self.store, folder.federation, self.identity)
        self.blobs, self.parts = folder.blobs(), folder.parts()
        for store in (self.blobs, self.parts):
            store.clear_incoming()
        self.signals = Signals()
        self.presence = Presence(self.signals)
        self.traffic = Traffic()
        self.store.on_commit = self.signals.notify
        self.now: Callable[[], float] = time.time

    def close(self) -> None:
        self.store.close()

    def seal_server(self, plan: Plan, roster: Roster, previous: bytes, charges: Charges) -> SealServer:
        """The seal machine of one round. Args: previous: digest of the run's last receipt. charges: least ones."""
        return SealServer(plan, roster, self.identity, COORDINATOR, previous, charges)

    def letter(self, type: str, site: str, run: str, round: int, body: bytes) -> Callable[[int], bytes]:
        """A message for a mailbox, signed once its number is known."""

        def sign(number: int) -> bytes:
            return sign_envelope(self.identity, Envelope(type, COORDINATOR, site, run, round, number, body))

        return sign

    def catalogues(self, dataset: str) -> dict[str, dict[str, str]]:
        """The columns of a dataset at each site that offers it: {site: {column: type}}."""
        bodies = self.store.look(lambda tx: tx.catalogues())
        offers = {site: api.Catalogue.from_bytes(body).datasets for site, body in bodies.items()}
        return {site: datasets[dataset] for site, datasets in offers.items() if dataset in datasets}
