"""`cloister coordinator serve`, with every byte that anybody sends it appended to a file.

    python recording_coordinator.py FOLDER RECORDING

The real server on a real socket; only the ASGI application is wrapped. One record: the lengths of head and body, a
line; then the head (method, path, query, headers) and the body.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from cloister.coordinator.app import make_app


def main(folder: Path, recording: Path) -> None:
    module: Any = import_module("cloister.coordinator.serve")
    file = recording.open("ab")

    def recording_app(hub: Any, runs: Any) -> Any:
        app = make_app(hub, runs)

        async def recorded(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                return await app(scope, receive, send)
            head = b" ".join([scope["method"].encode(), scope["raw_path"], scope["query_string"]])
            head += b"".join(b"\n" + name + b": " + value for name, value in scope["headers"])
            body = bytearray()

            async def heard() -> Any:
                message = await receive()
                body.extend(message.get("body", b""))
                return message

            try:
                await app(scope, heard, send)
            finally:
                file.write(f"{len(head)} {len(body)}\n".encode() + head + body)
                file.flush()

        return recorded

    module.make_app = recording_app
    module.serve(folder, ready=lambda url: print("ready", url, flush=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
