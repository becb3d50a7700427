"""The fast paths of local training give what torch gives: written-out gradients, channels innermost, lone rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import cloister as cl
from cloister import learn
from cloister.learn.perceptron import Perceptron, cut
from cloister.learn.prepare import Rows
from cloister.learn.torch_task import TorchModel
from cloister.vector import flatten
from cloister.vector.errors import TaskError

SHAPES = [(7, 5), (7,), (3, 7), (3,)]


def targets(loss: str, shape: tuple[int, ...]) -> torch.Tensor:
    if loss == "cross_entropy":
        return nn.functional.one_hot(torch.randint(0, 3, shape[:-1]), 3).float()
    return torch.randint(0, 2, shape).float() if loss == "bce" else torch.randn(shape)


def plain_loss(loss: str, out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if loss == "cross_entropy":
        return nn.functional.cross_entropy(out, y)
    if loss == "bce":
        return nn.functional.binary_cross_entropy_with_logits(out, y, reduction="none").sum(1).mean()
    return (out - y).square().sum(1).mean()


@pytest.mark.parametrize("loss", ["bce", "cross_entropy", "mse"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("clients", [None, 4])
def test_written_out_gradients_are_those_of_autograd(loss: str, activation: str, clients: int | None) -> None:
    torch.manual_seed(0)
    lead = () if clients is None else (clients,)
    size = sum(int(np.prod(shape)) for shape in SHAPES)
    flat, gradient = torch.randn(*lead, size), torch.zeros(*lead, size)
    x, y = torch.randn(*lead, 6, 5), targets(loss, (*lead, 6, 3))
    shares: Any = 1 / 6 if clients is None else torch.full((clients, 6, 1), 1 / 6)
    one = Perceptron(cut(flat, SHAPES), activation, loss)
    before = x.clone()
    losses = one.back_propagate(x, y, cut(gradient, SHAPES), beta=0.0, alpha=1.0, share=shares)
    stepped = flat.clone()
    Perceptron(cut(stepped, SHAPES), activation, loss).back_propagate(
        x, y, cut(stepped, SHAPES), beta=1.0, alpha=-0.1, share=shares
    )
    assert torch.equal(x, before)
    for at in range(clients or 1):
        pick = (lambda each: each) if clients is None else (lambda each, at=at: each[at])
        weights = pick(flat).clone().requires_grad_()
        (w1, b1), (w2, b2) = cut(weights, SHAPES)
        hidden = getattr(torch, activation)(pick(x) @ w1.T + b1)
        value = plain_loss(loss, hidden @ w2.T + b2, pick(y))
        value.backward()
        assert weights.grad is not None
        torch.testing.assert_close(pick(gradient), weights.grad)
        torch.testing.assert_close(pick(losses), value.detach())
        torch.testing.assert_close(pick(stepped), weights.detach() - 0.1 * weights.grad)


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
