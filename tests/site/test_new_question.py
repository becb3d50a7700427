"""Another question while a site still trains: the worker that is on its way out is not asked any more."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import cloister as cl
from cloister.round import Policy
from cloister.site import runs
from cloister.site.runs import SiteRun
from cloister.vector import Answer, CloisterError, FixedPoint, Layout, Query
from cloister.vector.errors import ContextMismatch, StaleReceipt, ThresholdTooLow, TooFewSites
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


def after_three_receipts(tmp_path: Path, refused: CloisterError, lines: dict[str, int]) -> Any:
    """A run whose seal refuses every round."""
    folder = SimpleNamespace(root=tmp_path, state=lambda run: tmp_path)
    journal = SimpleNamespace(last_receipt=lambda run: (2, b"r"))
    ledger = SimpleNamespace(charges=lambda federation: 0)
    desk: Any = SimpleNamespace(journal=journal, site="bern", folder=folder, ledger=ledger)
    desk.settings = SimpleNamespace(federation="clinics")

    async def nothing(*given: Any) -> Any:
        return SimpleNamespace(waits=False)

    def refuse(message: bytes) -> None:
        raise refused

    desk.follow_log = nothing
    run: Any = SiteRun(desk, "00" * 16)
    run._known = run._accept = nothing
    run._decide = lambda known: known
    run._policy = lambda: Policy(lines=lines)
    run._new_seal = lambda *given: SimpleNamespace(open=refuse)
    return run


@pytest.mark.parametrize(
    ("fault", "lines"), [(ThresholdTooLow, {"allow.assume_colluders": 7}), (TooFewSites, {}), (ContextMismatch, {})]
)
def test_what_the_seal_refuses_by_the_policy_names_its_line(
    tmp_path: Path, fault: type[CloisterError], lines: dict[str, int]
) -> None:
    run = after_three_receipts(tmp_path, fault("no", mend="as it was"), lines)
    with pytest.raises(fault) as caught:
        asyncio.run(run._opened(SimpleNamespace(body=b"", round=3)))
    told = "allow.assume_colluders: policy.toml, line 7" if lines else "as it was"
    assert caught.value.mend == told


def test_a_question_that_comes_with_its_receipt_is_late_and_no_lie(tmp_path: Path) -> None:
    """The mailbox of an agent that was killed holds a round's first message and its last."""
    run, told = after_three_receipts(tmp_path, StaleReceipt("no"), {}), []
    run._desk.tell = lambda event, **facts: told.append((event, facts["round"]))
    asyncio.run(run._opened(SimpleNamespace(body=b"", round=2)))
    assert told == [("late", 2)]


def test_an_asynchronous_algorithm_lets_it_end_until_it_is_too_old(tmp_path: Path) -> None:
    """FedBuff: what was begun for an earlier version is the answer to later ones, up to max_staleness."""
    folder = SimpleNamespace(root=tmp_path, state=lambda run: tmp_path)
    desk: Any = SimpleNamespace(journal=None, site="bern", folder=folder, tell=lambda event, **facts: None)
    layout = Layout((Block("delta", (2,), bound=1.0),))
    questions = [Query("train", layout, 1, config={"round": round_, "step": round_}) for round_ in range(5)]
    algorithm = cl.FedBuff(rounds=9, buffer=3, max_staleness=2)

    async def act() -> list[Query]:
        run: Any = SiteRun(desk, "00" * 16)
        run._accepted = SimpleNamespace(job=SimpleNamespace(algorithm=algorithm))
        slow = Slow()

        async def ready() -> Any:
            return slow if slow.alive else Quick()

        run._ready_worker = ready
        answered = []
        async with asyncio.TaskGroup() as run._tasks:
            for question in questions:
                run._train(bytes([question.config["round"]]), question, b"")
                await asyncio.sleep(0.01)
                answered.append(run._training[0])
            await run._training[1]
        return answered

    assert asyncio.run(act()) == [questions[0]] * 3 + [questions[3]] * 2
    aged = algorithm.aged({"delta": np.ones(2, np.float32), "train_loss": np.ones(())}, questions[1], questions[3])
    assert np.allclose(aged["delta"], 1 / np.sqrt(3))
    assert aged["train_loss"] == 1.0
    assert not cl.FedAvg(rounds=9).serves(questions[0], questions[1])


def test_what_was_masked_once_is_handed_in_for_that_question_alone(tmp_path: Path) -> None:
    """A round that is void by the coordinator's word may have opened: a later sum with the same update, over others,
    would differ from it by single sites."""
    folder = SimpleNamespace(root=tmp_path, state=lambda run: tmp_path)
    ledger = SimpleNamespace(charge=lambda charge, limit: SimpleNamespace(hash="00"))
    desk: Any = SimpleNamespace(journal=None, site="bern", folder=folder, ledger=ledger)
    desk.tell, desk.note = lambda event, **facts: None, lambda event, **facts: None
    layout = Layout((Block("delta", (2,), bound=1.0),))
    questions = [Query("train", layout, 1, config={"round": round_, "step": round_}) for round_ in range(3)]

    class Ready:
        alive = True

        async def answer(self, query: Query, data: bytes) -> Answer:
            return Answer(1, {"delta": np.ones(2, np.float32)})

    async def nothing(*_: Any) -> None:
        pass

    async def ready() -> Any:
        return Ready()

    async def act() -> list[Query]:
        run: Any = SiteRun(desk, "00" * 16)
        run._accepted = SimpleNamespace(job=SimpleNamespace(algorithm=cl.FedBuff(9, buffer=3), privacy=None))
        run._ready_worker, run._limit, desk.upload = ready, lambda charge: None, nothing
        begun = []
        async with asyncio.TaskGroup() as run._tasks:
            for at, question in enumerate(questions):
                run._train(bytes([at]), question, b"")
                begun.append(run._training[0])
                if at == 1:
                    plan = SimpleNamespace(round=at, query=b"\1", coder=FixedPoint(question.sealed_layout, 5))
                    seal = SimpleNamespace(mask=lambda words: (b"header", b"payload"), lay=lambda: None)
                    await run._contribute(SimpleNamespace(query=question, plan=plan, seal=seal, charge=None))
                    run._train(bytes([at]), question, b"")  # asked again after a void round: the same answer
                    assert run._training[0] is questions[0]
        return begun

    assert asyncio.run(act()) == [questions[0], questions[0], questions[2]]


@pytest.mark.parametrize(("summed", "left"), [(("bern", "kent"), False), (("kent", "oslo"), True)])
def test_what_was_handed_in_is_not_handed_in_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, summed: tuple[str, ...], left: bool
) -> None:
    receipt = SimpleNamespace(digest=b"d", u3=summed, check_follows=lambda *_: None)
    receipt.plan = SimpleNamespace(round=3, query=b"q")
    monkeypatch.setattr(runs, "open_receipt", lambda data, key: receipt)
    journal = SimpleNamespace(last_receipt=lambda run: (-1, b""), add_receipt=lambda *_: None)
    desk: Any = SimpleNamespace(journal=journal, site="bern", folder=SimpleNamespace(root=tmp_path), coordinator="c")
    desk.rosters, desk.note = SimpleNamespace(coordinator_key=lambda id: b""), lambda *_, **facts: None
    run: Any = SiteRun(desk, "00" * 16)
    run._training = (Query("train", Layout((Block("delta", (1,), bound=1.0),)), 1), None, b"q")
    run._keep_receipt(b"")
    assert (run._training is not None) == left
