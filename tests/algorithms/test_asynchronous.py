"""FedBuff: its clock against a schedule by hand, a whole run against numpy, and what asynchrony is for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

import cloister as cl
from cloister.simulation.clock import Clock
from cloister.simulation.stragglers import Pace
from cloister.vector.errors import JobError, UsageError

from .problems import Sites, initial, least_squares, regression, simulated

ROUNDS = 12


class Fixed:
    """A pace by hand."""

    def __init__(self, times: Mapping[str, float]) -> None:
        self._times = times

    def time(self, site: str, step: int, attempt: int) -> float:
        return self._times[site]


def by_hand(times: Mapping[str, float], buffer: int, most: int, versions: int) -> list[dict[str, int]]:
    """Everybody trains at any time, once between two versions: a list that is searched, no heap, no draws."""
    ready = {site: (time, 0) for site, time in times.items()}
    told = []
    for version in range(versions):
        full: dict[str, int] = {}
        while len(full) < buffer:
            site = min((site for site in ready if site not in full), key=lambda site: ready[site][0])
            now, begun = ready[site]
            if version - begun <= most:
                full[site] = version - begun
            else:
                ready[site] = (now + times[site], version)
        for site in full:
            ready[site] = (now + times[site], version + 1)
        told.append(full)
    return told


TIMES = {"a": 1.0, "b": 1.3, "c": 1.9, "d": 3.1, "e": 17.3, "f": 40.7}


@pytest.mark.parametrize(("buffer", "most"), [(3, 100), (3, 4), (4, 2), (6, 1)])
def test_the_clock_is_the_schedule_by_hand(buffer, most):
    algorithm = cl.FedBuff(rounds=40, buffer=buffer, max_staleness=most)
    clock = Clock(algorithm, list(TIMES), 5, Fixed(TIMES))
    found = [clock.arrivals(version) for version in range(40)]
    assert [dict(each.staleness) for each in found] == by_hand(TIMES, buffer, most, 40)
    assert [each.time for each in found] == sorted(each.time for each in found)
    assert max(max(each.staleness.values()) for each in found) <= most
    assert clock.arrivals(7) == found[7], "an interrupted run asks again"
    if (buffer, most) == (3, 100):
        assert any(each.staleness.get("f", 0) > 10 for each in found), "the slowest hands in an old one at last"


def test_others_start_where_sites_are_ready_and_no_more_than_the_concurrency():
    algorithm = cl.FedBuff(rounds=1, cohort=0.1, buffer=4)
    sites = [f"s{at:02}" for at in range(60)]
    clock = Clock(algorithm, sites, 0, Pace(0, {site: [0] for site in sites}))
    seen = set()
    for version in range(100):
        found = clock.arrivals(version)
        assert len(found.staleness) == 4
        assert len(clock._training) == 6
        seen |= set(found.staleness)
    assert seen == set(sites)


def test_it_is_the_papers_algorithm_with_sites_weighted_by_rows():
    """Nguyen 2022, algorithm 1: x += lr * mean of s(tau) (y - x of tau versions ago)."""
    data = least_squares()
    job = regression(cl.FedBuff(ROUNDS, 0.7, buffer=3, max_staleness=2))
    sites, names = Sites(data), sorted(data)
    clock = Clock(job.algorithm, names, job.seed, Pace(job.seed, data))
    models, old = [initial(job, 2)], 0
    for version in range(ROUNDS):
        staleness = clock.arrivals(version).staleness
        moved, shares = np.zeros(3), 0.0
        for name, tau in staleness.items():
            at, start = names.index(name), models[version - tau]
            moved += sites.share[at] * (sites.descend(at, start) - start) / np.sqrt(1 + tau)
            shares += sites.share[at]
        models.append(models[-1] + moved / shares)
        old += sum(staleness.values())
    assert old > 3, "else this would be a test of FedAvg"
    assert np.allclose(simulated(job, data), models[-1], atol=2e-5)


def test_a_full_buffer_of_everybody_is_fedavg():
    data = least_squares()
    waiting = simulated(regression(cl.FedBuff(ROUNDS, buffer=4)), data)
    assert np.array_equal(waiting, simulated(regression(cl.FedAvg(ROUNDS)), data))


def test_the_same_bits_on_any_engine_with_masks_and_after_an_interruption(tmp_path):
    data = least_squares()
    job = regression(cl.FedBuff(ROUNDS, 0.75, buffer=3))
    runs = [
        cl.simulate(job, data, **settings)
        for settings in ({"engine": "serial"}, {"engine": "processes", "processes": 2}, {"seal": "masks"})
    ]

    class Stop(Exception):
        pass

    def stop(event):
        if event.get("trained") == 7:
            raise Stop

    with pytest.raises(Stop):
        cl.simulate(job, data, folder=tmp_path / "run", progress=stop)
    runs.append(cl.simulate(job, data, folder=tmp_path / "run"))
    assert len({run.model_bytes for run in runs}) == 1
    told = [event for event in runs[-1].events if event.get("stage") == "train"]
    assert [event["clock"] for event in told] == sorted(event["clock"] for event in told)
    assert max(event["staleness"] for event in told) > 0
    assert runs[-1].history["clock"].tolist()[1:] == [event["clock"] for event in told]
    assert "clock" not in cl.simulate(regression(cl.FedAvg(2)), data).history


def test_nobody_waits_for_the_slowest_and_the_model_is_as_good_sooner(monkeypatch):
    """The paper's claim, section 6: less time to the same loss. One site of twelve is ten times as slow."""
    data = {f"s{at:02}": table for at, table in enumerate([*least_squares(1).values()] * 3)}
    data = {name: table.iloc[:12] for name, table in data.items()}
    sites = Sites(data)
    times = {name: 10.0 if name == "s07" else 1.0 + at / 50 for at, name in enumerate(data)}
    job = regression(cl.FedBuff(60, buffer=6), lr=0.02)
    clock = Clock(job.algorithm, sorted(data), job.seed, Fixed(times))
    monkeypatch.setattr(Pace, "time", lambda self, site, step, attempt: times[site])
    buffered = simulated(job, data)
    waiting = simulated(regression(cl.FedAvg(60), lr=0.02), data)
    gap = sites.loss(initial(job, 2)) - sites.loss(sites.optimum)
    for end in (buffered, waiting):
        assert sites.loss(end) - sites.loss(sites.optimum) < 0.05 * gap
    assert clock.arrivals(59).time < 0.2 * 60 * 10.0, "FedAvg waits 10 in every round"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda: cl.FedBuff(rounds=1, buffer=2), "would open single updates"),
        (lambda: cl.FedBuff(rounds=1, max_staleness=0), "max_staleness=0"),
    ],
)
def test_settings_without_sense_are_refused(wrong, told):
    with pytest.raises(JobError, match=told):
        wrong()


def test_a_simulation_refuses_what_asynchrony_has_no_place_for():
    data = least_squares()
    with pytest.raises(UsageError, match="a buffer of 10 sites is never full: there are 4"):
        cl.simulate(regression(cl.FedBuff(rounds=1)), data)
    with pytest.raises(UsageError, match="no rounds that a site could be late for"):
        cl.simulate(regression(cl.FedBuff(rounds=1, buffer=3)), data, deadline=2.0)


def test_a_federation_measures_no_model_before_the_last_and_privacy_covers_no_old_updates():
    with pytest.raises(JobError, match="patience"):
        cl.FedBuff(rounds=1, patience=2).require_federation()
    cl.FedBuff(rounds=1).require_federation()
    assert [cl.FedBuff(rounds=1, buffer=7).enough(asked) for asked in (5, 10)] == [5, 7]
    task = cl.Torch(cl.nets.Linear(), "bce", cl.SGD(0.1))
    with pytest.raises(JobError, match="means of deltas only"):
        cl.Job(cl.Table("t", target="y"), task, cl.FedBuff(rounds=1), privacy=cl.RowDP(epsilon=1.0, delta=1e-5))
