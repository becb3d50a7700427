"""Who is asked: one after the other (Cyclic, against numpy), by coins, among those that are there."""

from __future__ import annotations

import numpy as np
import pytest

import cloister as cl
from cloister.vector.errors import JobError, UsageError

from .problems import Sites, initial, least_squares, regression, simulated


def test_each_site_trains_from_the_model_of_the_one_before(monkeypatch):
    """Chang 2018: one after the other; all have a turn before anyone has another, in an order drawn anew."""
    from cloister.simulation.cohort import LocalCohort

    turns, turn = [], LocalCohort._turn
    monkeypatch.setattr(LocalCohort, "_turn", lambda self, done: turns.append(turn(self, done)) or turns[-1])
    data, names = least_squares(), sorted(least_squares())
    job, sites = regression(cl.Cyclic(rounds=14)), Sites(data)
    end, w = simulated(job, data), initial(job, 2)
    for site in turns:
        w = sites.descend(names.index(site), w)
    assert np.allclose(end, w, atol=2e-5)
    cycles = [turns[at : at + 4] for at in range(0, 12, 4)]
    assert all(sorted(cycle) == names for cycle in cycles)
    assert len({tuple(cycle) for cycle in cycles}) > 1
    again = simulated(job, data)
    assert np.array_equal(end, again)


def test_it_learns_and_says_that_nothing_is_sealed():
    data = least_squares(spread=0.1)
    sites = Sites(data)
    result = cl.simulate(regression(cl.Cyclic(rounds=120)), data, engine="serial")
    end = np.asarray(result.state.tensors["model"], float)
    assert sites.loss(end) - sites.loss(sites.optimum) < 0.05
    assert "each site's own model went to the next" in result.privacy.sentence
    assert result.privacy.seal == "unsealed"
    with pytest.raises(UsageError, match="Cyclic has nothing sealed"):
        cl.simulate(regression(cl.Cyclic(rounds=1)), data, seal="masks")
    with pytest.raises(JobError, match="Cyclic is for simulations: it hands one site's model to the next") as refused:
        cl.Cyclic(rounds=1).require_federation()
    assert "FedAvg" in refused.value.mend
    with pytest.raises(JobError, match="Leave cohort out"):
        cl.Cyclic(rounds=1, cohort=0.5)


def test_cohorts_are_drawn_from_the_sites_that_are_there():
    data = {f"s{at:02}": table for at, table in enumerate([*least_squares(spread=0.2).values()] * 3)}
    job = regression(cl.FedAvg(40, cohort=0.5))
    rare = {"s01": 0.1, "s02": 0.1, "s03": 0.1}
    result = cl.simulate(job, data, availability=rare, engine="serial")
    asked = [event["sites"] for event in result.events if event.get("stage") == "train"]
    assert min(asked) < max(asked) <= 6, "half of those that are there"
    assert cl.simulate(job, data, availability=rare, engine="processes").model_bytes == result.model_bytes
    assert cl.simulate(job, data, engine="serial").model_bytes != result.model_bytes
    everybody = [event["sites"] for event in cl.simulate(job, data, availability=0.3).events if "survivors" in event]
    assert everybody[0] == 12, "preparation waits for all"
    for wrong, told in (({"dover": 0.5}, "names 'dover'"), (0.0, "no chance above 0"), (1.5, "no chance above 0")):
        with pytest.raises(UsageError, match=told):
            cl.simulate(job, data, availability=wrong)
    with pytest.raises(UsageError, match="FedBuff has no rounds"):
        cl.simulate(regression(cl.FedBuff(2, buffer=3)), data, availability=0.5)


def test_poisson_cohorts_differ_in_size_and_learn_as_well():
    data = {f"s{at:02}": table for at, table in enumerate([*least_squares(spread=0.2).values()] * 6)}
    sites = Sites(data)
    result = cl.simulate(regression(cl.FedAvg(60, cohort=0.3, sampling="poisson")), data, engine="serial")
    asked = [event["sites"] for event in result.events if event.get("stage") == "train"]
    assert 3 <= min(asked) < 5
    assert max(asked) > 9
    assert abs(np.mean(asked) - 0.3 * 24) < 1.0
    assert sites.loss(np.asarray(result.state.tensors["model"], float)) - sites.loss(sites.optimum) < 0.05
    with pytest.raises(JobError, match="sampling='often' is not one of uniform, poisson"):
        cl.FedAvg(rounds=1, sampling="often")
