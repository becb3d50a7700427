from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.simulation import shards, skewed
from cloister.simulation.partition import cut
from cloister.vector.errors import DataError, UsageError


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


LABELS = pd.Series(np.arange(1000) % 10)


@pytest.mark.parametrize("partition", ["skewed", "iid", "dirichlet:0.3", "shards:2", "sizes:0.5"])
def test_every_partition_deals_each_row_once_and_follows_the_seed(partition):
    parts = cut(partition, LABELS, 7, seed=1)
    assert sorted(np.concatenate(parts).tolist()) == list(range(1000))
    assert min(map(len, parts)) >= 1
    assert all((np.diff(part) > 0).all() for part in parts)
    again, other = cut(partition, LABELS, 7, seed=1), cut(partition, LABELS, 7, seed=2)
    assert all(np.array_equal(left, right) for left, right in zip(parts, again, strict=True))
    assert not all(np.array_equal(left, right) for left, right in zip(parts, other, strict=True))


def test_partitions_are_what_their_papers_say():
    def labels_seen(partition: str) -> float:
        return float(np.mean([LABELS[part].nunique() for part in cut(partition, LABELS, 10, seed=0)]))

    assert labels_seen("iid") == 10
    assert labels_seen("shards:2") <= 4  # two shards of 50 rows touch two labels, three or four where one ends
    assert labels_seen("dirichlet:0.05") < labels_seen("dirichlet:1") < labels_seen("dirichlet:100") + 0.1
    even = [len(part) for part in cut("iid", LABELS, 10, seed=0)]
    assert set(even) == {100}
    sizes = [len(part) for part in cut("sizes:0.3", LABELS, 10, seed=0)]
    assert max(sizes) > 3 * np.median(sizes)


@pytest.mark.parametrize(
    ("partition", "says"),
    [
        ("stripes", "skewed, iid, dirichlet:ALPHA"),
        ("iid:3", "is not known"),
        ("dirichlet", "positive number"),
        ("dirichlet:-1", "positive number"),
        ("shards:1.5", "whole number"),
        ("shards:200", "1000 rows cannot make 2000 parts"),
        ("sizes:nan", "positive number"),
    ],
)
def test_unknown_partitions_and_senseless_numbers_name_what_is_valid(partition, says):
    with pytest.raises(UsageError) as error:
        cut(partition, LABELS, 10, seed=0)
    assert says in str(error.value)


@pytest.mark.parametrize("partition", ["iid", "sizes:1", "dirichlet:1"])
def test_more_clients_than_rows_are_refused(partition):
    with pytest.raises(UsageError, match="each needs at least one"):
        cut(partition, LABELS, 1001, seed=0)


def test_natural_sites_are_the_values_of_a_column_that_no_model_sees():
    frame = pd.DataFrame({"x": range(9), "y": [0, 1, 0] * 3, "ward": ["North", "South", "West"] * 3})
    sites = shards(frame, target="y", partition="by:ward")
    assert list(sites) == ["north", "south", "west"]
    assert list(sites["south"].columns) == ["x", "y"]
    assert sites["south"]["x"].tolist() == [1, 4, 7]
    with pytest.raises(DataError, match="no column 'wing'"):
        shards(frame, target="y", partition="by:wing")
    with pytest.raises(UsageError, match="by the target itself"):
        shards(frame, target="y", partition="by:y")


def test_noise_grows_from_site_to_site_and_touches_numbers_only():
    """Li 2022, section IV-B2: noise of deviation sigma * i / n at site i."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"age": rng.normal(60, 10, 4000), "flag": rng.integers(0, 2, 4000), "y": [0, 1] * 2000})
    frame["kind"] = "a"
    noisy = shards(frame, target="y", sites=4, partition="noise:3", seed=1)
    plain = shards(frame, target="y", sites=4, partition="iid", seed=1)
    added = [(noisy[site]["age"] - plain[site]["age"]).std() for site in plain]
    assert added == pytest.approx([10 * 3 * place / 4 for place in (1, 2, 3, 4)], rel=0.1)
    for site in plain:
        pd.testing.assert_frame_equal(noisy[site].drop(columns="age"), plain[site].drop(columns="age"))
    pd.testing.assert_frame_equal(
        noisy["site-2"], shards(frame, target="y", sites=4, partition="noise:3", seed=1)["site-2"]
    )
    with pytest.raises(UsageError, match="needs a positive number"):
        shards(frame, target="y", partition="noise:loud")


def test_pixels_get_noise_too_when_a_site_is_asked():
    x = np.random.default_rng(0).integers(0, 255, (400, 6), np.uint8)
    sites = shards((x, np.arange(400) % 2), target=None, sites=4, partition="noise:0.5")
    plain = shards((x, np.arange(400) % 2), target=None, sites=4, partition="iid")
    added = sites["site-4"].x - plain["site-4"].x / np.float32(255)
    assert sites["site-4"].x.dtype == np.float32
    assert added.std() == pytest.approx(0.5 * x.std() / 255, rel=0.1)
    np.testing.assert_array_equal(sites["site-4"].x, sites["site-4"].x)
    with pytest.raises(UsageError, match="no columns to cut by"):
        shards((x, np.arange(400) % 2), target=None, partition="sorted:age")


def test_sorted_gives_each_site_its_own_range_of_a_feature():
    frame = pd.DataFrame({"limit": [5.0, None, 1, 4, 2, 3, 9, 7, 8], "y": [0, 1, 0] * 3})
    sites = shards(frame, target="y", sites=3, partition="sorted:limit")
    assert [sorted(part["limit"].dropna()) for part in sites.values()] == [[1, 2, 3], [4, 5, 7], [8, 9]]
    with pytest.raises(DataError, match="no column 'wing'"):
        shards(frame, target="y", partition="sorted:wing")


def test_arrays_are_cut_as_tables_are_and_copied_out_when_asked():
    x, y, test = np.arange(40.0).reshape(20, 2), np.arange(20) % 2, np.arange(20) >= 15
    sites = shards((x, y, test), target=None, sites=4, partition="iid")
    assert list(sites) == ["site-1", "site-2", "site-3", "site-4"]
    rows = np.concatenate([sites[site].x[:, 0] / 2 for site in sites])
    assert sorted(rows.tolist()) == list(range(20))
    one = sites["site-2"]
    np.testing.assert_array_equal(one.y, y[(one.x[:, 0] / 2).astype(int)])
    np.testing.assert_array_equal(one.test, test[(one.x[:, 0] / 2).astype(int)])
    assert sites.rows("site-2") == len(one) == 5
    with pytest.raises(UsageError, match="no columns to cut by"):
        shards((x, y), target=None, partition="by:ward")
    with pytest.raises(DataError, match="the data is a DataFrame"):
        shards(pd.DataFrame({"a": [1]}), target=None)
