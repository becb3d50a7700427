"""The way out through a proxy: its address, and what vouches for the channel where the proxy opens TLS.

A proxy that only tunnels changes nothing: the coordinator's certificate stays pinned. One that opens TLS shows a
certificate of its own institution's CA, which the member names. The channel then keeps nothing from the proxy and
says nothing about the coordinator; all that is believed is believed by signature (rosters by the pinned root key,
envelopes by the roster) or by digest.
"""

from __future__ import annotations

import base64
import ssl
import urllib.request
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import aiohttp

from cloister.vector.errors import Unreachable, UsageError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
FOR_GOOD = (403, 407)  # what a proxy says that will say the same in a minute
SAID_CHARACTERS = 200


@dataclass(frozen=True)
class Proxy:
    """How a member gets out. Attributes:

    url: http://[USER:PASSWORD@]HOST:PORT. "": that of the environment (HTTPS_PROXY, NO_PROXY), none to loopback.
    authority: PEM of the CA of a proxy that opens TLS: it vouches for the channel. "": the pinned certificate does.
    """

    url: str = field(default="", repr=False)
    authority: str = ""

    def address(self, to: str) -> str | None:
        """The proxy on the way to a coordinator's URL, None for none. Raises: UsageError: of no known kind."""
        found = self.url or _of_environment(urlsplit(to).hostname or "")
        found = found if "://" in found or not found else f"http://{found}"
        if found and not _is_usable(found):
            raise UsageError(
                f"{_without_password(found)} is no proxy that can be used.",
                mend="It is written http://[USER:PASSWORD@]HOST:PORT.",
            )
        return found or None

    def way(self, to: str) -> tuple[str | None, dict[str, str]]:
        """The same for the HTTP client: without its password, which its errors would tell, and a header with it."""
        found = self.address(to)
        if found is None:
            return None, {}
        where, headers = urlsplit(found), {}
        if where.username is not None:
            words = f"{unquote(where.username)}:{unquote(where.password or '')}"
            headers["Proxy-Authorization"] = f"Basic {base64.b64encode(words.encode()).decode()}"
        return _without_password(found), headers

    def context(self, certificate_pem: str) -> ssl.SSLContext:
        """What the channel's other end is judged by. Args: certificate_pem: the pinned one.

        Raises: UsageError: `authority` holds no certificate, or there is neither.
        """
        if not self.authority and not certificate_pem:  # the system's list of CAs would vouch for anybody
            raise UsageError(
                "no certificate of the coordinator is pinned here, and no proxy's CA is named.",
                mend="Name the CA of the proxy that you joined through.",
            )
        if not self.authority:
            context = ssl.create_default_context(cadata=certificate_pem)
            context.check_hostname = False  # this one certificate is pinned, whatever name it is reached by
            return context
        try:
            return ssl.create_default_context(cadata=self.authority)
        except ssl.SSLError:
            raise UsageError(
                "the file of the proxy's CA holds no certificate.", mend="It is a PEM file: BEGIN CERTIFICATE."
            ) from None

    def shown(self, to: str) -> str:
        """The same for people, without its password; "" for none."""
        found = self.address(to)
        if found is None:
            return "a proxy on the way" if self.authority else ""
        return f"the proxy {_without_password(found)}"

    def unreachable(self, url: str, fault: Exception) -> Unreachable:
        """Why nothing came back from a coordinator's URL, and what to do about it."""
        way = self.shown(url)
        mend = "Check the address and the network, and that the coordinator runs."
        if "CERTIFICATE_VERIFY_FAILED" in reason(fault):
            mend = "If your own proxy opens TLS, name its CA (--proxy-ca; `[proxy] ca` in site.toml)."
            mend += " Else someone is in between."
            if self.authority:
                mend = "The certificate there is not one of the proxy's CA: check that file."
        elif isinstance(fault, aiohttp.ClientHttpProxyError) and fault.status == 407:
            mend = "The proxy asks who you are: http://USER:PASSWORD@HOST:PORT."
        elif way:
            mend = "Check that the proxy lets you through to this address, and takes the coordinator's certificate."
        through = f" through {way}" if way else ""
        return Unreachable(f"the coordinator at {url} did not answer{through} ({reason(fault)}).", mend=mend)


def reason(fault: Exception) -> str:
    """What went wrong, in a line: of a fault that names its cause, that. Part of it may be the other end's words."""
    said = str(fault)
    if isinstance(fault, aiohttp.ClientResponseError):
        said = f"{fault.status} {fault.message}"
    elif isinstance(fault, aiohttp.ClientConnectorCertificateError):
        said = str(fault.certificate_error)
    elif isinstance(fault, aiohttp.ClientConnectorError):
        said = str(fault.os_error)
    return said.partition("\n")[0][:SAID_CHARACTERS] or type(fault).__name__


def is_final(fault: Exception) -> bool:
    """Whether trying again is no use: another certificate answers there, the proxy refuses, no such address."""
    refused = isinstance(fault, aiohttp.ClientHttpProxyError) and fault.status in FOR_GOOD
    return refused or isinstance(fault, aiohttp.InvalidURL) or "CERTIFICATE_VERIFY_FAILED" in reason(fault)


def _is_usable(url: str) -> bool:
    try:
        where = urlsplit(url)
        return where.scheme == "http" and bool(where.hostname) and where.port != 0
    except ValueError:  # a port that is no number
        return False


def _without_password(url: str) -> str:
    where = urlsplit(url)
    return f"{where.scheme}://{where.netloc.rpartition('@')[2]}"


def _of_environment(host: str) -> str:
    if host in LOOPBACK or urllib.request.proxy_bypass(host):
        return ""
    known = urllib.request.getproxies()
    return known.get("https") or known.get("all") or ""
