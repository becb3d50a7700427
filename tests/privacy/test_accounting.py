"""What releases cost: known values, two accountants that agree, and noise that is neither too small nor wasteful."""

from __future__ import annotations

import math

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from cloister.privacy import accounting
from cloister.privacy.accounting import (
    Event,
    at_least,
    epsilon,
    events_as_json,
    events_from_json,
    merged,
    noise_multiplier,
)
from cloister.vector.errors import EnvironmentFailure, JobError, MalformedMessage


def exact_gaussian(noise: float, delta: float) -> float:
    """Balle, Wang, ICML 2018, theorem 8, for one Gaussian release of sensitivity 1."""

    def missing(eps: float) -> float:
        a = norm.cdf(0.5 / noise - eps * noise)
        return float(a - math.exp(eps) * norm.cdf(-0.5 / noise - eps * noise) - delta)

    return float(brentq(missing, 0.0, 200.0))


@pytest.mark.parametrize(("noise", "count"), [(1.0, 1), (5.0, 20), (20.0, 400), (0.7, 1)])
def test_gaussian_releases_cost_what_the_exact_formula_says(noise: float, count: int) -> None:
    assert epsilon([Event(noise, count=count)], 1e-5) == pytest.approx(
        exact_gaussian(noise / math.sqrt(count), 1e-5), rel=2e-3
    )


def test_sampling_costs_what_the_papers_say() -> None:
    # q = 0.01, z = 1.1, 10,000 steps, delta 1e-5: the setting of the tutorials; RDP says 5.63, PLD less
    cost = epsilon([Event(1.1, 0.01, 10_000)], 1e-5)
    assert 4.5 < cost < 5.63


@pytest.mark.parametrize(("wanted", "sampling", "count"), [(1.0, 1.0, 20), (4.0, 0.35, 60), (0.5, 0.05, 200)])
def test_noise_is_enough_and_hardly_more(wanted: float, sampling: float, count: int) -> None:
    noise = noise_multiplier(wanted, 1e-5, [(sampling, count)])
    assert epsilon([Event(noise, sampling, count)], 1e-5) <= wanted
    assert epsilon([Event(noise * 0.98, sampling, count)], 1e-5) > wanted
    assert noise == float(f"{noise:.3g}"), "three digits, so that every machine comes to the same"


def test_what_is_released_besides_is_part_of_the_cost() -> None:
    besides = [Event(8.0, count=4)]
    alone, together = noise_multiplier(2.0, 1e-5, [(1.0, 10)]), noise_multiplier(2.0, 1e-5, [(1.0, 10)], besides)
    assert together > alone
    assert epsilon([Event(together, count=10), *besides], 1e-5) <= 2.0


def test_a_stream_costs_the_same_in_any_order_and_survives_json() -> None:
    stream = [Event(3.0, 0.1, 5), Event(7.0), Event(3.0, 0.1, 15)]
    assert merged(stream) == merged(reversed(stream)) == (Event(3.0, 0.1, 20), Event(7.0))
    assert tuple(events_from_json(events_as_json(stream))) == merged(stream)
    assert epsilon([], 1e-5) == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"mechanism": "laplace", "noise_multiplier": "0x1p0", "sampling": "0x1p0", "count": 1},
        {"mechanism": "gaussian", "noise_multiplier": "-0x1p0", "sampling": "0x1p0", "count": 1},
        {"mechanism": "gaussian", "noise_multiplier": "nan", "sampling": "0x1p0", "count": 1},
        {"mechanism": "gaussian", "noise_multiplier": "0x1p0", "sampling": "0x1p1", "count": 1},
        {"mechanism": "gaussian", "noise_multiplier": "0x1p0", "sampling": "0x1p0", "count": 0},
        {"mechanism": "gaussian", "noise_multiplier": "0x1p0", "sampling": "0x1p0", "count": True},
    ],
)
def test_no_event_is_read_that_costs_less_than_nothing(wrong: object) -> None:
    with pytest.raises(MalformedMessage):
        Event.from_json(wrong)


def test_accountants_that_disagree_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "_rdp", lambda events, delta: 0.5)
    with pytest.raises(EnvironmentFailure, match="two accountants"):
        epsilon([Event(4.321, count=3)], 1e-5)


def test_what_no_noise_makes_private_is_refused() -> None:
    with pytest.raises(JobError, match="no noise"):
        noise_multiplier(1e-4, 1e-9, [(1.0, 10**8)])


@pytest.mark.parametrize("stream", [[Event(3.0, 0.1, 20), Event(7.0)], [Event(1.0)], [Event(50.0)], []])
def test_a_quick_look_never_says_more_than_the_account(stream: list[Event]) -> None:
    assert at_least(stream, 1e-5) <= epsilon(stream, 1e-5)
    assert at_least(stream, 1e-5) >= 0.5 * epsilon(stream, 1e-5) - 0.1, "a look that sees nothing"


@pytest.mark.parametrize("event", [(0.5, 0.5, 1 << 52), (1e-6, 1.0, 1 << 40), (1e-6, 0.5, 1), (1e-6, 1e-12, 1 << 52)])
def test_absurd_claims_cost_nobody_memory(event: tuple[float, float, int]) -> None:
    """An account of these by privacy losses would take more memory than a machine has."""
    assert at_least([Event(*event)], 1e-5) > 1e3


@pytest.mark.parametrize("event", [(1e-7, 1.0, 1), (1e13, 1.0, 1), (1.0, 0.0, 1), (1.0, 1.0, 1 << 53), (1.0, 1.0, 0)])
def test_what_is_no_event(event: tuple[float, float, int]) -> None:
    with pytest.raises(MalformedMessage):
        Event(*event)
