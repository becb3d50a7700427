"""From an untrusted answer to integers: everything the training code could get wrong is caught here."""

import numpy as np
import pytest

from cloister.round import contribute
from cloister.vector import Answer, Block, FixedPoint, Layout, Query, open_total
from cloister.vector.errors import TaskError


def query(clip: float | None = None) -> Query:
    layout = Layout((Block("delta", (4,), 8.0, clip=clip, weighted=True), Block("loss", (), 64.0, wide=True)))
    return Query("train", layout, max_rows=100, config={"round": 7})


def coder(asked: Query, sites: int = 3) -> FixedPoint:
    return FixedPoint(asked.sealed_layout, sites)


def answer(delta, rows=50, loss=1.0) -> Answer:
    return Answer(rows, {"delta": np.asarray(delta, np.float32), "loss": np.float64(loss)})


def test_a_sum_of_contributions_opens_to_the_weighted_mean():
    asked = query()
    parts = [contribute(answer([1, 2, 3, 4], rows=10), asked, coder(asked))]
    parts.append(contribute(answer([5, 6, 7, 8], rows=30), asked, coder(asked)))
    total = open_total(asked, coder(asked), parts[0] + parts[1], sites=2)
    assert np.allclose(total.mean("delta"), [4, 5, 6, 7], atol=1e-6)
    assert (total.rows, total.clipped, float(total.sums["loss"])) == (40, 0, 2.0)


def test_clipping_by_norm_and_by_bound_is_counted_in_the_sealed_vector():
    asked = query(clip=5.0)
    total = open_total(asked, coder(asked), contribute(answer([3, 4, 0, 0]), asked, coder(asked)), 1)
    assert total.clipped == 0
    total = open_total(asked, coder(asked), contribute(answer([30, 40, 0, 0]), asked, coder(asked)), 1)
    assert np.allclose(total.mean("delta"), [3, 4, 0, 0], atol=1e-6)
    assert total.clipped == 4
    asked = query()
    total = open_total(asked, coder(asked), contribute(answer([9, 0, -9, 0], loss=70.0), asked, coder(asked)), 1)
    assert total.clipped == 3


def test_more_rows_than_the_plan_allows_weigh_no_more_and_are_counted():
    asked = query()
    total = open_total(asked, coder(asked), contribute(answer([1, 1, 1, 1], rows=10**12), asked, coder(asked)), 1)
    assert (total.rows, total.clipped) == (100, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_diverged_model_is_named_with_its_round(value):
    asked = query()
    with pytest.raises(TaskError, match=r"round 7: .* 'delta' holds NaN") as caught:
        contribute(answer([0, value, 0, 0]), asked, coder(asked))
    assert "learning rate" in caught.value.mend


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"delta": np.zeros(4)},
        {"delta": np.zeros(5), "loss": np.float64(0)},
        {"delta": np.zeros((4, 1)), "loss": np.float64(0)},
        {"delta": np.zeros(4), "loss": np.float64(0), "more": np.zeros(1)},
        {"delta": np.zeros(4, complex), "loss": np.float64(0)},
        {"delta": np.array(["a", "b", "c", "d"]), "loss": np.float64(0)},
    ],
)
def test_an_answer_of_another_layout_is_refused(values):
    asked = query()
    with pytest.raises(TaskError):
        contribute(Answer(5, {name: np.asarray(value) for name, value in values.items()}), asked, coder(asked))
