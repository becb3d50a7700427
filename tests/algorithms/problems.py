"""Small heterogeneous problems with answers in closed form, and gradient descent on them in plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

import cloister as cl

Floats = npt.NDArray[np.float64]
LR = 0.05
SIZES = (12, 30, 18, 40)


def least_squares(seed: int = 3, spread: float = 1.0) -> dict[str, pd.DataFrame]:
    """Four sites, two inputs, each with its own best line: `spread` says how far they are apart."""
    rng = np.random.default_rng(seed)
    sites = {}
    for number, rows in enumerate(SIZES):
        x = rng.normal(size=(rows, 2)) @ rng.normal(size=(2, 2)) + spread * rng.normal(size=2)
        y = x @ (np.array([1.0, -2.0]) + spread * rng.normal(size=2)) + 0.5 + 0.1 * rng.normal(size=rows)
        sites[f"s{number}"] = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": y})
    return sites


def constants(values: list[float], rows: list[int]) -> dict[str, pd.DataFrame]:
    """Sites whose rows are all alike: x = 0 and y = the value, so every batch has the gradient 2 * (bias - value)."""
    return {
        f"s{at}": pd.DataFrame({"a": np.zeros(count), "y": np.full(count, value)})
        for at, (value, count) in enumerate(zip(values, rows, strict=True))
    }


def regression(
    algorithm: cl.FedAvg, *, batch_size: int = 1000, lr: float = LR, split: str | None = None, **task: Any
) -> cl.Job:
    """Linear regression by gradient descent over all rows at once, unless batch_size says otherwise.

    Evaluated only where a split column says on what.
    """
    chosen = {"steps": 10, **task} if "epochs" not in task else task
    return cl.Job(
        data=cl.Table("t", target="y", split=split),
        task=cl.Torch(cl.nets.Linear(), loss="mse", optimizer=cl.SGD(lr), batch_size=batch_size, **chosen),
        algorithm=algorithm,
        evaluate=cl.Evaluate() if split else None,
    )


def measured(data: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Every row both in training and in the test set, so that the history's loss is the training loss."""
    return {site: pd.concat([t.assign(split="train"), t.assign(split="test")]) for site, t in data.items()}


def simulated(job: cl.Job, data: dict[str, pd.DataFrame], **settings: Any) -> Floats:
    """The final flat model: weights, then the bias."""
    result = cl.simulate(job, data, engine="serial", **settings)
    return np.asarray(result.state.tensors["model"], np.float64)


def initial(job: cl.Job, inputs: int) -> Floats:
    _, tensors = job.initial_model(inputs)
    return np.concatenate([tensors["weight"].reshape(-1), tensors["bias"]]).astype(np.float64)


class Sites:
    """The same data for the references: design matrices with a column of ones, row shares, the pooled optimum."""

    def __init__(self, data: dict[str, pd.DataFrame]) -> None:
        self.x = [np.column_stack([t.drop(columns="y"), np.ones(len(t))]) for t in data.values()]
        self.y = [t["y"].to_numpy() for t in data.values()]
        rows = np.array([len(t) for t in data.values()], float)
        self.share = rows / rows.sum()

    @property
    def optimum(self) -> Floats:
        return np.linalg.lstsq(np.vstack(self.x), np.concatenate(self.y), rcond=None)[0]

    def gradient(self, at: int, w: Floats) -> Floats:
        return 2.0 * self.x[at].T @ (self.x[at] @ w - self.y[at]) / len(self.y[at])

    def loss(self, w: Floats) -> float:
        squares = [np.mean((x @ w - y) ** 2) for x, y in zip(self.x, self.y, strict=True)]
        return float(self.share @ squares)

    def descend(self, at: int, w: Floats, extra: Any = lambda w: 0.0, steps: int = 10, lr: float = LR) -> Floats:
        """Gradient descent on site `at`'s loss plus whatever has the gradient `extra`; returns the new w."""
        for _ in range(steps):
            w = w - lr * (self.gradient(at, w) + extra(w))
        return w

    def mean(self, vectors: list[Floats]) -> Floats:
        return np.asarray(self.share @ np.array(vectors))
