"""Robust aggregates against a few lines of numpy each, and against what they are for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cloister as cl
from cloister.algorithms.base import from_json
from cloister.algorithms.fltrust import trusting
from cloister.simulation import cohort
from cloister.simulation.sealing import buckets_of
from cloister.vector.errors import JobError, UsageError

from .problems import Sites, initial, regression, simulated

RNG = np.random.default_rng(5)
MEANS = RNG.normal(size=(9, 6))
BEFORE = RNG.normal(size=6)

EVERY = [
    cl.Median(),
    cl.TrimmedMean(bad=2),
    cl.Krum(bad=2),
    cl.Krum(bad=2, keep=4),
    cl.GeometricMedian(),
    cl.CentredClipping(radius=1.0),
]


def krum(means, f, keep):
    n = len(means)
    scores = []
    for i in range(n):
        distances = sorted(((means[i] - means[j]) ** 2).sum() for j in range(n) if j != i)
        scores.append(sum(distances[: n - f - 2]))
    return means[np.argsort(scores, kind="stable")[:keep]].mean(axis=0)


def weiszfeld(means):
    z = means.mean(axis=0)
    for _ in range(32):
        w = np.array([1.0 / max(1e-6, np.linalg.norm(z - g)) for g in means])
        z = (w[:, None] * means).sum(axis=0) / w.sum()
    return z


def centred(means, before, tau):
    v = before
    for _ in range(3):
        v = v + np.mean([(g - v) * min(1.0, tau / np.linalg.norm(g - v)) for g in means], axis=0)
    return v


REFERENCES = {
    "Median": lambda: np.median(MEANS, axis=0),
    "TrimmedMean": lambda: np.sort(MEANS, axis=0)[2:-2].mean(axis=0),
    "Krum": lambda: krum(MEANS, 2, 1),
    "Multi-Krum": lambda: krum(MEANS, 2, 4),
    "GeometricMedian": lambda: weiszfeld(MEANS),
    "CentredClipping": lambda: centred(MEANS, BEFORE, 1.0),
}


@pytest.mark.parametrize(
    ("aggregate", "reference"), list(zip(EVERY, REFERENCES.values(), strict=True)), ids=REFERENCES
)
def test_each_is_its_papers_formula(aggregate, reference):
    assert np.allclose(aggregate.combine(MEANS, BEFORE), reference(), rtol=1e-12, atol=1e-12)


def test_the_median_of_an_even_number_is_the_middle():
    assert np.allclose(cl.Median().combine(MEANS[:8], BEFORE), np.median(MEANS[:8], axis=0))


@pytest.mark.parametrize("aggregate", EVERY, ids=REFERENCES)
@given(seed=st.integers(0, 2**32 - 1), away=st.sampled_from([-1e6, 1e3, 1e9]))
def test_two_bad_buckets_of_nine_move_the_mean_and_not_the_aggregate(aggregate, seed, away):
    rng = np.random.default_rng(seed)
    means = 1.0 + 0.1 * rng.normal(size=(9, 4))
    means[rng.choice(9, 2, replace=False)] = away
    assert np.abs(means.mean(axis=0) - 1.0).max() > 100.0
    combined = aggregate.combine(means, np.ones(4))
    assert np.abs(combined - 1.0).max() < 1.0


@pytest.mark.parametrize("aggregate", EVERY, ids=REFERENCES)
def test_the_order_of_buckets_is_nothing(aggregate):
    order = np.random.default_rng(1).permutation(9)
    shuffled = aggregate.combine(MEANS[order], BEFORE)
    assert np.allclose(shuffled, aggregate.combine(MEANS, BEFORE), rtol=1e-12)


@pytest.mark.parametrize("aggregate", EVERY, ids=REFERENCES)
def test_the_manifest_tells_it_whole(aggregate):
    algorithm = cl.FedAvgM(rounds=3, aggregate=aggregate)
    assert from_json(algorithm.as_json()) == algorithm


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda: cl.Median(buckets=2), "3 or more"),
        (lambda: cl.TrimmedMean(bad=3, buckets=6), "7 or more"),
        (lambda: cl.Krum(bad=3), "9 or more"),
        (lambda: cl.Krum(bad=0), "bad=0"),
        (lambda: cl.GeometricMedian(smoothing=0.0), "smoothing=0.0"),
        (lambda: cl.CentredClipping(radius=math.nan), "radius=nan"),
        (lambda: cl.FedAvg(rounds=1, aggregate="median"), "cl.Median()"),
        (lambda: cl.SCAFFOLD(rounds=1, aggregate=cl.Median()), "SCAFFOLD learns more than a mean"),
        (
            lambda: from_json({"name": "FedAvg", "rounds": 1, "aggregate": {"name": "Mode"}}),
            "Known are: CentredClipping",
        ),
    ],
)
def test_settings_that_cannot_be_kept_are_refused(wrong, told):
    with pytest.raises(JobError) as refused:
        wrong()
    assert told in f"{refused.value} {refused.value.mend}"


def fltrust(means, reference):
    g0, total, trust = reference, 0.0, 0.0
    for g in means:
        ts = max(0.0, g @ g0 / np.linalg.norm(g) / np.linalg.norm(g0))
        total, trust = total + ts * np.linalg.norm(g0) / np.linalg.norm(g) * g, trust + ts
    return total / trust


def test_fltrust_is_its_papers_formula():
    """Cao 2021, algorithm 2: ReLU of the cosine, updates as long as the reference."""
    assert np.allclose(trusting(MEANS, BEFORE), fltrust(MEANS, BEFORE), rtol=1e-12)
    assert sum(float(mean @ BEFORE) < 0 for mean in MEANS) > 0, "some are not trusted at all"
    assert trusting(-BEFORE[np.newaxis], BEFORE).tolist() == [0.0] * 6, "nobody points its way"
    assert trusting(MEANS, np.zeros(6)).tolist() == [0.0] * 6
    assert trusting(np.zeros((2, 6)), BEFORE).tolist() == [0.0] * 6


def test_fltrust_asks_the_trusted_alone_and_then_all_others_in_buckets(monkeypatch):
    """A whole run against numpy; no site is ever in both sums of a round."""
    data, trusted = sites_of(24), ("s03", "s10", "s11", "s17")
    groups: list[Sequence[Sequence[str]]] = []

    def recorded(query, sites):
        groups.append(buckets_of(query, sites))
        return groups[-1]

    monkeypatch.setattr(cohort, "buckets_of", recorded)
    job = regression(cl.FLTrust(4, trusted=trusted, buckets=3), lr=0.2)
    result = cl.simulate(job, data, engine="serial")
    sites, names = Sites(data), sorted(data)
    w, asked = initial(job, 2), groups[-8:]  # preparation comes before
    for ours, others in zip(asked[::2], asked[1::2], strict=True):
        deltas = {name: sites.descend(at, w, lr=0.2) - w for at, name in enumerate(names)}
        reference = np.mean([deltas[name] for name in trusted], axis=0)
        assert ours == (trusted,)
        assert sorted(site for group in others for site in group) == sorted(set(names) - set(trusted))
        w = w + fltrust([np.mean([deltas[name] for name in group], axis=0) for group in others], reference)
    assert np.allclose(result.state.tensors["model"], w, atol=2e-5)
    assert [row["round"] for row in result.state.facts["history"]] == [0, 1, 2, 3, 4]
    assert [event["sites"] for event in result.trained.values()] == [20] * 4
    told = [event for event in result.events if event.get("stage") == "train"]
    assert [event["sites"] for event in told] == [4, 20] * 4
    spent = [sum(sum(event["seconds"].values()) for event in told[at : at + 2]) for at in range(0, 8, 2)]
    assert np.allclose(result.history["seconds"].tolist()[1:], spent), "what both questions took"


@pytest.mark.parametrize("attack", ["sign-flip:10", "ipm:10"])
def test_fltrust_learns_where_a_mean_does_not(attack):
    data = sites_of(28)
    settings = {"attack": attack, "attackers": [f"s{at:02}" for at in range(10, 15)], "engine": "serial"}
    trust = cl.FLTrust(20, trusted=[f"s{at:02}" for at in range(3)], buckets=5)
    ends = [cl.simulate(regression(each, lr=0.2), data, **settings) for each in (cl.FedAvg(20), trust)]
    off = [np.abs(end.state.tensors["model"] - [1.0, -2.0, 0.5]).max() for end in ends]
    assert off[0] > 1.0
    assert off[1] < 0.05


def test_fltrust_is_the_same_with_masks_and_needs_sites_that_are_there():
    data = sites_of(14)
    job = regression(cl.FLTrust(2, trusted=("s00", "s01", "s02"), buckets=2))
    assert cl.simulate(job, data, seal="masks").model_bytes == cl.simulate(job, data, engine="serial").model_bytes
    with pytest.raises(UsageError, match="names 'dover'"):
        cl.simulate(regression(cl.FLTrust(2, trusted=("dover", "s01", "s02"))), data)
    for wrong, told in (({"trusted": ("a", "b")}, "one site's own update"), ({"trusted": "abc"}, "no list of names")):
        with pytest.raises(JobError, match=told):
            cl.FLTrust(rounds=1, **wrong)


def sites_of(count: int) -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(8)
    tables = {}
    for at in range(count):
        x = rng.normal(size=(30, 2))
        tables[f"s{at:02}"] = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": x @ [1.0, -2.0] + 0.5})
    return tables


@pytest.mark.parametrize("aggregate", EVERY, ids=REFERENCES)
def test_honest_sites_learn_as_they_do_with_the_mean(aggregate):
    chosen = replace(aggregate, buckets=9)
    end = simulated(regression(cl.FedAvg(20, aggregate=chosen), lr=0.2), sites_of(45))
    assert np.abs(end - [1.0, -2.0, 0.5]).max() < 0.05
