"""A real federation on this machine: one coordinator and several sites, each a process of its own, over TLS sockets.

The processes run the same commands that the README shows; nothing in them knows that it is a demonstration.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloister.cli.analyst import Analyst
from cloister.coordinator import admit, init_coordinator, invite
from cloister.site import join
from cloister.vector.errors import EnvironmentFailure
from cloister.wire import Invitation

ANALYST = "analyst"
START_SECONDS = 60.0
STOP_SECONDS = 10.0
LOOK_SECONDS = 0.005  # how often a child's log is looked at for the one event that is waited for

Event = Mapping[str, Any]


@dataclass
class Loopback:
    """One federation under `folder`: coordinator/, sites/ID/, analyst/, logs/, root.key.

    Attributes: processes: by name, "coordinator" and the sites' ids; those killed stay until started again.
    """

    folder: Path
    federation: str = "demo"
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    url: str = ""

    @property
    def coordinator(self) -> Path:
        return self.folder / "coordinator"

    def site(self, id: str) -> Path:
        return self.folder / "sites" / id

    def log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.jsonl"

    def found(self, dataset: str, tables: Mapping[str, Path], say: Callable[[str], None]) -> Analyst:
        """Founds the federation and starts everything; if that fails, ends what it started.

        Args: tables: site id -> its CSV, bound to `dataset`.
        """
        try:
            return self._found(dataset, tables, say)
        except BaseException:
            self.stop()
            raise

    def _found(self, dataset: str, tables: Mapping[str, Path], say: Callable[[str], None]) -> Analyst:
        say("coordinator: keys, certificate, root key, invitations")
        made = init_coordinator(
            self.coordinator, self.federation, port=free_port(), root_path=self.folder / "root.key"
        )
        self.url = made.url
        invitations = invite(self.coordinator, list(tables), "site")
        guest = invite(self.coordinator, [ANALYST], "analyst")[0]
        self.start("coordinator", "coordinator", "serve", "--folder", str(self.coordinator))
        self.wait("coordinator", lambda event: event.get("event") == "ready")
        say(f"coordinator: serving {self.url}; {len(tables)} sites join by invitation")
        analyst = self._enrol(invitations, guest, dataset, tables)
        say("operator: admits them; the root key signs the roster")
        admit(self.coordinator, self.folder / "root.key", None)
        for id in tables:
            self.start_site(id)
        say("stewards: their agents start, and each reads the columns of its own table")
        for id in tables:
            self.wait(id, lambda event: event.get("event") == "ready")
        return analyst

    def _enrol(
        self, invitations: list[Invitation], guest: Invitation, dataset: str, tables: Mapping[str, Path]
    ) -> Analyst:
        for invitation in invitations:
            join(invitation, self.site(invitation.id), {dataset: tables[invitation.id]})
        return asyncio.run(Analyst.join(guest.encode(), self.folder / "analyst"))

    def start_site(self, id: str) -> None:
        self.start(id, "site", "run", str(self.site(id)))

    def start(self, name: str, *arguments: str) -> None:
        """Starts one command with --json; its events and its complaints go to its log."""
        self.log(name).parent.mkdir(parents=True, exist_ok=True)
        with open(self.log(name), "ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "cloister.cli", *arguments, "--json"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends them in order
            )

    def kill(self, name: str) -> None:
        """SIGKILL: the process gets no chance to say goodbye."""
        self.processes[name].kill()
        self.processes[name].wait()

    def events(self, name: str) -> Iterator[Event]:
        """What a process has said so far."""
        for line in self.log(name).read_text(errors="replace").splitlines():
            if line.startswith("{"):
                try:
                    yield json.loads(line)
                except ValueError:
                    continue  # a line that is still being written

    def wait(self, name: str, wanted: Callable[[Event], bool]) -> None:
        """Blocks until a process has said what is wanted. Raises: EnvironmentFailure: it ended, or took too long."""
        end = time.monotonic() + START_SECONDS
        while not any(wanted(event) for event in self.events(name)):
            self.check(name)
            if time.monotonic() > end:
                raise EnvironmentFailure(f"{name} did not start within {START_SECONDS:.0f} s.", mend=self._see(name))
            time.sleep(LOOK_SECONDS * 4)

    def freeze_children(self, name: str) -> None:
        """Stops (SIGSTOP) what a process started, and what that did: a site's training hangs, its agent goes on."""
        parents = [self.processes[name].pid]
        while parents:
            pid = parents.pop()
            children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
            for child in children:
                os.kill(child, signal.SIGSTOP)
            parents += children

    async def saw(self, name: str, wanted: Callable[[Event], bool]) -> Event:
        """The first wanted thing that a process says from now on."""
        with open(self.log(name), errors="replace") as log:
            log.seek(0, os.SEEK_END)
            line = ""
            while True:
                line += log.readline()
                if not line.endswith("\n"):
                    await asyncio.sleep(LOOK_SECONDS)
                    continue
                if line.startswith("{") and wanted(event := json.loads(line)):
                    return event  # type: ignore[no-any-return]
                line = ""

    def check(self, name: str) -> None:
        """Raises: EnvironmentFailure: the process ended by itself."""
        code = self.processes[name].poll()
        if code is None:
            return
        said = [event for event in self.events(name) if "message" in event and "error" in event]
        what = said[-1]["message"] if said else f"exit code {code}."
        raise EnvironmentFailure(f"{name} ended: {what}", mend=self._see(name))

    def _see(self, name: str) -> str:
        return f"See {self.log(name)}."

    def stop(self) -> None:
        """Ends every process: asks first, and kills what does not listen."""
        running = [process for process in self.processes.values() if process.poll() is None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        end = time.monotonic() + STOP_SECONDS
        for process in running:
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
