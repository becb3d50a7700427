"""What every contender of `peers.py` trains: needs numpy and torch only, so that the peers can import it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

CLIENTS, ROWS, COHORT, BATCH, LR = 1_000, 50, 50, 10, 0.05
SEALED_SITES, SEALED_WORDS = 50, 1_000_000  # of the sealed round


class Net(nn.Module):
    """Two convolutions of 5 x 5 with 16 and 32 channels, each halved by pooling, and one linear layer: 18,378."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(1, 16, 5), nn.Conv2d(16, 32, 5), nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.first(x)), 2)
        x = functional.max_pool2d(functional.relu(self.second(x)), 2)
        out: torch.Tensor = self.last(x.flatten(1))
        return out


def perceptron() -> nn.Module:
    """784, 128, 10: 101,770 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


MODELS = {"mlp": perceptron, "cnn": Net}


def images() -> tuple[np.ndarray, np.ndarray]:
    """Bytes [client, row, 1, 28, 28] and labels [client, row]."""
    rng = np.random.default_rng(0)
    return (
        rng.integers(0, 256, (CLIENTS, ROWS, 1, 28, 28)).astype(np.uint8),
        rng.integers(0, 10, (CLIENTS, ROWS)),
    )


def epoch(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """One epoch of SGD, as one writes it by hand."""
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    order = torch.randperm(ROWS)
    for start in range(0, ROWS, BATCH):
        batch = order[start : start + BATCH]
        optimizer.zero_grad()
        functional.cross_entropy(module(x[batch]), y[batch]).backward()
        optimizer.step()
