"""The sparse graph: the protocol's table, tails against brute force, a draw that favours nobody, one sealed sum."""

from __future__ import annotations

import math
import os
import random
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.seal import graph, shamir
from cloister.seal.graph import Degree, Sparse
from cloister.seal.masks import add_mask
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
    assert Sparse(corrupt, dropout).degree(sites) == expected


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
    k, t = sparse.degree(sites)

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
    exact = sum(math.comb(36, s) * Fraction(*graph.tail(39, corrupt + s - 1, *degree)) ** s for s in range(1, 19))
    assert graph.cut_bits(sites, corrupt, degree) == pytest.approx(math.log2(exact), abs=1e-6)


def test_a_graph_that_cannot_be_and_names_that_are_none():
    with pytest.raises(PlanRefused):
        Sparse(300, 300).degree(20)
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


@given(st.integers(1, 70), st.data())
def test_bitmaps_round_trip_and_hold_nothing_else(size, data):
    chosen = data.draw(st.sets(st.sampled_from(SITES[:size])))
    bitmap = graph.mark(chosen, SITES[:size])
    assert set(graph.marked(bitmap, SITES[:size])) == chosen
    with pytest.raises(MalformedMessage):
        graph.marked(bitmap + b"\0", SITES[:size])
    if size % 8:
        with pytest.raises(MalformedMessage):
            graph.marked(bitmap[:-1] + bytes([bitmap[-1] | 0x80]), SITES[:size])


def test_masks_on_the_graph_cancel_and_chosen_ones_recover_the_dropped():
    """One round's arithmetic: masks along the graph, ten sites gone, their secrets from t of their chosen ones."""
    degree = Sparse(50, 50).degree(len(SITES))
    chosen = {site: graph.draw(site, SITES, degree.chosen, os.urandom) for site in SITES}
    masked_with = {site: graph.partners(chosen[site], graph.choosers(site, chosen), SITES) for site in SITES}
    for site, others in masked_with.items():
        assert all(site in masked_with[other] for other in others)
    secrets = {site: shamir.random_element(os.urandom) for site in SITES}
    points = range(1, degree.chosen + 1)
    shares = {
        site: dict(zip(chosen[site], shamir.split(secrets[site], degree.threshold, points, os.urandom), strict=True))
        for site in SITES
    }

    def pair(one, other):
        return (secrets[one] ^ secrets[other]).to_bytes(32, "little")

    def mask(words, site, others, sign):
        for other in others:
            add_mask(words, pair(site, other), sign if site < other else -sign)

    gone = set(SITES[::20])
    total, clear = np.zeros(8, np.uint32), np.zeros(8, np.uint32)
    for number, site in enumerate(SITES):
        if site not in gone:
            words = np.full(8, number, np.uint32)
            clear += words
            mask(words, site, masked_with[site], +1)
            total += words
    assert (total != clear).any()
    for site in gone:
        held = {point: shares[site][holder] for point, holder in enumerate(chosen[site], 1) if holder not in gone}
        assert shamir.combine(held, degree.threshold) == secrets[site]
        for other in set(masked_with[site]) - gone:
            add_mask(total, pair(site, other), -1 if other < site else +1)
    assert (total == clear).all()
