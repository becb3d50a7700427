"""SIGKILL at any moment: the coordinator's process is killed in every phase of a round and the run still finishes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cloister.coordinator import init_coordinator
from cloister.learn import complete
from cloister.vector import State
from cloister.wire import CoordinatorClient

from .conftest import Federation, free_port
from .sites import MiniSite, job, table

SERVE = """
import sys
from pathlib import Path
from cloister.coordinator import serve
serve(Path(sys.argv[1]), ready=lambda url: print(url, flush=True))
"""
SITES = ("site-1", "site-2", "site-3", "site-4")
PHASES = ("open", "keylist", "ciphertexts", "survivors", "consistency", "receipt")


class Process:
    """`serve` in a process of its own, to be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        self._process = subprocess.Popen([sys.executable, "-c", SERVE, self._folder], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@pytest.mark.processes
def test_a_killed_coordinator_goes_on_where_it_was(tmp_path: Path) -> None:
    root = tmp_path / "root.key"
    folder = init_coordinator(tmp_path / "federation", "heart", port=free_port(), root_path=root)
    process = Process(folder.path)
    federation = Federation(folder.path, root, process.start())
    members, (lee,) = federation.admit(*SITES), federation.admit("dr.lee", role="analyst")
    killed: set[str] = set()

    def kill_once_in_each_phase(type: str, round: int) -> Any:
        """Round 1 + i is killed when the first site reads the i-th message of it."""
        if type in PHASES and round == 1 + PHASES.index(type) and type not in killed:
            killed.add(type)
            process.kill()
            return asyncio.to_thread(process.start)
        return None

    sites = [MiniSite(member, table(seed), kill_once_in_each_phase) for seed, member in enumerate(members)]

    async def act() -> tuple[dict[str, Any], list[dict[str, Any]], State]:
        living = [asyncio.create_task(site.live()) for site in sites]
        async with await lee.client(patience_seconds=30.0) as analyst:
            run = await analyst.submit(complete(job(rounds=5)).to_bytes())
            events = await _to_the_end(analyst, run)
            result = await analyst.result(run)
            await asyncio.wait_for(asyncio.gather(*living), 20)
            return result, events, State.from_bytes(await analyst.fetch(bytes.fromhex(result["state"])))

    try:
        result, events, state = asyncio.run(act())
    finally:
        process.kill()
    assert killed == set(PHASES)
    assert result["status"] == "done"
    failed = [event for event in events if event["event"] in ("void", "refused")]
    assert not failed, json.dumps(failed, indent=1)
    rounds = [event for event in events if event["event"] == "round"]
    assert [event["round"] for event in rounds] == list(range(len(rounds)))  # none twice, none void
    assert all(event["survivors"] == 4 for event in rounds)
    assert len(result["receipts"]) == len(rounds)
    assert all(site.receipts == sites[0].receipts and len(site.receipts) == len(rounds) for site in sites)
    assert state.facts["round"] == 5


async def _to_the_end(analyst: CoordinatorClient, run: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    while not events or events[-1]["event"] not in ("done", "failed", "stopped"):
        events += await analyst.events(run, events[-1]["number"] if events else 0)
    return events
