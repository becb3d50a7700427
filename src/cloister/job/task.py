"""Tasks: what a site computes in one round of training, said in names and numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from cloister.job.nets import MLP, Code, Linear, Shapes, as_code, kaiming
from cloister.job.spec import Count, NotNegative, Positive, spec
from cloister.vector.bundle import Array
from cloister.vector.errors import JobError

Fraction = Annotated[float, Field(ge=0, lt=1)]


@spec
class SGD:
    """Stochastic gradient descent as torch.optim.SGD has it; momentum starts anew in each round."""

    lr: Positive
    momentum: Fraction = 0.0
    weight_decay: NotNegative = 0.0


@spec
class Adam:
    """Adam as torch.optim.Adam has it; its moments start anew in each round."""

    lr: Positive


@spec
class Torch:
    """A PyTorch model, trained at each site by minibatch steps on its own rows.

    Attributes:
      model: `nets.MLP(...)`, `nets.Linear()`, or a function or class of the job file that makes an nn.Module when
        it is called without arguments.
      loss: "bce" (two classes, one logit), "cross_entropy" (classes), "mse" (a number), or a function
        `loss(model, batch) -> scalar tensor` with batch["x"] float32 [rows, inputs] and batch["y"] [rows].
      optimizer: `SGD(lr)` or `Adam(lr)`.
      epochs: passes over the site's training rows in a round (default 1), or
      steps: minibatch steps in a round, reshuffling when the rows are used up.
      batch_size: rows of a minibatch.
    """

    model: Annotated[MLP | Linear | Code, BeforeValidator(as_code)]
    loss: Annotated[Literal["bce", "cross_entropy", "mse"] | Code, BeforeValidator(as_code)]
    optimizer: SGD | Adam
    epochs: Count | None = None
    steps: Count | None = None
    batch_size: Count = 32

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise JobError("Torch: epochs and steps exclude each other.", mend="Leave one of them out.")

    @property
    def codes(self) -> tuple[Code, ...]:
        return tuple(part for part in (self.model, self.loss) if isinstance(part, Code))

    @property
    def offers(self) -> frozenset[str]:
        """What an algorithm may need: keys of `algorithms.local.NEEDS`."""
        found = {"gradients", "steps"}
        if isinstance(self.optimizer, SGD):
            found |= {"sgd"} if self.optimizer.momentum else {"sgd", "plain_sgd"}
        return frozenset(found)

    def kind(self, classes: int) -> str:
        """What is predicted: "binary", "multiclass" or "regression".

        Args: classes: how many labels the contract declares, 0 if none.
        """
        if isinstance(self.loss, str):
            if self.loss == "mse":
                return "regression"
            return "binary" if self.loss == "bce" or classes == 2 else "multiclass"
        return {0: "regression", 2: "binary"}.get(classes, "multiclass")

    def outputs(self, classes: int) -> int:
        """Width of the model's output: one logit or value, or a logit for each class."""
        return classes if self.loss == "cross_entropy" or self.kind(classes) == "multiclass" else 1

    def parameters(self, inputs: int, outputs: int, seed: int) -> tuple[Shapes, dict[str, Array]]:
        """Shapes in the order of the flat model, and the initial float32 values."""
        if isinstance(self.model, Code):
            return self.model.parameters()
        shapes = self.model.shapes(inputs, outputs)
        return shapes, kaiming(shapes, seed)


# what of an estimator has a meaning when sites train in turn from one broadcast model
ESTIMATORS: Mapping[str, tuple[str, ...]] = {
    "SGDClassifier": (
        "loss", "penalty", "alpha", "l1_ratio", "fit_intercept", "learning_rate", "eta0", "power_t", "class_weight",
    ),
    "SGDRegressor": (
        "loss", "penalty", "alpha", "l1_ratio", "fit_intercept", "learning_rate", "eta0", "power_t", "epsilon",
    ),
    "LogisticRegression": ("C", "penalty", "l1_ratio", "fit_intercept", "tol", "max_iter", "solver", "class_weight"),
}  # fmt: skip
IMMATERIAL = ("n_jobs", "verbose", "random_state", "warm_start", "copy_X")  # the job's seed and the site decide these


@spec
class Estimator:
    """A scikit-learn estimator by its name and the parameters that differ from scikit-learn's defaults."""

    name: Literal["SGDClassifier", "SGDRegressor", "LogisticRegression"]
    params: dict[str, str | bool | int | float | None]

    def __post_init__(self) -> None:
        allowed = ESTIMATORS[self.name]
        if wrong := sorted(set(self.params) - set(allowed)):
            raise JobError(
                f"{self.name}: {', '.join(wrong)} has no meaning over sites.",
                mend=f"Supported: {', '.join(allowed)}.",
            )
        loss = self.params.get("loss", "hinge" if self.name == "SGDClassifier" else "squared_error")
        if self.name == "SGDClassifier" and loss != "log_loss":
            raise JobError(
                f"SGDClassifier(loss={loss!r}) gives no probabilities to evaluate.",
                mend='Use SGDClassifier(loss="log_loss").',
            )


def _as_estimator(value: Any) -> Any:
    module = type(value).__module__
    if isinstance(value, Estimator) or not module.startswith("sklearn."):
        return value
    name: Any = type(value).__name__
    if name not in ESTIMATORS:
        raise JobError(
            f"{name} is not a sum over sites.", mend=f"Use one of {', '.join(sorted(ESTIMATORS))}, or cl.Torch."
        )
    make: Callable[[], Any] = type(value)
    defaults = make().get_params(deep=False)
    given = value.get_params(deep=False)
    plain = {key: entry.item() if isinstance(entry, np.generic) else entry for key, entry in given.items()}
    params = {key: entry for key, entry in plain.items() if entry != defaults[key] and key not in IMMATERIAL}
    return Estimator(name, params)


@spec
class Sklearn:
    """A linear scikit-learn estimator; the sites' coefficients are averaged.

    SGDClassifier(loss="log_loss") and SGDRegressor take `epochs` passes of partial_fit from the broadcast
    coefficients: FedAvg as it is meant. LogisticRegression solves its whole problem on the site's rows, started
    from the broadcast: one round is the average of local optima ("one-shot averaging", Zinkevich et al. 2010);
    more rounds do not bring it nearer to the pooled optimum.

    Attributes: estimator: an instance, unfitted; only its name and its parameters are kept. epochs: of partial_fit.
    """

    estimator: Annotated[Estimator, BeforeValidator(_as_estimator)]
    epochs: Count = 1

    codes = ()

    @property
    def offers(self) -> frozenset[str]:
        """What an algorithm may need: keys of `algorithms.local.NEEDS`."""
        if self.estimator.name != "LogisticRegression":
            return frozenset({"steps"})
        params = self.estimator.params
        ridge = params.get("penalty", "l2") in ("l2", None, "none", "deprecated") and not params.get("l1_ratio")
        return frozenset({"curvature"} if ridge and params.get("class_weight") is None else ())

    def kind(self, classes: int) -> str:
        if self.estimator.name == "SGDRegressor":
            return "regression"
        return "multiclass" if classes > 2 else "binary"

    def outputs(self, classes: int) -> int:
        return classes if self.kind(classes) == "multiclass" else 1

    def parameters(self, inputs: int, outputs: int, seed: int) -> tuple[Shapes, dict[str, Array]]:
        """Zeros, as scikit-learn starts: "coef" [outputs, inputs] and "intercept" [outputs]."""
        shapes: Shapes = {"coef": (outputs, inputs), "intercept": (outputs,)}
        return shapes, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
