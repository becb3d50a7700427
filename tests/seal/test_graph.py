"""The sparse graph: the protocol's table, tails against brute force, a draw that favours nobody, one sealed sum."""

from __future__ import annotations

import math
import os
import random
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.seal import graph
from cloister.seal.graph import Degree, Sparse
from cloister.vector.errors import MalformedMessage, PlanRefused, ThresholdTooLow

SITES = [f"site-{number:03d}" for number in range(200)]


@pytest.mark.parametrize(
    ("sites", "corrupt", "dropout", "expected"),
    [
        (1000, 50, 50, (60, 41)),
        (1000, 100, 100, (114, 78)),
        (10_000, 50, 50, (74, 51)),
        (10_000, 200, 100, (214, 155)),
    ],
)
def test_the_table_of_the_protocol(sites, corrupt, dropout, expected):
    assert Sparse(corrupt, dropout).degree(sites, sites) == expected


@given(st.integers(1, 14), st.data())
def test_tail_counts_subsets(population, data):
    marked = data.draw(st.integers(0, population))
    drawn = data.draw(st.integers(0, population))
    least = data.draw(st.integers(-1, population + 1))
    subsets = list(combinations(range(population), drawn))
    hits = sum(sum(item < marked for item in subset) >= least for subset in subsets)
    assert Fraction(*graph.tail(population, marked, drawn, least)) == Fraction(hits, len(subsets))


@pytest.mark.parametrize(("sites", "corrupt"), [(129, 50), (129, 100), (200, 50), (500, 100)])
def test_what_is_promised_holds_and_two_fewer_would_not_do(sites, corrupt):
    sparse = Sparse(corrupt, corrupt)
    bad = sparse.corrupt_of(sites)
    k, t = sparse.degree(sites, sites)

    def log2(chance):
        return math.log2(Fraction(*chance)) if chance[0] else -math.inf

    def kept(k, t):
        both = log2(graph.tail(sites - 1, bad, k, 2 * t - k)) + math.log2(sites) <= -40
        alive = log2(graph.tail(sites - 1, bad, k, k - t + 1)) + math.log2(sites) <= -30
        return both and alive and graph.cut_bits(sites, bad, Degree(k, t)) <= -40

    assert kept(k, t)
    assert not any(kept(k - 2, other) for other in range(1, k - 1))


def test_cut_bits_against_exact_arithmetic():
    sites, corrupt, degree = 40, 4, Degree(10, 8)
    exact = sum(math.comb(40, s) * Fraction(*graph.tail(39, corrupt + s - 1, *degree)) ** s for s in range(1, 21))
    assert graph.cut_bits(sites, corrupt, degree) == pytest.approx(math.log2(exact), abs=1e-6)


def test_a_graph_that_cannot_be_and_names_that_are_none():
    with pytest.raises(PlanRefused):
        Sparse(300, 300).degree(20, 20)
    assert Sparse.from_name("sparse-50-100") == Sparse(50, 100)
    for name in ("complete", "sparse-0-50", "sparse-50", "sparse-050-50", "sparse-50-1000", "sparse-٥-5", ""):
        with pytest.raises(PlanRefused):
            Sparse.from_name(name)


def test_a_site_refuses_a_graph_that_assumes_too_little():
    Sparse(50, 100).check(1000, 50)
    for sparse, colluders in ((Sparse(49, 100), 0), (Sparse(50, 100), 51)):
        with pytest.raises(ThresholdTooLow):
            sparse.check(1000, colluders)


def test_a_draw_is_distinct_without_oneself_and_favours_nobody():
    rng, counts = random.Random(7), dict.fromkeys(SITES[:20], 0)
    draws = 4000
    for _ in range(draws):
        chosen = graph.draw(SITES[3], SITES[:20], 5, rng.randbytes)
        assert len(set(chosen)) == 5
        assert list(chosen) == sorted(chosen)
        for site in chosen:
            counts[site] += 1
    assert counts.pop(SITES[3]) == 0
    expected = draws * 5 / 19
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < 42.3  # 18 degrees of freedom, one in a thousand


@given(st.integers(2, 70), st.data())
def test_a_choice_is_of_so_many_others_or_of_all(size, data):
    sites, own = SITES[:size], SITES[size - 1]
    chosen = data.draw(st.sets(st.sampled_from(sites)))
    bitmap = graph.mark(chosen, sites)
    if (own in chosen) == (len(chosen) == size):
        assert graph.check_choice(bitmap, own, sites, len(chosen)) == int.from_bytes(bitmap, "little")
    with pytest.raises(MalformedMessage):
        graph.check_choice(bitmap, own, sites, len(chosen) + 1)
    with pytest.raises(MalformedMessage):
        graph.check_choice(bitmap + b"\0", own, sites, len(chosen))
    if own in chosen and len(chosen) < size:
        with pytest.raises(MalformedMessage):
            graph.check_choice(bitmap, own, sites, len(chosen))


def test_partners_are_mutual_and_holders_and_owners_are_the_two_sides_of_one_choice():
    sites = tuple(SITES)
    degree = graph.degree("sparse-100-100", 200, 200, 134)
    assert degree == Sparse(100, 100).degree(200, 200)
    sharers = sites[5:]
    drawn = {site: graph.mark(graph.draw(site, sites, degree.chosen, os.urandom), sites) for site in sharers}
    found = graph.Graph(sites, (sites,), degree, drawn)
    for site in sharers:
        assert len(found.holders(site)) == degree.chosen
        assert all(site in found.owners(holder) for holder in found.holders(site))
        assert set(found.partners(site)) == (set(found.holders(site)) | set(found.owners(site))) & set(sharers)
        assert all(site in found.partners(other) for other in found.partners(site))
    cut = graph.Graph(sites, (sites[::2], sites[1::2]), degree, drawn)
    assert set(cut.partners(sites[6])) == set(sites[::2]) & set(sharers) - {sites[6]}


def test_the_corrupt_are_counted_in_the_cohort_and_small_lists_get_the_complete_graph():
    assert Sparse(100, 100).degree(200, 300) == graph._degree(200, 30, 20)
    assert graph.degree("sparse-100-100", 60, 90, 61) == Degree(60, 61)
    assert graph.degree("complete", 60, 90, 61) == Degree(60, 61)
    assert (graph.default_graph(128), graph.default_graph(129)) == ("complete", "sparse-100-100")
    assert [graph.tolerated(sites, 2 * sites // 3 + 1) for sites in (10, 128, 129, 1000)] == [3, 43, 13, 100]
    assert graph.draw(SITES[0], SITES[:9], 9, os.urandom) == tuple(SITES[:9])
