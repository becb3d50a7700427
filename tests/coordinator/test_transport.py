"""Envelopes over real TLS: polls that wait, replays, strangers, roles, junk, and who is there."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import itertools
import json
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cloister.coordinator import init_coordinator, serve
from cloister.seal import merkle
from cloister.seal.identity import Identity
from cloister.seal.messages import PART_BYTES, Masked, SignedRoot
from cloister.vector.errors import (
    AddressInUse,
    BadSignature,
    CloisterError,
    EnvelopeReplayed,
    JobError,
    MalformedMessage,
    NotInRoster,
    RoundVoid,
    StateLocked,
    UnexpectedMessage,
    Unreachable,
    UsageError,
)
from cloister.wire import CoordinatorClient, Envelope, api, sign_envelope

from .conftest import Federation, Member


@dataclass(frozen=True)
class Response:
    status: int
    kind: str
    content: bytes


async def post(member: Member, path: str, data: bytes, method: str = "POST") -> Response:
    """A request past the client's good manners."""
    context = ssl.create_default_context(cadata=member.certificate)
    context.check_hostname = False
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as http,
        http.request(method, member.url + path, data=data) as response,
    ):
        return Response(response.status, response.content_type, await response.read())


def refused(response: Response, kind: type[CloisterError]) -> CloisterError:
    error = api.error_of(response.content, response.status)
    assert type(error) is kind, error
    assert response.kind == "application/problem+json"
    assert json.loads(response.content)["status"] == response.status
    return error


def poll_of(member: Member, seq: int = 1, **changes: Any) -> bytes:
    body = api.Poll(after=0, hold=0).to_bytes()
    envelope = Envelope("poll", member.id, "coordinator", "", 0, seq, body)
    return sign_envelope(member.identity, replace(envelope, **changes))


def test_an_envelope_is_accepted_once(federation: Federation) -> None:
    (kent,) = federation.admit("kent")
    data = poll_of(kent, seq=5)

    async def act() -> None:
        assert (await post(kent, api.POLL, data)).status == 204
        refused(await post(kent, api.POLL, data), EnvelopeReplayed)
        assert (await post(kent, api.POLL, poll_of(kent, seq=3))).status == 204  # overtaken, not replayed

    asyncio.run(act())


def test_strangers_forgers_and_wrong_roles(federation: Federation) -> None:
    kent, lee = (*federation.admit("kent"), *federation.admit("dr.lee", role="analyst"))
    (invited,) = federation.invite("oslo")
    oslo = replace(invited, certificate=kent.certificate)

    async def act() -> None:
        refused(await post(kent, api.POLL, poll_of(oslo)), NotInRoster)
        forged = replace(kent, identity=Identity.generate(os.urandom))
        refused(await post(kent, api.POLL, poll_of(forged)), BadSignature)
        refused(await post(kent, api.POLL, poll_of(kent, recipient="lyon")), BadSignature)
        refused(await post(kent, api.POLL, poll_of(lee)), NotInRoster)
        refused(await post(kent, api.JOBS, poll_of(kent, type="submit")), NotInRoster)
        refused(await post(kent, api.MESSAGES, poll_of(kent)), UnexpectedMessage)
        refused(await post(kent, api.MESSAGES, poll_of(kent, type="open")), UnexpectedMessage)
        refused(await post(kent, api.POLL, poll_of(kent, body=b"junk")), MalformedMessage)
        for junk in (b"", b"\x00" * 100, os.urandom(500)):
            refused(await post(kent, api.POLL, junk), MalformedMessage)
        for path in (api.ENROLL, api.EVENTS, api.FETCH, api.JOBS, api.MESSAGES, api.RESULTS, api.RUNS, api.STOP):
            refused(await post(kent, path, os.urandom(60)), MalformedMessage)
        assert (await post(kent, api.POLL, poll_of(kent))).status == 204  # nothing above changed anything

    asyncio.run(act())


def test_a_body_over_the_limit_is_refused(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    (kent,) = federation.admit("kent")
    monkeypatch.setattr(api, "MAX_MESSAGE_BYTES", 1000)
    app_limit = api.MAX_MESSAGE_BYTES

    async def act() -> None:
        refused(await post(kent, api.ENROLL, bytes(app_limit + 1)), MalformedMessage)

    asyncio.run(act())


def hung_up_on(stranger: ssl.SSLSocket, more: bytes) -> bool:
    """Whether the other end goes without a word; the kernel may have taken all before that is seen."""
    stranger.settimeout(20)
    try:
        stranger.sendall(more)
        return stranger.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize(
    "start",
    [
        b"GET /",
        b"GET / HTTP/1.1\r\nhost: here\r\nlong: ",
        b"POST /v1/poll HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nlong: ",
    ],
)
def test_a_stranger_whose_head_does_not_end_is_hung_up_on(federation: Federation, start: bytes) -> None:
    (kent,) = federation.admit("kent")
    context = ssl.create_default_context(cadata=kent.certificate)
    context.check_hostname = False
    port = int(kent.url.rpartition(":")[2])
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port))) as stranger:
        stranger.sendall(start)
        assert hung_up_on(stranger, b"a" * (1 << 22))
    assert asyncio.run(post(kent, api.POLL, poll_of(kent))).status == 204


