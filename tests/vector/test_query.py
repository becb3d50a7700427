"""Queries, answers and states as bytes; totals."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.vector import Answer, Block, Layout, Query, State, digest, flatten, pack, unflatten, unpack
from cloister.vector.errors import LayoutError, MalformedMessage, TaskError
from cloister.vector.total import Total


def query() -> Query:
    layout = Layout((Block("delta", (3,), 8.0, weighted=True), Block("loss", (), 64.0, wide=True)))
    return Query("train", layout, 100, {"model": np.arange(3, dtype=np.float32)}, {"round": 1, "lr": 0.1}, 0.5)


def test_a_query_survives_its_own_bytes():
    parsed = Query.from_bytes(query().to_bytes())
    assert (parsed.task, parsed.layout, parsed.max_rows, parsed.config, parsed.fraction) == (
        "train",
        query().layout,
        100,
        {"round": 1, "lr": 0.1},
        0.5,
    )
    assert parsed.tensors["model"].tolist() == [0, 1, 2]


def test_equal_content_has_equal_bytes_whatever_the_order():
    one = pack({"b": 1, "a": 2}, {"y": np.zeros(2), "x": np.ones(3, np.float32)})
    two = pack({"a": 2, "b": 1}, {"x": np.ones(3, np.float32), "y": np.zeros(2)})
    assert digest(one) == digest(two)


@pytest.mark.parametrize("parse", [Query.from_bytes, Answer.from_bytes, State.from_bytes, unpack])
@given(data=st.binary(max_size=64))
def test_junk_is_refused(parse, data):
    with pytest.raises(MalformedMessage):
        parse(data)


def test_shapes_survive_packing() -> None:
    tensors = {
        "scalar": np.asarray(3.0),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "none": np.zeros((0, 2)),
    }
    for name, array in unpack(pack({}, tensors))[1].items():
        np.testing.assert_array_equal(array, tensors[name], strict=True)


@pytest.mark.parametrize("parse", [Query.from_bytes, Answer.from_bytes, State.from_bytes])
@given(at=st.integers(0), value=st.integers(0, 255))
def test_any_flipped_byte_parses_or_is_refused(parse, at, value):
    data = bytearray(query().to_bytes())
    data[at % len(data)] = value
    with contextlib.suppress(MalformedMessage):
        parse(bytes(data))


def test_weight_and_clipping_ride_in_the_sealed_layout():
    assert [block.name for block in query().sealed_layout.blocks] == ["delta", "loss", "rows", "clipped"]


def test_a_mean_over_no_rows_is_an_error():
    total = Total({"delta": np.zeros(3)}, rows=0.0, clipped=0.0, max_rows=10, sites=3)
    with pytest.raises(TaskError, match="no surviving site"):
        total.mean("delta")


def test_flatten_and_unflatten_are_inverse():
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float32(7.0), "c": np.zeros(0, np.float32)}
    flat = flatten(tensors, ["a", "b", "c"])
    back = unflatten(flat, {"a": (2, 3), "b": (), "c": (0,)})
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)
    with pytest.raises(LayoutError):
        unflatten(flat[1:], {"a": (2, 3), "b": ()})


def test_a_scalar_survives_the_way_through_the_pipe() -> None:
    answer = Answer(3, {"loss": np.float64(0.5), "delta": np.zeros((2, 3), np.float32)[:, ::2]})
    read = Answer.from_bytes(answer.to_bytes())
    assert {name: value.shape for name, value in read.values.items()} == {"loss": (), "delta": (2, 2)}
