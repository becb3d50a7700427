"""The client of a coordinator: one method per path, for sites, analysts and those who join.

Only ever dials out (HTTPS/1.1, long poll). A lost connection is retried with backoff under a *new* envelope number,
since the old one may have arrived; every request is idempotent at the coordinator.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import ssl
from collections.abc import Callable
from typing import Any

import httpx2
import stamina

from cloister.seal.identity import Identity
from cloister.seal.labels import ENROLL as ENROLL_LABEL
from cloister.seal.labels import fields, lp
from cloister.vector import digest
from cloister.vector.errors import ContextMismatch, InvitationError, MalformedMessage
from cloister.wire import api
from cloister.wire.envelope import Envelope, open_envelope, sign_envelope, split
from cloister.wire.invitation import Invitation
from cloister.wire.proxy import Proxy, is_final, reason

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0  # over what a poll or watch holds
WAIT_MAX_SECONDS = 2.0  # between two attempts: a restarted coordinator is found again within this
PATIENCE_SECONDS = 300.0
KEEPALIVE_SECONDS = 30.0  # below the server's, so that no request meets a connection that is just being closed
TRANSIENT = (502, 503, 504)
DIRECT = Proxy()

stamina.instrumentation.set_on_retry_hooks([])  # `on_retry` tells it; stamina's own lines would mix with JSON output

Notify = Callable[[str], None]


class _NotNow(Exception):
    """A proxy or the coordinator says: try again."""


def _silent(message: str) -> None:
    pass


class _Http:
    """One connection pool to one coordinator, with retries."""

    def __init__(
        self, url: str, certificate_pem: str, patience_seconds: float | None, on_retry: Notify, proxy: Proxy
    ) -> None:
        self.url = url.rstrip("/")
        self._patience, self._on_retry, self._proxy = patience_seconds, on_retry, proxy
        self._client = _client(self.url, proxy.context(certificate_pem), proxy)

    async def close(self) -> None:
        await self._client.aclose()

    async def call(self, method: str, path: str, body: Callable[[], bytes], hold_seconds: float = 0.0) -> bytes:
        """Args: body: makes the body anew for each attempt.

        Raises: Unreachable: no answer within the patience. MalformedMessage: one that cannot be decoded. The
          CloisterError that the coordinator answered with.
        """
        timeout = httpx2.Timeout(READ_SECONDS + hold_seconds, connect=CONNECT_SECONDS)
        try:
            async for attempt in stamina.retry_context(
                on=self._is_transient,
                attempts=None,
                timeout=self._patience,
                wait_initial=0.1,
                wait_max=WAIT_MAX_SECONDS,
                wait_jitter=0.1,
            ):
                with attempt:
                    response = await self._client.request(method, path, content=body(), timeout=timeout)
                    if response.status_code in TRANSIENT:
                        raise _NotNow(f"HTTP status {response.status_code}")
                    if not response.is_success:
                        raise api.error_of(response.content, response.status_code)
                    _heed_cancellation()
                    return response.content
        except httpx2.DecodingError:
            raise MalformedMessage(f"what {self.url} answered is not in the encoding that it names.") from None
        except (httpx2.TransportError, _NotNow) as fault:
            raise self._proxy.unreachable(self.url, fault) from fault
        raise AssertionError("stamina ends with a result or an error")

    def _is_transient(self, fault: Exception) -> bool:
        transient = isinstance(fault, httpx2.TransportError | _NotNow) and not is_final(fault)
        if transient:
            self._on_retry(f"the coordinator at {self.url} does not answer ({reason(fault)}); trying again")
        return transient


def _client(url: str, context: ssl.SSLContext, proxy: Proxy) -> httpx2.AsyncClient:
    """Raises: UsageError: the proxy's address is none."""
    return httpx2.AsyncClient(
        base_url=url,
        verify=context,
        timeout=httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
        limits=httpx2.Limits(keepalive_expiry=KEEPALIVE_SECONDS),
        proxy=proxy.address(url),
        trust_env=False,  # `Proxy` has read what there is to read in it
    )