def test_messages_about_runs_and_rounds_that_are_not(federation: Federation) -> None:
    kent, lee = (*federation.admit("kent"), *federation.admit("dr.lee", role="analyst"))
    run = "0f" * 16

    async def act() -> None:
        async with await kent.client() as site, await lee.client() as analyst:
            for kind in ("keys", "shares", "consistent", "unmask"):
                with pytest.raises(RoundVoid):
                    await site.send(kind, b"x", run, 3)
            with pytest.raises(RoundVoid):
                await site.upload(b"header", b"payload", run, 3)
            with pytest.raises(UsageError):
                await site.refuse(api.Refusal(error="TaskError", message="no"), run, 3)
            with pytest.raises(UsageError):
                await site.fetch(bytes(32))
            with pytest.raises(MalformedMessage):
                await site.send("catalogue", b"[]")
            for ask in (analyst.status, analyst.result, analyst.stop):
                with pytest.raises(UsageError):
                    await ask(run)
            with pytest.raises(UsageError):
                await analyst.events(run, hold_seconds=0)
            with pytest.raises((JobError, MalformedMessage)):
                await analyst.submit(b"no bundle")

    asyncio.run(act())


def test_a_part_that_nobody_announced_is_not_taken(federation: Federation) -> None:
    (kent,) = federation.admit("kent")
    data = b"fill the disk"

    async def act() -> None:
        path = f"{api.PARTS}/{hashlib.sha256(data).hexdigest()}"
        refused(await post(kent, path, data, "PUT"), UnexpectedMessage)

    asyncio.run(act())
    assert not [path for path in (federation.folder / "parts").rglob("*") if path.is_file()]


def test_a_poll_waits_and_a_site_is_there_meanwhile(federation: Federation) -> None:
    kent, lee = (*federation.admit("kent"), *federation.admit("dr.lee", role="analyst"))

    async def act() -> None:
        async with await kent.client() as site, await lee.client() as analyst:
            assert (await analyst.status())["sites"] == [{"site": "kent", "live": False, "datasets": []}]
            await site.catalogue({"heart": {"age": "number"}})
            polling = asyncio.create_task(site.poll(0, hold_seconds=20))
            await asyncio.sleep(0.3)
            assert not polling.done()
            assert (await analyst.status())["sites"] == [{"site": "kent", "live": True, "datasets": ["heart"]}]
            polling.cancel()

    asyncio.run(act())


def test_a_killed_site_is_noticed_after_the_grace(federation: Federation) -> None:
    kent, lee = (*federation.admit("kent"), *federation.admit("dr.lee", role="analyst"))

    async def act() -> None:
        async with await kent.client() as site, await lee.client() as analyst:
            polling = asyncio.create_task(site.poll(0, hold_seconds=20))
            await asyncio.sleep(0.3)
            polling.cancel()  # closes the connection, as the kernel does for a killed process
            began = time.monotonic()
            while (await analyst.status())["sites"][0]["live"]:
                assert time.monotonic() - began < 2 * api.GRACE_SECONDS
                await asyncio.sleep(0.1)

    asyncio.run(act())


def test_retries_are_told_and_end_in_one_clear_error(federation: Federation) -> None:
    (kent,) = federation.admit("kent")
    told: list[str] = []

    async def act() -> None:
        away = await kent.client(patience_seconds=0.5, on_retry=told.append)
        away._http.url = "https://127.0.0.1:1"
        async with away:
            with pytest.raises(Unreachable, match="did not answer"):
                await away.poll(0, hold_seconds=0)

    asyncio.run(act())
    assert told
    assert "trying again" in told[0]


Answer = Callable[[int], bytes]


@asynccontextmanager
async def talking_to(
    member: Member, answer: Answer, heard: list[bytes] | None = None, **settings: Any
) -> AsyncIterator[CoordinatorClient]:
    """A member's client whose coordinator hears a body, says `answer(n)` to the n-th, and hangs up."""
    asked, heard = itertools.count(), [] if heard is None else heard

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
        heard.append(await reader.readexactly(int(length or 0)))
        writer.write(answer(next(asked)))
        writer.close()

    server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
    async with server, await member.client(patience_seconds=0.5, **settings) as client:
        client._http.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield client


