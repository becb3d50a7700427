"""Neural nets by name (nothing of them is code), and the initial values of their parameters.

The initial model is made from the job's seed in numpy: the same bytes on every machine, no torch needed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from cloister.job.spec import Name, as_tuple, spec, unwritten
from cloister.vector.bundle import Array, canonical, digest
from cloister.vector.errors import JobError

Shapes = dict[str, tuple[int, ...]]


@spec
class MLP:
    """A multilayer perceptron: linear layers with an activation between them.

    Attributes: hidden: widths of the hidden layers. activation: "relu" or "tanh".
    """

    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=65536)], ...], BeforeValidator(as_tuple)]
    activation: Literal["relu", "tanh"] = "relu"

    def shapes(self, inputs: int, outputs: int) -> Shapes:
        """torch's names and layout of `nn.Sequential(Linear, activation, Linear, ...)`: weight is [out, in]."""
        widths = [inputs, *self.hidden, outputs]
        found: Shapes = {}
        for layer, (width, following) in enumerate(itertools.pairwise(widths)):
            found[f"{2 * layer}.weight"] = (following, width)
            found[f"{2 * layer}.bias"] = (following,)
        return found


@spec
class Linear:
    """One linear layer: logistic regression with "bce", softmax regression with "cross_entropy"."""

    def shapes(self, inputs: int, outputs: int) -> Shapes:
        return {"weight": (outputs, inputs), "bias": (outputs,)}


@spec
class Code:
    """A function or class of the job file, by name; the file's source travels with the job.

    Attributes:
      name: in the job file's top level.
      shapes: of a model's tensors in torch's state_dict order, once its initial values are known.
      function: the object itself, in the process that ran the job file.
      initial: float32 arrays by name, for models: made once by the analyst, so that all start alike.
    """

    name: Name
    shapes: Annotated[tuple[tuple[str, tuple[int, ...]], ...] | None, BeforeValidator(as_tuple)] = None
    function: Callable[..., Any] | None = unwritten(default=None)
    initial: Mapping[str, Any] | None = unwritten(default=None)

    def parameters(self) -> tuple[Shapes, dict[str, Array]]:
        """Raises JobError: the initial values have not been made yet (`learn.complete` does it)."""
        if self.shapes is None or self.initial is None:
            raise JobError(f"the initial values of model {self.name!r} are not known yet.")
        shapes = dict(self.shapes)
        return shapes, {name: np.asarray(self.initial[name], np.float32).reshape(shapes[name]) for name in shapes}


def as_code(value: Any) -> Any:
    """A user's function or class as `Code`; anything else as it is. Raises JobError: it has no top-level name."""
    if not callable(value) or isinstance(value, Code):
        return value
    name = getattr(value, "__qualname__", None)
    if name is None:
        raise JobError(
            f"an instance of {type(value).__name__} is no model: sites could not make it again.",
            mend=f"Pass the class or a function: cl.Torch(model={type(value).__name__}).",
        )
    if "<" in name or "." in name:
        raise JobError(f"{name!r} is not at the top level of the job file.", mend="Define it there with `def`.")
    return Code(name, function=value)


def kaiming(shapes: Shapes, seed: int) -> dict[str, Array]:
    """Initial values as torch's Linear draws them: uniform in +-1/sqrt(inputs) (He et al. 2015, with a = sqrt(5)).

    Returns: float32 arrays; each is drawn from its own stream, named by the seed and the tensor's name.
    """
    tensors, bound = {}, 0.0
    for name, shape in shapes.items():
        if len(shape) == 2:  # a weight; its bias follows and has the same bound
            bound = 1.0 / math.sqrt(shape[1]) if shape[1] else 0.0
        stream = np.random.default_rng(int.from_bytes(digest(canonical([seed, "initial", name])), "big"))
        tensors[name] = stream.uniform(-bound, bound, shape).astype(np.float32)
    return tensors
