"""An addon of mitmdump, run by its own Python: each port is another institution's proxy.

The first opens TLS and writes down what it reads, the second tunnels, the third opens TLS and alters what comes back.
"""

import json
import os
from pathlib import Path

READS, TUNNELS, ALTERS = json.loads(os.environ["PROXY_PORTS"])
SEEN = Path(os.environ["PROXY_SEEN"])


def tls_clienthello(data) -> None:
    data.ignore_connection = data.context.client.sockname[1] == TUNNELS


def response(flow) -> None:
    port = flow.client_conn.sockname[1]
    if port == ALTERS and flow.response.content:
        body = bytearray(flow.response.content)
        body[-1] ^= 1
        flow.response.content = bytes(body)
    with SEEN.open("a") as file:
        sent = flow.request.content or b""
        file.write(json.dumps({"port": port, "path": flow.request.path, "sent": sent.decode("latin-1")}) + "\n")
