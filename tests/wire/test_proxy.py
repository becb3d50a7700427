"""Which proxy is on the way, and that its password is not told."""

from __future__ import annotations

import base64

import aiohttp
import pytest
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

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
    asked = aiohttp.RequestInfo(URL(proxy.url), "CONNECT", CIMultiDictProxy(CIMultiDict()), URL(proxy.url))
    faults = [aiohttp.ClientHttpProxyError(asked, (), status=407, message="Who?"), aiohttp.ClientError("refused")]
    said = [repr(proxy), proxy.shown(CLINIC), *(str(proxy.unreachable(CLINIC, fault)) for fault in faults)]
    assert not any("secret" in text for text in said)
    assert all("way.example:3128" in text for text in said[1:])
    assert "USER:PASSWORD" in said[2]
    for url in ("socks5://ward:secret@way.example", "http://ward:secret@way.example:port", "http://ward:secret@"):
        with pytest.raises(UsageError, match="no proxy") as caught:
            Proxy(url).address(CLINIC)
        assert "secret" not in str(caught.value)


def test_the_http_client_gets_the_password_apart() -> None:
    expected = "Basic " + base64.b64encode("w@rd:secret:é".encode()).decode()
    way = Proxy("http://w%40rd:secret:%C3%A9@way.example:3128").way(CLINIC)
    assert way == ("http://way.example:3128", {"Proxy-Authorization": expected})
    assert Proxy("http://way.example").way(CLINIC) == ("http://way.example", {})
    assert Proxy().way(HERE) == (None, {})


def test_a_ca_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="no certificate of the coordinator"):
        Proxy().context("")
    with pytest.raises(UsageError, match="holds no certificate"):
        Proxy(authority="-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").context("")
