"""Joining a federation: the key is made here, the invitation's pins are kept, and only the public key is sent."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path

from cloister.seal.identity import Identity, fingerprint_words
from cloister.site.policy import policy_toml
from cloister.site.settings import SiteFolder, site_toml, write_private
from cloister.vector.errors import EnvironmentFailure, InvitationError, UsageError
from cloister.wire import Invitation, enroll, fetch_certificate


def join(invitation: Invitation, folder: Path, data: Mapping[str, Path]) -> str:
    """Makes a site's folder and enrols its new key with the coordinator.

    A join that failed half-way can be repeated: it goes on with the key that was made.

    Args: data: dataset name -> CSV or Parquet file; the first policy.toml lets declarative jobs use them.
    Returns: the six words of the new key, for the steward to read to the operator before admission.
    Raises: InvitationError: for another role, mistyped, spent or expired. UsageError: the folder is a site already,
      or a file is missing. Unreachable: the coordinator does not answer.
    """
    if invitation.role != "site":
        raise InvitationError(
            f"this invitation is for an {invitation.role}, not for a site.", mend="Ask the operator for a site's."
        )
    here = SiteFolder(folder)
    if (folder / "site.toml").exists():
        raise UsageError(f"{folder} is a site's folder already.", mend="Run it, or join with another --folder.")
    for name, path in data.items():
        if not path.is_file():
            raise UsageError(f"dataset {name!r}: there is no file {path}.", mend="Correct the path after --data.")
    certificate = asyncio.run(fetch_certificate(invitation))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as fault:
        raise EnvironmentFailure(f"{folder} cannot be made: {fault.strerror}.") from None
    identity = _identity(here)
    pinned = {"certificate": certificate, "root_key": invitation.root.hex()}
    write_private(folder / "pinned.json", json.dumps(pinned, indent=1).encode("ascii"))
    asyncio.run(enroll(invitation, identity, certificate))
    settings = {
        "id": invitation.id,
        "federation": invitation.federation,
        "coordinator": invitation.url,
        "data": {name: path.resolve() for name, path in data.items()},
    }
    write_private(folder / "policy.toml", policy_toml(list(data)).encode("utf-8"))
    write_private(folder / "site.toml", site_toml(settings).encode("utf-8"))  # last: with it the folder is a site
    return fingerprint_words(identity.public)


def _identity(folder: SiteFolder) -> Identity:
    if (folder.root / "identity.key").exists():
        return folder.identity()
    identity = Identity.generate(os.urandom)
    write_private(folder.root / "identity.key", identity.to_bytes())
    return identity
