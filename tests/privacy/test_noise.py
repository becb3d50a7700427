"""The discrete Gaussian: the table to the last bit, draws against an exact sampler, ties, and the stream beneath."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import chisquare, ks_2samp

from cloister.privacy.noise import CHUNK, DiscreteGaussian, Stream, WideGaussian, distribution, gaussian

FROZEN = {
    1.5: "b9af9271754019904e6b886ce2cb1affda36ddd490f9f2a2a5a41304b98e8e37",
    100.0: "f94d3f1020504e2f7e39f405e9bc3f53ea6be4ebd1cae26f0dc25859613e9470",
    1024.0: "43985a2cb38e322530c95a914f9bd5aa06120538732f82d55cc70f5930448f65",
}


def seeded(seed: int = 0):
    rng = random.Random(seed)
    return lambda count: rng.randbytes(count)


def exact_sampler(variance: Fraction, rng: random.Random) -> int:
    """Canonne, Kamath, Steinke 2020, algorithms 1 to 3, in rational arithmetic; shares nothing with the code."""

    def bernoulli_exp(x: Fraction) -> bool:
        while x > 1:
            if not bernoulli_exp(Fraction(1)):
                return False
            x -= 1
        k = 1
        while rng.randrange(x.denominator * k) < x.numerator:
            k += 1
        return k % 2 == 1

    def laplace(t: int) -> int:
        while True:
            u = rng.randrange(t)
            if not bernoulli_exp(Fraction(u, t)):
                continue
            v = 0
            while bernoulli_exp(Fraction(1)):
                v += 1
            value, negative = u + t * v, rng.randrange(2)
            if not (negative and value == 0):
                return -value if negative else value

    t = math.isqrt(variance.numerator // variance.denominator) + 1
    while True:
        y = laplace(t)
        if bernoulli_exp((abs(y) - variance / t) ** 2 / (2 * variance)):
            return y


@pytest.mark.parametrize("deviation", list(FROZEN))
def test_the_table_is_the_same_everywhere(deviation: float) -> None:
    table = distribution(deviation)
    assert hashlib.sha256(b"".join(entry.to_bytes(17, "big") for entry in table)).hexdigest() == FROZEN[deviation]
    assert table[-1] == 1 << 128
    assert table == sorted(table)


def test_the_table_is_the_distribution() -> None:
    table, deviation = distribution(3.0), 3.0
    weights = [math.exp(-(x**2) / (2 * deviation**2)) for x in range(-36, 37)]
    total = math.fsum(weights)
    for at in (10, 36, 40, 60):
        assert table[at] / 2**128 == pytest.approx(math.fsum(weights[: at + 1]) / total, rel=1e-12)


def test_draws_are_distributed_as_the_exact_sampler_s() -> None:
    deviation, count = 2.5, 4000
    rng = random.Random(7)
    exact = [exact_sampler(Fraction(deviation) ** 2, rng) for _ in range(count)]
    drawn = DiscreteGaussian(deviation).sample(Stream(seeded(1)), 40 * count)
    assert ks_2samp(exact, drawn).pvalue > 1e-3
    shifted = drawn + 0.2  # the control: a mean that is off by a twelfth of the deviation is seen
    assert ks_2samp(exact, shifted).pvalue < 1e-3


@pytest.mark.parametrize("deviation", [0.5, 1.0, 17.3, 300.0])
def test_draws_fit_the_formula(deviation: float) -> None:
    count = 400_000
    drawn = gaussian(deviation).sample(Stream(seeded(2)), count)
    reach = math.ceil(4 * deviation)
    edges = np.linspace(-reach, reach, 24).round().astype(int)
    values = np.arange(-12 * math.ceil(deviation), 12 * math.ceil(deviation) + 1)
    weights = np.exp(-(values**2) / (2 * deviation**2))
    place = np.searchsorted(edges, values)
    expected = np.bincount(place, weights, minlength=25) / weights.sum() * count
    observed = np.bincount(np.searchsorted(edges, drawn), minlength=25)
    enough = expected > 20
    scale = observed[enough].sum() / expected[enough].sum()
    assert chisquare(observed[enough], expected[enough] * scale).pvalue > 1e-4


def test_a_wide_one_is_a_gaussian_of_its_deviation() -> None:
    drawn = WideGaussian(50_000.0).sample(Stream(seeded(3)), 300_000)
    assert drawn.std() == pytest.approx(50_000.0, rel=0.01)
    assert abs(drawn.mean()) < 5 * 50_000 / math.sqrt(300_000)
    assert (drawn % 64 != 0).mean() > 0.95, "the low digits are as random as the high ones"
    assert isinstance(gaussian(5000.0), WideGaussian)


def test_a_tie_is_broken_by_further_bits() -> None:
    sampler = DiscreteGaussian(4.0)
    middle = len(sampler._table) // 2
    high, low = divmod(sampler._table[middle], 1 << 64)

    class Scripted:
        def __init__(self, *words: int) -> None:
            self.left = list(words)

        def words(self, count: int) -> np.ndarray:
            return np.array([self.left.pop(0) for _ in range(count)], np.uint64)

    for second, expected in ((low, 1), (low - 1, 0), ((1 << 64) - 1, 1), (0, 0)):
        drawn = np.empty(1, np.int64)
        sampler._draw(Scripted(high, second), drawn)
        assert drawn[0] == expected, "the entry itself belongs to the next value, what is below to this one"


def test_coins_fall_as_often_as_asked() -> None:
    stream = Stream(seeded(4))
    tossed = stream.coins(0.03, 500_000)
    assert tossed.mean() == pytest.approx(0.03, abs=5 * math.sqrt(0.03 / 500_000))
    assert stream.coins(1.0, 5).all()
    assert not stream.coins(0.5, 0).size


def test_streams_of_two_keys_share_nothing() -> None:
    first, second = Stream(seeded(5)).words(CHUNK), Stream(seeded(6)).words(CHUNK)
    assert not np.intersect1d(first, second).size
    assert len(np.unique(first)) == CHUNK
    assert 0.0 <= Stream(seeded(5)).uniform(1000).min() < Stream(seeded(5)).uniform(1000).max() < 1.0


def test_small_deviations_are_drawn_to_the_last_value() -> None:
    counts = Counter(DiscreteGaussian(0.5).sample(Stream(seeded(8)), 100_000).tolist())
    ratio = math.exp(-1 / (2 * 0.25))
    assert counts[1] / counts[0] == pytest.approx(ratio, rel=0.05)
    assert counts[2] / counts[1] == pytest.approx(math.exp(-3 / (2 * 0.25)), rel=0.3)
