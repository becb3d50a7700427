"""Server optimizers and schedules against the papers' formulas, and where they help."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

import cloister as cl
from cloister.vector.errors import JobError
from cloister.vector.total import Total

from .problems import Sites, least_squares, regression, simulated

DELTAS = np.random.default_rng(1).normal(scale=[1.0, 0.1, 0.01, 0.0], size=(7, 4))  # mean deltas of seven rounds


def after(algorithm: cl.FedAvg) -> np.ndarray:
    state = algorithm.start(np.ones(4))
    for delta in DELTAS:
        total = Total({"delta": delta / 2}, rows=50.0, clipped=0.0, max_rows=100, sites=4)  # the mean is delta
        assert algorithm.ask(state) is not None
        state = algorithm.learn(state, total)
    assert algorithm.ask(state) is None
    return state.tensors["model"]


def test_fedavgm_is_the_heavy_ball():
    x, m = np.ones(4), np.zeros(4)
    for delta in DELTAS:
        m = 0.8 * m + delta
        x = x + 0.5 * m
    assert np.allclose(after(cl.FedAvgM(rounds=7, server_lr=0.5, momentum=0.8)), x, atol=1e-6)


@pytest.mark.parametrize(
    ("algorithm", "second"),
    [
        (cl.FedAdagrad(rounds=7, server_lr=0.3, beta1=0.5, tau=0.02), lambda v, d: v + d**2),
        (cl.FedAdam(rounds=7, server_lr=0.3, beta1=0.5, beta2=0.9, tau=0.02), lambda v, d: 0.9 * v + 0.1 * d**2),
        (
            cl.FedYogi(rounds=7, server_lr=0.3, beta1=0.5, beta2=0.9, tau=0.02),
            lambda v, d: v - 0.1 * d**2 * np.sign(v - d**2),
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_adaptive_servers_are_algorithm_two_of_reddi(algorithm, second):
    x, m, v = np.ones(4), np.zeros(4), np.full(4, 0.02**2)
    for delta in DELTAS:
        m = 0.5 * m + 0.5 * delta
        v = second(v, delta)
        x = x + 0.3 * m / (np.sqrt(v) + 0.02)
    assert np.allclose(after(algorithm), x, atol=1e-6)


def unlike_scales(small: float) -> dict[str, pd.DataFrame]:
    """Inputs of very different size: the plain mean delta hardly moves the small one's weight."""
    rng = np.random.default_rng(2)
    sites = {}
    for at in range(4):
        x = rng.normal(size=(25, 2)) * [1.0, small]
        sites[f"s{at}"] = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": x @ [1.0, 2.0] + 0.05 * at})
    return sites


def test_adaptive_servers_learn_small_features_sooner():
    """Reddi 2021, section 5: adaptive servers win where gradients are badly scaled; each at its best rate."""
    data = unlike_scales(0.05)
    sites = Sites(data)

    def best(kind):
        ends = [simulated(regression(kind(40, server_lr=rate), steps=2), data) for rate in (0.3, 1.0, 3.0)]
        return min(sites.loss(end) for end in ends) - sites.loss(sites.optimum)

    plain = best(cl.FedAvg)
    assert max(best(kind) for kind in (cl.FedAdagrad, cl.FedAdam, cl.FedYogi)) < 0.5 * plain


def test_momentum_at_the_server_takes_fewer_rounds():
    data = unlike_scales(0.2)
    sites = Sites(data)
    plain, heavy = (
        sites.loss(simulated(regression(algorithm, steps=2), data)) - sites.loss(sites.optimum)
        for algorithm in (cl.FedAvg(rounds=40), cl.FedAvgM(rounds=40, momentum=0.8))
    )
    assert heavy < 0.2 * plain


def test_schedules_are_their_formulas():
    cosine, step, inverse = cl.CosineDecay(floor=0.1), cl.StepDecay(every=3, by=0.1), cl.InverseDecay(rate=0.5)
    for done in range(10):
        assert cosine.factor(done + 1, 10) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * done / 10)))
        assert step.factor(done + 1, 10) == pytest.approx(0.1 ** (done // 3))
        assert inverse.factor(done + 1, 10) == pytest.approx(1 / (1 + 0.5 * done))
    warm = cl.InverseDecay(warmup=4)
    assert [warm.factor(round_, 9) for round_ in range(1, 7)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 0.5])
    assert cl.CosineDecay(warmup=20).factor(10, 10) == pytest.approx(10 / 21), "a warm-up longer than the run"


def test_a_schedule_scales_each_rounds_step():
    x = np.ones(4)
    for done, delta in enumerate(DELTAS):
        x = x + 2.0 / (1 + done) * delta
    assert np.allclose(after(cl.FedAvg(rounds=7, server_lr=2.0, schedule=cl.InverseDecay())), x, atol=1e-6)


def test_a_falling_rate_averages_out_the_noise_of_single_rows():
    data = least_squares(spread=0.0)
    sites = Sites(data)
    noisy = {"batch_size": 1, "steps": 10, "lr": 0.02}
    runs = [
        [simulated(regression(cl.FedAvg(80, schedule=schedule), **noisy), data, seed=seed) for seed in range(4)]
        for schedule in (None, cl.InverseDecay(rate=0.05))
    ]
    off = [np.mean([np.sum((end - sites.optimum) ** 2) for end in ends]) for ends in runs]
    assert off[1] < 0.5 * off[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: cl.FedAdam(rounds=1, beta1=1.0),
        lambda: cl.FedAdam(rounds=1, tau=0.0),
        lambda: cl.FedAvgM(rounds=1, momentum=-0.1),
        lambda: cl.FedAvg(rounds=1, schedule=0.5),
        lambda: cl.FedAvg(rounds=1, patience=0),
        lambda: cl.StepDecay(every=0),
        lambda: cl.CosineDecay(floor=2.0),
        lambda: cl.CosineDecay(warmup=-1),
        lambda: cl.InverseDecay(rate=0.0),
        lambda: cl.FedProx(rounds=1, proximal=0.0),
        lambda: cl.FedRep(rounds=1, head_epochs=0),
        lambda: cl.PartialSharing(rounds=1, private="head"),
        lambda: cl.Newton(rounds=1, tolerance=0.0),
    ],
)
def test_settings_without_sense_are_refused(make):
    with pytest.raises(JobError):
        make()


def test_training_ends_when_the_sealed_loss_falls_no_more_and_gives_the_best_model():
    """The held-out rows have half the slope: their loss falls until the model passes it."""
    x = np.linspace(-1, 1, 20)
    halves = [pd.DataFrame({"a": x, "y": slope * x, "split": split}) for slope, split in ((4, "train"), (2, "test"))]
    data = {f"s{at}": pd.concat(halves) for at in range(3)}
    job = regression(cl.FedAvg(rounds=60, patience=4), split="split")
    result = cl.simulate(job, data, engine="serial")
    history = result.history
    losses = history["loss"].to_numpy()
    best = int(np.argmin(losses[:-1]))
    assert len(losses) == best + 4 + 2, "four evaluations that were no better, and the round that came with the last"
    assert history["best_round"].iloc[-1] == best
    assert losses[-1] == losses[best], "the final model is the best one"
    assert 0 < best < 10
    again = regression(cl.FedAvg(rounds=best), split="split")
    assert np.array_equal(simulated(again, data), simulated(job, data))


def test_patience_needs_an_evaluation():
    task = regression(cl.FedAvg(rounds=1)).task
    with pytest.raises(JobError, match="patience waits for an evaluation"):
        cl.Job(cl.Table("t", target="y"), task, cl.FedAvg(rounds=5, patience=1), evaluate=None)
