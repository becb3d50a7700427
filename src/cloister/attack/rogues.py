"""Sites that cheat an honest coordinator: each is the product's agent with one step of it changed.

Run as a site's process: `command(NAME)` and the site's folder. What it is refused with is printed
for the suite, a JSON object a line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cloister.attack.liar import docstring_of, name_of
from cloister.seal import labels
from cloister.seal.client import SealClient
from cloister.seal.merkle import root_of
from cloister.seal.messages import Masked, SignedRoot, Unmask, label_of
from cloister.seal.shamir import SHARE_BYTES
from cloister.seal.state import SitePhase
from cloister.site import agent, run_agent, runs
from cloister.site.training import Worker
from cloister.vector import Answer, CloisterError, Query
from cloister.vector.layout import Words
from cloister.wire import CoordinatorClient

AWAITED: set[str] = set()  # the errors that this process is to be refused with


class Rogue:
    """One way to cheat. Says in its docstring what a `Lie` says.

    Attributes: seal, client, worker: what takes the place of the agent's. at: where it is found out: "coordinator",
      "event" (the coordinator goes on, and names the site in the round's event) or "site" (the agent itself refuses).
    """

    seal: ClassVar[type[SealClient]] = SealClient
    client: ClassVar[type[CoordinatorClient]]
    worker: ClassVar[type[Worker]] = Worker
    at: ClassVar[str] = "coordinator"


class Telling(CoordinatorClient):
    """Prints what it is refused with."""

    async def send(self, type: str, body: bytes, run: str = "", round: int = 0) -> None:
        with _told():
            await super().send(type, body, run, round)

    async def upload(self, header: bytes, payload: bytes | memoryview, run: str, round: int) -> None:
        with _told():
            await super().upload(header, payload, run, round)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except CloisterError as fault:
        print(json.dumps({"refused": fault.name}), flush=True)
        if fault.name not in AWAITED:
            raise  # as an honest site is refused that comes too late; it takes part in the next round
        os._exit(0)  # it got what it came for; as a process that is gone, nobody waits for it


Rogue.client = Telling


class GarbageShares(Rogue):
    """Answers the last question of a round with random shares of the others' secrets, so that no sum opens.

    Fails: the shares are checked against what was committed to; t others suffice, and the liar is named.
    Refused as: BadShare.
    """

    at = "event"

    class seal(SealClient):
        def receive(self, data: bytes) -> bytes | None:
            answer = super().receive(data)
            if answer is None or label_of(answer) != labels.UNMASK:
                return answer
            message = Unmask.from_bytes(answer)
            garbage = tuple(os.urandom(SHARE_BYTES - 1) + b"\0" for _ in message.shares)
            return replace(message, shares=garbage).signed(self._identity).to_bytes()


class ShortVector(Rogue):
    """Sends a vector that is one word short, so that the coordinator adds up what does not belong together.

    Fails: the coordinator knows the length of the plan.
    Refused as: BadUpload.
    """

    class seal(SealClient):
        def mask(self, words: Words) -> tuple[bytes, memoryview]:
            header, payload = super().mask(words)
            short = payload[: -words.itemsize]
            upload = Masked.from_bytes(header).upload
            changed = replace(upload, words=upload.words - 1, root=root_of(short)).signed(self._identity)
            return _announced(self, header, changed), short


class FalseRoot(Rogue):
    """Signs for another vector than the one it uploads, to contest the sum afterwards.

    Fails: the coordinator hashes what arrives, and keeps no part that is not of the root signed for.
    Refused as: BadUpload.
    """

    class seal(SealClient):
        def mask(self, words: Words) -> tuple[bytes, memoryview]:
            header, payload = super().mask(words)
            changed = replace(Masked.from_bytes(header).upload, root=os.urandom(32)).signed(self._identity)
            return _announced(self, header, changed), payload


def _announced(seal: SealClient, header: bytes, upload: SignedRoot) -> bytes:
    parts = (upload.root,)  # these vectors are of one part
    return replace(Masked.from_bytes(header), upload=upload, parts=parts).signed(seal._identity).to_bytes()


class ReplayedKeys(Rogue):
    """Sends its keys of an earlier round again, whose secrets were opened.

    Fails: a message names its round's context.
    Refused as: ContextMismatch.
    """

    class seal(SealClient):
        first: ClassVar[bytes] = b""

        def keys(self, query_digest: bytes) -> bytes:
            fresh = super().keys(query_digest)
            type(self).first = type(self).first or fresh
            return type(self).first


class SecondAnswer(Rogue):
    """Forgets in a crash that it answered, and answers the round a second time with other keys.

    Fails: the coordinator takes one message of a site in each phase, and none once the phase is closed.
    Refused as: DuplicateMessage, UnexpectedMessage.
    """

    class seal(SealClient):
        again: ClassVar[bytes] = b""

        def keys(self, query_digest: bytes) -> bytes:
            answers = []
            for _ in range(2):
                self.phase, self._journal = SitePhase.OPENED, _Forgetful()
                answers.append(super().keys(query_digest))
            type(self).again = answers[0]
            return answers[1]

    class client(Telling):
        async def send(self, type: str, body: bytes, run: str = "", round: int = 0) -> None:
            await super().send(type, body, run, round)
            if type == "keys":
                await super().send(type, SecondAnswer.seal.again, run, round)


class _Forgetful:
    def once(self, slot: str, value: bytes) -> None:
        pass


class NotANumber(Rogue):
    """Has training code answer with NaN, which no integer is.

    Fails: the agent checks what its training code answers before it becomes integers.
    Refused as: TaskError.
    """

    at = "site"

    class worker(Worker):
        async def answer(self, query: Query, data: bytes) -> Answer:
            answer = await super().answer(query, data)
            spoiled = {name: np.full(value.shape, np.nan, np.float32) for name, value in answer.values.items()}
            return replace(answer, values=spoiled)


ROGUES: dict[str, type[Rogue]] = {
    name_of(kind): kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, Rogue) and kind is not Rogue
}


def command(name: str) -> tuple[str, ...]:
    """What runs a site of this kind, before its folder."""
    return (sys.executable, "-c", "import sys; from cloister.attack.rogues import main; main(*sys.argv[1:])", name)


def main(name: str, folder: str) -> None:
    """A site that cheats, until it is ended."""
    kind = ROGUES[name]
    AWAITED.update(docstring_of(kind)[2])
    replaced: dict[Any, dict[str, type]] = {
        runs: {"SealClient": kind.seal, "Worker": kind.worker},
        agent: {"CoordinatorClient": kind.client},
    }
    for module, names in replaced.items():
        for attribute, other in names.items():
            assert hasattr(module, attribute), attribute
            setattr(module, attribute, other)
    run_agent(Path(folder))
