"""One site in miniature, a process of its own: the real client and seal machine, and a training that only waits.

    python benchmarks/miniature.py < LINE        LINE: {"invitation", "key", "certificate", "seconds"} as JSON

`round.py` starts ten of them beside a real coordinator. It lives until the run is done.
"""

from __future__ import annotations

import asyncio
import json
import sys

from cloister.seal.identity import Identity
from cloister.wire import Invitation
from memory import Member, Sites


def line_of(member: Member, seconds: float) -> bytes:
    """What tells such a process who it is, and how long it trains."""
    facts = {
        "invitation": member.invitation.encode(),
        "key": member.identity.to_bytes().hex(),
        "certificate": member.certificate,
        "seconds": seconds,
    }
    return json.dumps(facts).encode() + b"\n"


async def run(members: list[Member], seconds: list[float]) -> None:
    """Starts one process for each member, and waits for the end of all of them. Raises: RuntimeError: one failed."""
    async with asyncio.TaskGroup() as group:
        for member, trains in zip(members, seconds, strict=True):
            group.create_task(_run(member, trains))


async def _run(member: Member, seconds: float) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, stdin=asyncio.subprocess.PIPE)
    try:
        await process.communicate(line_of(member, seconds))
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        raise RuntimeError(f"{member.invitation.id} ended with exit code {process.returncode}")


def main() -> None:
    facts = json.loads(sys.stdin.readline())
    identity = Identity.from_bytes(bytes.fromhex(facts["key"]))
    member = Member(Invitation.decode(facts["invitation"]), identity, certificate=facts["certificate"])
    asyncio.run(Sites([member], training_seconds=facts["seconds"]).live())


if __name__ == "__main__":
    main()
