"""Fixed point: exact sums, no wrap at the extremes, the stated error bound, nothing clipped silently."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.vector import Block, FixedPoint, Layout, Query, open_total
from cloister.vector.errors import BoundError, LayoutError
from cloister.vector.layout import BITS, SHARES, Words


def sum_of(coder: FixedPoint, contributions: list[Words]) -> Words:
    total = np.zeros(coder.size, coder.dtype)
    for words in contributions:
        total += words
    return total & coder.dtype.type((1 << coder.bits) - 1)


@settings(deadline=None, max_examples=60)
@given(
    sites=st.integers(1, 40),
    bits=st.sampled_from(BITS),
    bound=st.floats(1e-6, 1e9),
    size=st.integers(0, 5),
    wide=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_decoded_sum_is_within_half_a_step_for_each_site(sites, bits, bound, size, wide, seed):
    coder = FixedPoint(Layout((Block("x", (size,), bound, wide=wide),)), sites, bits)
    values = np.random.default_rng(seed).uniform(-bound, bound, (sites, size))
    total = coder.decode(sum_of(coder, [coder.encode({"x": row}, 1.0)[0] for row in values]))["x"]
    rounding = sites * coder.step("x") / 2 + 1e-15 * sites * bound
    assert np.all(np.abs(total - values.sum(0)) <= rounding)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sites", [3, 7, 8, 100, 127])
@pytest.mark.parametrize("bound", [8.0, 7.3, 1.0])
@pytest.mark.parametrize("wide", [False, True])
def test_nothing_wraps_at_the_extremes(bits, sites, bound, wide):
    coder = FixedPoint(Layout((Block("x", (2,), bound, wide=wide),)), sites, bits)
    words, _ = coder.encode({"x": np.array([bound, -bound])}, 1.0)
    total = coder.decode(sum_of(coder, [words] * sites))["x"]
    assert np.allclose(total, [sites * bound, -sites * bound], atol=sites * coder.step("x"), rtol=0)


def test_more_sites_than_bits_can_carry_are_refused():
    with pytest.raises(BoundError, match="16 bits cannot carry"):
        FixedPoint(Layout((Block("x", (1,), 1.0),)), sites=5000, bits=16)
    with pytest.raises(BoundError):
        FixedPoint(Layout((Block("x", (1,), 1.0),)), sites=3, bits=31)


def test_wide_blocks_carry_integers_exactly():
    coder = FixedPoint(Layout((Block("rows", (3,), 2.0**30, wide=True),)), sites=100)
    rows = np.array([2**30, 1, 123_456_789])
    assert (
        coder.decode(sum_of(coder, [coder.encode({"rows": rows}, 1.0)[0]] * 100))["rows"].tolist()
        == (100 * rows).tolist()
    )


def test_clipping_is_counted_never_silent():
    coder = FixedPoint(Layout((Block("x", (4,), 1.0), Block("y", (), 10.0))), sites=3)
    words, clipped = coder.encode({"x": np.array([0.5, 2.0, -3.0, 1.0]), "y": 11.0}, 1.0)
    assert clipped == 3
    decoded = coder.decode(words)
    assert decoded["x"].tolist() == [0.5, 1.0, -1.0, 1.0]
    assert decoded["y"] == 10.0


def test_weight_multiplies_weighted_blocks_only():
    coder = FixedPoint(Layout((Block("w", (1,), 1.0, weighted=True), Block("s", (1,), 1.0))), sites=3)
    decoded = coder.decode(coder.encode({"w": np.ones(1), "s": np.ones(1)}, 0.25)[0])
    assert (decoded["w"][0], decoded["s"][0]) == (0.25, 1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value):
    coder = FixedPoint(Layout((Block("x", (3,), 1.0),)), sites=3)
    with pytest.raises(LayoutError, match="NaN or infinity"):
        coder.encode({"x": np.array([0.0, value, 0.0], np.float32)}, 1.0)


@pytest.mark.parametrize(
    "values",
    [{}, {"x": np.zeros(2)}, {"x": np.zeros(3), "y": 1.0}, {"x": np.zeros(3, complex)}, {"x": np.zeros((3, 1))}],
)
def test_other_names_shapes_or_types_than_the_layout_are_refused(values):
    with pytest.raises(LayoutError):
        FixedPoint(Layout((Block("x", (3,), 1.0),)), sites=3).encode(values, 1.0)


def test_rounding_is_half_to_even():
    coder = FixedPoint(Layout((Block("x", (4,), 2.0**27),)), sites=3)
    step = coder.step("x")
    words, _ = coder.encode({"x": np.array([0.5, 1.5, 2.5, -0.5]) * step}, 1.0)
    assert words.view(np.int32).tolist() == [0, 2, 2, 0]


@given(
    st.lists(
        st.tuples(st.text(max_size=8), st.lists(st.integers(0, 3), max_size=3), st.floats(1e-9, 1e9)), min_size=1
    )
)
def test_a_layout_survives_its_own_json(entries):
    blocks = tuple(Block(f"{at}{name}", tuple(shape), bound) for at, (name, shape, bound) in enumerate(entries))
    layout = Layout(blocks)
    assert Layout.from_json(layout.as_json()) == layout


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(junk)
def test_junk_is_no_layout(data):
    with pytest.raises(LayoutError):
        Layout.from_json(data)
    with pytest.raises(LayoutError):
        Layout.from_json([data])


@pytest.mark.parametrize("bits", [16, 20, 24, 32, 64])
@pytest.mark.parametrize("sites", [17, 1000, 30_000])
def test_weights_of_many_sites_cost_no_precision_and_nothing_wraps_up_to_sixteen_of_them(bits, sites):
    layout = Layout((Block("x", (2,), 1.0, weighted=True),))
    coder = FixedPoint(layout, sites, bits)
    assert coder.step("x") == FixedPoint(layout, SHARES, bits).step("x")
    rng = np.random.default_rng(sites)
    weights = rng.dirichlet(np.full(sites, 0.5)) * (SHARES - 1)  # far above what rows can add up to
    weights = np.minimum(weights, 1.0)
    words = [coder.encode({"x": np.array([1.0, -1.0])}, weight)[0] for weight in weights]
    total = coder.decode(sum_of(coder, words))["x"]
    assert np.abs(total - weights.sum() * np.array([1.0, -1.0])).max() <= sites * coder.step("x") / 2


def test_rows_that_nobody_counted_are_refused():
    query = Query("train", Layout((Block("x", (1,), 1.0, weighted=True),)), max_rows=100)
    coder = FixedPoint(query.sealed_layout, 40)

    def opened(rows: float) -> float:
        words = coder.encode({"x": np.zeros(1), "rows": rows, "clipped": 0.0}, min(rows, 100) / 100)[0]
        return open_total(query, coder, sum_of(coder, [words] * 40), 40).rows

    assert opened(40) == 1600
    with pytest.raises(BoundError, match="1,640 rows"):
        opened(41)
