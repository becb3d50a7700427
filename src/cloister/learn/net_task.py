"""`cl.Torch` with a net by name and a loss by name, in numpy: local training, evaluation and export.

The net is a perceptron, so all of its arithmetic is written out in `perceptron.py`. It trains several times as fast
as through autograd, gives the same to rounding, and a site needs no PyTorch for it; `export` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.algorithms import Curvature, Terms, Trained
from cloister.job import SGD, Adam, Job, Torch
from cloister.job.nets import MLP, Shapes
from cloister.learn.batches import passes, work_of
from cloister.learn.few_rows import FewRows, alike, most_together, pays
from cloister.learn.metrics import Predictions
from cloister.learn.perceptron import Floats, Layers, Perceptron, cut
from cloister.learn.prepare import Inputs, Rows
from cloister.learn.private import NoisySteps
from cloister.learn.threads import one_blas_thread
from cloister.vector.bundle import Array
from cloister.vector.errors import TaskError

EVALUATED_AT_ONCE = 8192  # rows of one pass: bounds the memory of activations


class NetModel:
    """Implements the same verbs as TorchModel. Args: shapes: of the broadcast tensors, in the flat vector's order."""

    def __init__(self, job: Job, shapes: Shapes) -> None:
        assert isinstance(job.task, Torch)
        assert isinstance(job.task.loss, str)
        self.job, self.task, self._loss = job, job.task, job.task.loss
        self._sides = list(shapes.values())
        size = sum(math.prod(shape) for shape in self._sides)
        self._flat, self._gradient = np.zeros(size, np.float32), np.zeros(size, np.float32)
        self._layers, self._gradients = cut(self._flat, self._sides), cut(self._gradient, self._sides)
        self._net = self._perceptron(self._layers)
        spec = job.task.optimizer
        self._plain = isinstance(spec, SGD) and not spec.momentum and not spec.weight_decay

    def _perceptron(self, layers: Layers) -> Perceptron:
        activation = self.task.model.activation if isinstance(self.task.model, MLP) else "relu"
        return Perceptron(layers, activation, self._loss)

    def train(self, flat: Floats, rows: Rows, seed: int, round_: int, terms: Terms = Terms()) -> Trained:
        """Local training.

        Args: flat: float32[d], where it starts: the broadcast. seed: of shuffling. terms: of each step.
        Returns: delta (local minus start) float32[d]; the mean training loss over all rows seen, without the terms.
        """
        if not terms.change_steps and self.few(len(rows), terms.epochs):
            return self.train_few(flat, [rows], [seed], terms.epochs)[0]()
        self._flat[...] = flat
        at_once = self._plain and not terms.change_steps
        descent = None if at_once else Descent(self.task.optimizer, self._flat, self._gradient)
        into, step = (self._layers, self.task.optimizer.lr) if at_once else (self._gradients, None)
        y, total, seen, steps = self._targets(rows.y), 0.0, 0, 0
        with one_blas_thread(), np.errstate(all="ignore"):  # training that diverges is told by who asked for it
            for order, batches in passes(self.task, len(rows), seed, terms.epochs):
                shuffled, labels = rows.x[order], y[order]
                for start, stop in batches:
                    share = np.float32(1 / (stop - start))
                    loss = self._net.back_propagate(
                        shuffled[start:stop], labels[start:stop], into, step=step, share=share
                    )
                    if descent is not None:
                        descent.step(terms, flat)
                    total += float(loss) * (stop - start)
                    seen += stop - start
                steps += len(batches)
        return Trained(self._flat - flat, total / max(seen, 1), steps)

    def few(self, rows: int, epochs: int | None = None) -> int:
        """How many sites of so many rows `FewRows` trains together; 0: it is not for them.

        Args: epochs: instead of the task's own.
        """
        if not self._plain or not pays(rows, self._sides[0], *work_of(self.task, rows, epochs)):
            return 0
        return most_together(rows, self._sides)

    def train_few(
        self, flat: Floats, sites: Sequence[Rows], seeds: Sequence[int], epochs: int | None = None
    ) -> list[Callable[[], Trained]]:
        """Local training of sites that have as many rows each, for which `few` holds: the same bits as one by one.

        Returns: what gives a site's, of each; it is best called once, shortly before its delta is used.
        """
        work = [list(passes(self.task, len(rows), seed, epochs)) for rows, seed in zip(sites, seeds, strict=True)]
        clients = [(rows, self._targets(rows.y)) for rows in sites]
        with one_blas_thread(), np.errstate(all="ignore"):
            trained = FewRows(flat, self._sides, self._perceptron, clients, work, self.task.optimizer.lr)

        def of(site: int) -> Trained:
            with one_blas_thread(), np.errstate(all="ignore"):
                return trained.of(site)

        return [partial(of, site) for site in range(len(sites))]

    def train_privately(self, flat: Floats, rows: Rows, noisy: NoisySteps, round_: int, terms: Terms) -> Trained:
        """Local training by noisy steps, from the broadcast `flat`. The loss has no noise, so it is told as 0."""
        self._flat[...] = flat
        descent = Descent(self.task.optimizer, self._flat, self._gradient)
        y = self._targets(rows.y)
        with one_blas_thread(), np.errstate(all="ignore"):
            for _ in range(noisy.steps):
                self._gradient[...] = 0
                drawn = noisy.draw()
                parts = [(drawn, None)] if rows.units is None else noisy.weights(drawn)
                for part, starts in parts:
                    self._net.clipped_sum(rows.x[part], y[part], starts, noisy.clip, self._gradients)
                self._gradient[...] = noisy.gradient(self._gradient)
                descent.step(terms, flat)
        return Trained(self._flat - flat, 0.0, noisy.steps)

    def train_many(self, flat: Floats, clients: Sequence[Rows], seeds: Sequence[int]) -> list[Trained]:
        """Local training of several clients at once, each from the broadcast, as `train` does it one by one.

        The same to rounding.
        """
        trained: dict[int, Trained] = {}
        for few, places in alike(clients, self.few):
            parts = flat, [clients[at] for at in places], [seeds[at] for at in places]
            found = [give() for give in self.train_few(*parts)] if few else self._train_stacked(*parts)
            trained.update(zip(places, found, strict=True))
        return [trained[at] for at in range(len(clients))]

    def _train_stacked(self, flat: Floats, clients: Sequence[Rows], seeds: Sequence[int]) -> list[Trained]:
        """A step is one batched product over all clients that still have rows."""
        work = [list(passes(self.task, len(rows), seed)) for rows, seed in zip(clients, seeds, strict=True)]
        counts = [sum(len(batches) for _, batches in each) for each in work]
        longest_first = sorted(range(len(clients)), key=lambda at: -counts[at])
        x, y, share = self._stacked([clients[at] for at in longest_first], [work[at] for at in longest_first])
        steps = np.array([counts[at] for at in longest_first])
        weights = np.tile(flat, (len(clients), 1))
        gradient = np.zeros_like(weights)
        spec, at_once = self.task.optimizer, self._plain
        descent = None if at_once else Descent(spec, weights, gradient)
        total = np.zeros(len(clients))
        with one_blas_thread(), np.errstate(all="ignore"):
            for step in range(len(x)):
                active = int(np.count_nonzero(steps > step))
                layers = cut(weights[:active], self._sides)
                into = layers if at_once else cut(gradient[:active], self._sides)
                parts = x[step, :active], y[step, :active], into
                loss = self._perceptron(layers).back_propagate(
                    *parts, step=spec.lr if at_once else None, share=share[step, :active]
                )
                if descent is not None:
                    descent.step_of(active)
                total[:active] += loss * np.count_nonzero(share[step, :active, :, 0], axis=1)
        seen = np.maximum(np.count_nonzero(share[..., 0], axis=(0, 2)), 1)
        weights -= flat
        trained = {
            at: Trained(weights[place], float(total[place] / seen[place]), counts[at])
            for place, at in enumerate(longest_first)
        }
        return [trained[at] for at in range(len(clients))]

    def _stacked(self, clients: Sequence[Rows], work: Sequence[Any]) -> tuple[Floats, Floats, Floats]:
        """All steps' batches of all clients: x, y and each row's share [steps, clients, batch, .]; padded with 0."""
        longest = max(sum(len(batches) for _, batches in each) for each in work)
        lead = (longest, len(clients), min(self.task.batch_size, max(len(rows) for rows in clients)))
        x = np.zeros((*lead, clients[0].x.shape[1]), np.float32)
        y = np.zeros((*lead, self.job.outputs), np.float32)
        share = np.zeros((*lead, 1), np.float32)
        for client, (rows, each) in enumerate(zip(clients, work, strict=True)):
            step, targets = 0, self._targets(rows.y)
            for order, batches in each:
                for start, stop in batches:
                    chosen, size = order[start:stop], stop - start
                    x[step, client, :size], y[step, client, :size] = rows.x[chosen], targets[chosen]
                    share[step, client, :size] = 1 / size
                    step += 1
        return x, y, share

    def _targets(self, y: npt.NDArray[Any]) -> Floats:
        """float32[rows, outputs]: a column, or one-hot."""
        if self._loss == "cross_entropy":
            return np.eye(self.job.outputs, dtype=np.float32)[y.astype(np.int64)]
        return y.astype(np.float32)[:, None]

    def curvature(self, flat: Floats, rows: Rows, all_rows: int) -> Curvature:
        raise TaskError("a torch task gives no Hessian.")

    def predict(self, flat: Floats, x: Inputs) -> Array:
        """Probabilities or values: float64[rows], or [rows, K] for more than two classes."""
        return self._scores(self._outputs(flat, x))

    def assess(self, flat: Floats, rows: Rows) -> Predictions:
        """Predictions and each row's loss."""
        outputs = self._outputs(flat, rows.x)
        return Predictions(self._scores(outputs), self._losses(outputs, rows.y))

    def _outputs(self, flat: Floats, x: Inputs) -> npt.NDArray[np.float64]:
        self._flat[...] = flat
        parts = [np.empty((0, self.job.outputs))]
        with one_blas_thread(), np.errstate(all="ignore"):
            for at in range(0, len(x), EVALUATED_AT_ONCE):
                parts.append(self._net.outputs(x[at : at + EVALUATED_AT_ONCE]).astype(np.float64))
        return np.concatenate(parts)

    def _scores(self, outputs: npt.NDArray[np.float64]) -> Array:
        if self.job.kind == "regression":
            return np.asarray(outputs[:, 0])
        with np.errstate(all="ignore"):
            if self._loss == "bce":
                return np.asarray(0.5 * (1.0 + np.tanh(0.5 * outputs[:, 0])))
            raised = np.exp(outputs - outputs.max(axis=1, keepdims=True))
            raised /= raised.sum(axis=1, keepdims=True)
        return np.asarray(raised[:, 1] if self.job.kind == "binary" else raised)

    def _losses(self, outputs: npt.NDArray[np.float64], y: npt.NDArray[Any]) -> Array:
        with np.errstate(all="ignore"):
            if self._loss == "mse":
                return np.asarray(np.square(outputs[:, 0] - y))
            if self._loss == "bce":
                z = outputs[:, 0]
                return np.asarray(np.maximum(z, 0.0) - z * y + np.log1p(np.exp(-np.abs(z))))
            z = outputs - outputs.max(axis=1, keepdims=True)
            return np.asarray(np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y.astype(np.int64)])

    def export(self, flat: Floats) -> Any:
        """An nn.Module with these values, in evaluation mode."""
        from cloister.learn.torch_task import module_of

        return module_of(self.job, flat, self._sides[0][1])


