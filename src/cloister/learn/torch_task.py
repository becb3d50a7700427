"""PyTorch models: local training, evaluation and export, on one flat vector.

All trainable tensors of the module are views of one contiguous float32 vector, and their gradients of another:
loading a broadcast model is one copy, a delta one subtraction, an optimizer's step a few operations on one tensor
whatever the number of layers. The arithmetic is that of torch.optim, coordinate by coordinate.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cloister.algorithms import Curvature, Terms, Trained
from cloister.job import Job, RowDP, Torch, nets
from cloister.job.load import files_of, line_of, resolve
from cloister.job.nets import Code
from cloister.learn.batches import passes
from cloister.learn.metrics import Predictions
from cloister.learn.prepare import Inputs, Rows
from cloister.learn.private import NoisySteps
from cloister.vector.bundle import Array
from cloister.vector.errors import CloisterError, EnvironmentFailure, TaskError

try:
    import torch
    from torch import nn
    from torch.nn import functional
    from torch.nn.modules.batchnorm import _BatchNorm
except ModuleNotFoundError:
    raise EnvironmentFailure("this job needs PyTorch.", mend="pip install 'cloister[torch]'") from None

from cloister.learn.descent import Drift, descent
from cloister.learn.torch_many import ManyClients, whole
from cloister.learn.torch_private import RowGradients

Flat = npt.NDArray[np.float32]
Shapes = dict[str, tuple[int, ...]]
EVALUATED_AT_ONCE = 8192  # rows of one forward pass without gradients: bounds the memory of activations


@contextlib.contextmanager
def one_thread(seed: int) -> Iterator[None]:
    """Deterministic torch: one thread (sums in one order) and a generator seeded anew; both as before afterwards."""
    threads = torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(1)
    drawn = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(drawn)
        if threads > 1:
            torch.set_num_threads(threads)


@contextlib.contextmanager
def users_code(job: Job, doing: str) -> Iterator[None]:
    """Runs the job's own code: what it raises becomes a TaskError with the exception's type and line alone.

    Its message may hold values of rows: it stays in the site's own log, as the error's cause.
    """
    if not job.ships_code:
        yield
        return
    try:
        yield
    except CloisterError:
        raise
    except Exception as fault:
        where = line_of(fault, files_of(job))
        mend = "The site's worker.log has the traceback; `cloister simulate` shows it on your own data."
        raise TaskError(f"{doing}: the job's code raises {type(fault).__name__}{where}.", mend=mend) from fault


def make_module(job: Job, inputs: int) -> nn.Module:
    """The job's module with whatever initial values torch gives it. Raises TaskError: the job's code raises."""
    assert isinstance(job.task, Torch)
    model = job.task.model
    if isinstance(model, Code):
        make = resolve(job, model)
        with users_code(job, f"making model {model.name!r}"):
            module = make()
        if not isinstance(module, nn.Module):
            raise TaskError(f"{model.name!r} gives {type(module).__name__}, no torch.nn.Module.")
        return module.float()
    if isinstance(model, nets.Linear):
        return nn.Linear(inputs, job.outputs)
    activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[model.activation]
    layers: list[nn.Module] = []
    widths = [inputs, *model.hidden]
    for width, following in itertools.pairwise(widths):
        layers += [nn.Linear(width, following), activation()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], job.outputs))


def _view(flat: torch.Tensor, shape: torch.Size, channels_last: bool) -> torch.Tensor:
    """A tensor of this shape over a flat vector; a kernel [out, in, h, w] as [out, h, w, in] if asked."""
    if not channels_last:
        return flat.view(shape)
    return flat.view(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2)


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that federate: trainable parameters first, then frozen ones and floating-point buffers.

    Counters (integer buffers) stay local: an average of them means nothing.
    Raises: TaskError: a layer whose shape waits for data.
    """
    found: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise TaskError(
                f"layer {name.rpartition('.')[0]!r} takes its shape from data.", mend="Give its width as a number."
            )
        found[name] = parameter
    kept = module.state_dict().keys()
    found |= {name: each for name, each in module.named_buffers() if name in kept and each.is_floating_point()}
    frozen = {name: tensor for name, tensor in found.items() if not tensor.requires_grad}
    return {name: tensor for name, tensor in found.items() if name not in frozen} | frozen


