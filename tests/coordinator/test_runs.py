"""Whole runs over real TLS, with sites in miniature: the same model as a simulation, whoever drops out or dies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

import cloister as cl
from cloister.learn import complete
from cloister.vector import State
from cloister.vector.errors import JobError, TaskError
from cloister.wire import CoordinatorClient, Envelope

from .conftest import QUICK, Federation
from .sites import MiniSite, job, table

SITES = ("site-1", "site-2", "site-3", "site-4", "site-5")
Act = Callable[[CoordinatorClient], Awaitable[Any]]


class Crash(Exception):
    pass


def play(federation: Federation, sites: list[MiniSite], act: Act) -> Any:
    """Runs sites and an analyst together; returns what the analyst did."""
    (lee,) = federation.admit("dr.lee", role="analyst")

    async def main() -> Any:
        living = [asyncio.create_task(site.live()) for site in sites]
        await asyncio.sleep(0.5)
        try:
            async with await lee.client() as analyst:
                done = await act(analyst)
                await asyncio.wait(living, timeout=10)
        finally:
            for task in living:
                task.cancel()
            ended = await asyncio.gather(*living, return_exceptions=True)
        assert [fault for fault in ended if isinstance(fault, Exception) and not isinstance(fault, Crash)] == []
        return done

    return asyncio.run(main())


async def to_the_end(analyst: CoordinatorClient, run: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    while not events or events[-1]["event"] not in ("done", "failed", "stopped"):
        events += await analyst.events(run, events[-1]["number"] if events else 0)
    return events


async def whole_run(analyst: CoordinatorClient, what: cl.Job) -> tuple[dict[str, Any], State, list[dict[str, Any]]]:
    run = await analyst.submit(complete(what).to_bytes())
    events = await to_the_end(analyst, run)
    result = await analyst.result(run)
    return result, State.from_bytes(await analyst.fetch(bytes.fromhex(result["state"]))), events


def found(federation: Federation, sites: tuple[str, ...] = SITES, **settings: Any) -> list[MiniSite]:
    members = federation.admit(*sites)
    return [MiniSite(member, table(seed), **settings) for seed, member in enumerate(members)]


def test_a_run_gives_the_model_of_the_simulation(federation: Federation) -> None:
    sites, what = found(federation), job(prepare=[cl.Standardize()])
    result, state, events = play(federation, sites, lambda analyst: whole_run(analyst, what))
    assert result["status"] == "done"
    simulated = cl.simulate(what, {site.member.id: site.frame for site in sites})
    np.testing.assert_array_equal(state.tensors["model"], simulated.state.tensors["model"])
    rounds = [event for event in events if event["event"] == "round"]
    assert len(rounds) == len(result["receipts"])
    for event in rounds:
        assert (event["sites"], event["survivors"], event["dropped"]) == (5, 5, [])
        assert set(event["seconds"]) == {"keys", "shares", "masked", "consistent", "unmask", "open"}
        assert all(event["bytes_up"][site] > 0 and event["bytes_down"][site] > 0 for site in SITES)
    assert rounds[-1]["accuracy"] > 0.7
    assert all(site.receipts == sites[0].receipts and len(site.receipts) == len(rounds) for site in sites)


def test_a_site_that_dies_in_a_round_is_a_dropout_and_the_run_goes_on(federation: Federation) -> None:
    def crash(type: str, round: int) -> None:
        if (type, round) == ("ciphertexts", 2):
            raise Crash

    sites = found(federation)
    sites[4].before = crash
    result, _, events = play(federation, sites, lambda analyst: whole_run(analyst, job()))
    assert result["status"] == "done"
    rounds = {event["round"]: event for event in events if event["event"] == "round"}
    assert (rounds[2]["survivors"], rounds[2]["dropped"]) == (4, ["site-5"])
    assert rounds[3]["sites"] == 4
    assert not [event for event in events if event["event"] == "void"]


def test_as_many_as_the_threshold_leaves_may_be_lost_in_each_phase(federation: Federation) -> None:
    """Two of seven give up before each answer in turn, and are back in the next round; words have 20 bits."""
    phases = ("open", "keylist", "ciphertexts", "survivors", "consistency")

    def give_up(type: str, round: int) -> None:
        if 1 <= round <= len(phases) and type == phases[round - 1]:
            raise TaskError("for once.")

    sites = found(federation, tuple(f"site-{number}" for number in range(1, 8)))
    sites[2].before = sites[5].before = give_up
    what = job(bits=20, algorithm=cl.FedAvg(rounds=6, bound=2.0))
    result, _, events = play(federation, sites, lambda analyst: whole_run(analyst, what))
    assert result["status"] == "done"
    assert not [event for event in events if event["event"] == "void"]
    rounds = {event["round"]: event for event in events if event["event"] == "round"}
    assert [rounds[number]["survivors"] for number in range(7)] == [7, 5, 5, 5, 7, 7, 7]
    missing = {(event["round"], event["closed"]): event["missing"] for event in events if event["event"] == "phase"}
    for number, closed in enumerate(("keys", "shares", "masked", "consistent", "unmask"), 1):
        assert missing[number, closed] == ["site-3", "site-6"]


def test_a_site_that_refuses_a_round_is_recorded_and_asked_again(federation: Federation) -> None:
    def diverge(type: str, round: int) -> None:
        if (type, round) == ("ciphertexts", 1):
            raise TaskError("the loss is NaN.")

    sites = found(federation)
    sites[0].before = diverge
    result, _, events = play(federation, sites, lambda analyst: whole_run(analyst, job()))
    assert result["status"] == "done"
    (refused,) = [event for event in events if event["event"] == "refused"]
    assert (refused["site"], refused["error"], refused["round"]) == ("site-1", "TaskError", 1)
    sizes = [(event["sites"], event["survivors"]) for event in events if event["event"] == "round"]
    assert sizes[1] == (5, 4)
    assert set(sizes) == {(5, 5), (5, 4)}


def test_too_few_answers_void_a_round_and_the_next_one_asks_again(federation: Federation) -> None:
    def diverge(type: str, round: int) -> None:
        if (type, round) == ("ciphertexts", 1):
            raise TaskError("for once.")

    sites = found(federation)
    sites[0].before = sites[1].before = diverge
    result, _, events = play(federation, sites, lambda analyst: whole_run(analyst, job()))
    assert result["status"] == "done"
    (void,) = [event for event in events if event["event"] == "void"]
    assert (void["round"], void["error"]) == (1, "TooFewSurvivors")
    assert [event["round"] for event in events if event["event"] == "round"][:2] == [0, 2]


def test_a_run_without_enough_answers_fails_with_the_reason(federation: Federation) -> None:
    def diverge(type: str, round: int) -> None:
        if type == "ciphertexts":
            raise TaskError("always.")

    sites = found(federation, SITES[:3])
    sites[0].before = diverge

    async def act(analyst: CoordinatorClient) -> list[dict[str, Any]]:
        return await to_the_end(analyst, await analyst.submit(complete(job()).to_bytes()))

    events = play(federation, sites, act)
    assert (events[-1]["event"], events[-1]["error"]) == ("failed", "RoundVoid")


def test_a_table_that_does_not_fit_is_left_out_and_named(federation: Federation) -> None:
    sites = found(federation)
    sites[2].frame = sites[2].frame.rename(columns={"dose": "dosage"})
    contract = cl.Table("heart", target="ill", classes=2, columns={"age": "number", "dose": "number"})
    result, _, events = play(federation, sites, lambda analyst: whole_run(analyst, job(data=contract)))
    assert result["status"] == "done"
    refused = [event for event in events if event["event"] == "refused"]
    assert {(event["site"], event["error"]) for event in refused} == {("site-3", "DataError")}
    assert all("dose" in event["message"] for event in refused)
    assert {event["sites"] for event in events if event["event"] == "round"} == {4}


def test_a_wrong_target_fails_the_run_at_once(federation: Federation) -> None:
    sites = found(federation, SITES[:3])

    async def act(analyst: CoordinatorClient) -> list[dict[str, Any]]:
        wrong = complete(job(data=cl.Table("heart", target="sick", classes=2)))
        return await to_the_end(analyst, await analyst.submit(wrong.to_bytes()))

    events = play(federation, sites, act)
    assert (events[-1]["event"], events[-1]["error"]) == ("failed", "DataError")
    assert "sick" in events[-1]["message"]


def test_a_run_can_be_stopped(federation: Federation) -> None:
    sites = found(federation, SITES[:3])

    async def act(analyst: CoordinatorClient) -> list[dict[str, Any]]:
        run = await analyst.submit(complete(job(rounds=500)).to_bytes())
        while not [event for event in await analyst.events(run) if event["event"] == "round"]:
            pass
        await analyst.stop(run)
        return await to_the_end(analyst, run)

    events = play(federation, sites, act)
    assert events[-1]["event"] == "stopped"


def test_an_algorithm_may_name_whom_it_asks(federation: Federation) -> None:
    """FLTrust: a sum over the trusted sites, then one over the others, each with all their dropouts to itself."""
    sites = found(federation, (*SITES, "site-6"))
    what = job(algorithm=cl.FLTrust(1, trusted=("site-2", "site-3", "site-6"), buckets=1))
    result, state, events = play(federation, sites, lambda analyst: whole_run(analyst, what))
    assert result["status"] == "done"
    simulated = cl.simulate(what, {site.member.id: site.frame for site in sites})
    np.testing.assert_array_equal(state.tensors["model"], simulated.state.tensors["model"])
    asked = [event["sites"] for event in events if event["event"] == "open" and event["stage"] == "train"]
    assert asked == [["site-2", "site-3", "site-6"], ["site-1", "site-4", "site-5"]]


class Busy(MiniSite):
    """Trains for four rounds; meanwhile it answers all the rest, as an agent does."""

    async def _step(self, client: CoordinatorClient, envelope: Envelope) -> None:
        if not (envelope.type == "ciphertexts" and 2 <= envelope.round <= 5):
            await super()._step(client, envelope)


def test_a_buffer_waits_for_the_first_that_are_ready(federation: Federation) -> None:
    """FedBuff: a site that still trains is there, and nobody waits for it."""
    sites = found(federation)
    sites[4] = Busy(sites[4].member, sites[4].frame)
    what = job(algorithm=cl.FedBuff(6, buffer=4))
    result, _, events = play(federation, sites, lambda analyst: whole_run(analyst, what))
    assert result["status"] == "done"
    rounds = {event["round"]: event for event in events if event["event"] == "round"}
    for number in range(2, 6):
        assert (rounds[number]["survivors"], rounds[number]["dropped"]) == (4, ["site-5"])
        assert rounds[number]["seconds"]["masked"] < QUICK.training, "nobody waited for the deadline"
    assert all(event["survivors"] >= 4 for event in rounds.values() if event["stage"] == "train")
    assert not [event for event in events if event["event"] in ("void", "refused")]
    assert rounds[max(rounds)]["survivors"] == 5, "the final model is measured at all"


def test_a_buffer_that_the_seal_does_not_allow_ends_the_run_with_the_number(federation: Federation) -> None:
    async def act(analyst: CoordinatorClient) -> list[dict[str, Any]]:
        what = complete(job(algorithm=cl.FedBuff(2, buffer=3)))
        return await to_the_end(analyst, await analyst.submit(what.to_bytes()))

    events = play(federation, found(federation), act)
    assert events[-1]["event"] == "failed"
    assert "waits for 3 of the 5 sites" in events[-1]["message"]
    assert "buffer=4 or more" in events[-1]["mend"]


def test_a_site_that_an_algorithm_names_must_be_a_member(federation: Federation) -> None:
    what = job(algorithm=cl.FLTrust(1, trusted=("site-1", "site-2", "dover"), buckets=1))

    async def act(analyst: CoordinatorClient) -> list[dict[str, Any]]:
        return await to_the_end(analyst, await analyst.submit(complete(what).to_bytes()))

    events = play(federation, found(federation), act)
    assert events[-1]["event"] == "failed"
    assert "'dover', which is no site" in events[-1]["message"]


def test_an_algorithm_for_simulations_is_refused(federation: Federation) -> None:
    async def act(analyst: CoordinatorClient) -> None:
        with pytest.raises(JobError, match="Cyclic is for simulations") as refused:
            await analyst.submit(complete(job(algorithm=cl.Cyclic(rounds=2))).to_bytes())
        assert "Take FedAvg" in refused.value.mend
        raise Crash

    with pytest.raises(Crash):
        play(federation, [], act)


def test_a_bundle_must_be_a_job(federation: Federation) -> None:
    async def act(analyst: CoordinatorClient) -> None:
        with pytest.raises(JobError):
            await analyst.submit(complete(job()).to_bytes() + b"x")

    with pytest.raises(Exception):  # noqa: B017
        play(federation, [], act)
