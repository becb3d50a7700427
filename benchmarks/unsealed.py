"""The same federation without a seal: what its transport costs, whoever sums.

    python benchmarks/unsealed.py serve FOLDER SITES WORDS
    python benchmarks/unsealed.py site URL CERTIFICATE SECONDS

As little as a federation can do over the same transport (uvicorn, TLS, the same client): each site fetches the model,
trains, and puts its float32 vector in one piece; the server adds it to the sum, and has the next model once all came.
No signatures, no durable state, no mailboxes: all that a sealed round does beyond this counts as the seal's.
"""

from __future__ import annotations

import asyncio
import io
import json
import ssl
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cloister.cli.loopback import free_port
from cloister.coordinator import init_coordinator
from cloister.coordinator.folder import open_folder

ROUNDS = 4


class Server:
    """Adds up what sites put; a model can be fetched once it is there."""

    def __init__(self, sites: int, words: int) -> None:
        self._sites, self._model, self._round = sites, np.zeros(words, np.float32), 0
        self._begin()
        self._learnt = asyncio.Condition()
        self.app = Starlette(
            routes=[
                Route("/model/{round:int}", self.model, methods=["GET"]),
                Route("/update", self.update, methods=["PUT"]),
            ]
        )

    def _begin(self) -> None:
        self._sum, self._came = np.zeros_like(self._model), 0

    async def model(self, request: Request) -> Response:
        async with self._learnt:
            await self._learnt.wait_for(lambda: self._round >= request.path_params["round"])
        return Response(self._model.tobytes())

    async def update(self, request: Request) -> Response:
        self._sum += np.frombuffer(await request.body(), np.float32)
        self._came += 1
        if self._came == self._sites:
            async with self._learnt:
                self._model += self._sum / self._sites
                self._round += 1
                self._begin()
                self._learnt.notify_all()
        return Response()


async def rounds(folder: Path, words: int, training: list[float]) -> list[float]:
    """Seconds of each round, of sites that train for so long, each a process of its own."""
    made = init_coordinator(folder, "plain", port=free_port(), root_path=folder.with_suffix(".key"))
    this = [sys.executable, __file__]
    with subprocess.Popen([*this, "serve", str(made.path), str(len(training)), str(words)]) as process:
        try:
            await _until_open(made.port)
            named = [*this, "site", f"https://127.0.0.1:{made.port}", str(made.certificate)]
            ends = await asyncio.gather(*(_told([*named, str(seconds)]) for seconds in training))
        finally:
            process.terminate()
    return np.diff(np.max(ends, axis=0)).tolist()


async def _told(command: list[str]) -> list[float]:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    return list(json.loads(out))


async def _until_open(port: int) -> None:
    for _ in range(600):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            return writer.close()
    raise TimeoutError("the server did not start")


async def live(url: str, certificate: str, training_seconds: float) -> list[float]:
    """When this site had each model in its hands."""
    trusted = ssl.create_default_context(cafile=certificate)
    trusted.check_hostname, had = False, []
    connector = aiohttp.TCPConnector(ssl=trusted)
    async with aiohttp.ClientSession(url, connector=connector, read_bufsize=1 << 20, raise_for_status=True) as client:
        for at in range(ROUNDS + 1):
            async with client.get(f"/model/{at}") as response:
                model = np.frombuffer(await response.read(), np.float32)
            had.append(time.monotonic())
            if at < ROUNDS:
                await asyncio.sleep(training_seconds)
                async with client.put("/update", data=io.BytesIO((model + 1).tobytes())):
                    pass
    return had


def serve(folder: Path, sites: int, words: int) -> None:
    made = open_folder(folder)
    certificate = {"ssl_certfile": made.certificate, "ssl_keyfile": made.certificate_key}
    app = Server(sites, words).app
    uvicorn.run(app, port=made.port, lifespan="off", log_level="warning", access_log=False, **certificate)


if __name__ == "__main__":
    role, first, second, third = sys.argv[1:]
    if role == "serve":
        serve(Path(first), int(second), int(third))
    else:
        print(json.dumps(asyncio.run(live(first, second, float(third)))))
