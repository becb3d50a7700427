"""Sums of clipped gradients of a PyTorch model: each row's own gradient by `torch.func`, many rows at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from cloister.learn.private import clip_factors
from cloister.vector.errors import TaskError

VALUES_AT_ONCE = 1 << 24  # of rows' gradients: 64 MiB
SQUARED_AT_ONCE = 1 << 16
Loss = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]


class WithLoss(nn.Module):
    """The loss as a module around the model, so that its parameters can be handed in from outside."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.loss(self.model, x, y)


class RowGradients:
    """Args: module: in training mode, its tensors views of a flat vector. loss: mean loss of some rows.

    Raises: TaskError: a layer mixes rows, so no row has a gradient of its own.
    """

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        if any(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in module.modules()):
            raise TaskError("BatchNorm mixes rows: no row's part can be bounded.", mend="Use nn.GroupNorm.")
        self._whole = WithLoss(module, loss)
        self._trained = {name: each for name, each in self._whole.named_parameters() if each.requires_grad}
        rest = {name: each for name, each in self._whole.named_parameters() if not each.requires_grad}
        self._fixed = {**rest, **dict(self._whole.named_buffers())}
        self._size = sum(each.numel() for each in self._trained.values())
        self._each = vmap(grad(self._row_loss), in_dims=(None, 0, 0), randomness="different")

    def _row_loss(self, tensors: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = functional_call(
            self._whole, ({**tensors, **self._fixed},), (x.unsqueeze(0), y.unsqueeze(0))
        )
        return found

    def clipped_sum(
        self, x: torch.Tensor, y: torch.Tensor, starts: npt.NDArray[np.int64] | None, clip: float
    ) -> torch.Tensor:
        """float32[d]: the sum over units of their mean gradients, each of L2 norm `clip` at most.

        Args: starts: where each unit's rows begin; None: every row is one.
        """
        total = torch.zeros(self._size)
        bounds = list(range(len(y))) if starts is None else starts.tolist()
        per_part = max(1, VALUES_AT_ONCE // self._size)
        for first, last in _parts(bounds, len(y), per_part):
            rows = slice(bounds[first], bounds[last] if last < len(bounds) else len(y))
            tensors = {name: each.detach() for name, each in self._trained.items()}
            found = self._each(tensors, x[rows], y[rows])
            each = [found[name].reshape(len(y[rows]), -1) for name in self._trained]
            if starts is not None:
                each = [_means(part, starts[first:last] - starts[first]) for part in each]
            factors = torch.from_numpy(clip_factors(torch.stack([*map(_squares, each)]).sum(0).numpy(), clip))
            for into, part in zip(torch.split(total, [part.shape[1] for part in each]), each, strict=True):
                into += factors @ part
        return total


def _squares(rows: torch.Tensor) -> torch.Tensor:
    """float64[n]: of the L2 norms of float32[n, d], in pieces that a core's cache holds in double precision."""
    at_once = max(1, SQUARED_AT_ONCE // rows.shape[1])
    found = torch.empty(len(rows), dtype=torch.float64)
    for piece, into in zip(torch.split(rows, at_once), torch.split(found, at_once), strict=True):
        wide = piece.double()
        torch.linalg.vecdot(wide, wide, out=into)
    return found


def _parts(bounds: list[int], rows: int, at_once: int) -> list[tuple[int, int]]:
    """Cuts units into parts of about so many rows, of one unit at least: (first unit, unit after the last)."""
    found, first = [], 0
    for unit in range(1, len(bounds) + 1):
        stop = bounds[unit] if unit < len(bounds) else rows
        if unit == len(bounds) or stop - bounds[first] >= at_once:
            found.append((first, unit))
            first = unit
    return [(first, last) for first, last in found if first < last]


def _means(flat: torch.Tensor, starts: npt.NDArray[np.int64]) -> torch.Tensor:
    """The mean over each unit's rows: [units, d]."""
    sizes = torch.from_numpy(np.diff(starts, append=len(flat)))
    unit = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    return torch.zeros(len(sizes), flat.shape[1]).index_add_(0, unit, flat) / sizes[:, None]
