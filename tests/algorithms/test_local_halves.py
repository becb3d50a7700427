"""Algorithms that change local training: a whole simulated run against some lines of numpy, and the paper's claim."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest

import cloister as cl

from .problems import LR, Sites, constants, initial, least_squares, measured, regression, simulated

ROUNDS = 6
CLOSE = {"atol": 2e-5}  # float32 training and 32-bit sums, over all rounds


@pytest.fixture(scope="module")
def data() -> dict[str, pd.DataFrame]:
    return least_squares()


def test_fedavg_is_algorithm_one_of_the_paper(data):
    """McMahan 2017: w <- sum over sites of n_k / n * what gradient descent makes of w there."""
    job, sites = regression(cl.FedAvg(rounds=ROUNDS)), Sites(data)
    w = initial(job, 2)
    for _ in range(ROUNDS):
        w = sites.mean([sites.descend(at, w) for at in range(4)])
    assert np.allclose(simulated(job, data), w, **CLOSE)


def test_fedavg_of_one_step_is_gradient_descent_on_all_rows_and_finds_the_pooled_optimum(data):
    """McMahan 2017, section 2: FedSGD, whatever the sites are like."""
    end = simulated(regression(cl.FedAvg(rounds=300), steps=1), data)
    assert np.allclose(end, Sites(data).optimum, atol=2e-3)


def test_fedprox_pulls_each_step_to_the_broadcast(data):
    job, sites = regression(cl.FedProx(rounds=ROUNDS, proximal=0.5)), Sites(data)
    w = initial(job, 2)
    for _ in range(ROUNDS):
        start = w
        w = sites.mean([sites.descend(at, start, lambda v, start=start: 0.5 * (v - start)) for at in range(4)])
    assert np.allclose(simulated(job, data), w, **CLOSE)


def test_fedprox_ends_nearer_to_the_pooled_optimum_than_fedavg(data):
    """Li 2020, section 5: with unlike sites and much local work the proximal term helps."""
    sites = Sites(data)
    ends = [
        simulated(regression(algorithm, steps=40), data)
        for algorithm in (cl.FedAvg(rounds=30), cl.FedProx(rounds=30, proximal=2.0))
    ]
    plain, proximal = (sites.loss(end) - sites.loss(sites.optimum) for end in ends)
    assert proximal < 0.5 * plain


def test_scaffold_is_option_two_of_the_paper(data):
    job, sites = regression(cl.SCAFFOLD(rounds=ROUNDS)), Sites(data)
    w, c, own = initial(job, 2), np.zeros(3), np.zeros((4, 3))
    for _ in range(ROUNDS):
        ends = [sites.descend(at, w, lambda v, drift=c - own[at]: drift) for at in range(4)]
        renewed = np.array([own[at] - c + (w - ends[at]) / (10 * LR) for at in range(4)])
        w, c, own = sites.mean(ends), c + sites.share @ (renewed - own), renewed
    assert np.allclose(simulated(job, data), w, **CLOSE)


def test_scaffold_reaches_it_with_a_part_of_the_sites_and_with_dropouts(data):
    """c stays the weighted mean of all c_i, whoever was asked or vanished."""
    job = regression(cl.SCAFFOLD(rounds=40, cohort=0.75, server_lr=0.5), steps=20)
    assert np.allclose(simulated(job, data), Sites(data).optimum, atol=0.05)
    job = regression(cl.SCAFFOLD(rounds=60), steps=20)
    assert np.allclose(simulated(job, data, dropouts=0.1), Sites(data).optimum, atol=0.05)


@pytest.mark.parametrize(
    "algorithm", [cl.SCAFFOLD(rounds=60), cl.FedDyn(rounds=120, alpha=0.5)], ids=lambda a: a.name
)
def test_drift_is_corrected_to_the_pooled_optimum_where_fedavg_stays_off(data, algorithm):
    """Karimireddy 2020, theorem III, and Acar 2021, theorem 1: no bias however many local steps."""
    sites = Sites(data)
    off = np.abs(simulated(regression(cl.FedAvg(rounds=60), steps=20), data) - sites.optimum).max()
    end = simulated(regression(algorithm, steps=20), data)
    assert off > 0.05
    assert np.abs(end - sites.optimum).max() < 0.02 * off


def test_feddyn_is_algorithm_one_of_the_paper_with_sites_weighted_by_rows(data):
    alpha = 0.3
    job, sites = regression(cl.FedDyn(rounds=ROUNDS, alpha=alpha)), Sites(data)
    w, h, last = initial(job, 2), np.zeros(3), np.zeros((4, 3))
    for _ in range(ROUNDS):
        ends = [sites.descend(at, w, lambda v, at=at, w=w, last=last: -last[at] + alpha * (v - w)) for at in range(4)]
        last = np.array([last[at] - alpha * (ends[at] - w) for at in range(4)])
        h = h - alpha * (sites.mean(ends) - w)
        w = sites.mean(ends) - h / alpha
    assert np.allclose(simulated(job, data), w, **CLOSE)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fednova_weighs_a_site_by_its_rows_whatever_its_number_of_steps(momentum):
    """Wang 2020, equation 6: x - tau_eff * sum_i p_i d_i, d_i = G_i a_i / |a_i|; a by hand from unrolled momentum."""
    rows, values, lr = [8, 16, 72], [1.0, -2.0, 5.0], 0.01
    task = {"batch_size": 8, "epochs": 1, "lr": lr}
    data, job = constants(values, rows), regression(cl.FedNova(rounds=3), **task)
    slowed = dataclasses.replace(job.task, optimizer=cl.SGD(lr, momentum=momentum))
    job = dataclasses.replace(job, task=slowed)
    share, bias = np.array(rows) / sum(rows), initial(job, 1)[1]
    for _ in range(3):
        deltas, weights = [], []
        for count, value in zip(rows, values, strict=True):
            b, velocity, each = bias, 0.0, np.zeros(0)
            for _ in range(count // 8):
                velocity = momentum * velocity + 2 * (b - value)
                b -= lr * velocity
                each = np.append(each, 0.0)
                each += momentum ** np.arange(len(each) - 1, -1, -1)  # what each gradient has been counted for
            deltas.append(b - bias)
            weights.append(each.sum())
        bias += (share @ weights) * (share @ (np.array(deltas) / weights))
    assert simulated(job, data)[1] == pytest.approx(bias, abs=1e-5)


def test_fednova_reaches_the_pooled_optimum_where_fedavg_leans_to_sites_with_many_steps():
    rows, values = [8, 8, 160], [0.0, 0.0, 10.0]
    data = constants(values, rows)
    pooled = float(np.average(values, weights=rows))
    task = {"batch_size": 8, "epochs": 1, "lr": 0.002}
    plain = simulated(regression(cl.FedAvg(rounds=300), **task), data)[1]
    nova = simulated(regression(cl.FedNova(rounds=300), **task), data)[1]
    assert abs(plain - pooled) > 0.5
    assert abs(nova - pooled) < 0.05


def test_ditto_keeps_fedavgs_model_and_trains_a_personal_one_beside_it(data):
    """Against numpy, by the loss of the personal models that the sealed evaluation tells."""
    pull = 0.4
    job = regression(cl.Ditto(rounds=ROUNDS, pull=pull))
    assert np.array_equal(simulated(job, data), simulated(regression(cl.FedAvg(rounds=ROUNDS)), data))
    history = cl.simulate(regression(job.algorithm, split="split"), measured(data), engine="serial").history
    sites, w = Sites(data), initial(job, 2)
    personal = [w] * 4
    for _ in range(ROUNDS):
        personal = [sites.descend(at, personal[at], lambda v, w=w: pull * (v - w)) for at in range(4)]
        w = sites.mean([sites.descend(at, w) for at in range(4)])
    squares = [np.mean((x @ v - y) ** 2) for x, v, y in zip(sites.x, personal, sites.y, strict=True)]
    assert history["personal_loss"].iloc[-1] == pytest.approx(sites.share @ squares, rel=1e-4)
    assert history["loss"].iloc[-1] == pytest.approx(sites.loss(w), rel=1e-4)
    assert history["personal_loss"].iloc[-1] < 0.5 * history["loss"].iloc[-1], "the claim: unlike sites gain"


def test_a_private_bias_is_averaged_by_nobody(data):
    """PartialSharing on the bias of a linear model: shared slopes, own offsets, against numpy."""
    job, sites = regression(cl.PartialSharing(rounds=ROUNDS, private=["bias"])), Sites(data)
    w, biases = initial(job, 2), [initial(job, 2)[2]] * 4
    for _ in range(ROUNDS):
        ends = [sites.descend(at, np.append(w[:2], biases[at])) for at in range(4)]
        w, biases = np.append(sites.mean(ends)[:2], w[2]), [end[2] for end in ends]
    end = simulated(job, data)
    assert np.allclose(end[:2], w[:2], **CLOSE)
    assert end[2] == pytest.approx(initial(job, 2)[2]), "the private part of the result is the initial one"


def _two_layers(algorithm: Any) -> cl.Job:
    return cl.Job(
        data=cl.Table("t", target="y", split="split"),
        task=cl.Torch(cl.nets.MLP([3]), loss="mse", optimizer=cl.SGD(0.05), steps=10, batch_size=1000),
        algorithm=algorithm,
    )


def test_fedrep_trains_the_head_first_and_then_the_body_below_it():
    """One round at three sites against torch by hand: head with the body fixed, body with the new head fixed."""
    import torch

    rng = np.random.default_rng(5)
    x, ys = rng.normal(size=(20, 4)).astype(np.float32), rng.normal(size=(3, 20)).astype(np.float32)
    data = {f"s{at}": pd.DataFrame(x, columns=list("abcd")).assign(y=y, split="train") for at, y in enumerate(ys)}
    job = _two_layers(cl.FedRep(rounds=1, head_epochs=7))
    shapes, tensors = job.initial_model(4)
    bodies = []
    for y in ys:
        net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        net.load_state_dict({name: torch.tensor(value) for name, value in tensors.items()})
        for part, steps in ((net[2], 7), (net[0], 10)):
            optimizer = torch.optim.SGD(part.parameters(), lr=0.05)
            for _ in range(steps):
                net.zero_grad()
                torch.nn.functional.mse_loss(net(torch.tensor(x))[:, 0], torch.tensor(y)).backward()
                optimizer.step()
        bodies.append(np.concatenate([each.detach().numpy().reshape(-1) for each in net[0].parameters()]))
    end = simulated(job, data)
    assert list(shapes) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert np.allclose(end[:15], np.mean(bodies, axis=0), **CLOSE)
    assert np.allclose(end[15:], np.concatenate([tensors["2.weight"].reshape(-1), tensors["2.bias"]]))


def test_fedrep_learns_what_sites_share_where_their_heads_differ():
    """Collins 2021: one representation, heads of opposite sign; averaging whole models cannot fit them."""
    rng = np.random.default_rng(6)
    body, data = rng.normal(size=(8, 1)), {}
    for at, sign in enumerate((1.0, -1.0, 2.0, -2.0)):
        x = rng.normal(size=(60, 8))
        split = np.where(np.arange(60) < 40, "train", "test")
        data[f"s{at}"] = pd.DataFrame(x).rename(columns=str).assign(y=sign * (x @ body)[:, 0], split=split)
    losses = [
        cl.simulate(_two_layers(algorithm), data, engine="serial").final["loss"]
        for algorithm in (cl.FedAvg(rounds=40), cl.FedRep(rounds=40))
    ]
    assert losses[1] < 0.2 * losses[0]


def normalized_net() -> Any:
    from torch import nn

    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1))


def test_fedbn_keeps_batch_norm_at_the_site_and_wins_where_features_shift():
    """Li 2021, section 5: one concept, and at each site another scale and offset of the features."""
    rng, data = np.random.default_rng(7), {}
    for at, (scale, offset) in enumerate(((1.0, 0.0), (5.0, 10.0), (0.2, -3.0), (3.0, -8.0))):
        z = rng.normal(size=(90, 3))
        split = np.where(np.arange(90) < 60, "train", "test")
        frame = pd.DataFrame(scale * z + offset, columns=list("abc"))
        data[f"s{at}"] = frame.assign(y=(z[:, 0] + z[:, 1] * z[:, 2] > 0) * 1, split=split)
    job = cl.Job(
        cl.Table("t", target="y", split="split"),
        cl.Torch(normalized_net, loss="bce", optimizer=cl.SGD(0.1), batch_size=20),
        cl.FedAvg(rounds=25),
        seed=1,
    )
    plain = cl.simulate(job, data, engine="serial")
    kept = cl.simulate(cl.Job(job.data, job.task, cl.FedBN(rounds=25), seed=1), data, engine="serial")
    assert kept.final["loss"] < 0.8 * plain.final["loss"]
    start, end = job_tensors(kept), kept.tensors
    for name in end:
        assert np.array_equal(start[name], end[name]) == name.startswith("1."), name


def job_tensors(result: Any) -> dict[str, np.ndarray]:
    return dict(result.job.initial)


@pytest.mark.parametrize("algorithm", [cl.FedAdam(rounds=2), cl.FedDyn(rounds=2), cl.SCAFFOLD(rounds=2)])
def test_running_statistics_are_averaged_and_nothing_else(algorithm):
    """No momentum, second moment or control variate for them: a variance must stay the mean of variances."""
    rng = np.random.default_rng(8)
    data = {
        f"s{at}": pd.DataFrame(rng.normal(size=(30, 3)) * 3, columns=list("abc")).assign(y=np.arange(30) % 2)
        for at in range(3)
    }
    ends = [
        cl.simulate(
            cl.Job(
                cl.Table("t", target="y"),
                cl.Torch(normalized_net, loss="bce", optimizer=cl.SGD(1e-6)),
                each,
                evaluate=None,
            ),
            data,
            engine="serial",
        ).tensors
        for each in (cl.FedAvg(rounds=2), algorithm)
    ]
    for name in ("1.running_mean", "1.running_var"):
        # FedAdam moves the weights by its own rate, which shows in the second round's statistics a little
        assert np.allclose(ends[0][name], ends[1][name], rtol=0.05, atol=0.02), name
