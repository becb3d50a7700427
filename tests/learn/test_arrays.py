"""Contracts of arrays: what fulfils them, what does not, and training on them against a table of the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import cloister as cl
from cloister import learn
from cloister.vector.errors import DataError, JobError

DIGITS = cl.Arrays("digits", shape=(1, 4, 4), classes=3)
TASK = cl.Torch(cl.nets.MLP([8]), "cross_entropy", cl.SGD(0.1), batch_size=5)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.body(x)
        return out


def job(data: Any = DIGITS, task: Any = TASK, **settings: Any) -> cl.Job:
    return cl.Job(data, task, cl.FedAvg(rounds=2), **settings)


def examples(rows: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (rows, 1, 4, 4)).astype(np.uint8), rng.integers(0, 3, rows)


@pytest.mark.parametrize("form", ["pair", "triple", "mapping", "file"])
def test_arrays_come_as_pairs_mappings_and_files(form: str, tmp_path: Any) -> None:
    x, y = examples()
    test = np.arange(20) >= 15
    data: Any = {"pair": (x, y), "triple": (x, y, test), "mapping": {"x": x, "y": y, "test": test}}.get(form)
    if form == "file":
        np.savez(tmp_path / "digits.npz", x=x, y=y, test=test)
        data = learn.read_data(tmp_path / "digits.npz")
        assert learn.schema(data) == {"x": "array", "y": "array"}
    trainer = learn.Trainer(job(), data, "a")
    assert trainer.rows == (16 if form == "pair" else 15)  # a fifth is held out, or what the data say


def test_pixels_reach_the_model_as_fractions_and_arrays_train_as_a_table_does(federate: Any) -> None:
    parts = {f"site-{at}": examples(seed=at) for at in range(3)}
    seen: list[np.ndarray] = []
    for x, y in parts.values():
        seen.append(learn.Trainer(job(), (x, y), "a").data.design(None))  # type: ignore[arg-type]
        np.testing.assert_array_equal(seen[-1], x.reshape(20, 16).astype(np.float32) * np.float32(1 / 255))
    names = [f"x{at:02}" for at in range(16)]
    tables = {
        site: pd.DataFrame(x, columns=names).assign(y=y)
        for (site, (_, y)), x in zip(parts.items(), seen, strict=True)
    }
    of_arrays = federate(job(), parts)
    of_tables = federate(job(cl.Table("digits", target="y", classes=3)), tables)
    np.testing.assert_array_equal(of_arrays.tensors["model"], of_tables.tensors["model"])
    assert of_arrays.facts["history"] == of_tables.facts["history"]


def test_a_model_of_ones_own_sees_the_shape_and_predicts_from_it(federate: Any) -> None:
    made = learn.complete(job(task=cl.Torch(Net, "cross_entropy", cl.SGD(0.1))))
    state = federate(made, {f"site-{at}": examples(seed=at) for at in range(3)})
    x, _ = examples(7)
    said = learn.predict(made, state, x)
    assert said.shape == (7, 3)
    with torch.no_grad():
        expected = torch.softmax(learn.build_model(made, state)(torch.tensor(x / 255.0).float()), 1)
    np.testing.assert_allclose(said, expected.numpy(), atol=1e-6)


def test_labels_by_name_and_numbers_as_targets() -> None:
    x, y = examples()
    named = np.array(["cat", "dog", "cow"])[y]
    contract = cl.Arrays("pets", shape=(1, 4, 4), classes=["dog", "cow", "cat"])
    assert learn.Trainer(job(contract), (x, named), "a").y.tolist() == [[2, 0, 1][label] for label in y]
    number = cl.Arrays("ages", shape=(1, 4, 4))
    trainer = learn.Trainer(job(number, cl.Torch(cl.nets.Linear(), "mse", cl.SGD(0.1))), (x, y * 1.5), "a")
    assert trainer.y.dtype == np.float32


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ((np.zeros((5, 4, 4), np.uint8), np.zeros(5, int)), "the contract asks for [rows, 1, 4, 4]"),
        ((np.zeros((5, 1, 4, 4), np.int32), np.zeros(5, int)), "x holds int32"),
        ((np.zeros((5, 1, 4, 4)), np.zeros(4, int)), "5 rows and y the shape (4,)"),
        ((np.zeros((5, 1, 4, 4)), np.array([0, 1, 2, 3, -1])), "2 rows with a label"),
        ((np.zeros((5, 1, 4, 4)), np.zeros(5, int), np.zeros(5)), "no bool for each row"),
        ((np.zeros((5, 1, 4, 4)), np.zeros(5, int), np.ones(5, bool)), "no row is left"),
        ((np.zeros((0, 1, 4, 4)), np.zeros(0, int)), "no row"),
        (pd.DataFrame({"a": [1]}), "the data is a DataFrame"),
    ],
)
def test_data_that_do_not_fulfil_the_contract(data: Any, said: str) -> None:
    with pytest.raises(DataError, match="site a: ") as error:
        learn.Trainer(job(), data, "a")
    assert said in str(error.value)


def test_a_table_is_not_arrays_and_a_file_without_x_says_what_to_write(tmp_path: Any) -> None:
    with pytest.raises(DataError, match="asks for a table"):
        learn.Trainer(job(cl.Table("t", target="y", classes=3)), examples(), "a")
    np.savez(tmp_path / "other.npz", z=np.zeros(3))
    with pytest.raises(DataError, match="asks for arrays"):
        learn.read_data(tmp_path / "other.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(DataError, match=r"np\.savez"):
        learn.read_data(tmp_path / "broken.npz")
    with pytest.raises(DataError, match="asks for arrays"):
        DIGITS.resolve({"a": {"x": "array", "y": "array"}, "b": {"age": "number"}})


def test_jobs_that_make_no_sense_of_arrays() -> None:
    with pytest.raises(JobError, match="prepare is for tables"):
        job(prepare=[cl.Standardize()])
    from sklearn.linear_model import LogisticRegression

    with pytest.raises(JobError, match="rows of numbers"):
        job(task=cl.Sklearn(LogisticRegression()))
    with pytest.raises(JobError, match="shape"):
        cl.Arrays("digits", shape=())
