"""Runs a coordinator: the application on uvicorn, over TLS, until it is told to stop. A kill loses nothing."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cloister.coordinator.app import make_app
from cloister.coordinator.folder import Folder, open_folder
from cloister.coordinator.hub import Hub, Patience
from cloister.coordinator.runs import Runs
from cloister.vector.errors import AddressInUse, StateLocked, UsageError

KEEPALIVE_SECONDS = 75  # as nginx; above the client's 30, so that no request meets a connection being closed
SHUTDOWN_SECONDS = 3  # for requests that are being answered; held polls are let go at once
MAX_HEAD_BYTES = 1 << 16  # of a request, as uvicorn with h11 has it; its httptools knows no limit
BACKLOG = 2048  # uvicorn's own default


def serve(
    folder: Path,
    host: str | None = None,
    port: int | None = None,
    ready: Callable[[str], None] = lambda url: None,
    patience: Patience | None = None,
) -> None:
    """Serves until SIGINT or SIGTERM.

    Args: host, port: to listen on; as initialised if None, any free port if 0. ready: told the URL once it answers.
    Raises: AddressInUse; StateLocked: another process serves this folder; UsageError: it is no coordinator's folder.
    """
    opened = open_folder(folder)
    host, port = host or opened.host, opened.port if port is None else port
    with _locked(opened), _bound(host, port) as listening:
        address = f"[{host}]" if ":" in host else host
        url = f"https://{address}:{listening.getsockname()[1]}"
        asyncio.run(_serve(opened, listening, lambda: ready(url), patience or Patience()))


async def _serve(folder: Folder, listening: socket.socket, ready: Callable[[], None], patience: Patience) -> None:
    hub = Hub(folder, patience)
    runs = Runs(hub)
    try:
        runs.resume()
        await make_server(hub, runs, ready).serve(sockets=[listening])
    finally:
        hub.signals.close()
        hub.close()


def make_server(hub: Hub, runs: Runs, ready: Callable[[], None]) -> uvicorn.Server:
    """The application on uvicorn, over TLS with the folder's certificate. Args: ready: told once it answers."""
    config = uvicorn.Config(
        make_app(hub, runs),
        http=_Bounded,
        ssl_certfile=hub.folder.certificate,
        ssl_keyfile=hub.folder.certificate_key,
        timeout_keep_alive=KEEPALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        lifespan="off",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )
    return _Server(config, hub, ready)


class _Bounded(HttpToolsProtocol):
    """Hangs up on a stranger whose URL, headers or trailers do not end, and would fill the memory."""

    _loose = 0  # bytes since the last end of a head, piece of a body or end of a request

    def data_received(self, data: bytes) -> None:
        self._loose += len(data)
        super().data_received(data)
        if self._loose > MAX_HEAD_BYTES:
            self.transport.abort()

    def on_headers_complete(self) -> None:
        self._loose = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._loose = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._loose = 0
        super().on_message_complete()


class _Server(uvicorn.Server):
    """Says when it answers, and lets held requests go when it is told to stop."""

    def __init__(self, config: uvicorn.Config, hub: Hub, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._hub, self._ready = hub, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._hub.signals.close()


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:  # else asyncio leaves Nagle on
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen(BACKLOG)  # here, since a port that another one listens on is only refused by this
        except OSError as fault:
            if fault.errno == errno.EADDRINUSE:
                mend = "Choose another with --port, or stop what uses it."
                raise AddressInUse(f"port {port} on {host} is taken.", mend=mend) from None
            mend = "Give an address of this machine with --host."
            raise UsageError(f"cannot listen on {host}:{port} ({fault.strerror or fault}).", mend=mend) from None
        yield listening


@contextmanager
def _locked(folder: Folder) -> Iterator[None]:
    with (folder.path / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            mend = "Stop it first, or use its address."
            raise StateLocked(f"another process serves {folder.path}.", mend=mend) from None
        yield
