"""`nets.MLP` and `nets.Linear` written out in numpy: forward pass, loss and backward pass without autograd.

A step is one matrix product a layer forwards and two backwards. For plain SGD the product that is the gradient is
added to the weights at once (BLAS gemm with beta = 1), so no gradient is ever stored. All of it works with one more
dimension in front, of clients that each have weights of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.linalg.blas import sgemm

from cloister.learn.private import clip_factors

Floats = npt.NDArray[np.float32]
Layers = list[tuple[Floats, Floats]]
LARGE = 10_000  # weights of a layer: moved in place, client by client; smaller ones take fewer calls together


def cut(flat: Floats, shapes: Sequence[tuple[int, ...]]) -> Layers:
    """Weight and bias of each layer as views of a flat vector [d], or of [clients, d].

    Args: shapes: of weight [out, in] and bias [out] in turn, in the flat vector's order.
    """
    found, at = [], 0
    for weight, bias in zip(shapes[::2], shapes[1::2], strict=True):
        middle, end = at + weight[0] * weight[1], at + weight[0] * weight[1] + bias[0]
        found.append((flat[..., at:middle].reshape(*flat.shape[:-1], *weight), flat[..., middle:end]))
        at = end
    return found


def add_product(weight: Floats, error: Floats, entering: Floats, factor: float) -> None:
    """Adds factor * error.T @ entering to the weight [out, in] in place."""
    # BLAS is column-major, so everything is transposed
    sgemm(factor, entering.T, error.T, 1.0, weight.T, trans_b=True, overwrite_c=True)


class Perceptron:
    """Outputs, losses and gradients of a perceptron with these weights.

    Args: weights: as `cut` gives them. activation: "relu" or "tanh". loss: "bce", "cross_entropy" or "mse".
    """

    def __init__(self, weights: Layers, activation: str, loss: str) -> None:
        self._weights, self._tanh, self._loss = weights, activation == "tanh", loss

    def back_propagate(
        self, x: Floats, y: Floats, into: Layers, *, step: float | None, share: Floats | np.float32
    ) -> Floats | np.float32:
        """One batch.

        Args:
          x: float32[rows, inputs]. y: float32[rows, outputs]: the targets, one-hot for cross_entropy.
          into: where the gradient of the mean loss goes; or with a `step` the weights, which are moved by it at once.
          share: of each row in the mean: 1 / rows, or [clients, rows, 1] where clients' batches differ in size.
        Returns: the mean loss before, a scalar (or one for each client).
        """
        error, loss = self.propagate_from(self._first(x), y, into, step=step, share=share)
        self._descend(into[0], x, error, step)
        return loss

    def propagate_from(
        self, leaving: Floats, y: Floats, into: Layers, *, step: float | None, share: Floats | np.float32
    ) -> tuple[Floats, Floats | np.float32]:
        """One batch of which is known what leaves the first layer, float32[rows, outputs of it]; it is overwritten.

        The first layer's own weights are neither read nor moved.
        Returns: the derivative of the mean loss by what leaves the first layer, and the mean loss before.
        """
        inputs = self._onwards(leaving)
        error, loss = self._error(inputs.pop(), y, share)
        for layer in range(len(self._weights) - 1, 0, -1):
            entering = inputs[layer - 1]
            # before this layer's weights change, for `into` may be the weights
            below = self._below(error, self._weights[layer][0], entering)
            self._descend(into[layer], entering, error, step)
            error = below
        return error, loss

    @staticmethod
    def _descend(into: tuple[Floats, Floats], entering: Floats, error: Floats, step: float | None) -> None:
        """The gradient of one layer put in its place, or the layer moved along it by a step."""
        weight, bias = into
        if step is None:
            np.matmul(error.swapaxes(-1, -2), entering, out=weight)
            error.sum(-2, out=bias)
        elif weight.ndim == 2:
            add_product(weight, error, entering, -step)
            bias -= np.float32(step) * error.sum(-2)
        elif weight[0].size >= LARGE:
            for own, left, entered in zip(weight, error, entering, strict=True):
                add_product(own, left, entered, -step)
            bias -= np.float32(step) * error.sum(-2)
        else:
            error *= np.float32(step)
            weight -= np.matmul(error.swapaxes(-1, -2), entering)
            bias -= error.sum(-2)

    def clipped_sum(
        self, x: Floats, y: Floats, starts: npt.NDArray[np.int64] | None, clip: float, into: Layers
    ) -> None:
        """Adds to `into` the sum over units of their mean gradients, each of L2 norm `clip` at most.

        A row's gradient of a layer is an outer product, of its error and of what enters. So the products of two rows'
        gradients are products of products, and no row's gradient is ever written out (Goodfellow 2015,
        https://arxiv.org/abs/1510.01799).

        Args: x, y: as for `back_propagate`. starts: where each unit's rows begin; None: every row is one.
        """
        inputs = self._forward(x)
        error, _ = self._error(inputs.pop(), y, np.float32(1.0))
        errors = [error]
        for layer in range(len(self._weights) - 1, 0, -1):
            errors.insert(0, self._below(errors[0], self._weights[layer][0], inputs[layer]))
        factors = self._factors(inputs, errors, starts, clip)[:, None]
        for (weight, bias), entering, leaving in zip(into, inputs, errors, strict=True):
            leaving *= factors
            weight += leaving.T @ entering
            bias += leaving.sum(0)

    @staticmethod
    def _factors(
        inputs: list[Floats], errors: list[Floats], starts: npt.NDArray[np.int64] | None, clip: float
    ) -> Floats:
        """Of each row's gradient in the clipped sum: float32[rows]."""
        if starts is None:
            squares = sum(
                np.square(leaving).sum(1) * (1 + np.square(entering).sum(1))
                for entering, leaving in zip(inputs, errors, strict=True)
            )
            return clip_factors(np.asarray(squares), clip)
        sizes = np.diff(starts, append=len(inputs[0]))
        products = sum(
            (leaving @ leaving.T) * (1 + entering @ entering.T)
            for entering, leaving in zip(inputs, errors, strict=True)
        )
        unit = np.repeat(np.arange(len(starts)), sizes)
        own = np.add.reduceat(np.asarray(products), starts, axis=1)[np.arange(len(unit)), unit]
        squares = np.add.reduceat(own, starts) / np.square(sizes)
        return np.repeat(clip_factors(squares, clip) / sizes.astype(np.float32), sizes)

    def outputs(self, x: Floats) -> Floats:
        """float32[rows, outputs] of the last layer: logits, or values."""
        return self._forward(x)[-1]

    def _forward(self, x: Floats) -> list[Floats]:
        """What enters each layer, and what leaves the last."""
        return [x, *self._onwards(self._first(x))]

    def _first(self, x: Floats) -> Floats:
        """What leaves the first layer."""
        return self._leaving(x, self._weights[0])

    def _onwards(self, leaving: Floats) -> list[Floats]:
        """From what leaves the first layer, which is overwritten: what enters each layer above, and the output."""
        passed = [leaving]
        for layer in self._weights[1:]:
            entering = passed[-1]
            np.tanh(entering, out=entering) if self._tanh else np.maximum(entering, 0, out=entering)
            passed.append(self._leaving(entering, layer))
        return passed

    @staticmethod
    def _leaving(entering: Floats, layer: tuple[Floats, Floats]) -> Floats:
        weight, bias = layer
        leaving: Floats = np.matmul(entering, weight.swapaxes(-1, -2))
        leaving += bias if bias.ndim == 1 else bias[:, None, :]
        return leaving

    def _below(self, error: Floats, weight: Floats, entering: Floats) -> Floats:
        below: Floats = np.matmul(error, weight)
        below *= 1 - entering * entering if self._tanh else entering > 0
        return below

    def _error(self, output: Floats, y: Floats, share: Floats | np.float32) -> tuple[Floats, Floats | np.float32]:
        """The derivative of the mean loss by the output, and the mean loss. Overwrites the output."""
        if self._loss == "cross_entropy":
            output -= output.max(-1, keepdims=True)
            raised = np.exp(output)
            total = raised.sum(-1, keepdims=True)
            losses = np.log(total) - (output * y).sum(-1, keepdims=True)
            raised /= total
            raised -= y
        elif self._loss == "bce":  # -log p = max(z, 0) - z * y + log(1 + exp(-|z|)), without overflow
            losses = np.maximum(output, 0) - output * y + np.log1p(np.exp(-np.abs(output)))
            raised = np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * output)) - y
        else:
            raised = output - y
            losses = raised * raised
            raised *= 2
        raised *= share
        mean: Floats | np.float32 = (losses * share).sum((-2, -1))
        return raised, mean
