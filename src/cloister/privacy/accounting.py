"""What releases cost: (epsilon, delta) of a stream of events, and the noise that a wanted cost takes.

Never our own arithmetic: Google's `dp-accounting`, by privacy loss distributions (PLD; Koskela et al. 2020,
Doroshenko et al. 2022, https://arxiv.org/abs/2207.04380), checked each time against Renyi differential privacy
(Mironov 2017; with sampling: Mironov, Talwar, Zhang 2019, https://arxiv.org/abs/1908.10530). Two derivations that
disagree are refused.

Neighbours differ in one unit (a row, a patient, a site), which is there or left out; how many units there are is
public.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cloister.vector.errors import EnvironmentFailure, JobError, MalformedMessage

AGREEMENT = 0.25  # by how much the two accountants may differ
LEAST = 0.02  # of epsilon: below, the accountants' own rounding is of its order, and they need not agree
DIGITS = 3  # of a noise multiplier: rounded up, so that every machine comes to the same
COARSE, FINE = 5e-4, 5e-5  # of privacy losses that PLD accounting rounds to
LARGEST = 1e4  # noise multiplier that is ever tried
NOISES, COUNTS = (1e-6, 1e12), 1 << 52  # what an event may say: beyond, it protects nobody and accountants overflow
ORDERS = (*(1 + x / 10 for x in range(1, 20)), *range(3, 129), 160, 192, 256, 512, 1024)


@dataclass(frozen=True, order=True)
class Event:
    """Some releases of one kind, each of a sum with Gaussian noise (on a fine grid: `noise.DiscreteGaussian`).

    Attributes:
      noise_multiplier: the noise's standard deviation over the sum's L2 sensitivity to one unit.
      sampling: the chance with which each unit is in a sum at all (Poisson sampling); 1.0 is always.
      count: how many releases.
    """

    noise_multiplier: float
    sampling: float = 1.0
    count: int = 1

    def __post_init__(self) -> None:
        noisy = NOISES[0] <= self.noise_multiplier <= NOISES[1]
        counted = type(self.count) is int and 1 <= self.count <= COUNTS
        if not noisy or not counted or not 0.0 < self.sampling <= 1.0:
            raise MalformedMessage("a privacy event is no number of noisy sums")

    def as_json(self) -> dict[str, Any]:
        """Floats as C99 hex strings: the exact event, also where floats may not stand."""
        return {
            "mechanism": "gaussian",
            "noise_multiplier": float(self.noise_multiplier).hex(),
            "sampling": float(self.sampling).hex(),
            "count": self.count,
        }

    @classmethod
    def from_json(cls, data: Any) -> Event:
        """Raises: MalformedMessage."""
        try:
            if set(data) != {"mechanism", "noise_multiplier", "sampling", "count"} or data["mechanism"] != "gaussian":
                raise ValueError
            return cls(float.fromhex(data["noise_multiplier"]), float.fromhex(data["sampling"]), data["count"])
        except (ValueError, KeyError, TypeError, OverflowError):
            raise MalformedMessage("a privacy event does not parse") from None


def merged(events: Iterable[Event]) -> tuple[Event, ...]:
    """The same stream with one event for each kind, in a fixed order: what it costs does not depend on the order."""
    counts: dict[tuple[float, float], int] = {}
    for event in events:
        kind = (event.noise_multiplier, event.sampling)
        counts[kind] = counts.get(kind, 0) + event.count
    return tuple(sorted(Event(noise, sampling, count) for (noise, sampling), count in counts.items()))


def epsilon(events: Iterable[Event], delta: float) -> float:
    """The smallest epsilon for which the whole stream is (epsilon, delta)-differentially private; 0 for no event.

    Raises: EnvironmentFailure: the two accountants do not agree within AGREEMENT.
    """
    return _epsilon(merged(events), delta)


@lru_cache(maxsize=256)
def _epsilon(events: tuple[Event, ...], delta: float) -> float:
    if not events:
        return 0.0
    exact, check = _pld(events, delta), _rdp(events, delta)
    # Renyi accounting is the looser of the two
    if max(exact, check) > LEAST and not exact * 0.99 <= check <= exact / (1.0 - AGREEMENT) + LEAST:
        raise EnvironmentFailure(
            f"two accountants give epsilon {exact:.3g} (PLD) and {check:.3g} (RDP): none is trusted.",
            mend="A larger noise multiplier or sampling rate usually mends it.",
        )
    return exact


def at_least(events: Iterable[Event], delta: float) -> float:
    """What `epsilon` cannot come out under, in little time and memory whatever the events say.

    PLD accounting takes as much memory as epsilon is large; ask this before what somebody else claims is accounted.
    """
    stream = merged(events)
    return (_rdp(stream, delta) - LEAST) * (1.0 - AGREEMENT) if stream else 0.0


def noise_multiplier(
    epsilon: float, delta: float, parts: Sequence[tuple[float, int]], besides: Iterable[Event] = ()
) -> float:
    """The smallest noise multiplier, in DIGITS digits, for which so many releases cost at most (epsilon, delta).

    Args: parts: (sampling, count) of each kind of release; all have the same noise. besides: what else is released.
    Raises: JobError: no noise up to LARGEST is enough.
    """
    return _noise(epsilon, delta, tuple(parts), merged(besides))


@lru_cache(maxsize=64)
def _noise(wanted: float, delta: float, parts: tuple[tuple[float, int], ...], besides: tuple[Event, ...]) -> float:
    def events(noise: float) -> tuple[Event, ...]:
        return (*(Event(noise, sampling, count) for sampling, count in parts), *besides)

    def cost(noise: float) -> float:
        return _pld(events(noise), delta, COARSE)

    if cost(LARGEST) > wanted:
        raise JobError(
            f"no noise makes {sum(count for _, count in parts):,} releases private at epsilon {wanted:g}.",
            mend="Fewer rounds or steps, or a larger epsilon.",
        )
    # epsilon falls about as a power of the noise: the secant method on logarithms
    variance = sum(sampling**2 * count for sampling, count in parts)
    before = min(max(0.3, math.sqrt(2.0 * variance * math.log(1.25 / delta)) / wanted), LARGEST / 2)
    noise, last = 1.1 * before, math.log(max(cost(before), 1e-9) / wanted)
    for _ in range(12):
        now = math.log(max(cost(noise), 1e-9) / wanted)
        if abs(now) < 1e-3 or now == last:
            break
        step = -now * math.log(noise / before) / (now - last)
        before, last, noise = noise, now, min(max(noise * math.exp(min(max(step, -1.0), 1.0)), 1e-2), LARGEST)
    found = _rounded_up(noise)
    while _pld(events(found), delta) > wanted:
        found = _rounded_up(found * 1.0001 + 10.0 ** (math.floor(math.log10(found)) - DIGITS))
    return found


def _rounded_up(value: float) -> float:
    unit = 10.0 ** (math.floor(math.log10(value)) - DIGITS + 1)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.{DIGITS}g}")


def _pld(events: Sequence[Event], delta: float, interval: float | None = None) -> float:
    """An upper bound of epsilon, the tighter the smaller the interval; by itself one that suits the size found."""
    from dp_accounting.pld import PLDAccountant

    if interval is None:
        found = _pld(events, delta, COARSE)
        return found if found > 1.0 else _pld(events, delta, FINE)
    return _account(PLDAccountant(value_discretization_interval=interval), _joined(events), delta)


def _joined(events: Sequence[Event]) -> list[Event]:
    """Releases without sampling are together one Gaussian release: their inverse variances add up."""
    plain = [event for event in events if event.sampling == 1.0]
    rest = [event for event in events if event.sampling < 1.0]
    if not plain:
        return rest
    return [*rest, Event(sum(event.count / event.noise_multiplier**2 for event in plain) ** -0.5)]


@lru_cache(maxsize=256)
def _rdp(events: tuple[Event, ...], delta: float) -> float:
    from dp_accounting.rdp import RdpAccountant

    return _account(RdpAccountant(ORDERS), events, delta)


def _account(accountant: Any, events: Sequence[Event], delta: float) -> float:
    import dp_accounting

    quiet, level = logging.getLogger("absl"), logging.getLogger("absl").level
    quiet.setLevel(logging.ERROR)  # an order whose series does not converge is left out, which is sound
    try:
        for event in events:
            release: Any = dp_accounting.GaussianDpEvent(event.noise_multiplier)
            if event.sampling < 1.0:
                release = dp_accounting.PoissonSampledDpEvent(event.sampling, release)
            accountant.compose(release, event.count)
        return float(accountant.get_epsilon(delta))
    finally:
        quiet.setLevel(level)


def events_from_json(data: Any) -> list[Event]:
    """Raises: MalformedMessage."""
    if not isinstance(data, list):
        raise MalformedMessage("a stream of privacy events is a list")
    return [Event.from_json(entry) for entry in data]


def events_as_json(events: Iterable[Event]) -> list[Mapping[str, Any]]:
    return [event.as_json() for event in merged(events)]
