"""A process that has imported cloister once and forks a command for each line it reads: a start costs no import.

Reads {"name", "arguments", "crash", "log"} a line; writes {"name", "pid"} and, at its end, {"name", "pid", "status"}.
Each command is a process of its own, with a session of its own. Ends, and ends them all, when its input does.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from typing import Any

import cloister.coordinator.serve
import cloister.site.agent  # noqa: F401 - so that the children need not
from cloister.cli.app import run
from cloister.vector.crash import VARIABLE


def child(order: dict[str, Any]) -> None:
    """The command, from the fork to its end."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream, target in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
        os.dup2(target, stream)
    os.environ[VARIABLE] = order["crash"]
    code = 1
    try:
        code = run(order["arguments"])
    finally:
        sys.stdout.flush()
        os._exit(code)


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def main() -> None:
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake)
    names: dict[int, str] = {}
    source = sys.stdin.fileno()
    unread = b""
    while True:
        ready, _, _ = select.select([source, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
        while names and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            say(name=names.pop(ended[0]), pid=ended[0], status=ended[1])
        if source in ready:
            more = os.read(source, 1 << 16)
            if not more:
                break
            *orders, unread = (unread + more).split(b"\n")
            for order in map(json.loads, orders):
                pid = os.fork()
                if pid == 0:
                    child(order)
                names[pid] = order["name"]
                say(name=order["name"], pid=pid)
    for pid in names:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
