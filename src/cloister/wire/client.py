"""The client of a coordinator: one method per path, for sites, analysts and those who join.

Only ever dials out (HTTPS/1.1, long poll). A lost connection is retried with backoff under a *new* envelope number,
since the old one may have arrived; every request is idempotent at the coordinator.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import stamina
from aiohttp.abc import AbstractStreamWriter

from cloister.seal.identity import Identity
from cloister.seal.labels import ENROLL as ENROLL_LABEL
from cloister.seal.labels import fields, lp
from cloister.seal.messages import PART_BYTES, masked_header
from cloister.vector import digest
from cloister.vector.errors import ContextMismatch, InvitationError, MalformedMessage
from cloister.wire import api
from cloister.wire.envelope import Envelope, open_envelope, sign_envelope, split
from cloister.wire.invitation import Invitation
from cloister.wire.proxy import Proxy, is_final, reason

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0  # over what a poll or watch holds; as long may one piece of a body take to be sent
WAIT_MAX_SECONDS = 2.0  # between two attempts: a restarted coordinator is found again within this
PATIENCE_SECONDS = 300.0
KEEPALIVE_SECONDS = 30.0  # below the server's, so that no request meets a connection that is just being closed
TRANSIENT = (502, 503, 504)
PIECE_BYTES = 1 << 18  # of a body that is sent: one is encrypted while the one before is on its way
READ_BYTES = 1 << 18  # of an answer, before the other end has to wait
DIRECT = Proxy()

stamina.instrumentation.set_on_retry_hooks([])  # `on_retry` tells it; stamina's own lines would mix with JSON output

Notify = Callable[[str], None]


class _NotNow(Exception):
    """A proxy or the coordinator says: try again."""


FAULTS = (aiohttp.ClientError, TimeoutError, _NotNow)  # no answer, or half of one


def _silent(message: str) -> None:
    pass


class _Pieces(aiohttp.Payload):
    """A body that is sent piece by piece, none of it copied; as often as need be, since aiohttp may repeat a PUT."""

    def __init__(self, data: bytes | memoryview) -> None:
        super().__init__(data)
        self._size = len(data)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return bytes(self._value).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        view = memoryview(self._value)
        for at in range(0, len(view), PIECE_BYTES):
            async with asyncio.timeout(READ_SECONDS):
                await writer.write(view[at : at + PIECE_BYTES])


class _Http:
    """One connection pool to one coordinator, with retries."""

    def __init__(
        self, url: str, certificate_pem: str, patience_seconds: float | None, on_retry: Notify, proxy: Proxy
    ) -> None:
        self.url = url.rstrip("/")
        self._patience, self._on_retry, self._proxy = patience_seconds, on_retry, proxy
        self._context, self._way = proxy.context(certificate_pem), proxy.way(self.url)
        self._session: aiohttp.ClientSession | None = None  # of the loop that first calls

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(
        self,
        method: str,
        path: str,
        body: Callable[[], bytes | memoryview],
        hold_seconds: float = 0.0,
        limit: int = api.MAX_MESSAGE_BYTES,
    ) -> bytes:
        """Args: body: makes the body anew for each attempt. limit: bytes of the answer.

        Raises: Unreachable: no answer within the patience. MalformedMessage: one in another encoding, or above the
          limit. The CloisterError that the coordinator answered with.
        """
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
                    status, answer = await self._exchange(method, path, body(), hold_seconds, limit)
                    if not 200 <= status < 300:
                        raise api.error_of(answer, status)
                    _heed_cancellation()
                    return answer
        except FAULTS as fault:
            raise self._proxy.unreachable(self.url, fault) from fault
        raise AssertionError("stamina ends with a result or an error")

    async def _exchange(
        self, method: str, path: str, body: bytes | memoryview, hold_seconds: float, limit: int
    ) -> tuple[int, bytes]:
        if self._session is None:
            self._session = _session(self._context)
        data = _Pieces(body) if body else None
        async with _request(self._session, method, self.url + path, self._way, data, hold_seconds) as response:
            if response.status in TRANSIENT:
                raise _NotNow(f"HTTP status {response.status}")
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise MalformedMessage(f"what {self.url} answered is in an encoding that nobody asked for.")
            parts, size = [], 0
            async for part in response.content.iter_any():
                size += len(part)
                if size > limit:
                    raise MalformedMessage(f"{self.url} answers with more than {limit:,} bytes to {path}.")
                parts.append(part)
            return response.status, b"".join(parts)

    def _is_transient(self, fault: Exception) -> bool:
        transient = isinstance(fault, FAULTS) and not is_final(fault)
        if transient:
            self._on_retry(f"the coordinator at {self.url} does not answer ({reason(fault)}); trying again")
        return transient


def _session(context: ssl.SSLContext) -> aiohttp.ClientSession:
    """Decompresses nothing: a few kilobytes could become any number."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context, keepalive_timeout=KEEPALIVE_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "cloister", "Accept-Encoding": "identity"},
        auto_decompress=False,
        read_bufsize=READ_BYTES,
        trust_env=False,  # `Proxy` has read what there is to read in it
    )