class Descent:
    """torch.optim's SGD and Adam (Kingma, Ba 2015, algorithm 1, with torch's defaults) on flat vectors.

    Args: weights, gradient: float32[d] or [clients, d], kept: each step moves one by the other.
    """

    BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

    def __init__(self, spec: SGD | Adam, weights: Floats, gradient: Floats) -> None:
        self._spec, self._weights, self._gradient = spec, weights, gradient
        self._mean = np.zeros_like(weights) if isinstance(spec, Adam) or spec.momentum else weights
        self._square = np.zeros_like(weights) if isinstance(spec, Adam) else weights
        self._steps = 0

    def step(self, terms: Terms, start: Floats) -> None:
        """One step along the gradient and an algorithm's terms. Args: start: the anchor, if the terms name none."""
        weights, gradient = self._weights, self._gradient
        if terms.correction is not None:
            gradient += terms.correction
        if terms.proximal:
            anchor = start if terms.anchor is None else terms.anchor
            gradient += np.float32(terms.proximal) * (weights - anchor.astype(np.float32))
        if terms.only is None:
            self.step_of(None)
            return
        kept = weights[~terms.only]
        self.step_of(None)
        weights[~terms.only] = kept

    def step_of(self, clients: int | None) -> None:
        """One step of the first clients of many."""
        spec, some = self._spec, slice(None) if clients is None else slice(clients)
        weights, gradient = self._weights[some], self._gradient[some]
        mean, square = self._mean[some], self._square[some]
        self._steps += 1
        if isinstance(spec, Adam):
            mean += np.float32(1 - self.BETA1) * (gradient - mean)
            square *= np.float32(self.BETA2)
            square += np.float32(1 - self.BETA2) * gradient * gradient
            deviation = np.sqrt(square)
            deviation /= np.float32(math.sqrt(1 - self.BETA2**self._steps))
            deviation += np.float32(self.EPSILON)
            weights -= np.float32(spec.lr / (1 - self.BETA1**self._steps)) * (mean / deviation)
            return
        if spec.weight_decay:
            gradient += np.float32(spec.weight_decay) * weights
        if spec.momentum:
            mean *= np.float32(spec.momentum)
            mean += gradient
            gradient = mean
        weights -= np.float32(spec.lr) * gradient
