"""Shakespeare's roles as sites: which character comes next, after eighty? An LSTM that ships with the job.

The loss is over every character of a row, each after those before it; accuracy is of the one after the row.
"""

import torch
from torch import nn
from torch.nn import functional

import cloister as cl

CHARACTERS = 63  # of which 0 stands for padding, and for what is rare


class NextCharacter(nn.Module):
    """Embedding of 8, one LSTM layer of 128, a linear layer: 82,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, 8)
        self.lstm = nn.LSTM(8, 128, batch_first=True)
        self.last = nn.Linear(128, CHARACTERS)

    def after_each(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, 80] to logits [rows, 80, CHARACTERS]."""
        states, _ = self.lstm(self.embedding(x.long()))
        found: torch.Tensor = self.last(states)
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after_each(x)[:, -1]


def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    following = torch.cat([batch["x"][:, 1:].long(), batch["y"][:, None]], dim=1)
    logits = model.after_each(batch["x"])
    return functional.cross_entropy(logits.flatten(0, 1), following.flatten(), ignore_index=0)


job = cl.Job(
    data=cl.Arrays("shakespeare", (80,), CHARACTERS),
    task=cl.Torch(NextCharacter, loss, cl.SGD(lr=4.0), epochs=1, batch_size=10),
    algorithm=cl.FedAvg(rounds=40, cohort=0.1),
    evaluate=cl.Evaluate(every=10),
)
