"""Newton's sums against scikit-learn on the pooled rows: equal to 1e-6."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

import cloister as cl
from cloister.algorithms.newton import solve
from cloister.vector.errors import JobError


def sites(classes: int, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Four hospitals with different cases, scales and sizes."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(classes, 3))
    found = {}
    for at, rows in enumerate((40, 90, 25, 60)):
        x = rng.normal(size=(rows, 3)) * [1.0, 3.0, 0.4] + rng.normal(size=3)
        y = (x @ truth.T + 1.5 * rng.gumbel(size=(rows, classes))).argmax(1)
        found[f"s{at}"] = pd.DataFrame(x, columns=list("abc")).assign(y=y)
    return found


def newton(estimator: LogisticRegression, classes: int, **settings: object) -> cl.Job:
    algorithm = cl.Newton(**{"rounds": 20, "tolerance": 1e-12, **settings})
    return cl.Job(cl.Table("t", target="y", classes=classes), cl.Sklearn(estimator), algorithm, evaluate=None)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("settings", [{"C": 0.7}, {"C": 20.0, "fit_intercept": False}, {"penalty": None}])
def test_the_model_is_the_pooled_one(classes, settings):
    data = sites(classes)
    result = cl.simulate(newton(LogisticRegression(**settings), classes), data, engine="serial")
    pooled = pd.concat(data.values())
    reference = LogisticRegression(**settings, solver="newton-cg", tol=1e-12, max_iter=10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.fit(pooled[["a", "b", "c"]], pooled["y"])
    ours, theirs = result.model, reference
    if classes > 2 and "penalty" in settings:  # without penalty softmax is free to add one vector to all classes
        for each in (ours, theirs):
            each.coef_ = each.coef_ - each.coef_.mean(0)
    spread = [each.intercept_ - (each.intercept_.mean() if classes > 2 else 0.0) for each in (ours, theirs)]
    assert np.allclose(ours.coef_, theirs.coef_, rtol=1e-6, atol=1e-6)
    assert np.allclose(*spread, rtol=1e-6, atol=1e-6)
    assert len(result.history) - 1 < 12, "quadratic convergence ends long before the last round"


def test_a_step_too_long_is_halved():
    """Started far out, Newton's full step overshoots: logistic loss is flat there."""
    algorithm = cl.Newton(rounds=100, tolerance=1e-10)
    x, y = np.linspace(-1, 1, 41), (np.linspace(-1, 1, 41) > 0.3) * 1.0

    def total(w):
        p = 1 / (1 + np.exp(-w * x))
        loss = np.mean(np.logaddexp(0, w * x) - y * w * x) + 0.001 * w**2 / 2
        gradient = np.mean((p - y) * x) + 0.001 * w
        hessian = np.mean(p * (1 - p) * x * x) + 0.001
        from cloister.vector.total import Total

        sums = {"gradient": np.array([gradient]), "hessian": np.array([hessian]), "train_loss": np.array(loss)}
        return Total(sums, rows=41.0, clipped=0.0, max_rows=41, sites=3), loss

    state, losses, lengths = algorithm.start(np.array([-60.0])), [], []
    while algorithm.ask(state) is not None:
        sums, loss = total(float(state.tensors["model"][0]))
        state = algorithm.learn(state, sums)
        losses.append(loss)
        lengths.append(state.facts["newton"]["length"])
    assert min(lengths) < 1.0
    assert state.facts["newton"]["done"]
    assert losses[-1] == min(losses)


def test_solve_is_a_solution_also_where_curvature_is_missing():
    rng = np.random.default_rng(0)
    half = rng.normal(size=(12, 5))
    for matrix in (half @ half.T, half.T @ half, np.zeros((3, 3))):
        right = matrix @ rng.normal(size=len(matrix))
        assert np.allclose(matrix @ solve(matrix, right), right, atol=1e-9)


@pytest.mark.parametrize(
    "task",
    [
        cl.Torch(cl.nets.Linear(), loss="bce", optimizer=cl.SGD(0.1)),
        cl.Sklearn(LogisticRegression(class_weight="balanced")),
        cl.Sklearn(LogisticRegression(l1_ratio=1.0, solver="saga")),
    ],
)
def test_tasks_without_these_sums_are_refused_with_the_way_out(task):
    with pytest.raises(JobError, match=r"Newton does not work with this task.*LogisticRegression"):
        cl.Job(cl.Table("t", target="y"), task, cl.Newton(rounds=5))
