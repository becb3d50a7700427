"""Local training of many clients at once, of a PyTorch model of one's own: a step of all is one call."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad_and_value, vmap

from cloister.algorithms import Trained
from cloister.job import Torch
from cloister.learn.batches import passes
from cloister.learn.descent import descent
from cloister.learn.torch_private import Loss, WithLoss
from cloister.vector.errors import UsageError

Batch = tuple[torch.Tensor, torch.Tensor]


class ManyClients:
    """Args: module: in training mode. loss: mean loss of some rows.

    Raises: UsageError: a layer that keeps statistics of what it saw: they would be of all clients.
    """

    def __init__(self, task: Torch, module: nn.Module, loss: Loss) -> None:
        if any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in module.modules()):
            raise _refused("its BatchNorm keeps statistics")
        self._task, self._whole = task, WithLoss(module, loss)
        named = dict(self._whole.named_parameters())
        self._shapes = {name: each.shape for name, each in named.items() if each.requires_grad}
        rest = {name: each for name, each in named.items() if not each.requires_grad}
        self._fixed = {**rest, **dict(self._whole.named_buffers())}
        self._each = vmap(grad_and_value(self._loss))

    def _loss(self, tensors: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = functional_call(self._whole, ({**tensors, **self._fixed},), (x, y))
        return found

    def train(self, start: torch.Tensor, clients: Sequence[Batch], seeds: Sequence[int]) -> list[Trained]:
        """Each client from the same start, as it would be trained alone, to rounding.

        Args: start: float32[d], the trained weights in their own order. clients: all rows and targets of each.
        Returns: with deltas of the trained weights, float32[d].
        """
        waiting = [self._batches(*rows, seed) for rows, seed in zip(clients, seeds, strict=True)]
        weights, gradient = start.repeat(len(clients), 1), torch.zeros(len(clients), start.numel())
        optimizer = descent(self._task.optimizer, weights, gradient)
        ended: dict[int, torch.Tensor] = {}
        total, seen, steps = torch.zeros(len(clients)), [0] * len(clients), [0] * len(clients)
        while len(ended) < len(clients):
            alike: dict[int, list[tuple[int, Batch]]] = defaultdict(list)  # a batch's mean takes batches of one size
            for at, batches in enumerate(waiting):
                batch = None if at in ended else next(batches, None)
                if batch is not None:
                    alike[len(batch[1])].append((at, batch))
                elif at not in ended:
                    ended[at] = weights[at] - start
            gradient.zero_()  # the weights of those that have ended may move on: nobody looks at them again
            for size, some in alike.items():
                places = torch.tensor([at for at, _ in some])
                x, y = (torch.stack(part) for part in zip(*(batch for _, batch in some), strict=True))
                found, losses = self._step(weights[places], x, y)
                gradient[places] = found
                total[places] += losses.detach() * size
                for at, _ in some:
                    seen[at], steps[at] = seen[at] + size, steps[at] + 1
            optimizer.step()
        return [
            Trained(ended[at].numpy(), float(total[at]) / max(seen[at], 1), steps[at]) for at in range(len(clients))
        ]

    def _batches(self, x: torch.Tensor, y: torch.Tensor, seed: int) -> Iterator[Batch]:
        for drawn, bounds in passes(self._task, len(y), seed):
            order = torch.from_numpy(drawn)
            for start, stop in bounds:
                yield x[order[start:stop]], y[order[start:stop]]

    def _step(self, weights: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients [clients, d] and mean losses [clients] of one batch each."""
        sizes = [shape.numel() for shape in self._shapes.values()]
        parts = zip(self._shapes.items(), torch.split(weights, sizes, dim=1), strict=True)
        tensors = {name: part.reshape(-1, *shape) for (name, shape), part in parts}
        try:
            found, losses = self._each(tensors, x, y)
        except RuntimeError as fault:  # no rule for a layer, or something random in it
            raise _refused("something in it has no batched form, such as dropout") from fault
        return torch.cat([found[name].flatten(1) for name in self._shapes], dim=1), losses


def _refused(why: str) -> UsageError:
    return UsageError(f"engine='batched' cannot train this model: {why}.", mend="Use engine='processes'.")


def whole(delta: np.ndarray, size: int) -> np.ndarray:
    """A delta of all tensors, of which the trained ones come first: the others stay as they were."""
    return np.concatenate([delta, np.zeros(size - len(delta), np.float32)])