def said(body: bytes, head: bytes = b"", status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\n%scontent-length: %d\r\n\r\n%s" % (status, head, len(body), body)


def test_an_answer_in_an_encoding_is_refused_by_name(federation: Federation) -> None:
    """A few kilobytes that decompress to any number would fill a site's memory."""
    (kent,) = federation.admit("kent")
    bomb = said(gzip.compress(bytes(1 << 20)), b"content-encoding: gzip\r\n")

    async def act() -> None:
        async with talking_to(kent, lambda _: bomb) as site:
            with pytest.raises(MalformedMessage, match="encoding"):
                await site.poll(0, hold_seconds=0)

    asyncio.run(act())


@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad Request"])
@pytest.mark.parametrize("told", [True, False])
def test_an_answer_over_the_limit_is_refused(federation: Federation, status: bytes, told: bool) -> None:
    """Whether its length is told beforehand or not; a smaller one is taken."""
    (kent,) = federation.admit("kent")
    limit, asked = api.MAX_MESSAGE_BYTES, []

    def answer(number: int) -> bytes:
        asked.append(number)
        body = bytes(limit + 1)
        return said(body, b"", status) if told else b"HTTP/1.1 %s\r\n\r\n%s" % (status, body)

    async def act() -> None:
        async with talking_to(kent, answer) as site:
            with pytest.raises(MalformedMessage, match="8,388,608 bytes"):
                await site.send("keys", b"")
        async with talking_to(kent, lambda _: said(bytes(limit))) as site:
            await site.send("keys", b"")

    asyncio.run(act())
    assert asked == [0]


def test_each_question_has_its_own_limit(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob may be larger than a mailbox, and that than an answer."""
    (kent,) = federation.admit("kent")
    for name, limit in (("MAX_ANSWER_BYTES", 2000), ("MAX_BLOB_BYTES", 3000)):
        monkeypatch.setattr(api, name, limit)
    long = bytes(3001)

    async def act() -> None:
        async with talking_to(kent, lambda _: said(long)) as site:
            with pytest.raises(MalformedMessage, match=r"2,000 bytes to /v1/poll"):
                await site.poll(0, hold_seconds=0)
            with pytest.raises(MalformedMessage, match=r"3,000 bytes to /v1/fetch"):
                await site.fetch(bytes(32))
        async with talking_to(kent, lambda _: said(long[1:])) as site:
            assert await site.fetch(hashlib.sha256(long[1:]).digest()) == long[1:]

    asyncio.run(act())


@pytest.mark.parametrize(
    "half",
    [
        said(b"whole")[:-2],
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nwh",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"",
        b"\x15\x03\x01 junk\r\n\r\n",
        said(b"", status=b"503 Service Unavailable"),
    ],
)
def test_half_an_answer_is_asked_for_again(federation: Federation, half: bytes) -> None:
    """Under a new number each time, since the old one may have arrived."""
    (kent,) = federation.admit("kent")
    told: list[str] = []

    async def act() -> None:
        async with talking_to(kent, lambda n: said(b"whole") if n else half, on_retry=told.append) as site:
            before = next(kent.numbers)
            assert await site.fetch(hashlib.sha256(b"whole").digest()) == b"whole"
            assert next(kent.numbers) == before + 3

    asyncio.run(act())
    assert len(told) == 1


def test_no_redirect_is_followed(federation: Federation) -> None:
    (kent,) = federation.admit("kent")

    async def act() -> None:
        elsewhere = said(b"", b"location: https://elsewhere.invalid/\r\n", b"307 Temporary Redirect")
        async with talking_to(kent, lambda _: elsewhere) as site:
            with pytest.raises(CloisterError, match="HTTP status 307"):
                await site.send("keys", b"")

    asyncio.run(act())


def test_parts_are_found_by_the_digests_of_the_signed_header(federation: Federation) -> None:
    (kent,) = federation.admit("kent")
    words = PART_BYTES // 4 + 1
    payload = os.urandom(4 * words)
    digests = [hashlib.sha256(payload[at : at + PART_BYTES]) for at in (0, PART_BYTES)]
    parts = tuple(each.digest() for each in digests)
    signed = SignedRoot(bytes(32), bytes(32), bytes(32), words, 32, "kent", merkle.root(parts), bytes(64))
    header = Masked(bytes(32), signed, parts, signature=bytes(64)).to_bytes()
    first, second = (each.hexdigest() for each in digests)
    heard: list[bytes] = []

    def wants(*names: str) -> Answer:
        return lambda n: said(b"" if n else api.Missing(missing=names).to_bytes())

    async def act() -> None:
        async with talking_to(kent, wants(second, first), heard) as site:
            await site.upload(header, payload, "0f" * 16, 3)
        async with talking_to(kent, wants()) as site:
            await site.upload(header, payload, "0f" * 16, 3)
        for name in ("00" * 32, "no digest"):
            async with talking_to(kent, wants(name)) as site:
                with pytest.raises(MalformedMessage, match="does not have"):
                    await site.upload(header, payload, "0f" * 16, 3)

    asyncio.run(act())
    assert heard[1:] == [payload[PART_BYTES:], payload[:PART_BYTES]]


def test_a_taken_port_and_a_served_folder(federation: Federation, tmp_path: Path) -> None:
    other = init_coordinator(tmp_path / "other", "heart", root_path=tmp_path / "other.key")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(AddressInUse, match="taken"):
        serve(other.path, port=taken.getsockname()[1])
    with pytest.raises(StateLocked):
        serve(federation.folder, port=0)
    with pytest.raises(UsageError, match="cannot listen"):
        serve(other.path, host="203.0.113.1", port=0)


def test_problem_documents_hold_the_standard_fields(federation: Federation) -> None:
    (kent,) = federation.admit("kent")

    async def act() -> None:
        document = json.loads((await post(kent, api.POLL, b"junk")).content)
        assert {"type", "title", "status", "detail"} <= set(document)

    asyncio.run(act())
