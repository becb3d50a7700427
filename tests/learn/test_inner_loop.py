"""The fast paths of local training give what torch gives: written-out gradients, channels innermost, lone rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import cloister as cl
from cloister import learn
from cloister.learn import perceptron
from cloister.learn.net_task import NetModel
from cloister.learn.perceptron import Perceptron, cut
from cloister.learn.prepare import Rows
from cloister.learn.torch_task import TorchModel
from cloister.vector import flatten
from cloister.vector.errors import TaskError

SHAPES = [(7, 5), (7,), (3, 7), (3,)]


def targets(loss: str, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    if loss == "cross_entropy":
        return np.eye(3, dtype=np.float32)[rng.integers(0, 3, shape[:-1])]
    y = rng.integers(0, 2, shape) if loss == "bce" else rng.normal(size=shape)
    return y.astype(np.float32)


def plain_loss(loss: str, out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if loss == "cross_entropy":
        return nn.functional.cross_entropy(out, y)
    if loss == "bce":
        return nn.functional.binary_cross_entropy_with_logits(out, y, reduction="none").sum(1).mean()
    return (out - y).square().sum(1).mean()


@pytest.mark.parametrize("loss", ["bce", "cross_entropy", "mse"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize(("clients", "large"), [(None, 10_000), (4, 10_000), (4, 1)])
def test_written_out_gradients_are_those_of_autograd(
    loss: str, activation: str, clients: int | None, large: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr(perceptron, "LARGE", large)
    rng = np.random.default_rng(0)
    lead = () if clients is None else (clients,)
    size = sum(int(np.prod(shape)) for shape in SHAPES)
    flat, gradient = rng.normal(size=(*lead, size)).astype(np.float32), np.zeros((*lead, size), np.float32)
    x, y = rng.normal(size=(*lead, 6, 5)).astype(np.float32), targets(loss, rng, (*lead, 6, 3))
    share: Any = np.float32(1 / 6) if clients is None else np.full((clients, 6, 1), 1 / 6, np.float32)
    before, stepped = x.copy(), flat.copy()
    net = Perceptron(cut(flat, SHAPES), activation, loss)
    losses = net.back_propagate(x, y, cut(gradient, SHAPES), step=None, share=share)
    layers = cut(stepped, SHAPES)
    Perceptron(layers, activation, loss).back_propagate(x, y, layers, step=0.1, share=share)
    np.testing.assert_array_equal(x, before)
    for at in range(clients or 1):
        pick = (lambda each: each) if clients is None else (lambda each, at=at: each[at])
        weights = torch.tensor(pick(flat), requires_grad=True)
        w1, b1 = weights[:35].view(7, 5), weights[35:42]
        w2, b2 = weights[42:63].view(3, 7), weights[63:]
        hidden = getattr(torch, activation)(torch.tensor(pick(x)) @ w1.T + b1)
        value = plain_loss(loss, hidden @ w2.T + b2, torch.tensor(pick(y)))
        value.backward()
        assert weights.grad is not None
        close = {"rtol": 1e-4, "atol": 1e-6}
        np.testing.assert_allclose(pick(gradient), weights.grad.numpy(), **close)
        np.testing.assert_allclose(pick(losses), value.item(), **close)
        np.testing.assert_allclose(pick(stepped), weights.detach().numpy() - 0.1 * weights.grad.numpy(), **close)


@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_losses_and_scores_stay_finite_at_any_logit(loss: str) -> None:
    task = cl.Torch(cl.nets.Linear(), loss, cl.SGD(0.1))
    made = cl.Job(cl.Arrays("a", (1,), 2 if loss == "bce" else None), task, cl.FedAvg(rounds=1))
    model = NetModel(made, {"weight": (1, 1), "bias": (1,)})
    rows = Rows(np.array([[-1e4], [0.0], [1e4]], np.float32), np.array([1.0, 0.0, 0.0]))
    said = model.assess(np.array([1.0, 0.0], np.float32), rows)
    assert np.isfinite(said.losses).all()
    assert np.isfinite(said.scores).all()
    if loss == "bce":
        np.testing.assert_allclose(said.losses, [1e4, np.log(2), 1e4])
        np.testing.assert_allclose(said.scores, [0, 0.5, 1])


def named_net(net: Any, loss: str, inputs: int, **settings: Any) -> tuple[NetModel, np.ndarray]:
    classes = {"cross_entropy": 3, "bce": 2, "mse": None}[loss]
    task = cl.Torch(net, loss, cl.SGD(0.001 if loss == "mse" else 0.2), **settings)
    made = cl.Job(cl.Arrays("a", (inputs,), classes), task, cl.FedAvg(rounds=1))
    shapes, tensors = made.initial_model(inputs)
    return NetModel(made, shapes), flatten(tensors, list(shapes))


def some_rows(rows: int, inputs: int, loss: str, seed: int) -> Rows:
    rng = np.random.default_rng(seed)
    y = {"cross_entropy": rng.integers(0, 3, rows), "bce": rng.integers(0, 2, rows), "mse": rng.normal(size=rows)}
    return Rows(rng.normal(size=(rows, inputs)).astype(np.float32), y[loss])


NETS = [cl.nets.Linear(), cl.nets.MLP([6]), cl.nets.MLP([101, 103]), cl.nets.MLP([7, 5], activation="tanh")]
WORK: list[dict[str, Any]] = [{"batch_size": 4}, {"batch_size": 50, "epochs": 3}, {"batch_size": 3, "steps": 11}]


@pytest.mark.parametrize("net", NETS, ids=str)
@pytest.mark.parametrize("loss", ["cross_entropy", "bce", "mse"])
@pytest.mark.parametrize("work", WORK, ids=str)
def test_few_rows_train_as_step_by_step(net: Any, loss: str, work: dict[str, Any], monkeypatch: Any) -> None:
    model, flat = named_net(net, loss, 40, **work)
    for rows in (1, 10, 13):
        data = some_rows(rows, 40, loss, rows)
        monkeypatch.setattr(model, "few", lambda *_: 0)
        by_steps = model.train(flat, data, 5, 1)
        monkeypatch.setattr(model, "few", lambda *_: 1)
        few = model.train(flat, data, 5, 1)
        assert np.abs(by_steps.delta).max() > 1e-3
        np.testing.assert_allclose(few.delta, by_steps.delta, atol=3e-6)
        assert (few.steps, few.loss) == (by_steps.steps, pytest.approx(by_steps.loss, rel=1e-5))


@pytest.mark.parametrize("net", NETS, ids=str)
@pytest.mark.parametrize("loss", ["cross_entropy", "bce", "mse"])
@pytest.mark.parametrize("work", WORK, ids=str)
@pytest.mark.parametrize(("rows", "inputs"), [(1, 40), (10, 40), (13, 101), (50, 784), (30, 20)])
def test_who_trains_beside_a_site_changes_no_bit_of_it(
    net: Any, loss: str, work: dict[str, Any], rows: int, inputs: int
) -> None:
    model, flat = named_net(net, loss, inputs, **work)
    sites = [some_rows(rows, inputs, loss, at) for at in range(19)]
    together = [give() for give in model.train_few(flat, sites, range(19))]
    for at in (0, 7, 18):
        (alone,) = (give() for give in model.train_few(flat, sites[at : at + 1], [at]))
        np.testing.assert_array_equal(together[at].delta, alone.delta)
        assert (together[at].loss, together[at].steps) == (alone.loss, alone.steps)


def test_few_rows_that_diverge_end_as_numbers_that_say_so() -> None:
    model, flat = named_net(cl.nets.MLP([6]), "mse", 40, batch_size=4, epochs=30)
    data = some_rows(10, 40, "mse", 0)
    wild = Rows(data.x * np.float32(1e18), data.y)
    assert model.few(10)
    assert not np.isfinite(model.train(flat, wild, 5, 1).delta).all()


def test_few_rows_are_for_rows_that_are_few() -> None:
    wide, _ = named_net(cl.nets.MLP([128]), "cross_entropy", 784, batch_size=10)
    assert wide.few(50)
    assert not wide.few(10), "one step"
    assert not wide.few(5000)
    deep, _ = named_net(cl.nets.MLP([128, 2048]), "cross_entropy", 784, batch_size=10)
    assert 1 <= deep.few(50) < wide.few(50), "what is kept of a client is bounded"
    narrow, _ = named_net(cl.nets.Linear(), "bce", 13, batch_size=4)
    assert not narrow.few(200)


@pytest.mark.parametrize(
    "optimizer", [cl.SGD(0.1), cl.SGD(0.1, momentum=0.9, weight_decay=0.01), cl.Adam(0.01)], ids=str
)
@pytest.mark.parametrize("steps", [None, 7])
def test_many_clients_at_once_are_as_one_by_one(optimizer: Any, steps: int | None) -> None:
    task = cl.Torch(cl.nets.MLP([6]), "cross_entropy", optimizer, batch_size=4, steps=steps)
    made = cl.Job(cl.Arrays("a", (5,), 3), task, cl.FedAvg(rounds=1))
    shapes, tensors = made.initial_model(5)
    model, flat = NetModel(made, shapes), flatten(tensors, list(shapes))
    rng = np.random.default_rng(0)
    clients = [
        Rows(rng.normal(size=(rows, 5)).astype(np.float32), rng.integers(0, 3, rows)) for rows in (9, 1, 16, 3, 4)
    ]
    seeds = [11, 12, 13, 14, 15]
    together = model.train_many(flat, clients, seeds)
    for rows, seed, trained in zip(clients, seeds, together, strict=True):
        alone = model.train(flat, rows, seed, 1)
        assert (trained.steps, trained.loss) == (alone.steps, pytest.approx(alone.loss, rel=1e-5))
        np.testing.assert_allclose(trained.delta, alone.delta, atol=2e-6)


class Net(nn.Module):
    """Two convolutions; `flatten` is how images become rows of numbers."""

    def __init__(self, flat: Any = lambda x: x.flatten(1)) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3)
        self.last, self.flat = nn.Linear(6 * 4, 3), flat

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(self.first(x).relu(), 2)
        out: torch.Tensor = self.last(self.flat(self.second(x).relu()))
        return out


def viewing() -> nn.Module:
    return Net(lambda x: x.view(len(x), -1))  # needs the usual order


def normalizing() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 10 * 10, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def images(model: Any, rows: int, batch_size: int = 5) -> tuple[TorchModel, np.ndarray, Rows, list[str]]:
    task = cl.Torch(model, "cross_entropy", cl.SGD(0.1, momentum=0.9), batch_size=batch_size, epochs=2)
    made = learn.complete(cl.Job(cl.Arrays("i", (3, 10, 10), 3), task, cl.FedAvg(rounds=1)))
    shapes, tensors = made.initial_model(300)
    rng = np.random.default_rng(0)
    data = Rows(rng.normal(size=(rows, 3, 10, 10)).astype(np.float32), rng.integers(0, 3, rows))
    return TorchModel(made, shapes, 300), flatten(tensors, list(shapes)), data, list(shapes)


@pytest.mark.parametrize(("model", "innermost"), [(Net, True), (viewing, False)])
def test_convolutions_train_as_plain_torch_does_in_either_order(model: Any, innermost: bool) -> None:
    ours, flat, rows, names = images(model, 23)
    delta = ours.train(flat, rows, seed=5, round_=1).delta
    assert ours._channels_last is innermost
    module = ours.export(flat)
    assert [name for name, _ in module.named_parameters()] == names
    np.testing.assert_array_equal(nn.utils.parameters_to_vector(module.parameters()).detach().numpy(), flat)
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    rng = np.random.default_rng(5)
    for _ in range(2):
        for batch in torch.from_numpy(rng.permutation(23)).split(5):
            optimizer.zero_grad()
            x, y = torch.from_numpy(rows.x)[batch], torch.from_numpy(rows.y)[batch]
            nn.functional.cross_entropy(module(x), y).backward()
            optimizer.step()
    after = nn.utils.parameters_to_vector(module.parameters()).detach().numpy()
    np.testing.assert_allclose(delta, after - flat, atol=2e-5)
    again = ours.train(flat, rows, seed=5, round_=1).delta
    np.testing.assert_array_equal(again, delta)


class Steps(TorchDispatchMode):
    """Counts calls that change the vector of all weights."""

    def __init__(self, flat: torch.Tensor) -> None:
        super().__init__()
        self.count, self._at, self._size = 0, flat.data_ptr(), flat.numel()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        written = func.overloadpacket.__name__.endswith("_") and isinstance(args[0], torch.Tensor)
        self.count += written and args[0].data_ptr() == self._at and args[0].numel() == self._size
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("model", [Net, viewing])
def test_weights_and_gradients_are_one_vector_each_and_a_step_is_one_call(model: Any) -> None:
    ours, flat, rows, _ = images(model, 20)
    ours.train(flat, rows, seed=5, round_=1)  # settles the layout
    with Steps(ours.flat) as steps:
        trained = ours.train(flat, rows, seed=5, round_=1)
    assert trained.steps == 8
    assert steps.count == 8 + 1, "the broadcast is copied in once"
    for vector, tensors in (
        (ours.flat, list(ours.module.parameters())),
        (ours._gradient, [each.grad for each in ours.module.parameters()]),
    ):
        assert {each.untyped_storage().data_ptr() for each in tensors} == {vector.untyped_storage().data_ptr()}


def test_a_lone_last_row_joins_the_batch_before_where_there_is_batch_norm() -> None:
    ours, flat, rows, _ = images(normalizing, 11)
    trained = ours.train(flat, rows, seed=0, round_=1)
    delta, loss = trained.delta, trained.loss
    assert np.isfinite(delta).all()
    assert np.isfinite(loss)
    sizes = [len(y) for _, y in ours._batches(torch.zeros(11, 1), torch.zeros(11), 0)]
    assert sizes == [5, 6, 5, 6]


@pytest.mark.parametrize(("rows", "batch_size"), [(1, 5), (4, 1)])
def test_batch_norm_over_one_row_says_what_to_do(rows: int, batch_size: int) -> None:
    ours, flat, data, _ = images(normalizing, rows, batch_size)
    with pytest.raises(TaskError, match="BatchNorm takes two rows at least"):
        ours.train(flat, data, seed=0, round_=1)


def test_what_one_site_counted_does_not_reach_the_next() -> None:
    ours, flat, rows, _ = images(normalizing, 20)
    first = ours.train(flat, rows, seed=0, round_=1).delta
    again = ours.train(flat, rows, seed=0, round_=1).delta
    np.testing.assert_array_equal(first, again)
