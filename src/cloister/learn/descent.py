"""Optimizers on one flat vector: a few operations a step, whatever the number of layers; nothing of torch.optim.

The arithmetic is that of torch.optim (its single-tensor form), coordinate by coordinate and bit by bit.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch

from cloister.job import SGD, Adam


class Descent(Protocol):
    """One local training's steps."""

    def step(self) -> None:
        """Moves the weights by the gradient that lies in the flat vector; may overwrite it."""
        ...


def descent(spec: SGD | Adam, weights: torch.Tensor, gradient: torch.Tensor) -> Descent:
    """The optimizer of one local training, whose state starts anew. Args: weights, gradient: float32[d], kept."""
    return _Adam(spec, weights, gradient) if isinstance(spec, Adam) else _SGD(spec, weights, gradient)


class Drift:
    """What an algorithm adds to every local step: correction + proximal * (weights - anchor).

    Args: as `algorithms.Terms`, over the trained weights in their own order. frozen: bool[d], not trained, or None.
    """

    def __init__(
        self,
        weights: torch.Tensor,
        gradient: torch.Tensor,
        correction: torch.Tensor | None,
        proximal: float,
        anchor: torch.Tensor | None,
        frozen: torch.Tensor | None,
    ) -> None:
        self._weights, self._gradient = weights, gradient
        self._correction, self._proximal, self._anchor, self._frozen = correction, proximal, anchor, frozen

    def step(self, optimizer: Descent) -> None:
        """One step of the optimizer along the gradient and these terms."""
        if self._correction is not None:
            self._gradient.add_(self._correction)
        if self._anchor is not None:
            self._gradient.add_(self._weights - self._anchor, alpha=self._proximal)
        if self._frozen is None:
            return optimizer.step()
        kept = self._weights[self._frozen]
        optimizer.step()
        self._weights[self._frozen] = kept
        return None


class _SGD:
    def __init__(self, spec: SGD, weights: torch.Tensor, gradient: torch.Tensor) -> None:
        self._spec, self._weights, self._gradient = spec, weights, gradient
        self._velocity: torch.Tensor | None = None

    def step(self) -> None:
        gradient, spec = self._gradient, self._spec
        if spec.weight_decay:
            gradient.add_(self._weights, alpha=spec.weight_decay)
        if spec.momentum:
            if self._velocity is None:
                self._velocity = gradient.clone()
            else:
                self._velocity.mul_(spec.momentum).add_(gradient)
            gradient = self._velocity
        self._weights.add_(gradient, alpha=-spec.lr)


class _Adam:
    """Kingma, Ba 2015, algorithm 1, with torch's defaults."""

    BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

    def __init__(self, spec: Adam, weights: torch.Tensor, gradient: torch.Tensor) -> None:
        self._lr, self._weights, self._gradient = spec.lr, weights, gradient
        self._mean, self._square = torch.zeros_like(weights), torch.zeros_like(weights)
        self._steps = 0

    def step(self) -> None:
        self._steps += 1
        self._mean.lerp_(self._gradient, 1 - self.BETA1)
        self._square.mul_(self.BETA2).addcmul_(self._gradient, self._gradient, value=1 - self.BETA2)
        deviation = (self._square.sqrt() / math.sqrt(1 - self.BETA2**self._steps)).add_(self.EPSILON)
        self._weights.addcdiv_(self._mean, deviation, value=-self._lr / (1 - self.BETA1**self._steps))
