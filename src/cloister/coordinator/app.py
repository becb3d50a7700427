"""The HTTP interface: one handler for each path of `wire.api`, each of them thin.

Every request but enrolment, rosters and parts is one signed envelope: verified against the roster, its number
accepted once (a poll's for as long as the process lives), and only then acted upon. Errors are problem documents; the
state is as it was.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from cloister.coordinator.audits import Auditor
from cloister.coordinator.folder import COORDINATOR
from cloister.coordinator.hub import Hub
from cloister.coordinator.membership import enroll
from cloister.coordinator.runs import Runs
from cloister.vector import CloisterError
from cloister.vector.errors import MalformedMessage, NotInRoster, UnexpectedMessage, UsageError
from cloister.wire import Envelope, ReplayWindow, api, open_envelope
from cloister.wire.envelope import join

Handler = Callable[[Request], Awaitable[Response]]
SITE, ANALYST = ("site",), ("analyst",)
PIECE_BYTES = 1 << 18  # of a blob at a time


def make_app(hub: Hub, runs: Runs) -> Starlette:
    """The ASGI application of one coordinator."""
    desk = Desk(hub, runs)
    routes = [
        Route(api.ENROLL, desk.enroll, methods=["POST"]),
        Route(api.ROSTERS + "/{version}", desk.roster, methods=["GET"]),
        Route(api.POLL, desk.poll, methods=["POST"]),
        Route(api.MESSAGES, desk.message, methods=["POST"]),
        Route(api.PARTS + "/{name}", desk.part, methods=["PUT"]),
        Route(api.FETCH, desk.fetch, methods=["POST"]),
        Route(api.JOBS, desk.submit, methods=["POST"]),
        Route(api.RUNS, desk.status, methods=["POST"]),
        Route(api.EVENTS, desk.events, methods=["POST"]),
        Route(api.RESULTS, desk.result, methods=["POST"]),
        Route(api.STOP, desk.stop, methods=["POST"]),
        Route(api.LOG, desk.log, methods=["POST"]),
        Route(api.AUDITS, desk.audit, methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={CloisterError: _problem})


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, CloisterError)
    document = api.problem_of(error)
    return Response(document.model_dump_json(), document.status, media_type="application/problem+json")


def _json(data: Any) -> Response:
    return Response(json.dumps(data), media_type="application/json")


async def _body(request: Request, limit: int) -> bytes:
    """Raises: MalformedMessage: longer than `limit`; the rest is not read."""
    parts, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise MalformedMessage(f"a body of more than {limit:,} bytes")
        parts.append(chunk)
    return b"".join(parts)


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    """A file as fast as the other end takes it; read here, since most are in the machine's memory (they were just
    written), where a thread for each piece takes longer than the reading."""
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


class Desk:
    """Reads requests, asks `Runs`, answers."""

    def __init__(self, hub: Hub, runs: Runs) -> None:
        self._hub, self._runs = hub, runs
        self._auditor = Auditor(hub)
        # numbers of polls: not durable, since one that is replayed after a restart says only what was said before
        self._polls: dict[str, ReplayWindow] = {}

    async def _envelope(
        self, request: Request, types: tuple[str, ...], roles: tuple[str, ...], limit: int = api.MAX_MESSAGE_BYTES
    ) -> tuple[Envelope, bytes]:
        """The verified envelope of a request, and its signed bytes."""
        data = await _body(request, limit)
        envelope = open_envelope(data, self._hub.members.key_of, COORDINATOR)
        if self._hub.members.role_of(envelope.sender) not in roles:
            raise NotInRoster(f"{envelope.sender!r} is no {' or '.join(roles)}.")
        if envelope.type not in types:
            raise UnexpectedMessage(f"an envelope of type {envelope.type!r} at {request.url.path}")
        self._hub.traffic.up[envelope.sender] += len(data)
        self._hub.presence.heard(envelope.sender)
        return envelope, data

    def _accept_number(self, envelope: Envelope) -> None:
        self._hub.store.run_tx("number", lambda tx: tx.accept_number(envelope.sender, envelope.seq), flush=False)

    # joining

    async def enroll(self, request: Request) -> Response:
        asked = api.Enroll.from_bytes(await _body(request, api.MAX_MESSAGE_BYTES))
        enroll(self._hub.store, self._hub.folder.federation, asked, self._hub.now())
        return Response(status_code=204)

    async def roster(self, request: Request) -> Response:
        text = request.path_params["version"]
        if text != "latest" and not (text.isascii() and text.isdecimal() and len(text) < 10):
            raise UsageError(f"{text!r} is no roster version.")
        version = None if text == "latest" else int(text)
        signed = self._hub.store.look(lambda tx: tx.roster(version))
        if signed is None:
            raise UsageError(f"there is no roster version {text}.")
        return Response(signed, media_type="application/octet-stream")

    # sites

    async def poll(self, request: Request) -> Response:
        """Holds the request until there is mail; the site counts as there meanwhile."""
        envelope, _ = await self._envelope(request, ("poll",), SITE)
        site, asked = envelope.sender, api.Poll.from_bytes(envelope.body)
        store, signals = self._hub.store, self._hub.signals
        self._polls[site] = self._polls.get(site, ReplayWindow()).accept(envelope.seq, site)
        store.acknowledge(site, asked.after)
        with self._hub.presence.polling(site):
            mail, deadline = store.look(lambda tx: tx.mail_after(site, asked.after)), time.monotonic() + asked.hold
            while not mail and not signals.closing and (left := deadline - time.monotonic()) > 0:
                if await _gone(request, signals.waiter([f"mail/{site}"]), left):
                    break
                mail = store.look(lambda tx: tx.mail_after(site, asked.after))
        if not mail:
            return Response(status_code=204)
        body = join(mail)
        self._hub.traffic.down[site] += len(body)
        return Response(body, media_type="application/octet-stream")

    async def message(self, request: Request) -> Response:
        envelope, _ = await self._envelope(request, api.SITE_TYPES, SITE)
        if envelope.type == "catalogue":
            self._runs.catalogue(envelope)
        elif envelope.type == "refuse":
            self._runs.refuse(envelope)
        elif envelope.type == "masked":
            missing = await self._runs.round_of(envelope).announce(envelope)
            return _json({"missing": missing})
        else:
            await self._runs.round_of(envelope).take(envelope)
        return Response(status_code=204)

    async def part(self, request: Request) -> Response:
        """One part of a masked vector, streamed to disk. Only what a signed header announced is taken."""
        name = request.path_params["name"]
        wanted = [(round, *found) for round in self._runs.rounds.values() for found in round.expecting(name)]
        if not wanted:
            if any(round.announced(name) for round in self._runs.rounds.values()):
                return Response(status_code=204)  # complete already: the answer was lost on the way
            raise UnexpectedMessage("no site announced this part.")
        (first, site, length), parts = wanted[0], self._hub.parts
        if not parts.has(first.stored(name)):
            await parts.put_stream(first.stored(name), name, length, self._heard(request.stream(), site))
        for round, owner, _ in wanted:
            await round.part_arrived(owner)
        return Response(status_code=204)

    async def _heard(self, chunks: AsyncIterator[bytes], site: str) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            self._hub.presence.heard(site)
            self._hub.traffic.up[site] += len(chunk)
            yield chunk

    async def fetch(self, request: Request) -> Response:
        envelope, _ = await self._envelope(request, ("fetch",), SITE + ANALYST)
        self._accept_number(envelope)
        path = self._hub.blobs.path(envelope.body.hex())
        size = path.stat().st_size
        self._hub.traffic.down[envelope.sender] += size
        headers = {"content-length": str(size)}
        return StreamingResponse(_pieces(path), headers=headers, media_type="application/octet-stream")

    # what proves that all went well

    async def log(self, request: Request) -> Response:
        envelope, _ = await self._envelope(request, ("log", "entry"), SITE + ANALYST)
        self._accept_number(envelope)
        if envelope.type == "log":
            data = self._hub.log.shown()
        else:
            asked = api.EntryRef.from_bytes(envelope.body)
            data = self._hub.log.entry(asked.receipt, asked.since)
        self._hub.traffic.down[envelope.sender] += len(data)
        return Response(data, media_type="application/octet-stream")

    async def audit(self, request: Request) -> Response:
        envelope, _ = await self._envelope(request, ("audit",), SITE + ANALYST)
        self._accept_number(envelope)
        data = await self._auditor.answer(api.Challenge.from_bytes(envelope.body))
        self._hub.traffic.down[envelope.sender] += len(data)
        return Response(data, media_type="application/octet-stream")

    # analysts

    async def submit(self, request: Request) -> Response:
        envelope, signed = await self._envelope(request, ("submit",), ANALYST, api.MAX_BUNDLE_BYTES)
        return _json({"run": self._runs.submit(envelope, signed)})

    async def status(self, request: Request) -> Response:
        envelope, _ = await self._envelope(request, ("status",), SITE + ANALYST)
        self._accept_number(envelope)
        return _json(self._runs.status(api.RunRef.from_bytes(envelope.body).run))

    async def events(self, request: Request) -> Response:
        """Holds the request until there is an event."""
        envelope, _ = await self._envelope(request, ("watch",), ANALYST)
        asked = api.Watch.from_bytes(envelope.body)
        self._accept_number(envelope)
        store, signals, deadline = self._hub.store, self._hub.signals, time.monotonic() + asked.hold
        store.look(lambda tx: tx.run(asked.run))
        while True:
            found = store.look(lambda tx: tx.events_after(asked.run, asked.after))
            left = deadline - time.monotonic()
            if found or left <= 0 or signals.closing:
                return _json(found)
            if await _gone(request, signals.waiter([f"events/{asked.run}"]), left):
                return _json([])

    async def result(self, request: Request) -> Response:
        envelope, _ = await self._envelope(request, ("result",), ANALYST)
        self._accept_number(envelope)
        return _json(self._runs.result(api.RunRef.from_bytes(envelope.body).run))

    async def stop(self, request: Request) -> Response:
        envelope, _ = await self._envelope(request, ("stop",), ANALYST)
        self._runs.stop(envelope)
        return Response(status_code=204)


async def _gone(request: Request, waiter: asyncio.Future[None], seconds: float) -> bool:
    """Waits, and says whether the client hung up meanwhile (a killed process does, at once)."""
    hang_up = asyncio.ensure_future(request.receive())  # the body was read: what comes next is the disconnect
    try:
        await asyncio.wait((waiter, hang_up), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return hang_up.done()
    finally:
        waiter.cancel()
        hang_up.cancel()
