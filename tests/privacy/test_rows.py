"""Privacy of rows: clipped gradients against those of one row at a time, sampling, units, claims."""

from __future__ import annotations

import dataclasses
import itertools
import random

import numpy as np
import pandas as pd
import pytest
import torch
from tests.privacy.conftest import RANGES, make_job
from torch import nn

import cloister as cl
from cloister.learn import Trainer
from cloister.learn.net_task import NetModel
from cloister.learn.prepare import Rows
from cloister.learn.private import NoisySteps, clip_factors
from cloister.learn.torch_private import RowGradients, _squares
from cloister.learn.torch_task import TorchModel
from cloister.privacy.accounting import Event, epsilon, events_from_json
from cloister.privacy.noise import Stream
from cloister.round import Program, private
from cloister.vector.errors import ContextMismatch, DataError, JobError, TaskError
from cloister.vector.layout import Block
from cloister.vector.query import Query

ROW = cl.RowDP(epsilon=4, delta=1e-5, clip=0.7)


def seeded(seed: int = 0):
    rng = random.Random(seed)
    return lambda count: rng.randbytes(count)


def naive(module: nn.Module, loss, x, y, units, clip: float) -> tuple[torch.Tensor, list[float]]:
    """The definition: one unit after the other, its mean gradient, clipped; their sum. And each one's norm before."""
    total, norms = 0.0, []
    for unit in sorted(set(units)):
        own = np.flatnonzero(units == unit)
        module.zero_grad()
        loss(module(x[own]), y[own]).backward()
        gradient = torch.cat([each.grad.reshape(-1) for each in module.parameters()])
        norms.append(float(gradient.norm()))
        total = total + gradient * min(1.0, clip / norms[-1])
    return total, norms


LOSSES = {
    "bce": (1, lambda out, y: nn.functional.binary_cross_entropy_with_logits(out[:, 0], y.float())),
    "mse": (1, lambda out, y: nn.functional.mse_loss(out[:, 0], y.float())),
    "cross_entropy": (3, lambda out, y: nn.functional.cross_entropy(out, y.long())),
}


@pytest.mark.parametrize(
    ("loss", "activation", "several"), list(itertools.product(LOSSES, ["relu", "tanh"], [False, True]))
)
def test_sums_of_clipped_gradients_are_those_of_one_unit_at_a_time(loss: str, activation: str, several: bool) -> None:
    rng, (outputs, named) = np.random.default_rng(1), LOSSES[loss]
    x = rng.normal(size=(60, 5)).astype(np.float32) * 2
    y = rng.integers(0, max(outputs, 2), 60)
    units = rng.integers(0, 17, 60) if several else np.arange(60)
    units = np.unique(units, return_inverse=True)[1]
    classes = [0, 1, 2] if outputs == 3 else [0, 1] if loss == "bce" else None
    task = cl.Torch(cl.nets.MLP([7, 4], activation=activation), loss=loss, optimizer=cl.SGD(lr=0.1))
    job = cl.Job(cl.Arrays("x", shape=(5,), classes=classes), task, cl.FedAvg(rounds=1))
    shapes, tensors = job.initial_model(5)
    flat = np.concatenate([tensors[name].reshape(-1) for name in shapes])
    model, other = NetModel(job, shapes), TorchModel(job, shapes, 5)
    other.load(flat)
    model._flat[...] = flat
    rows = Rows(x, y.astype(np.float32) if outputs == 1 else y, units if several else None)
    noisy = NoisySteps(1.0, 1.0, 1.0, 1, rows, flat.size, Stream(seeded()))
    parts = list(noisy.weights(np.arange(60))) if several else [(np.arange(60), None)]
    everything = other.module, named, torch.from_numpy(x), torch.from_numpy(y), units
    clip = float(np.median(naive(*everything, 1.0)[1]))  # half of the units are clipped
    expected, _ = naive(*everything, clip)
    ours = np.zeros_like(flat)
    for part, starts in parts:
        model._gradient[...] = 0
        model._net.clipped_sum(x[part], model._targets(rows.y)[part], starts, clip, model._gradients)
        ours += model._gradient
    np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=2e-5)
    gradients = RowGradients(other.module, lambda module, part, labels: named(module(part), labels))
    theirs = sum(
        gradients.clipped_sum(torch.from_numpy(x[part]), torch.from_numpy(y[part]), starts, clip)
        for part, starts in parts
    )
    np.testing.assert_allclose(theirs, expected, rtol=2e-4, atol=2e-5)


