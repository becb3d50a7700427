"""Bodies and problem documents: strict on the way in, the same error on the other side."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.vector import CloisterError
from cloister.vector.errors import MalformedMessage, PolicyRefused, StorageFull, error_names
from cloister.wire import api

BODIES = [
    api.Enroll,
    api.Poll,
    api.Catalogue,
    api.Missing,
    api.Refusal,
    api.JobNotice,
    api.Void,
    api.Done,
    api.RunRef,
    api.EntryRef,
    api.Challenge,
    api.Watch,
]


def test_the_list_of_bodies_is_complete() -> None:
    assert set(BODIES) == set(api.Body.__subclasses__())


@given(st.sampled_from(BODIES), st.binary(max_size=100))
def test_junk_parses_or_is_malformed(kind: type[api.Body], junk: bytes) -> None:
    with contextlib.suppress(MalformedMessage):
        kind.from_bytes(junk)


def test_unknown_fields_are_refused_and_values_are_not_repeated() -> None:
    with pytest.raises(MalformedMessage) as caught:
        api.Poll.from_bytes(b'{"after": 0, "hold": 1, "secret": "xyzzy"}')
    assert "secret" in str(caught.value)
    assert "xyzzy" not in str(caught.value)


RUN, HEX = "0f" * 16, "0f" * 32
ROUND = {"round": 3, "total": HEX, "keylist": None, "consistency": HEX, "kept": True}
RESULT = {"run": RUN, "status": "done", "job": HEX, "submission": HEX, "state": HEX, "receipts": [HEX]}
ANSWERS: list[tuple[Any, Any]] = [
    (api.Submitted, {"run": RUN}),
    (api.Status, {"federation": "heart", "runs": [{"run": RUN, "status": "done", "name": None}]}),
    (api.RunLine, {"run": RUN, "status": "running", "rounds": {"done": 3}}),
    (api.RunResult, {**RESULT, "rounds": [ROUND], "history": [{"loss": 0.1}]}),
    (list[api.Happened], [{"number": 1, "event": "round", "sites": 3}, {"number": 2, "event": "done", "at": 0.5}]),
]


@pytest.mark.parametrize(("kind", "answer"), ANSWERS)
def test_an_answer_is_passed_on_as_it_came(kind: Any, answer: Any) -> None:
    assert api.told(kind, json.dumps(answer).encode()) == answer


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        (api.Submitted, {"run": "../../etc"}),
        (api.Status, {"runs": [{"run": 3}]}),
        (api.Status, []),
        (api.RunResult, RESULT),
        (api.RunResult, {**RESULT, "rounds": []}),
        (api.RunResult, {**RESULT, "rounds": [{**ROUND, "total": "x"}]}),
        (list[api.Happened], [{"event": "round", "number": 1}]),
        (list[api.Happened], [{"event": "failed", "number": 1, "error": 7}]),
        (list[api.Happened], {"event": "done", "number": 1}),
    ],
)
def test_an_answer_that_says_something_else_is_malformed(kind: Any, answer: Any) -> None:
    with pytest.raises(MalformedMessage):
        api.told(kind, json.dumps(answer).encode())


@pytest.mark.parametrize("junk", [b"", b"<html>", b"[" * 100_000, b"\xff", b"9" * 5000])
def test_an_answer_that_is_no_json_is_malformed(junk: bytes) -> None:
    for kind, _ in ANSWERS:
        with pytest.raises(MalformedMessage):
            api.told(kind, junk)


@pytest.mark.parametrize("name", sorted(error_names()))
def test_every_error_survives_the_wire(name: str) -> None:
    error = api.revive(name, "what was wrong", "what to do", "kent", "hours")
    problem = api.problem_of(error)
    assert 400 <= problem.status < 600
    back = api.error_of(problem.model_dump_json().encode(), problem.status)
    assert type(back) is error_names()[name]
    assert back.as_json() == error.as_json()


def test_rules_and_unreadable_answers() -> None:
    assert api.problem_of(PolicyRefused("no", rule="hours")).rule == "hours"
    assert api.problem_of(StorageFull("full")).status == 507
    assert type(api.error_of(b"<html>", 502)) is CloisterError
