"""`nets.MLP` and `nets.Linear` written out: forward pass, loss and backward pass without autograd.

A step is one matrix product a layer forwards and two backwards, each written where its result belongs; for plain SGD
the product that is the gradient is added to the weights at once, so no gradient is ever stored. All of it works with
one more dimension in front, of clients that each have weights of their own (`clients=True`).
"""

from __future__ import annotations

import torch
from torch.nn import functional

Layers = list[tuple[torch.Tensor, torch.Tensor]]


def cut(flat: torch.Tensor, shapes: list[tuple[int, ...]]) -> Layers:
    """Weight and bias of each layer as views of a flat vector [d], or of [clients, d].

    Args: shapes: of weight [out, in] and bias [out] in turn, in the flat vector's order.
    """
    found, at = [], 0
    for weight, bias in zip(shapes[::2], shapes[1::2], strict=True):
        middle, end = at + weight[0] * weight[1], at + weight[0] * weight[1] + bias[0]
        found.append((flat[..., at:middle].view(*flat.shape[:-1], *weight), flat[..., middle:end]))
        at = end
    return found


class Perceptron:
    """Losses and gradients of a perceptron.

    Args:
      weights: views of the flat weights, as `cut` gives them.
      activation: "relu" or "tanh". loss: "bce", "cross_entropy" or "mse".
    """

    def __init__(self, weights: Layers, activation: str, loss: str) -> None:
        self._weights, self._tanh, self._loss = weights, activation == "tanh", loss
        self._clients = weights[0][0].ndim == 3

    def back_propagate(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        into: Layers,
        *,
        beta: float,
        alpha: float,
        share: torch.Tensor | float,
    ) -> torch.Tensor:
        """One batch: into = beta * into + alpha * gradient, of the mean loss before this call.

        Args:
          x: float32[rows, inputs]. y: float32[rows, outputs]: the labels, one-hot for cross_entropy.
          into: gradients, or with beta = 1 the weights themselves.
          share: of each row in the mean: 1 / rows, or [clients, rows, 1] where clients' batches differ in size.
        Returns: the mean loss, a scalar (or one for each client).
        """
        inputs = self._forward(x)
        error, loss = self._error(inputs.pop(), y, share)
        for layer in reversed(range(len(self._weights))):
            weight, _ = self._weights[layer]
            entering = inputs[layer]
            # before this layer's weights change, for `into` may be the weights
            below = self._below(error, weight, entering) if layer else error
            (into_weight, into_bias) = into[layer]
            if self._clients:
                into_weight.baddbmm_(error.mT, entering, beta=beta, alpha=alpha)
            else:
                into_weight.addmm_(error.T, entering, beta=beta, alpha=alpha)
            if beta:
                into_bias.add_(error.sum(-2), alpha=alpha)
            else:
                torch.sum(error, -2, out=into_bias)
            error = below
        return loss

    def _forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What enters each layer, and what leaves the last."""
        passed = [x]
        for weight, bias in self._weights:
            if len(passed) > 1:
                passed[-1].tanh_() if self._tanh else passed[-1].relu_()
            if self._clients:
                passed.append(torch.baddbmm(bias.unsqueeze(-2), passed[-1], weight.mT))
            else:
                passed.append(torch.addmm(bias, passed[-1], weight.T))
        return passed

    def _below(self, error: torch.Tensor, weight: torch.Tensor, entering: torch.Tensor) -> torch.Tensor:
        below = error @ weight
        return below.mul_(1.0 - entering * entering) if self._tanh else below.mul_(entering > 0)

    def _error(
        self, output: torch.Tensor, y: torch.Tensor, share: torch.Tensor | float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The derivative of the mean loss by the output, and the mean loss."""
        if self._loss == "cross_entropy":
            log = functional.log_softmax(output, -1)
            return log.exp().sub_(y).mul_(share), (log * y).mul_(share).sum((-2, -1)).neg_()
        if self._loss == "mse":
            error = output - y
            return error * (2.0 * share), error.square_().mul_(share).sum((-2, -1))
        rows = functional.binary_cross_entropy_with_logits(output, y, reduction="none")
        return torch.sigmoid(output).sub_(y).mul_(share), rows.mul_(share).sum((-2, -1))
