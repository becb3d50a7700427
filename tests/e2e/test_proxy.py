"""A hospital whose proxy opens TLS: a real mitmdump, which asks for a password; beside it one that only tunnels."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import until

from cloister.cli.site_doctor import _coordinator, _proxy
from cloister.coordinator import admit, init_coordinator, invite
from cloister.site import join, status
from cloister.site.reach import certificate_of, proxy_of
from cloister.site.settings import SiteFolder
from cloister.vector.errors import CloisterError, InvitationError, RosterRefused, Unreachable, UsageError
from cloister.wire import Invitation

pytestmark = pytest.mark.processes
ROOT = Path(__file__).resolve().parents[2]
SITES = ("kent", "lyon", "oslo")
JOB = """
import cloister as cl

job = cl.Job(
    data=cl.Table("patients", target="ill", columns={"pressure": "number"}, classes=2),
    task=cl.Torch(cl.nets.MLP([4]), loss="bce", optimizer=cl.SGD(lr=0.1), epochs=1, batch_size=32),
    algorithm=cl.FedAvg(rounds=1),
)
"""
MITMDUMP = ROOT / ".venv-proxy" / "bin" / "mitmdump"


@dataclass
class Hospital:
    """Attributes: invited: invitations by id. reads, tunnels, alters: URLs of proxies. ca: of those that open TLS."""

    operator: Any
    steward: Any
    invited: dict[str, Invitation]
    reads: str
    tunnels: str
    alters: str
    ca: Path
    seen: Path

    def requests(self, url: str) -> list[dict[str, Any]]:
        """What the proxy at `url` read so far."""
        lines = self.seen.read_text().splitlines() if self.seen.exists() else []
        return [each for each in map(json.loads, lines) if url.endswith(f":{each['port']}")]


@pytest.fixture(scope="module")
def hospital(module_terminal: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    """A coordinator that serves and has invited, and the proxies in front of it."""
    if not MITMDUMP.exists():
        pytest.skip("needs mitmdump in .venv-proxy: make proxy-peer")
    operator, steward = module_terminal("operator"), module_terminal("steward")
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
    port, *ports = [each.getsockname()[1] for each in listening]
    for each in listening:
        each.close()
    coordinator = operator.folder / "federation"
    init_coordinator(coordinator, "clinics", port=port, root_path=operator.folder / "root.key")
    made = [*invite(coordinator, SITES), *invite(coordinator, ["lee"], "analyst")]
    serving = operator.start("coordinator", "serve")
    folder = tmp_path_factory.mktemp("proxy")
    trusted = coordinator / "tls.pem"
    options = {"confdir": folder, "ssl_verify_upstream_trusted_ca": trusted, "proxyauth": "ward:secret"}
    words = ["-q", "-s", str(Path(__file__).with_name("inspecting_proxy.py"))]
    words += [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
    words += [word for each in ports for word in ("--mode", f"regular@127.0.0.1:{each}")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROXY_PORTS", json.dumps(ports))
        patch.setenv("PROXY_SEEN", str(folder / "seen.jsonl"))
        proxy = operator.start(*words, program=[MITMDUMP])
    operator.wait_for(serving, "serving https://")
    until(lambda: answers(ports[-1]) or proxy.poll() is not None)
    assert proxy.poll() is None, operator.said(proxy)
    urls = [f"http://ward:secret@127.0.0.1:{each}" for each in ports]
    invited = {each.id: each for each in made}
    return Hospital(operator, steward, invited, *urls, folder / "mitmproxy-ca-cert.pem", folder / "seen.jsonl")


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_nothing_is_believed_that_the_steward_did_not_name(hospital: Hospital, tmp_path: Path) -> None:
    """The one-time token is handed to nobody meanwhile: the site can still join."""
    invitation, folder = hospital.invited["kent"], tmp_path / "kent"
    other = hospital.operator.folder / "federation" / "tls.pem"
    (tmp_path / "empty.pem").write_text("no certificate")
    attempts: list[tuple[str, Path | None, type[CloisterError], str]] = [
        (hospital.reads, None, InvitationError, "--proxy-ca"),
        (hospital.reads, other, Unreachable, "not one of the proxy's CA"),
        (hospital.alters, hospital.ca, RosterRefused, "signature"),
        (hospital.reads.replace("secret", "guess"), hospital.ca, Unreachable, "USER:PASSWORD"),
        (hospital.reads.replace("http", "socks5"), hospital.ca, UsageError, "no proxy that can be used"),
        (hospital.reads, tmp_path / "empty.pem", UsageError, "BEGIN CERTIFICATE"),
        (hospital.reads, tmp_path / "absent.pem", UsageError, "cannot be read"),
    ]
    for url, ca, error, says in attempts:
        with pytest.raises(error) as caught:
            join(invitation, folder, {}, url, ca)
        assert says in str(caught.value)
        assert "secret" not in str(caught.value)
    assert not (folder / "site.toml").exists()
    assert all("enroll" not in each["path"] for each in hospital.requests(hospital.alters))


def test_sites_take_part_through_both_kinds_of_proxy(hospital: Hospital, patients: Any) -> None:
    steward, folder = hospital.steward, hospital.steward.folder
    ways = {"kent": (hospital.reads, hospital.ca), "lyon": (hospital.tunnels, None), "oslo": ("", None)}
    for number, (site, way) in enumerate(ways.items()):
        patients(60 + 40 * number, number).to_csv(folder / f"{site}.csv", index=False)
        join(hospital.invited[site], folder / site, {"patients": folder / f"{site}.csv"}, *way)
    agents = {site: steward.start("site", "run", site, "--json") for site in ways}
    (folder / "job.py").write_text(JOB)
    code = hospital.invited["lee"].encode()
    way = ("--proxy", hospital.reads, "--proxy-ca", str(hospital.ca))  # the analyst sits in the same hospital
    submitting = steward.start("submit", "job.py", "--invitation", code, *way, "--wait", "--json")
    steward.wait_for(submitting, "waiting for the operator")
    admit(hospital.operator.folder / "federation", hospital.operator.folder / "root.key")
    assert submitting.wait(120) == 0, steward.said(submitting)

    said = {site: steward.said(agent) for site, agent in agents.items()}
    assert [site for site in ways if "opens TLS" in said[site]] == ["kent"]
    assert "secret" not in said["kent"]
    read = hospital.requests(hospital.reads)
    masked = [each["sent"] for each in read if "/v1/messages" in each["path"] and "masked" in each["sent"]]
    assert masked, "the proxy did read what kent sent"
    assert any("/v1/jobs" in each["path"] for each in read), "and the analyst's job"
    assert not hospital.requests(hospital.tunnels), "and nothing of lyon's"
    asked = status(folder / "oslo")["rounds_asked"]
    assert {status(folder / site)["roster"] for site in ways} == {2}  # the one in which they were admitted
    until(lambda: all(status(folder / site)["rounds_receipted"] == asked > 0 for site in ways))


def test_doctor_names_the_proxy_and_a_site_pins_the_certificate_once_it_is_gone(hospital: Hospital) -> None:
    kent, lyon = (SiteFolder(hospital.steward.folder / site) for site in ("kent", "lyon"))
    checks = {each.name: each for each in (*_proxy(kent), *_coordinator(kent))}
    assert "opens TLS" in checks["proxy"].what
    assert "secret" not in checks["proxy"].what
    assert "tunnels" in next(_proxy(lyon)).what
    assert checks["coordinator"].state == "good"
    assert (kent.pinned().certificate, kent.pinned().fingerprint) == ("", lyon.pinned().fingerprint)
    text = (kent.root / "site.toml").read_text()
    proxy = text[text.index("[proxy]") : text.index("[data]")]
    (kent.root / "site.toml").write_text(text.replace(proxy, ""))
    asyncio.run(certificate_of(kent, proxy_of(kent)))
    assert kent.pinned() == lyon.pinned()
