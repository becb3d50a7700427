"""How a site reaches its coordinator: the proxy of site.toml, and the certificate that the invitation pinned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cloister.site.settings import SiteFolder, write_private
from cloister.vector.errors import UsageError
from cloister.wire import Proxy, certificate_at

OPENS_TLS = (
    "{} opens TLS: it reads who asks what and when, jobs, models and sums. What this site's rows say is masked."
)


def read_proxy(url: str, ca: Path | None) -> Proxy:
    """Args: ca: a PEM file. Raises: UsageError: it cannot be read or holds no certificate; the address is none."""
    try:
        proxy = Proxy(url, "" if ca is None else ca.read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        raise UsageError(
            f"the proxy's CA {ca} cannot be read.", mend="Name a PEM file; its text says BEGIN CERTIFICATE."
        ) from None
    proxy.address("https://coordinator")
    if proxy.authority:
        proxy.context("")
    return proxy


def proxy_of(here: SiteFolder) -> Proxy:
    """What [proxy] of site.toml says. Raises: UsageError."""
    settings = here.settings().proxy
    return read_proxy(settings.url, None if settings.ca is None else here.root / settings.ca)


async def certificate_of(here: SiteFolder, proxy: Proxy) -> str:
    """The pinned certificate (PEM), "" where a proxy opens TLS.

    One that such a proxy hid when this site joined is fetched once the proxy is gone, and kept.
    Raises: Unreachable; InvitationError: another one answers there.
    """
    pinned = here.pinned()
    if proxy.authority or pinned.certificate:
        return pinned.certificate
    certificate = await certificate_at(here.settings().coordinator, pinned.fingerprint, proxy)
    write_private(here.root / "pinned.json", replace(pinned, certificate=certificate).to_bytes())
    return certificate
