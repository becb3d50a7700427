"""Joining a federation: the key is made here, the invitation's pins are kept, and only the public key is sent."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

from cloister.seal.identity import Identity, fingerprint_words
from cloister.site.policy import policy_toml
from cloister.site.reach import read_proxy
from cloister.site.rosters import Rosters
from cloister.site.settings import Pinned, SiteFolder, site_toml, write_private
from cloister.vector.errors import EnvironmentFailure, InvitationError, UsageError
from cloister.wire import Invitation, Proxy, enroll, fetch_certificate, fetch_roster


def join(
    invitation: Invitation, folder: Path, data: Mapping[str, Path], proxy_url: str = "", proxy_ca: Path | None = None
) -> str:
    """Makes a site's folder and enrols its new key with the coordinator.

    A join that failed half-way can be repeated: it goes on with the key that was made.

    Args: data: dataset name -> CSV or Parquet file; the first policy.toml lets declarative jobs use them.
      proxy_url, proxy_ca: of a proxy on the way out, as `wire.Proxy` has them; kept in site.toml.
    Returns: the six words of the new key, for the steward to read to the operator before admission.
    Raises: InvitationError: for another role, mistyped, spent or expired. UsageError: the folder is a site already,
      or a file is missing. Unreachable: the coordinator does not answer. RosterRefused: who answers there shows a
      roster that the invitation's root key did not sign.
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
    proxy = read_proxy(proxy_url, proxy_ca)
    certificate = asyncio.run(fetch_certificate(invitation, proxy))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as fault:
        raise EnvironmentFailure(f"{folder} cannot be made: {fault.strerror}.") from None
    identity = _identity(here)
    pinned = Pinned(certificate, invitation.certificate, invitation.root)
    write_private(folder / "pinned.json", pinned.to_bytes())
    asyncio.run(_enrol(here, invitation, identity, certificate, proxy))
    settings = {
        "id": invitation.id,
        "federation": invitation.federation,
        "coordinator": invitation.url,
        "data": {name: path.resolve() for name, path in data.items()},
        "proxy": {"url": proxy_url, "ca": "" if proxy_ca is None else str(proxy_ca.resolve())},
    }
    write_private(folder / "policy.toml", policy_toml(list(data)).encode("utf-8"))
    write_private(folder / "site.toml", site_toml(settings).encode("utf-8"))  # last: with it the folder is a site
    return fingerprint_words(identity.public)


async def _enrol(
    here: SiteFolder, invitation: Invitation, identity: Identity, certificate: str, proxy: Proxy
) -> None:
    """The token is handed to nobody who cannot show a roster of the invitation's root key."""

    async def fetch(version: int | str) -> bytes:
        return await fetch_roster(invitation.url, certificate, version, proxy=proxy)

    await Rosters(here.rosters, invitation.root, invitation.federation, fetch).follow_latest()
    await enroll(invitation, identity, certificate, proxy)


def _identity(folder: SiteFolder) -> Identity:
    if (folder.root / "identity.key").exists():
        return folder.identity()
    identity = Identity.generate(os.urandom)
    write_private(folder.root / "identity.key", identity.to_bytes())
    return identity