def _heed_cancellation() -> None:
    """Ctrl-C that arrives just as a request ends may be swallowed beneath it; the task still knows of it."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class CoordinatorClient:
    """What an admitted member says to its coordinator, every request in a signed envelope.

    Args:
      certificate_pem: the coordinator's pinned TLS certificate (`fetch_certificate`), "" where a proxy opens TLS.
      identity, sender: the member's key and id.
      key_of: the coordinator's public key by its id, from the trusted roster; raises NotInRoster.
      next_seq: the next envelope number; durable, since a number that was used before is refused.
      coordinator: its id in the roster.
      patience_seconds: how long a lost connection is retried before Unreachable; None for ever.
      on_retry: told once for each failed attempt, in a sentence.
      proxy: on the way out.
    Raises: UsageError: the proxy's address or CA is none.
    """

    def __init__(
        self,
        url: str,
        certificate_pem: str,
        identity: Identity,
        sender: str,
        key_of: Callable[[str], bytes],
        next_seq: Callable[[], int],
        *,
        coordinator: str = "coordinator",
        patience_seconds: float | None = PATIENCE_SECONDS,
        on_retry: Notify = _silent,
        proxy: Proxy = DIRECT,
    ) -> None:
        self._http = _Http(url, certificate_pem, patience_seconds, on_retry, proxy)
        self._identity, self._sender, self._coordinator = identity, sender, coordinator
        self._key_of, self._next_seq = key_of, next_seq

    async def __aenter__(self) -> CoordinatorClient:
        return self

    async def __aexit__(self, *details: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.close()

    async def _post(
        self, path: str, type: str, body: bytes, run: str = "", round: int = 0, hold_seconds: float = 0.0
    ) -> bytes:
        def signed() -> bytes:
            envelope = Envelope(type, self._sender, self._coordinator, run, round, self._next_seq(), body)
            return sign_envelope(self._identity, envelope)

        return await self._http.call("POST", path, signed, hold_seconds)

    # sites

    async def poll(self, after: int, hold_seconds: float = api.HOLD_SECONDS) -> list[Envelope]:
        """The mailbox's messages numbered (`seq`) above `after`, in order; waits for the first one.

        Messages up to `after` are thereby acknowledged and forgotten at the coordinator.
        Raises: what `open_envelope` does, for an envelope that the coordinator did not write to this member.
        """
        body = api.Poll(after=after, hold=hold_seconds).to_bytes()
        data = await self._post(api.POLL, "poll", body, hold_seconds=hold_seconds)
        envelopes = [open_envelope(part, self._key_of, self._sender) for part in split(data)]
        numbers = [envelope.seq for envelope in envelopes]
        if numbers != sorted(set(numbers)) or (numbers and numbers[0] <= after):
            raise MalformedMessage(f"the mailbox handed out the numbers {numbers} after {after}")
        return envelopes

    async def send(self, type: str, body: bytes, run: str = "", round: int = 0) -> None:
        """One message of api.SITE_TYPES ("masked" goes through `upload`)."""
        await self._post(api.MESSAGES, type, body, run, round)

    async def catalogue(self, datasets: dict[str, dict[str, str]]) -> None:
        """Announces which datasets this site offers: {dataset: {column: type}}."""
        await self.send("catalogue", api.Catalogue(datasets=datasets).to_bytes())

    async def refuse(self, refusal: api.Refusal, run: str, round: int = 0) -> None:
        await self.send("refuse", refusal.to_bytes(), run, round)

    async def upload(self, header: bytes, payload: bytes | memoryview, run: str, round: int) -> None:
        """Message 5: the signed header, then those parts of the payload that the coordinator lacks.

        Raises: BadUpload: the payload is not the one that the header signs for.
        """
        view = memoryview(payload).cast("B")
        starts = range(0, len(view), api.MAX_PART_BYTES)
        parts = {hashlib.sha256(view[at : at + api.MAX_PART_BYTES]).hexdigest(): at for at in starts}
        answer = api.Missing.from_bytes(await self._post(api.MESSAGES, "masked", header, run, round))
        for name in answer.missing:
            if name not in parts:
                raise MalformedMessage("the coordinator asks for a part that this upload does not have")
            part = bytes(view[parts[name] : parts[name] + api.MAX_PART_BYTES])
            await self._http.call("PUT", f"{api.PARTS}/{name}", lambda part=part: part)  # type: ignore[misc]

    async def fetch(self, name: bytes) -> bytes:
        """The bytes with this SHA-256: a query, a job bundle, a receipt, a state. Raises: ContextMismatch."""
        data = await self._post(api.FETCH, "fetch", name)
        if digest(data) != name:
            raise ContextMismatch("the coordinator sent other bytes than their digest names")
        return data

    async def entry(self, receipt: bytes, since: int) -> bytes:
        """A receipt's place in the log (`seal.log.Entry`). Args: receipt: digest of its signed bytes. since: the size
        of the head that was verified last."""
        body = api.EntryRef(receipt=receipt.hex(), since=since).to_bytes()
        return await self._post(api.LOG, "entry", body)

    async def log(self) -> tuple[bytes, bytes]:
        """The newest head of the log, as a note, and the leaf hashes of all receipts. Raises: MalformedMessage."""
        parts = fields(await self._post(api.LOG, "log", b""))
        if len(parts) != 2:
            raise MalformedMessage("the coordinator shows something else than its log")
        return parts[0], parts[1]

    async def audit(self, run: str, round: int, nonce: bytes, count: int) -> bytes:
        """An answer to an honest-sum challenge (`seal.audit.Audit`), put together from as many requests as it takes.

        Raises: UsageError: the masked vectors are not kept any more. MalformedMessage.
        """
        head: list[bytes] = []
        chunks: list[bytes] = []
        while len(chunks) < count:
            body = api.Challenge(run=run, round=round, nonce=nonce.hex(), count=count, skip=len(chunks)).to_bytes()
            parts = fields(await self._post(api.AUDITS, "audit", body, hold_seconds=api.AUDIT_SECONDS))
            if len(parts) < 3 or (head and parts[:3] != head) or len(chunks) + len(parts) - 3 > count:
                raise MalformedMessage("the coordinator shows something else than an audit")
            head = parts[:3]
            chunks += parts[3:]
            if len(parts) == 3:  # the sum has no more leaves
                break
        return b"".join(map(lp, (*head, *chunks)))

    # analysts

    async def submit(self, bundle: bytes) -> str:
        """Hands in a job; returns the run's id (hex), chosen here so that a repeated request is no second run."""
        answer = await self._post(api.JOBS, "submit", bundle, secrets.token_hex(16))
        return str(api.told(api.Submitted, answer)["run"])

    async def status(self, run: str = "") -> dict[str, Any]:
        """The federation's sites and runs, or one run."""
        answer = await self._post(api.RUNS, "status", api.RunRef(run=run).to_bytes())
        return dict(api.told(api.RunLine if run else api.Status, answer))

    async def events(self, run: str, after: int = 0, hold_seconds: float = api.HOLD_SECONDS) -> list[dict[str, Any]]:
        """The run's events numbered (`number`) above `after`, in order; waits for the first one."""
        body = api.Watch(run=run, after=after, hold=hold_seconds).to_bytes()
        answer = await self._post(api.EVENTS, "watch", body, hold_seconds=hold_seconds)
        return list(api.told(list[api.Happened], answer))

    async def result(self, run: str) -> dict[str, Any]:
        """{"status", "job", "state", "receipts", "rounds", "history" ...}; digests (hex) are for `fetch`."""
        return dict(api.told(api.RunResult, await self._post(api.RESULTS, "result", api.RunRef(run=run).to_bytes())))

    async def stop(self, run: str) -> None:
        """Ends a run after its present round."""
        await self._post(api.STOP, "stop", api.RunRef(run=run).to_bytes())


