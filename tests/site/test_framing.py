"""The pipe's frames: whatever bytes come, they parse as what was awaited or are refused before they cost memory."""

from __future__ import annotations

import asyncio
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.site import framing
from cloister.site.framing import HEADER, Kind
from cloister.vector import Answer, Layout
from cloister.vector.errors import MalformedMessage
from cloister.vector.layout import Block

kinds = st.sampled_from(list(Kind))
NAMES = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=20)


@given(kind=kinds, payload=st.binary(max_size=300))
def test_round_trip(kind: Kind, payload: bytes) -> None:
    pipe = io.BytesIO()
    framing.write(pipe, kind, payload)
    pipe.seek(0)
    assert framing.read(pipe, {kind: len(payload)}) == (kind, payload)


@given(data=st.binary(max_size=400), awaited=st.sets(kinds, min_size=1), most=st.integers(0, 300))
def test_any_bytes_are_a_frame_or_a_refusal(data: bytes, awaited: set[Kind], most: int) -> None:
    try:
        kind, payload = framing.read(io.BytesIO(data), dict.fromkeys(awaited, most))
    except (MalformedMessage, EOFError):
        return
    assert kind in awaited
    assert len(payload) <= most
    assert data.startswith(b"".join(framing.encode(kind, payload)))


@given(data=st.binary(max_size=200))
def test_both_readers_agree(data: bytes) -> None:
    limits = {Kind.ANSWER: 100, Kind.FAULT: 50}

    async def asynchronous() -> object:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        try:
            return await framing.receive(reader, limits)
        except (MalformedMessage, EOFError) as fault:
            return isinstance(fault, EOFError)

    try:
        expected: object = framing.read(io.BytesIO(data), limits)
    except (MalformedMessage, EOFError) as fault:
        expected = isinstance(fault, EOFError)
    assert asyncio.run(asynchronous()) == expected


def test_a_length_that_lies_is_refused_by_its_header() -> None:
    header = HEADER.pack(Kind.ANSWER, 1 << 62)
    with pytest.raises(MalformedMessage, match="at most 1000"):
        framing.parse_header(header, {Kind.ANSWER: 1000})


def test_a_kind_out_of_turn_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="READY"):
        framing.parse_header(HEADER.pack(Kind.ANSWER, 0), {Kind.READY: 0})


@given(
    sizes=st.dictionaries(NAMES, st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=6),
    rows=st.integers(0, 2**62),
)
def test_every_honest_answer_fits_its_limit(sizes: dict[str, list[int]], rows: int) -> None:
    layout = Layout(tuple(Block(name, tuple(shape), bound=1.0) for name, shape in sizes.items()))
    answer = Answer(rows, {name: np.zeros(shape, np.float64) for name, shape in sizes.items()})
    assert len(answer.to_bytes()) <= framing.answer_limit(layout)
