"""Which proxy is on the way, and that its password is not told."""

from __future__ import annotations

import httpx2
import pytest

from cloister.vector.errors import UsageError
from cloister.wire import Proxy

CLINIC, HERE = "https://clinic.example:8443", "https://127.0.0.1:8443"


@pytest.mark.parametrize(
    ("environment", "url", "to", "found"),
    [
        ({}, "", CLINIC, None),
        ({"HTTPS_PROXY": "http://way.example:3128"}, "", CLINIC, "http://way.example:3128"),
        ({"https_proxy": "way.example:3128"}, "", CLINIC, "http://way.example:3128"),
        ({"HTTPS_PROXY": "http://way.example", "NO_PROXY": ".example"}, "", CLINIC, None),
        ({"HTTPS_PROXY": "http://way.example"}, "", HERE, None),
        ({"HTTPS_PROXY": "http://way.example"}, "http://named.example", HERE, "http://named.example"),
    ],
)
def test_the_way_out(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], url: str, to: str, found: str | None
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Proxy(url).address(to) == found


def test_a_password_is_told_to_nobody_but_the_proxy() -> None:
    proxy = Proxy("http://ward:secret@way.example:3128")
    faults = [httpx2.ProxyError("407 Proxy Authentication Required"), httpx2.ConnectError("refused")]
    said = [repr(proxy), proxy.shown(CLINIC), *(str(proxy.unreachable(CLINIC, fault)) for fault in faults)]
    assert not any("secret" in text for text in said)
    assert all("way.example:3128" in text for text in said[1:])
    with pytest.raises(UsageError, match="no proxy") as caught:
        Proxy("socks5://ward:secret@way.example").address(CLINIC)
    assert "secret" not in str(caught.value)


def test_a_ca_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="no certificate of the coordinator"):
        Proxy().context("")
    with pytest.raises(UsageError, match="holds no certificate"):
        Proxy(authority="-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").context("")
