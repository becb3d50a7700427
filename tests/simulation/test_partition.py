from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.simulation import skewed
from cloister.vector.errors import UsageError


@given(st.integers(1, 40), st.integers(0, 400), st.integers(1, 6), st.integers(0, 2**32))
def test_every_row_goes_to_exactly_one_site_and_every_site_gets_rows(sites, extra, labels, seed):
    target = pd.Series(np.random.default_rng(seed).integers(labels, size=sites + extra))
    parts = skewed(target, sites, seed)
    assert len(parts) == sites
    assert all(len(part) >= 1 for part in parts)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(target)))


def test_the_same_seed_gives_the_same_cut_and_another_seed_another():
    target = pd.Series(np.arange(200) % 2)
    first, again, other = (skewed(target, 5, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(left, right) for left, right in zip(first, again, strict=True))
    assert not all(np.array_equal(left, right) for left, right in zip(first, other, strict=True))


def test_sizes_and_label_shares_are_skewed_and_a_large_alpha_evens_the_labels():
    target = pd.Series(np.arange(2000) % 2)

    def spread(alpha: float) -> float:
        return float(
            np.mean([np.std([target[part].mean() for part in skewed(target, 5, s, alpha=alpha)]) for s in range(5)])
        )

    assert spread(1.0) > 0.1 > 0.05 > spread(1000.0)
    sizes = [len(part) for part in skewed(target, 5, 0)]
    assert max(sizes) > 1.5 * min(sizes)


def test_small_sites_are_filled_up():
    parts = skewed(pd.Series(np.arange(569) % 2), 10, 0, alpha=0.05)
    assert min(len(part) for part in parts) >= 20


def test_a_target_of_numbers_and_one_with_missing_labels_can_be_cut():
    numbers = pd.Series(np.linspace(0.0, 1.0, 100))
    assert sum(len(part) for part in skewed(numbers, 4, 0)) == 100
    texts = pd.Series(["yes", None, "no", "no"] * 5)
    assert sum(len(part) for part in skewed(texts, 3, 0)) == 20


@pytest.mark.parametrize(("sites", "rows"), [(0, 10), (11, 10), (3, 0)])
def test_more_sites_than_rows_is_refused(sites, rows):
    with pytest.raises(UsageError):
        skewed(pd.Series(np.zeros(rows)), sites, 0)
