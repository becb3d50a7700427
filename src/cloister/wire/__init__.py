"""Room `wire`: signed envelopes, invitations, and a coordinator's HTTP interface with its client."""

from cloister.wire.client import CoordinatorClient, enroll, fetch_certificate, fetch_roster
from cloister.wire.envelope import Envelope, ReplayWindow, open_envelope, sign_envelope
from cloister.wire.invitation import Invitation

__all__ = [
    "CoordinatorClient",
    "Envelope",
    "Invitation",
    "ReplayWindow",
    "enroll",
    "fetch_certificate",
    "fetch_roster",
    "open_envelope",
    "sign_envelope",
]
