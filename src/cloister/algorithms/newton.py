"""Newton's method for logistic regression, over sums of gradients and Hessians: the pooled maximum likelihood.

Wu, Jiang, Kim, Ohno-Machado, "Grid Binary LOgistic REgression (GLORE): building shared models without sharing data",
JAMIA 19 (2012), https://doi.org/10.1136/amiajnl-2012-000862: the same sums, there in clear. Step halving as in Boyd,
Vandenberghe, "Convex Optimization" (2004), algorithm 9.5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cloister.algorithms.base import Algorithm, require_positive
from cloister.algorithms.local import Site
from cloister.vector import Block, Layout, Query, State, Total
from cloister.vector.bundle import Array
from cloister.vector.layout import Floats

LEAST = 1e-8  # rise of a loss that counts: below it is the rounding of the sum
SHORTEST = 2.0**-6  # of a step: a loss that still rises then is another set of sites, not too long a step


@dataclass(frozen=True)
class Newton(Algorithm):
    """Ends when half the squared Newton decrement, which bounds the loss still to gain, is below `tolerance`.

    Attributes:
      tolerance: in units of the mean training loss.
      bound: largest entry of a site's mean gradient or Hessian that the encoding carries: of |x|**2 / 4, so
        standardised columns are far below it. It carries 50 binary digits below the bound.
    """

    tolerance: float = 1e-8
    bound: float = 2.0**16

    needs = frozenset({"curvature"})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self.name, tolerance=self.tolerance, bound=self.bound)

    def start(self, model: Array) -> State:
        at = np.asarray(model, np.float64)
        facts = {"round": 0, "newton": {"loss": None, "length": 1.0, "done": False}}
        return State(facts, {"model": at.astype(np.float32), "newton/at": at, "newton/step": np.zeros(at.size)})

    def ask(self, state: State) -> Query | None:
        if state.facts["round"] >= self.rounds or state.facts["newton"]["done"]:
            return None
        model = state.tensors["model"]
        size = model.size
        blocks = (
            Block("gradient", (size,), bound=self.bound, weighted=True, wide=True),
            Block("hessian", (size * (size + 1) // 2,), bound=self.bound, weighted=True, wide=True),
        )
        config, poisson = {"round": state.facts["round"] + 1}, self.sampling == "poisson"
        return Query("train", Layout(blocks), 1, {"model": model}, config, self.cohort, poisson=poisson)

    def local(self, site: Site) -> Mapping[str, Array]:
        found = site.curvature()
        triangle = found.hessian[np.tril_indices(len(found.gradient))]  # symmetric: half of it says all
        return {"gradient": found.gradient, "hessian": triangle, "train_loss": np.asarray(found.loss)}

    def learn(self, state: State, total: Total) -> State:
        facts, loss = state.facts["newton"], float(total.mean("train_loss"))
        at, step, length = state.tensors["newton/at"], state.tensors["newton/step"], facts["length"]
        rose = facts["loss"] is not None and loss > facts["loss"] + LEAST * (1.0 + abs(facts["loss"]))
        if rose and length > SHORTEST:  # too long a step: half of it, from the same place
            return self._moved(state, at, step, {**facts, "length": length / 2})
        at = state.tensors["model"].astype(np.float64)
        gradient = total.mean("gradient")
        step = -solve(_symmetric(total.mean("hessian"), at.size), gradient)
        decrement = -math.fsum(gradient * step)
        return self._moved(state, at, step, {"loss": loss, "length": 1.0, "done": decrement / 2 < self.tolerance})

    def _moved(self, state: State, at: Array, step: Array, facts: Mapping[str, Any]) -> State:
        model = (at + facts["length"] * step).astype(np.float32)
        tensors = {"model": model, "newton/at": at, "newton/step": step}
        return state.with_({"round": state.facts["round"] + 1, "newton": dict(facts)}, tensors)


def _symmetric(triangle: Floats, size: int) -> Floats:
    full = np.zeros((size, size))
    full[np.tril_indices(size)] = triangle
    return full + np.tril(full, -1).T


def solve(matrix: Floats, right: Floats) -> Floats:
    """x with matrix @ x = right, of a symmetric positive semidefinite matrix; 0 along directions without curvature.

    LDL^T by columns (Golub, Van Loan, "Matrix Computations", section 4.1), in elementwise operations only: LAPACK's
    last bits differ between machines, and a verifier has to come to the same model.
    """
    rest, x = matrix.copy(), right.copy()
    size = len(x)
    negligible = 1e-13 * max(float(matrix.diagonal().max(initial=0.0)), 1e-300)
    pivots, columns = np.zeros(size), np.zeros((size, size))
    for at in range(size):
        if rest[at, at] <= negligible:
            continue  # the column is zero as well
        pivots[at] = rest[at, at]
        below = rest[at + 1 :, at] / pivots[at]
        columns[at + 1 :, at] = below
        rest[at + 1 :, at + 1 :] -= below[:, None] * rest[at, at + 1 :][None, :]
        x[at + 1 :] -= below * x[at]
    x = np.where(pivots > 0, x / np.where(pivots > 0, pivots, 1.0), 0.0)
    for at in reversed(range(size)):
        x[:at] -= columns[at, :at] * x[at]
    return x