def _request(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    way: tuple[str | None, dict[str, str]],
    data: aiohttp.Payload | None = None,
    hold_seconds: float = 0.0,
) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
    """Args: way: `Proxy.way`. hold_seconds: how long the answer may take over READ_SECONDS."""
    timeout = aiohttp.ClientTimeout(
        total=None,
        connect=READ_SECONDS,  # all of it, a proxy's answer included
        sock_connect=CONNECT_SECONDS,
        sock_read=READ_SECONDS + hold_seconds,
    )
    proxy, headers = way
    return session.request(
        method, url, data=data, timeout=timeout, allow_redirects=False, proxy=proxy, proxy_headers=headers
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
        self,
        path: str,
        type: str,
        body: bytes,
        run: str = "",
        round: int = 0,
        hold_seconds: float = 0.0,
        limit: int = api.MAX_MESSAGE_BYTES,
    ) -> bytes:
        def signed() -> bytes:
            envelope = Envelope(type, self._sender, self._coordinator, run, round, self._next_seq(), body)
            return sign_envelope(self._identity, envelope)

        return await self._http.call("POST", path, signed, hold_seconds, limit)

    # sites

    async def poll(self, after: int, hold_seconds: float = api.HOLD_SECONDS) -> list[Envelope]:
        """The mailbox's messages numbered (`seq`) above `after`, in order; waits for the first one.

        Messages up to `after` are thereby acknowledged and forgotten at the coordinator.
        Raises: what `open_envelope` does, for an envelope that the coordinator did not write to this member.
        """
        body = api.Poll(after=after, hold=hold_seconds).to_bytes()
        data = await self._post(api.POLL, "poll", body, hold_seconds=hold_seconds, limit=api.MAX_ANSWER_BYTES)
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

        Raises: BadUpload: the payload is not the one that the header signs for, as the coordinator finds.
        """
        answer = api.Missing.from_bytes(await self._post(api.MESSAGES, "masked", header, run, round))
        if not answer.missing:
            return
        view = memoryview(payload).cast("B")
        starts = {name.hex(): at * PART_BYTES for at, (name, _) in enumerate(masked_header(header).parts)}
        for name in answer.missing:
            if name not in starts:
                raise MalformedMessage("the coordinator asks for a part that this upload does not have")
            part = view[starts[name] : starts[name] + PART_BYTES]
            await self._http.call("PUT", f"{api.PARTS}/{name}", lambda part=part: part)  # type: ignore[misc]

    async def fetch(self, name: bytes) -> bytes:
        """The bytes with this SHA-256: a query, a job bundle, a receipt, a state. Raises: ContextMismatch."""
        data = await self._post(api.FETCH, "fetch", name, limit=api.MAX_BLOB_BYTES)
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
        parts = fields(await self._post(api.LOG, "log", b"", limit=api.MAX_ANSWER_BYTES))
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
            parts = fields(
                await self._post(
                    api.AUDITS, "audit", body, hold_seconds=api.AUDIT_SECONDS, limit=api.MAX_ANSWER_BYTES
                )
            )
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
        answer = await self._post(api.RUNS, "status", api.RunRef(run=run).to_bytes(), limit=api.MAX_ANSWER_BYTES)
        return dict(api.told(api.RunLine if run else api.Status, answer))

    async def events(self, run: str, after: int = 0, hold_seconds: float = api.HOLD_SECONDS) -> list[dict[str, Any]]:
        """The run's events numbered (`number`) above `after`, in order; waits for the first one."""
        body = api.Watch(run=run, after=after, hold=hold_seconds).to_bytes()
        answer = await self._post(api.EVENTS, "watch", body, hold_seconds=hold_seconds, limit=api.MAX_ANSWER_BYTES)
        return list(api.told(list[api.Happened], answer))

    async def result(self, run: str) -> dict[str, Any]:
        """{"status", "job", "state", "receipts", "rounds", "history" ...}; digests (hex) are for `fetch`."""
        body = api.RunRef(run=run).to_bytes()
        return dict(
            api.told(api.RunResult, await self._post(api.RESULTS, "result", body, limit=api.MAX_ANSWER_BYTES))
        )

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
    seen: list[bytes] = []

    class Seen(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            seen.append(self.getpeercert(binary_form=True) or b"")

    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # compared with the pin just below
    context.sslobject_class = Seen  # a response may have let go of its connection before it can be asked
    try:
        async with (
            _session(context) as session,
            _request(session, "GET", f"{url.rstrip('/')}{api.ROSTERS}/latest", proxy.way(url)),
        ):
            der = seen[-1] if seen else b""
    except FAULTS as fault:
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
