"""Envelopes over real TLS: polls that wait, replays, strangers, roles, junk, and who is there."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import ssl
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cloister.coordinator import init_coordinator, serve
from cloister.seal.identity import Identity
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
from cloister.wire import Envelope, api, sign_envelope

from .conftest import Federation, Member


async def post(member: Member, path: str, data: bytes, method: str = "POST") -> httpx2.Response:
    """A request past the client's good manners."""
    context = ssl.create_default_context(cadata=member.certificate)
    context.check_hostname = False
    async with httpx2.AsyncClient(verify=context, base_url=member.url) as http:
        return await http.request(method, path, content=data)


def refused(response: httpx2.Response, kind: type[CloisterError]) -> CloisterError:
    error = api.error_of(response.content, response.status_code)
    assert type(error) is kind, error
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == response.status_code
    return error


def poll_of(member: Member, seq: int = 1, **changes: Any) -> bytes:
    body = api.Poll(after=0, hold=0).to_bytes()
    envelope = Envelope("poll", member.id, "coordinator", "", 0, seq, body)
    return sign_envelope(member.identity, replace(envelope, **changes))


def test_an_envelope_is_accepted_once(federation: Federation) -> None:
    (kent,) = federation.admit("kent")
    data = poll_of(kent, seq=5)

    async def act() -> None:
        assert (await post(kent, api.POLL, data)).status_code == 204
        refused(await post(kent, api.POLL, data), EnvelopeReplayed)
        assert (await post(kent, api.POLL, poll_of(kent, seq=3))).status_code == 204  # overtaken, not replayed

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
        assert (await post(kent, api.POLL, poll_of(kent))).status_code == 204  # nothing above changed anything

    asyncio.run(act())


def test_a_body_over_the_limit_is_refused(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    (kent,) = federation.admit("kent")
    monkeypatch.setattr(api, "MAX_MESSAGE_BYTES", 1000)
    app_limit = api.MAX_MESSAGE_BYTES

    async def act() -> None:
        refused(await post(kent, api.ENROLL, bytes(app_limit + 1)), MalformedMessage)

    asyncio.run(act())


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
        away._http._client.base_url = "https://127.0.0.1:1"
        async with away:
            with pytest.raises(Unreachable, match="did not answer"):
                await away.poll(0, hold_seconds=0)

    asyncio.run(act())
    assert told
    assert "trying again" in told[0]


def test_an_answer_in_no_encoding_is_refused_by_name(federation: Federation) -> None:
    (kent,) = federation.admit("kent")

    async def garbled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\njunk")
        writer.close()

    async def act() -> None:
        server = await asyncio.start_server(garbled, "127.0.0.1", 0)
        async with server, await kent.client(patience_seconds=0.5) as site:
            site._http._client.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            with pytest.raises(MalformedMessage, match="encoding"):
                await site.poll(0, hold_seconds=0)

    asyncio.run(act())


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
