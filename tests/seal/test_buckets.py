"""The partition: public, even, the same for the same question, and never into groups that hide nobody."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.seal.buckets import MIN_BUCKET, check_buckets, least, partition
from cloister.vector.errors import TooFewSites

SITES = tuple(f"site-{number:03d}" for number in range(60))
QUERY = bytes(range(32))


@given(st.binary(min_size=32, max_size=32), st.integers(5, 60), st.integers(1, 12))
def test_every_site_is_in_one_bucket_and_sizes_differ_by_one(query: bytes, sites: int, buckets: int) -> None:
    found = partition(query, SITES[:sites], buckets)
    assert sorted(site for bucket in found for site in bucket) == list(SITES[:sites])
    sizes = [len(bucket) for bucket in found]
    assert max(sizes) - min(sizes) <= 1
    assert all(list(bucket) == sorted(bucket) for bucket in found)


def test_the_same_question_is_cut_alike_and_another_question_or_list_is_not() -> None:
    found = partition(QUERY, SITES, 6)
    assert found == partition(QUERY, SITES, 6)
    assert found != partition(bytes(32), SITES, 6)
    assert set(found) != set(partition(QUERY, SITES[:59], 6))
    assert partition(QUERY, SITES, 1) == (SITES,)


def test_no_two_sites_are_together_more_often_than_chance() -> None:
    together = Counter(
        other
        for number in range(2000)
        for bucket in partition(number.to_bytes(32, "big"), SITES[:20], 4)
        if SITES[0] in bucket
        for other in bucket
    )
    assert together.pop(SITES[0]) == 2000
    expected = 2000 * 4 / 19
    chi_square = sum((together[site] - expected) ** 2 / expected for site in SITES[1:20])
    assert chi_square < 42.3  # 18 degrees of freedom, one in a thousand


def test_buckets_too_small_for_the_assumed_colluders_are_refused_with_a_mend() -> None:
    assert (least(), least(2), least(7)) == (MIN_BUCKET, 5, 10)
    check_buckets(1, 3, 0)
    check_buckets(6, 30, 2)
    with pytest.raises(TooFewSites, match=r"30 sites in 7 buckets .* Use at most 6 buckets"):
        check_buckets(7, 30, 0)
    with pytest.raises(TooFewSites, match="at most 5 buckets"):
        check_buckets(6, 30, 3)
    with pytest.raises(TooFewSites, match="Use no buckets"):
        check_buckets(2, 8, 0)
