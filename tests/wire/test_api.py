"""Bodies and problem documents: strict on the way in, the same error on the other side."""

from __future__ import annotations

import contextlib

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
    api.RunRef,
    api.Watch,
]


@given(st.sampled_from(BODIES), st.binary(max_size=100))
def test_junk_parses_or_is_malformed(kind: type[api.Body], junk: bytes) -> None:
    with contextlib.suppress(MalformedMessage):
        kind.from_bytes(junk)


def test_unknown_fields_are_refused_and_values_are_not_repeated() -> None:
    with pytest.raises(MalformedMessage) as caught:
        api.Poll.from_bytes(b'{"after": 0, "hold": 1, "secret": "xyzzy"}')
    assert "secret" in str(caught.value)
    assert "xyzzy" not in str(caught.value)


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
