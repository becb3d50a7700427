"""Invitations: one line that an operator sends to a steward or an analyst by any trusted channel.

    "cloister1:" + base64url( LP(url) LP(federation) LP(role) LP(id) LP(token) LP(certificate) LP(root) checksum4 )

It pins what a new member must not learn from the network: the certificate of the coordinator and the root key
that signs rosters. The token is good once; the coordinator stores its hash only.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field

from cloister.seal.labels import fields, lp
from cloister.vector import digest
from cloister.vector.errors import InvitationError, MalformedMessage

PREFIX = "cloister1:"
CHECKSUM_BYTES, TOKEN_BYTES, HASH_BYTES = 4, 16, 32
MAX_CHARACTERS = 4096
ROLES = ("site", "analyst")
MEND = "Copy the whole line that the operator sent, from `cloister1:` to its end."


@dataclass(frozen=True)
class Invitation:
    """Attributes: url: https://host:port. role: "site" or "analyst". id: the new member's, fixed by the operator.
    token: 16 secret bytes. certificate: SHA-256 of the coordinator's TLS certificate (DER). root: Ed25519 public key.
    """

    url: str
    federation: str
    role: str
    id: str
    token: bytes = field(repr=False)
    certificate: bytes
    root: bytes

    def encode(self) -> str:
        texts = (self.url, self.federation, self.role, self.id)
        body = b"".join(lp(text.encode()) for text in texts)
        body += lp(self.token) + lp(self.certificate) + lp(self.root)
        return PREFIX + base64.urlsafe_b64encode(body + digest(body)[:CHECKSUM_BYTES]).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> Invitation:
        """Raises: InvitationError: mistyped, cut off, or no invitation at all. Never echoes the text (a secret)."""
        text = "".join(text.split())  # mail programs break long lines
        if not text.startswith(PREFIX) or len(text) > MAX_CHARACTERS:
            raise InvitationError("this is no invitation.", mend=MEND)
        encoded = text.removeprefix(PREFIX)
        try:
            data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
            body, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
            if digest(body)[:CHECKSUM_BYTES] != checksum:
                raise ValueError("checksum")
            url, federation, role, id, token, certificate, root = fields(body)
            found = cls(url.decode(), federation.decode(), role.decode(), id.decode(), token, certificate, root)
        except (ValueError, binascii.Error, MalformedMessage):
            raise InvitationError("the invitation is cut off or mistyped.", mend=MEND) from None
        lengths = (len(found.token), len(found.certificate), len(found.root))
        if found.role not in ROLES or lengths != (TOKEN_BYTES, HASH_BYTES, HASH_BYTES):
            raise InvitationError("the invitation holds something else than it should.", mend=MEND)
        if not found.url.startswith("https://"):
            raise InvitationError("the invitation's address is not https.", mend="Ask the operator for a new one.")
        return found
