"""Room `wire`: signed envelopes, invitations, and a coordinator's HTTP interface with its client."""

from cloister.wire.client import CoordinatorClient, certificate_at, enroll, fetch_certificate, fetch_roster
from cloister.wire.envelope import Envelope, ReplayWindow, open_envelope, sign_envelope
from cloister.wire.invitation import Invitation
from cloister.wire.proxy import Proxy

__all__ = [
    "CoordinatorClient",
    "Envelope",
    "Invitation",
    "Proxy",
    "ReplayWindow",
    "certificate_at",
    "enroll",
    "fetch_certificate",
    "fetch_roster",
    "open_envelope",
    "sign_envelope",
]
