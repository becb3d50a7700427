"""McMahan et al. 2017, table 2: MNIST, the convolutional net, 100 clients of 600 pictures, IID: rounds to 99 %.

The slower option beside `mnist`: a seed is some ten minutes on two cores.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional

from . import mnist
from .table import Row, rounds

load = mnist.load
GOAL, MOST_ROUNDS = 0.99, 120


class Net(nn.Module):
    """Two convolutions of 5 x 5 (32 and 64 channels), each halved by pooling, then 512 units: 1,663,370 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 32, 5, padding=2), nn.Conv2d(32, 64, 5, padding=2)
        self.third, self.last = nn.Linear(64 * 7 * 7, 512), nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.first(x)), 2)
        x = functional.max_pool2d(functional.relu(self.second(x)), 2)
        out: torch.Tensor = self.last(functional.relu(self.third(x.flatten(1))))
        return out


measure = partial(mnist.rounds_to_goal, model=Net, shape=(1, 28, 28), goal=GOAL, most_rounds=MOST_ROUNDS)
ROWS = (Row("FedAvg, IID", "B = 10, E = 1, C = 0.1, lr 0.2", "34", measure("iid", 0.2), rounds),)
