"""Another question while a site still trains: the worker that is on its way out is not asked any more."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cloister.site.runs import SiteRun
from cloister.vector import Answer, Layout, Query
from cloister.vector.layout import Block


class Slow:
    """A training process: `close` takes a moment, as an operating system does."""

    alive = True

    async def answer(self, query: Query, data: bytes) -> Answer:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
            self.alive = False
            raise
        raise AssertionError("it is ended before")


class Quick:
    alive = True

    async def answer(self, query: Query, data: bytes) -> Answer:
        return Answer(1, {})


def test_a_new_question_waits_for_a_new_worker(tmp_path: Path) -> None:
    folder = SimpleNamespace(root=tmp_path, state=lambda run: tmp_path)
    desk: Any = SimpleNamespace(journal=None, site="bern", folder=folder, tell=lambda event, **facts: None)
    query = Query("train", Layout((Block("delta", (1,), bound=1.0),)), max_rows=1)

    async def act() -> Answer:
        run: Any = SiteRun(desk, "00" * 16)
        slow = Slow()

        async def ready() -> Any:
            return slow if slow.alive else Quick()

        run._ready_worker = ready
        async with asyncio.TaskGroup() as run._tasks:
            run._train(b"one", query, b"")
            await asyncio.sleep(0.01)
            run._train(b"two", query, b"")
            return await run._training[1]

    assert asyncio.run(act()).rows == 1