# those who join, before any key of theirs is known


async def fetch_certificate(invitation: Invitation, proxy: Proxy = DIRECT) -> str:
    """The coordinator's TLS certificate (PEM), once its SHA-256 is the one that the invitation pins; see below."""
    return await certificate_at(invitation.url, invitation.certificate, proxy)


async def certificate_at(url: str, pin: bytes, proxy: Proxy = DIRECT) -> str:
    """The TLS certificate (PEM) with the SHA-256 `pin` that answers at `url`.

    Behind a proxy that opens TLS it cannot be seen: "", and the proxy's CA vouches for the channel.
    Raises: Unreachable; InvitationError: another certificate answers there. UsageError: see `Proxy`.
    """
    if proxy.authority:
        return ""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # compared with the pin just below
    try:
        async with _client(url, context, proxy) as client, client.stream("GET", f"{api.ROSTERS}/latest") as response:
            channel = response.extensions["network_stream"].get_extra_info("ssl_object")
            der = channel.getpeercert(binary_form=True)
    except httpx2.TransportError as fault:
        raise proxy.unreachable(url, fault) from fault
    if digest(der) != pin:
        raise InvitationError(
            f"the certificate at {url} is not the one that the invitation names.",
            mend="If your own proxy opens TLS, name its CA with --proxy-ca. Else someone is in between, or the "
            "coordinator was set up anew: ask the operator.",
        )
    return ssl.DER_cert_to_PEM_cert(der)


async def enroll(invitation: Invitation, identity: Identity, certificate_pem: str, proxy: Proxy = DIRECT) -> None:
    """Hands in a new member's key. It becomes a member once the root signs the next roster.

    Raises: InvitationError: the token is wrong, spent or expired.
    """
    body = api.enrol_proof_body(
        invitation.token, invitation.federation, invitation.id, invitation.role, identity.public
    )
    request = api.Enroll(
        token=invitation.token.hex(),
        id=invitation.id,
        role=invitation.role,
        key=identity.public.hex(),
        proof=identity.sign(ENROLL_LABEL, body).hex(),
    )
    http = _Http(invitation.url, certificate_pem, CONNECT_SECONDS, _silent, proxy)
    try:
        await http.call("POST", api.ENROLL, request.to_bytes)
    finally:
        await http.close()


async def fetch_roster(
    url: str,
    certificate_pem: str,
    version: int | str = "latest",
    patience_seconds: float | None = CONNECT_SECONDS,
    proxy: Proxy = DIRECT,
) -> bytes:
    """The signed bytes of one roster version, to be judged by `seal.TrustedRoster.update`."""
    http = _Http(url, certificate_pem, patience_seconds, _silent, proxy)
    try:
        return await http.call("GET", f"{api.ROSTERS}/{version}", bytes)
    finally:
        await http.close()
