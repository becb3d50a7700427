"""Specifications: what they accept, and how they refuse the rest."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier, SGDRegressor

import cloister as cl
from cloister.job.data import text
from cloister.job.nets import kaiming
from cloister.job.task import Estimator
from cloister.vector.errors import DataError, JobError


def job(**changes: Any) -> cl.Job:
    settings: dict[str, Any] = {
        "data": cl.Table("heart", target="disease"),
        "task": cl.Torch(cl.nets.MLP([32]), loss="bce", optimizer=cl.SGD(lr=0.1)),
        "algorithm": cl.FedAvg(rounds=3),
    }
    return cl.Job(**{**settings, **changes})


def net() -> None: ...


def loss(model: Any, batch: Any) -> Any: ...


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: cl.SGD(-1.0), "SGD: lr"),
        (lambda: cl.SGD("0.1"), "SGD: lr"),  # type: ignore[arg-type]
        (lambda: cl.SGD(float("nan")), "SGD: lr"),
        (lambda: cl.SGD(), "SGD: lr"),  # type: ignore[call-arg]
        (lambda: cl.SGD(0.1, nesterov=True), "nesterov"),  # type: ignore[call-arg]
        (lambda: cl.nets.MLP([0]), "MLP: hidden"),
        (lambda: cl.Table("heart", target="y", columns={"y": "number"}), "y"),
        (lambda: cl.Table("heart", target="y", columns={"x": "text"}), "columns.x"),
        (lambda: cl.Table("heart", target="y", columns={}), "columns is empty"),
        (lambda: cl.Table("heart", target="y", classes=1), "classes=1"),
        (lambda: cl.Table("heart", target="y", classes=["a", "a"]), "not distinct"),
        (lambda: cl.Table("heart", target="y", split="y"), "target and split"),
        (lambda: cl.Torch(cl.nets.Linear(), "bce", cl.SGD(1.0), epochs=1, steps=1), "exclude each other"),
        (lambda: cl.Torch(cl.nets.Linear(), "hinge", cl.SGD(1.0)), "Torch"),
        (lambda: cl.Torch(lambda: None, "bce", cl.SGD(1.0)), "top level"),
        (lambda: cl.Sklearn(Ridge()), "Ridge is not a sum over sites"),
        (lambda: cl.Sklearn(SGDClassifier()), 'SGDClassifier(loss="log_loss")'),
        (lambda: cl.Sklearn(SGDRegressor(early_stopping=True)), "early_stopping"),
        (lambda: job(prepare=[cl.Standardize(), cl.Impute()]), "in this order"),
        (lambda: job(prepare=[cl.Impute(), cl.Impute()]), "at most once"),
        (lambda: job(data=cl.Table("heart", target="y", classes=3)), "bce knows two classes"),
        (lambda: job(task=cl.Torch(cl.nets.Linear(), "cross_entropy", cl.SGD(1.0))), "needs the labels"),
        (
            lambda: job(data=cl.Table("t", "y", classes=2), task=cl.Torch(cl.nets.Linear(), "mse", cl.SGD(1.0))),
            "a number",
        ),
    ],
)
def test_a_wrong_setting_is_a_job_error_that_names_it(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(JobError) as caught:
        make()
    assert says in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_specs_are_frozen_equal_and_take_integers_for_numbers() -> None:
    assert cl.SGD(1) == cl.SGD(1.0)
    with pytest.raises(AttributeError):
        cl.SGD(1.0).lr = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("task", "classes", "kind", "outputs", "labels"),
    [
        (cl.Torch(cl.nets.Linear(), "bce", cl.SGD(1.0)), None, "binary", 1, ("0", "1")),
        (cl.Torch(cl.nets.Linear(), "bce", cl.SGD(1.0)), ["no", "yes"], "binary", 1, ("no", "yes")),
        (cl.Torch(cl.nets.Linear(), "cross_entropy", cl.SGD(1.0)), 2, "binary", 2, ("0", "1")),
        (cl.Torch(cl.nets.Linear(), "cross_entropy", cl.SGD(1.0)), 4, "multiclass", 4, ("0", "1", "2", "3")),
        (cl.Torch(cl.nets.Linear(), "mse", cl.SGD(1.0)), None, "regression", 1, ()),
        (cl.Torch(cl.nets.Linear(), loss, cl.SGD(1.0)), None, "regression", 1, ()),
        (cl.Torch(cl.nets.Linear(), loss, cl.SGD(1.0)), 2, "binary", 1, ("0", "1")),
        (cl.Torch(cl.nets.Linear(), loss, cl.SGD(1.0)), 3, "multiclass", 3, ("0", "1", "2")),
        (cl.Sklearn(SGDRegressor()), None, "regression", 1, ()),
        (cl.Sklearn(LogisticRegression()), None, "binary", 1, ("0", "1")),
        (cl.Sklearn(LogisticRegression()), 3, "multiclass", 3, ("0", "1", "2")),
    ],
)
def test_kind_outputs_and_labels(task: Any, classes: Any, kind: str, outputs: int, labels: tuple[str, ...]) -> None:
    made = job(data=cl.Table("t", "y", classes=classes), task=task)
    assert (made.kind, made.outputs, made.labels, made.classes) == (kind, outputs, labels, len(labels))


def test_an_estimator_is_its_name_and_what_differs_from_the_defaults() -> None:
    spec = cl.Sklearn(SGDClassifier(loss="log_loss", alpha=np.float64(0.25), n_jobs=7, random_state=3)).estimator
    assert spec == Estimator("SGDClassifier", {"loss": "log_loss", "alpha": 0.25})


def test_initial_values_are_torchs_distribution_and_always_the_same_bytes() -> None:
    shapes = cl.nets.MLP([32]).shapes(inputs=16, outputs=1)
    assert shapes == {"0.weight": (32, 16), "0.bias": (32,), "2.weight": (1, 32), "2.bias": (1,)}
    tensors = kaiming(shapes, seed=7)
    assert np.abs(tensors["0.weight"]).max() <= 0.25
    assert np.abs(tensors["0.weight"]).max() > 0.24  # 512 draws of +-1/4
    assert np.abs(tensors["2.bias"]).max() <= 1 / np.sqrt(32)
    assert tensors["0.weight"].dtype == np.float32
    assert all((kaiming(shapes, 7)[name] == tensors[name]).all() for name in shapes)
    assert (kaiming(shapes, 8)["0.weight"] != tensors["0.weight"]).any()
    assert tensors["0.bias"][0].tobytes().hex() == FIRST_BIAS


FIRST_BIAS = "ad9ad43d"  # frozen: the initial model is part of what a digest stands for


def test_text_spells_a_category_the_same_whatever_type_it_has() -> None:
    assert {text(3), text(3.0), text("3"), text(np.float64(3)), text(np.int64(3)), text(" 3 ")} == {"3"}
    assert text(None) == text(float("nan")) == text("") == ""
    assert text(0.5) == "0.5"


# --- contracts over sites


def test_resolve_sorts_and_leaves_out_what_is_no_feature() -> None:
    table = cl.Table("t", target="y", split="part", ignore=["id"])
    schema = {"y": "number", "part": "category", "id": "category", "b": "number", "a": "category"}
    assert table.resolve({"kent": schema}) == {"a": "category", "b": "number"}
    assert list(table.resolve({"kent": schema})) == ["a", "b"]


def test_resolve_lets_an_empty_column_be_of_any_type() -> None:
    table = cl.Table("t", target="y")
    schemas = {"kent": {"y": "number", "a": "empty"}, "lyon": {"y": "number", "a": "category"}}
    assert table.resolve(schemas) == {"a": "category"}
    assert table.resolve({"kent": schemas["kent"]}) == {"a": "number"}


@pytest.mark.parametrize(
    ("table", "lyon", "says"),
    [
        (cl.Table("t", target="y"), {"y": "number", "agee": "number"}, ["lyon", "'age'", "Did you mean 'agee'"]),
        (cl.Table("t", target="y"), {"age": "number"}, ["lyon", "no column 'y'"]),
        (cl.Table("t", target="y"), {"y": "number", "age": "category"}, ["lyon", "'age'", "holds text", "declare"]),
        (cl.Table("t", "y", columns={"age": "number"}), {"y": "number", "age": "category"}, ["lyon", "says number"]),
        (cl.Table("t", "y", columns={"bmi": "number"}), {"y": "number", "age": "number"}, ["'bmi'"]),
    ],
)
def test_resolve_names_site_column_and_mend(table: cl.Table, lyon: dict[str, str], says: list[str]) -> None:
    usual = {"y": "number", "age": "number"}
    with pytest.raises(DataError) as caught:
        table.resolve({"kent": usual, "lyon": lyon, "oslo": usual})
    assert all(part in str(caught.value) for part in says), str(caught.value)
    assert caught.value.mend


def test_declared_columns_are_the_only_ones_read() -> None:
    table = cl.Table("t", "y", columns={"sex": [0, 1], "age": "number"})
    assert table.resolve({"kent": {"y": "number", "age": "number", "sex": "number", "name": "category"}}) == {
        "age": "number",
        "sex": "category",
    }
    assert table.categories("sex") == ("0", "1")
    assert table.categories("age") is None


def test_the_room_loads_neither_torch_nor_scikit_learn_nor_pandas() -> None:
    code = "import sys, cloister.job; bad = {'torch', 'sklearn', 'pandas'} & set(sys.modules); sys.exit(bool(bad))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