def test_units_are_cut_into_parts_whole() -> None:
    units = np.repeat(np.arange(400), np.random.default_rng(0).integers(1, 9, 400))
    units = np.random.default_rng(1).permutation(units)
    rows = Rows(np.zeros((len(units), 1), np.float32), units, units.astype(np.int64))
    noisy, seen = NoisySteps(1.0, 1.0, 1.0, 1, rows, 4, Stream(seeded())), []
    for part, starts in noisy.weights(np.arange(len(units))):
        assert starts[0] == 0
        assert len(np.unique(units[part])) == len(starts)
        assert (np.diff(units[part]) != 0).sum() == len(starts) - 1
        seen += [int(unit) for unit in np.unique(units[part])]
    assert sorted(seen) == list(range(400)), "no unit is in two parts"
    assert not list(noisy.weights(np.arange(0)))


def test_no_gradient_is_longer_than_the_clip() -> None:
    squares = np.array([0.0, 1e-30, 0.25, 4.0, 1e30])
    assert np.all(np.sqrt(squares) * clip_factors(squares, 0.5) <= 0.5 * (1 + 1e-6))
    assert clip_factors(squares, 0.5)[2] == 1.0


def test_every_row_is_in_a_step_by_a_coin_of_its_own() -> None:
    rows = Rows(np.zeros((2000, 1), np.float32), np.zeros(2000))
    noisy = NoisySteps(1.0, 1.0, 0.1, 1, rows, 4, Stream(seeded(9)))
    sizes = [len(noisy.draw()) for _ in range(300)]
    assert np.mean(sizes) == pytest.approx(200, abs=4)
    assert np.std(sizes) == pytest.approx(np.sqrt(2000 * 0.1 * 0.9), rel=0.2), "shuffled batches would all be 200"


def test_the_noise_is_as_large_as_accounted_for() -> None:
    rows = Rows(np.zeros((50, 1), np.float32), np.zeros(50))
    noisy = NoisySteps(0.7, 3.0, 0.5, 1, rows, 20_000, Stream(seeded(2)))
    drawn = noisy.gradient(np.zeros(20_000)) * (0.5 * 50)  # the sum, from the mean over the expected batch
    assert drawn.std() == pytest.approx(3.0 * 0.7, rel=0.03)
    assert drawn.std() >= 3.0 * 0.7 * 0.99
    on_grid = drawn / noisy._noise.step
    assert np.allclose(on_grid, np.rint(on_grid), atol=0.05), "the sum lies on the noise's grid"


# --- whole jobs


@pytest.fixture(scope="module")
def result(clouds: pd.DataFrame) -> cl.Result:
    return cl.simulate(make_job(ROW), clouds, sites=4)


def test_a_result_says_what_was_spent(result: cl.Result) -> None:
    said = result.privacy
    assert said.unit == "row"
    assert 3.5 < said.epsilon <= 4.0
    assert "of 4 at delta 1e-05 spent, for one row" in said.sentence
    assert epsilon(events_from_json(list(said.events)), 1e-5) == said.epsilon
    assert said.as_json()["events"] == said.events
    assert "ε" in result.report()