class TorchModel:
    """One module, loaded anew for each site and round.

    Args: shapes: of the broadcast tensors, in the flat vector's order. inputs: numbers in one example.
    Raises: TaskError: the job's code raises, or makes another model than the one that was broadcast.
    """

    def __init__(self, job: Job, shapes: Shapes, inputs: int) -> None:
        assert isinstance(job.task, Torch)
        self.job, self.task, self.inputs = job, job.task, inputs
        self.module = make_module(job, inputs)
        self._tensors = tensors_of(self.module)
        ours = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        if ours != shapes or list(ours) != list(shapes):
            raise TaskError("the model's tensors differ from the broadcast ones.", mend="Submit the job again.")
        self.flat = torch.zeros(sum(tensor.numel() for tensor in self._tensors.values()))
        trained = sum(tensor.numel() for tensor in self._tensors.values() if tensor.requires_grad)
        self._trained, self._gradient = self.flat[:trained], torch.zeros(trained)
        self._counters = [(each, each.clone()) for each in self.module.buffers() if not each.is_floating_point()]
        self._normalizes = any(isinstance(each, _BatchNorm) for each in self.module.modules())
        self._channels_last: bool | None = None  # not known before an image was seen
        self._lay_out(channels_last=False)
        self.loss = None if isinstance(self.task.loss, str) else resolve(job, self.task.loss)

    def _lay_out(self, channels_last: bool) -> None:
        """Makes the module's tensors views of the flat vectors; kernels of convolutions with channels innermost."""
        at = 0
        for tensor in self._tensors.values():
            part = slice(at, at := at + tensor.numel())
            inner = channels_last and tensor.ndim == 4
            tensor.data = _view(self.flat[part], tensor.shape, inner)
            if tensor.requires_grad:
                tensor.grad = _view(self._gradient[part], tensor.shape, inner)
        self._kernels = [each for each in self._tensors.values() if channels_last and each.ndim == 4]

    def load(self, flat: Flat) -> None:
        broadcast = torch.from_numpy(np.ascontiguousarray(flat, np.float32))
        self.flat.copy_(broadcast)
        for kernel in self._kernels:
            at = kernel.storage_offset()
            kernel.data.copy_(broadcast[at : at + kernel.numel()].view(kernel.shape))

    def _weights(self) -> Flat:
        """A copy of the weights in the broadcast's order."""
        flat = self.flat.clone()
        for kernel in self._kernels:
            at = kernel.storage_offset()
            flat[at : at + kernel.numel()].view(kernel.shape).copy_(kernel.data)
        return flat.numpy()

    def train(self, flat: Flat, rows: Rows, seed: int, round_: int, terms: Terms = Terms()) -> Trained:
        """Local training.

        Args: flat: float32[d], where it starts: the broadcast. seed: of shuffling and dropout. terms: of each step.
        Returns: delta (local minus start) float32[d]; the mean training loss over all rows seen, without the terms.
        Raises: TaskError: the job's code raises.
        """
        with one_thread(seed):
            total, seen, steps = self._learn(flat, rows, seed, round_, terms)
            delta = self._weights()
        delta -= flat
        return Trained(delta, float(total) / max(seen, 1), steps)

    def train_privately(self, flat: Flat, rows: Rows, noisy: NoisySteps, round_: int, terms: Terms) -> Trained:
        """Local training by noisy steps, from the broadcast `flat`. The loss has no noise, so it is told as 0."""
        with one_thread(int.from_bytes(os.urandom(7), "big")), users_code(self.job, f"round {round_}"):
            self._channels_last = False  # every row is a batch of its own: there is nothing to gain
            x, y, drift = self._inputs(rows.x), self._targets(rows), self._drift(terms, flat)
            self.load(flat)
            self.module.train()
            optimizer = descent(self.task.optimizer, self._trained, self._gradient)
            gradients = RowGradients(self.module, lambda module, part, labels: self._batch_loss(part, labels, module))
            for _ in range(noisy.steps):
                drawn = noisy.draw()
                self._gradient.zero_()
                parts = [(drawn, None)] if rows.units is None else noisy.weights(drawn)
                for part, starts in parts:
                    self._gradient += gradients.clipped_sum(x[part], y[part], starts, noisy.clip)
                self._gradient.copy_(torch.from_numpy(noisy.gradient(self._gradient.numpy())))
                drift.step(optimizer)
            delta = self._weights()
        return Trained(delta - flat, 0.0, noisy.steps)

    def train_many(self, flat: Flat, clients: Sequence[Rows], seeds: Sequence[int]) -> list[Trained]:
        """Local training of several clients at once, each from the broadcast, as `train` does it one by one.

        The same to rounding. Raises: UsageError: a model that cannot be batched. TaskError: the job's code raises.
        """
        with one_thread(self.job.seed), users_code(self.job, "training"):
            self.load(flat)
            self.module.train()
            many = ManyClients(self.task, self.module, lambda module, x, y: self._batch_loss(x, y, module))
            rows = [(torch.from_numpy(each.x), self._targets(each)) for each in clients]
            found = many.train(torch.from_numpy(flat[: self._trained.numel()]), rows, seeds)
        return [replace(each, delta=whole(each.delta, len(flat))) for each in found]

    def curvature(self, flat: Flat, rows: Rows, all_rows: int) -> Curvature:
        raise TaskError("a torch task gives no Hessian.")

    def _learn(self, flat: Flat, rows: Rows, seed: int, round_: int, terms: Terms) -> tuple[torch.Tensor, int, int]:
        """Returns: the sum of all rows' losses as they were seen, how many were, and in how many steps."""
        x = self._inputs(rows.x)
        drift = self._drift(terms, flat)
        self.load(flat)
        for counter, initial in self._counters:  # they are local: a site's do not reach the next
            counter.copy_(initial)
        self.module.train()
        optimizer = descent(self.task.optimizer, self._trained, self._gradient)
        total, seen, steps = torch.zeros(()), 0, 0
        with users_code(self.job, f"round {round_}"):
            for part, y in self._batches(x, self._targets(rows), seed, terms.epochs):
                self._gradient.zero_()
                loss = self._batch_loss(part, y) if len(y) > 1 or not self._normalizes else self._lone(part, y)
                loss.backward()  # type: ignore[no-untyped-call]
                drift.step(optimizer)
                total.add_(loss.detach(), alpha=len(y))
                seen, steps = seen + len(y), steps + 1
        return total, seen, steps

    def _drift(self, terms: Terms, flat: Flat) -> Drift:
        """The terms over the trained part of the flat vector, in its order."""

        def ours(vector: Array | None) -> torch.Tensor | None:
            if vector is None:
                return None
            self.load(vector.astype(np.float32))
            return self._trained.clone()

        anchor = ours(flat if terms.anchor is None else terms.anchor) if terms.proximal else None
        only = ours(terms.only)
        frozen = None if only is None else only == 0
        return Drift(self._trained, self._gradient, ours(terms.correction), terms.proximal, anchor, frozen)

    def _batches(
        self, x: torch.Tensor, y: torch.Tensor, seed: int, epochs: int | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Shuffled minibatches. A pass's rows are gathered at once; its batches are views of them."""
        # alone, a last row has no deviation for BatchNorm to divide by
        for drawn, bounds in passes(self.task, len(y), seed, epochs, joins_lone_row=self._normalizes):
            order = torch.from_numpy(drawn)
            shuffled, labels = x[order], y[order]
            for start, stop in bounds:
                yield shuffled[start:stop], labels[start:stop]

    def _inputs(self, x: Inputs) -> torch.Tensor:
        """Examples as a tensor; images with channels innermost where the model can do with that.

        That order is a matter of speed alone: torch's convolutions and poolings run up to twice as fast in it.
        """
        found = torch.from_numpy(x)
        if found.ndim != 4 or self._channels_last is False:
            return found
        inner = found.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        if self._channels_last is None:
            self._channels_last = self._bears_channels_last(inner)
        return inner if self._channels_last else found

    def _bears_channels_last(self, x: torch.Tensor) -> bool:
        """Tries it, for a `view` in the model's code may need the usual order; lays the tensors out accordingly."""
        if not any(tensor.ndim == 4 for tensor in self._tensors.values()):
            return False
        self._lay_out(channels_last=True)
        self.module.eval()
        try:
            with torch.no_grad():
                self.module(x[:2])
        except Exception:  # whatever else is wrong with the model shows again in the usual order
            self._lay_out(channels_last=False)
            return False
        return True

    def _targets(self, rows: Rows) -> torch.Tensor:
        classes = self.job.kind == "multiclass" or self.task.loss == "cross_entropy"
        return torch.from_numpy(rows.y.astype(np.int64 if classes else np.float32))

    def _batch_loss(self, x: torch.Tensor, y: torch.Tensor, module: nn.Module | None = None) -> torch.Tensor:
        module = self.module if module is None else module
        if self.loss is not None:
            value: torch.Tensor = self.loss(module, {"x": x, "y": y})
            return value
        return self._named_loss(module(x), y, "mean")

    def _lone(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The loss of a batch of one row, where there is BatchNorm."""
        try:
            return self._batch_loss(x, y)
        except ValueError as fault:
            raise TaskError(
                "the model's BatchNorm takes two rows at least, a batch has one.",
                mend="Larger batches, nn.GroupNorm instead, or leave out sites with one row.",
            ) from fault

    def _named_loss(self, output: torch.Tensor, y: torch.Tensor, reduction: str) -> torch.Tensor:
        """The mean loss, or with reduction "none" each row's."""
        if self.task.loss == "cross_entropy":
            return functional.cross_entropy(output, y, reduction=reduction)
        if output.ndim == 2 and output.shape[1] != 1:
            raise TaskError(f"the model has {output.shape[1]} outputs, the loss {self.task.loss!r} needs one.")
        output = output.reshape(-1)
        if self.task.loss == "mse":
            return functional.mse_loss(output, y, reduction=reduction)
        return functional.binary_cross_entropy_with_logits(output, y, reduction=reduction)

    def predict(self, flat: Flat, x: Inputs) -> Array:
        """Probabilities or values: float64[rows], or [rows, K] for more than two classes."""
        return self._forward(flat, x, None).scores

    def assess(self, flat: Flat, rows: Rows) -> Predictions:
        """Predictions and each row's loss; a loss of one's own is a mean, so all rows of a pass get that mean."""
        return self._forward(flat, rows.x, self._targets(rows))

    def _forward(self, flat: Flat, x: Inputs, y: torch.Tensor | None) -> Predictions:
        scores, losses = [], []
        with one_thread(self.job.seed), torch.no_grad(), users_code(self.job, "evaluating the model"):
            self._inputs(x[:2])  # settles the layout before the weights are loaded
            self.load(flat)
            self.module.eval()
            for at in range(0, len(x), EVALUATED_AT_ONCE):
                part = self._inputs(x[at : at + EVALUATED_AT_ONCE])
                output = self.module(part)
                scores.append(self._scores(output))
                if y is not None:
                    losses.append(self._losses(output, part, y[at : at + EVALUATED_AT_ONCE]))
        empty = np.empty((0, self.job.classes) if self.job.kind == "multiclass" else 0)
        return Predictions(np.concatenate(scores or [empty]), np.concatenate(losses or [np.empty(0)]))

    def _losses(self, output: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> Array:
        if self.loss is None:
            return self._named_loss(output, y, "none").double().numpy()
        if isinstance(self.job.privacy, RowDP):  # a mean over rows would mix them
            alone = [self.loss(self.module, {"x": x[at : at + 1], "y": y[at : at + 1]}) for at in range(len(y))]
            return np.array([float(each) for each in alone])
        return np.full(len(y), float(self.loss(self.module, {"x": x, "y": y})))

    def _scores(self, output: torch.Tensor) -> Array:
        output = output.double()
        wide = output.ndim == 2 and output.shape[1] > 1
        if self.job.kind == "multiclass":
            return torch.softmax(output, dim=1).numpy()
        if self.job.kind == "binary":
            return (torch.softmax(output, dim=1)[:, 1] if wide else torch.sigmoid(output.reshape(-1))).numpy()
        return output.reshape(len(output), -1)[:, 0].numpy()

    def export(self, flat: Flat) -> nn.Module:
        """A module of its own with these values, in evaluation mode."""
        return module_of(self.job, flat, self.inputs)


def module_of(job: Job, flat: Flat, inputs: int) -> nn.Module:
    """The job's module with the values of a flat model, in evaluation mode."""
    module, at = make_module(job, inputs), 0
    for tensor in tensors_of(module).values():
        part = torch.from_numpy(np.array(flat[at : at + tensor.numel()], np.float32))
        tensor.data.copy_(part.view(tensor.shape))
        at += tensor.numel()
    return module.eval()


def initial_of(job: Job) -> dict[str, Array]:
    """A custom model's initial values: float32 arrays in the flat vector's order, from the job's seed."""
    with one_thread(job.seed):
        module = make_module(job, 0)
    return {name: tensor.detach().numpy().astype(np.float32) for name, tensor in tensors_of(module).items()}
