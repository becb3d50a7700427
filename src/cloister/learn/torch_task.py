"""PyTorch models: local training, evaluation and export, on one flat vector.

All trainable tensors of the module are views of one contiguous float32 vector, and their gradients of another:
loading a broadcast model is one copy, a delta one subtraction, an optimizer's step a few operations on one tensor
whatever the number of layers. The arithmetic is that of torch.optim, coordinate by coordinate.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cloister.job import Adam, Job, Torch, nets
from cloister.job.load import files_of, line_of, resolve
from cloister.job.nets import Code
from cloister.learn.metrics import Predictions
from cloister.learn.prepare import Inputs, Rows
from cloister.vector.bundle import Array
from cloister.vector.errors import CloisterError, EnvironmentFailure, TaskError

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ModuleNotFoundError:
    raise EnvironmentFailure("this job needs PyTorch.", mend="pip install 'cloister[torch]'") from None

Flat = npt.NDArray[np.float32]
Shapes = dict[str, tuple[int, ...]]
EVALUATED_AT_ONCE = 8192  # rows of one forward pass without gradients: bounds the memory of activations


@contextlib.contextmanager
def one_thread(seed: int) -> Iterator[None]:
    """Deterministic torch: one thread (sums in one order) and a seeded generator; both as before afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
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
    """One module at one site, kept between rounds.

    Args: shapes: of the broadcast tensors, in the flat vector's order. inputs: columns of the prepared table.
    """

    def __init__(self, job: Job, shapes: Shapes, inputs: int) -> None:
        assert isinstance(job.task, Torch)
        self.job, self.task, self.inputs = job, job.task, inputs
        self.module = make_module(job, inputs)
        tensors = tensors_of(self.module)
        if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != shapes or list(tensors) != list(shapes):
            raise TaskError("the model's tensors differ from the broadcast ones.", mend="Submit the job again.")
        self.flat = torch.zeros(sum(tensor.numel() for tensor in tensors.values()))
        trained = sum(tensor.numel() for tensor in tensors.values() if tensor.requires_grad)
        self.trained = nn.Parameter(self.flat[:trained], requires_grad=True)
        self.trained.grad = torch.zeros(trained)
        at = 0
        for tensor in tensors.values():
            part = slice(at, at := at + tensor.numel())
            tensor.data = self.flat[part].view(tensor.shape)
            if tensor.requires_grad:
                tensor.grad = self.trained.grad[part].view(tensor.shape)
        self.loss = None if isinstance(self.task.loss, str) else resolve(job, self.task.loss)

    def load(self, flat: Flat) -> None:
        self.flat.copy_(torch.from_numpy(np.ascontiguousarray(flat, np.float32)))

    def train(self, flat: Flat, rows: Rows, seed: int, round_: int) -> tuple[Flat, float]:
        """Local training from the broadcast.

        Args: flat: float32[d], the broadcast. seed: of shuffling and dropout.
        Returns: delta (local minus broadcast) float32[d]; the mean training loss over all rows seen.
        Raises: TaskError: the job's code raises.
        """
        with one_thread(seed):
            self.load(flat)
            x, y = torch.from_numpy(rows.x), self._targets(rows)
            self.module.train()
            gradient = self.trained.grad
            assert gradient is not None
            optimizer = self._optimizer()
            total, seen = torch.zeros(()), 0
            with users_code(self.job, f"round {round_}"):
                for batch in self._batches(len(rows), seed):
                    gradient.zero_()
                    loss = self._batch_loss(x[batch], y[batch])
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    total += loss.detach() * len(batch)
                    seen += len(batch)
            return self.flat.numpy() - flat, float(total) / max(seen, 1)

    def _batches(self, rows: int, seed: int) -> Iterator[torch.Tensor]:
        """Shuffled minibatches: whole epochs, or as many steps as the task says, reshuffled when rows run out."""
        rng, size = np.random.default_rng(seed), self.task.batch_size
        steps = self.task.steps or (self.task.epochs or 1) * -(-rows // size)
        while steps > 0:
            order = torch.from_numpy(rng.permutation(rows))
            for batch in torch.split(order, size)[:steps]:
                steps -= 1
                yield batch

    def _optimizer(self) -> torch.optim.Optimizer:
        chosen = self.task.optimizer
        if isinstance(chosen, Adam):
            return torch.optim.Adam([self.trained], lr=chosen.lr, foreach=False)
        return torch.optim.SGD(
            [self.trained], chosen.lr, momentum=chosen.momentum, weight_decay=chosen.weight_decay, foreach=False
        )

    def _targets(self, rows: Rows) -> torch.Tensor:
        classes = self.job.kind == "multiclass" or self.task.loss == "cross_entropy"
        return torch.from_numpy(rows.y.astype(np.int64 if classes else np.float32))

    def _batch_loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.loss is not None:
            value: torch.Tensor = self.loss(self.module, {"x": x, "y": y})
            return value
        return self._named_loss(self.module(x), y, "mean")

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
            self.load(flat)
            self.module.eval()
            for at in range(0, len(x), EVALUATED_AT_ONCE):
                part = torch.from_numpy(x[at : at + EVALUATED_AT_ONCE])
                output = self.module(part)
                scores.append(self._scores(output))
                if y is not None:
                    losses.append(self._losses(output, part, y[at : at + EVALUATED_AT_ONCE]))
        empty = np.empty((0, self.job.classes) if self.job.kind == "multiclass" else 0)
        return Predictions(np.concatenate(scores or [empty]), np.concatenate(losses or [np.empty(0)]))

    def _losses(self, output: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> Array:
        if self.loss is None:
            return self._named_loss(output, y, "none").double().numpy()
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
        self.load(flat)
        module = make_module(self.job, self.inputs)
        module.load_state_dict({name: tensor.clone() for name, tensor in self.module.state_dict().items()})
        return module.eval()


def initial_of(job: Job) -> dict[str, Array]:
    """A custom model's initial values: float32 arrays in the flat vector's order, from the job's seed."""
    with one_thread(job.seed):
        module = make_module(job, 0)
    return {name: tensor.detach().numpy().astype(np.float32) for name, tensor in tensors_of(module).items()}