def test_the_events_are_those_of_the_steps_that_were_made(result: cl.Result) -> None:
    terms = private.Terms.from_json(result.state.facts["privacy"]["terms"])
    passes = round(1 / terms.sampling)
    assert passes == -(-result.state.facts["rows"] // (4 * 30))
    trained, measured = Event(terms.multiplier, terms.sampling, 3 * passes), Event(terms.measured)
    assert sorted(events_from_json(list(result.privacy.events))) == sorted([trained, measured])


def test_nothing_is_opened_without_noise_but_the_number_of_rows(result: cl.Result) -> None:
    assert [name for name in result.history if "train_loss" in name] == []
    assert {"accuracy", "loss"} <= set(result.final)
    assert result.history["accuracy"].notna().sum() == 1, "measured once, at the end"


def test_noise_is_fresh_each_time_and_repeated_only_where_nothing_is_claimed(clouds: pd.DataFrame) -> None:
    job = make_job(ROW)
    first, second = (cl.simulate(job, clouds, sites=4) for _ in range(2))
    assert first.model_bytes != second.model_bytes
    again = [cl.simulate(job, clouds, sites=4, reproducible=True, seal=seal) for seal in ("ideal", "ideal", "masks")]
    assert len({result.model_bytes for result in again}) == 1, "and masks change nothing"
    said = again[0].privacy
    assert said.epsilon is None
    assert "no claim" in said.sentence
    assert "hides nobody" in said.sentence


def test_processes_do_not_share_noise(clouds: pd.DataFrame) -> None:
    job = make_job(ROW)
    ran = cl.simulate(job, clouds, sites=4, engine="processes", processes=2)
    assert ran.privacy.epsilon is not None
    repeated = [cl.simulate(job, clouds, sites=4, engine=e, reproducible=True) for e in ("serial", "processes")]
    assert repeated[0].model_bytes == repeated[1].model_bytes


def test_a_person_with_many_rows_counts_once(clouds: pd.DataFrame) -> None:
    by_person = make_job(dataclasses.replace(ROW, unit="person"))
    ran = cl.simulate(by_person, {f"s{at}": clouds[clouds.person % 3 == at] for at in range(3)})
    assert ran.state.facts["rows"] == 150 - 3 * 10, "people to train on: a fifth of each site's 50 is held out"
    assert "for all rows of one person" in ran.privacy.sentence
    trainer = Trainer(by_person, clouds, "s")
    sides = [set(clouds.person[trainer.test]), set(clouds.person[~trainer.test])]
    assert not sides[0] & sides[1], "nobody is both in training and in test"


def test_a_person_on_both_sides_of_a_split_is_refused(clouds: pd.DataFrame) -> None:
    split = clouds.assign(part=["train", "test"] * 300).assign(person=[at // 2 for at in range(600)])
    data = cl.Table("clouds", target="y", ignore=["person"], split="part")
    with pytest.raises(DataError, match="for training and for testing"):
        Trainer(make_job(dataclasses.replace(ROW, unit="person"), data=data), split, "s")


def own_net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))


def normed_net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def own_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return nn.functional.binary_cross_entropy_with_logits(model(batch["x"]).reshape(-1), batch["y"])


def test_a_model_and_loss_of_one_s_own_train_privately(clouds: pd.DataFrame) -> None:
    task = cl.Torch(own_net, loss=own_loss, optimizer=cl.Adam(lr=0.05), batch_size=30)
    data = cl.Table("clouds", target="y", ignore=["person"], classes=2)
    ran = cl.simulate(make_job(ROW, task=task, data=data), clouds, sites=4, baselines=True)
    assert ran.privacy.epsilon <= 4.0
    assert any("treats each row by itself" in each for each in ran.privacy.conditions)
    assert ran.table.loc["federated", "auc"] > 0.8


def test_a_layer_that_mixes_rows_is_refused(clouds: pd.DataFrame) -> None:
    task = cl.Torch(normed_net, loss="bce", optimizer=cl.SGD(lr=0.1))
    with pytest.raises(TaskError, match="BatchNorm mixes rows"):
        cl.simulate(make_job(ROW, task=task), clouds, sites=4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prepare": [cl.Standardize()]}, "without noise"),
        ({"prepare": [cl.Standardize(by="site")]}, "without noise"),
        ({"prepare": [cl.Impute()]}, "without noise"),
        ({"algorithm": cl.Ditto(rounds=2)}, "means of deltas only"),
        ({"algorithm": cl.FedAvg(rounds=2, aggregate=cl.Median())}, "means of deltas only"),
        ({"privacy": cl.RowDP(4, 1e-5, unit="a"), "data": cl.Table("c", target="y")}, "would be a feature"),
        ({"prepare": [cl.OneHot(min_rows=3), cl.Standardize(ranges=RANGES)]}, "min_rows"),
    ],
)
def test_what_no_noise_covers_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(JobError, match=said):
        make_job(changes.pop("privacy", ROW), **changes)


def test_estimators_have_no_noisy_steps() -> None:
    from sklearn.linear_model import SGDClassifier

    with pytest.raises(JobError, match="noisy"):
        make_job(ROW, task=cl.Sklearn(SGDClassifier(loss="log_loss")))


def test_undeclared_ranges_and_categories_are_told(clouds: pd.DataFrame) -> None:
    with pytest.raises(JobError, match="no range for b"):
        cl.simulate(make_job(ROW, prepare=[cl.Standardize(ranges={"a": (0, 1)})]), clouds, sites=4)
    words = clouds.assign(c=["x", "y", "z"] * 200)
    prepare = [cl.OneHot(), cl.Standardize(ranges=RANGES)]
    with pytest.raises(JobError, match="counted without noise"):
        cl.simulate(make_job(ROW, prepare=prepare), words, sites=4)
    kinds = {"a": "number", "b": "number", "c": ["x", "y", "z"]}
    ran = cl.simulate(make_job(ROW, prepare=prepare, data=cl.Table("c", target="y", columns=kinds)), words, sites=4)
    assert ran.privacy.epsilon <= 4.0


# --- a site's own look


def asked(job: cl.Job, clouds: pd.DataFrame, rounds: int = 1) -> Query:
    """The first question of training that an honest coordinator asks."""
    program = Program(job, {"a": "number", "b": "number"})
    state = cl.simulate(job, clouds, sites=4).state
    kept = {**state.facts["privacy"], "events": []}
    before = state.with_({"stage": "train", "round": 0, "step": 1, "privacy": kept})
    query = program.ask(before)
    assert query is not None
    return query


def test_a_site_takes_the_honest_question_and_knows_its_cost(clouds: pd.DataFrame) -> None:
    job = make_job(ROW, evaluate=cl.Evaluate(every=1))
    query = asked(job, clouds)
    terms = private.Terms.from_json(query.config["privacy"])
    assert private.check(job, query) == [Event(terms.multiplier, terms.sampling, terms.steps), Event(terms.measured)]


@pytest.mark.parametrize("lie", ["less noise", "more steps", "a block more", "no terms", "evaluation", "moments"])
def test_a_site_refuses_a_coordinator_that_asks_for_more(lie: str, clouds: pd.DataFrame) -> None:
    job = make_job(ROW, evaluate=cl.Evaluate(every=1))
    query = asked(job, clouds)
    terms = private.Terms.from_json(query.config["privacy"])

    def with_terms(**changes: object) -> Query:
        changed = dataclasses.replace(terms, **changes)
        told = dataclasses.replace(query, config={**query.config, "privacy": changed.as_json()})
        return dataclasses.replace(told, layout=private.layout_of(job, told, changed))

    lies = {
        "less noise": lambda: with_terms(multiplier=terms.multiplier * 0.9),
        "more steps": lambda: with_terms(steps=2 * terms.steps),
        "evaluation": lambda: with_terms(measured=terms.measured / 4),
        "no terms": lambda: dataclasses.replace(query, config={"evaluate": True, "step": 1}),
        "moments": lambda: dataclasses.replace(query, task="moments"),
        "a block more": lambda: dataclasses.replace(
            query,
            layout=dataclasses.replace(query.layout, blocks=(*query.layout.blocks, Block("train_loss", (), 1.0))),
        ),
    }
    with pytest.raises(ContextMismatch):
        private.check(job, lies[lie]())


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (7, 300), (3, 200_000), (600, 200)])
def test_norms_of_many_rows_are_summed_in_double_precision(rows: int, size: int) -> None:
    found = torch.from_numpy(np.random.default_rng(rows).normal(size=(rows, size)).astype(np.float32))
    np.testing.assert_allclose(_squares(found), (found.numpy().astype(np.float64) ** 2).sum(1), rtol=1e-12)
