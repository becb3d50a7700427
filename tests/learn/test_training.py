"""Training on real rows: against plain torch, the pooled optimum, on every back end, and when it goes wrong."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression, SGDClassifier, SGDRegressor
from sklearn.metrics import roc_auc_score

import cloister as cl
from cloister import learn
from cloister.algorithms.evaluation import auc
from cloister.learn.metrics import Predictions, blocks
from cloister.learn.prepare import seed_of
from cloister.vector import State, canonical, digest
from cloister.vector.errors import DataError, JobError, TaskError

Federate = Callable[[cl.Job, dict[str, pd.DataFrame]], State]
TABLE = cl.Table("cancer", target="target")
PREPARE = [cl.Impute(), cl.Standardize()]


def job(task: Any, rounds: int = 5, table: cl.Table = TABLE, **settings: Any) -> cl.Job:
    return cl.Job(table, task, cl.FedAvg(rounds=rounds), prepare=settings.pop("prepare", PREPARE), **settings)


def plain_torch(chosen: cl.Job, frame: pd.DataFrame, make: Any, optimizer: Any, seed: int) -> torch.nn.Module:
    """One round at one site, written as anybody would: a module, an optimizer, a loop over shuffled minibatches."""
    names = sorted(set(frame.columns) - {"target"})
    x = frame[names].to_numpy()
    x = torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)
    y = torch.tensor(frame["target"].to_numpy(), dtype=torch.float32)
    module = make(len(names))
    shapes, tensors = chosen.initial_model(len(names))
    module.load_state_dict({name: torch.from_numpy(tensors[name]) for name in shapes})
    steps = optimizer(module.parameters())
    order = np.random.default_rng(seed).permutation(len(frame))
    for at in range(0, len(frame), 32):
        batch = order[at : at + 32]
        steps.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(module(x[batch]).squeeze(1), y[batch]).backward()
        steps.step()
    return module


@pytest.mark.parametrize(
    ("chosen", "optimizer"),
    [
        (cl.SGD(0.1), lambda parameters: torch.optim.SGD(parameters, lr=0.1)),
        (
            cl.SGD(0.05, momentum=0.9, weight_decay=0.01),
            lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01),
        ),
        (cl.Adam(0.01), lambda parameters: torch.optim.Adam(parameters, lr=0.01)),
    ],
)
def test_one_site_and_one_round_is_a_plain_torch_loop(
    chosen: Any, optimizer: Any, cancer: pd.DataFrame, federate: Federate
) -> None:
    def make(inputs: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(inputs, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))

    made = job(cl.Torch(cl.nets.MLP([16]), "bce", chosen), rounds=1, evaluate=None, seed=3)
    state = federate(made, {"kent": cancer})
    seed = seed_of(canonical([3, "kent", 1]))
    plain = torch.nn.utils.parameters_to_vector(plain_torch(made, cancer, make, optimizer, seed).parameters())
    # what differs: the fitted means go through 50 digits of fixed point, and the delta through 28
    np.testing.assert_allclose(state.tensors["model"], plain.detach().numpy(), atol=2e-6)


class Three(torch.nn.Sequential):
    def __init__(self) -> None:
        widths = (torch.nn.Linear(30, 16), torch.nn.Linear(16, 8), torch.nn.Linear(8, 1))
        super().__init__(widths[0], torch.nn.ReLU(), widths[1], torch.nn.ReLU(), widths[2])


@pytest.mark.parametrize("model", [Three, cl.nets.MLP([16, 8])])
@pytest.mark.parametrize(
    ("chosen", "plain"),
    [
        (cl.SGD(0.1), lambda each: torch.optim.SGD(each, lr=0.1)),
        (
            cl.SGD(0.1, momentum=0.9, weight_decay=0.01),
            lambda each: torch.optim.SGD(each, lr=0.1, momentum=0.9, weight_decay=0.01),
        ),
        (cl.Adam(0.01), lambda each: torch.optim.Adam(each, lr=0.01)),
    ],
)
def test_local_training_itself_is_plain_torch(model: Any, chosen: Any, plain: Any, cancer: pd.DataFrame) -> None:
    """Gradients and weights in one flat vector change no bit of what torch computes tensor by tensor.

    Declarative nets are written out without autograd: the same to rounding.
    """
    from cloister.learn.models import back_end
    from cloister.learn.prepare import Rows
    from cloister.vector import flatten

    made = learn.complete(job(cl.Torch(model, "bce", chosen, epochs=3)))
    shapes, tensors = made.initial_model(30)
    flat = flatten(tensors, list(shapes))
    x = cancer.drop(columns="target").to_numpy()
    rows = Rows(((x - x.mean(0)) / x.std(0)).astype(np.float32), cancer["target"].to_numpy())
    trained = back_end(made, shapes.items(), 30).train(flat, rows, seed=11, round_=1)
    delta, loss = trained.delta, trained.loss

    module = torch.nn.Sequential(
        *(torch.nn.Linear(30, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    )
    module.load_state_dict({name: torch.from_numpy(tensors[name]) for name in shapes})
    optimizer = plain(module.parameters())
    rng, x_all, y_all = np.random.default_rng(11), torch.from_numpy(rows.x), torch.tensor(rows.y).float()
    losses = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(3):
        for batch in torch.from_numpy(rng.permutation(len(rows))).split(32):
            optimizer.zero_grad()
            output = module(x_all[batch]).reshape(-1)
            value = torch.nn.functional.binary_cross_entropy_with_logits(output, y_all[batch])
            value.backward()
            optimizer.step()
            losses += [value.item()] * len(batch)
    torch.set_num_threads(threads)
    local = torch.nn.utils.parameters_to_vector(module.parameters()).detach().numpy()
    if model is Three:
        assert (delta == local - flat).all()
    np.testing.assert_allclose(delta, local - flat, atol=1e-5)
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_many_small_rounds_reach_the_pooled_optimum(cancer: pd.DataFrame, five: Any, federate: Federate) -> None:
    """One local step on all rows each round is pooled gradient descent: compare with scikit-learn's optimum."""
    task = cl.Torch(cl.nets.Linear(), "bce", cl.SGD(0.5, weight_decay=0.05), steps=1, batch_size=1000)
    made = job(task, rounds=300, evaluate=None)
    state = federate(made, five)
    x = cancer[sorted(set(cancer.columns) - {"target"})].to_numpy()
    x = (x - x.mean(0)) / x.std(0)
    # the same penalty: weight_decay / 2 * |w|^2 on the mean loss, also on the intercept: a column of ones
    pooled = LogisticRegression(C=1 / (0.05 * len(x)), fit_intercept=False, tol=1e-10, max_iter=10_000)
    pooled.fit(np.column_stack([x, np.ones(len(x))]), cancer["target"])
    np.testing.assert_allclose(state.tensors["model"], pooled.coef_[0], atol=2e-3)


BACK_ENDS = {
    "mlp": (cl.Torch(cl.nets.MLP([16]), "bce", cl.SGD(0.1)), None),
    "tanh": (cl.Torch(cl.nets.MLP([16, 8], activation="tanh"), "bce", cl.Adam(0.01)), None),
    "cross entropy": (cl.Torch(cl.nets.MLP([16]), "cross_entropy", cl.SGD(0.1)), 2),
    "linear": (cl.Torch(cl.nets.Linear(), "bce", cl.SGD(0.1), steps=10), None),
    "sgd": (cl.Sklearn(SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.01), epochs=2), None),
    "logistic": (cl.Sklearn(LogisticRegression()), None),
}


@pytest.mark.parametrize("name", BACK_ENDS)
def test_every_back_end_learns_evaluates_and_exports(
    name: str, cancer: pd.DataFrame, five: Any, federate: Federate
) -> None:
    task, classes = BACK_ENDS[name]
    made = job(task, rounds=8, table=dataclasses.replace(TABLE, classes=classes))
    state = federate(made, five)
    final = state.facts["history"][-1]
    assert final["accuracy"] > 0.9
    assert final["test_rows"] == 115

    probabilities = learn.predict(made, state, cancer.drop(columns="target"))
    assert probabilities.shape == (569,)
    held = {site: learn.Trainer(made, frame, site).test for site, frame in five.items()}
    said = np.concatenate([learn.predict(made, state, five[site][held[site]]) for site in five])
    true = np.concatenate([five[site]["target"][held[site]] for site in five])
    assert final["accuracy"] == pytest.approx(np.mean((said >= 0.5) == true), abs=1e-9)
    assert final["auc"] == pytest.approx(roc_auc_score(true, said), abs=5e-3)
    own = np.where(true == 1, said, 1 - said)
    assert final["loss"] == pytest.approx(-np.log(own).mean(), rel=1e-4)

    model = learn.build_model(made, state)
    x = _standardized(cancer, state)
    if isinstance(model, torch.nn.Module):
        output = model(torch.from_numpy(x)).detach().double()
        mine = torch.softmax(output, 1)[:, 1] if output.shape[1] == 2 else torch.sigmoid(output[:, 0])
        assert not model.training
    else:
        mine = model.predict_proba(x)[:, 1]
        assert list(model.classes_) == [0, 1]
    np.testing.assert_allclose(np.asarray(mine), probabilities, atol=1e-5)


def _standardized(frame: pd.DataFrame, state: State) -> np.ndarray[Any, Any]:
    x = frame[list(state.facts["columns"])].to_numpy()
    return ((x - state.tensors["fit/mean"]) / state.tensors["fit/std"]).astype(np.float32)


@pytest.mark.parametrize(
    "task",
    [
        cl.Torch(cl.nets.Linear(), "mse", cl.SGD(0.05)),
        cl.Sklearn(SGDRegressor(learning_rate="constant", eta0=0.01)),
    ],
)
def test_regression(task: Any, five: Any, federate: Federate) -> None:
    table = cl.Table("cancer", target="mean radius", ignore=["target", "mean area", "mean perimeter"])
    made = job(task, rounds=30, table=table)
    state = federate(made, five)
    first, final = state.facts["history"][0], state.facts["history"][-1]
    assert final["rmse"] < 0.15 * first["rmse"]
    assert "accuracy" not in final
    assert isinstance(learn.predict(made, state, five["site-1"])[0], np.floating)


def test_three_classes_by_torch_and_by_scikit_learn(federate: Federate) -> None:
    from sklearn.datasets import load_iris

    frame = load_iris(as_frame=True).frame.sample(frac=1.0, random_state=0)
    frames = {f"site-{at}": frame.iloc[at::3].reset_index(drop=True) for at in range(3)}
    table = cl.Table("iris", target="target", classes=3)
    for task in (
        cl.Torch(cl.nets.MLP([8]), "cross_entropy", cl.Adam(0.05)),
        cl.Sklearn(SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.05), epochs=5),
        cl.Sklearn(LogisticRegression()),
    ):
        made = job(task, rounds=15, table=table)
        state = federate(made, frames)
        assert state.facts["history"][-1]["accuracy"] > 0.85
        assert "auc" not in state.facts["history"][-1]
        probabilities = learn.predict(made, state, frame)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
        assert np.mean(probabilities.argmax(axis=1) == frame["target"]) > 0.85


def test_the_same_job_gives_the_same_bits_and_another_seed_does_not(five: Any, federate: Federate) -> None:
    made = job(cl.Torch(cl.nets.MLP([8]), "bce", cl.SGD(0.1)), rounds=2)
    first, again = (digest(federate(made, five).tensors["model"].tobytes()) for _ in range(2))
    other = digest(federate(dataclasses.replace(made, seed=1), five).tensors["model"].tobytes())
    assert first == again != other


def test_auc_of_histograms_is_close_to_the_exact_one() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(4000) < 0.3).astype(np.int64)
    scores = 1 / (1 + np.exp(-(2.0 * y - 1.0 + rng.normal(size=4000))))
    sums = blocks("binary", Predictions(scores, np.zeros(4000)), y)
    found = auc(sums["test/positives"], sums["test/negatives"])
    assert found == pytest.approx(roc_auc_score(y, scores), abs=1e-3)
    empty = blocks("binary", Predictions(scores[:0], scores[:0]), y[:0])
    assert all((value == 0).all() for value in empty.values())
    extremes = blocks("binary", Predictions(np.array([0.0, 1.0]), np.zeros(2)), np.array([0, 1]))
    assert extremes["test/positives"][511] == extremes["test/negatives"][0] == 1


# --- models of one's own

OWN = """
    import torch
    import cloister as cl

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Sequential(
                torch.nn.Linear(30, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Dropout(0.1),
                torch.nn.Linear(8, 1),
            )

        def forward(self, x):
            return self.body(x)

    def loss(model, batch):
        return torch.nn.functional.binary_cross_entropy_with_logits(model(batch["x"]).squeeze(1), batch["y"])

    job = cl.Job(
        cl.Table("cancer", target="target", classes=2),
        cl.Torch(Net, loss=loss, optimizer=cl.SGD(lr=0.1)),
        cl.FedAvg(rounds=6),
        prepare=[cl.Impute(), cl.Standardize()],
    )
"""


def own(folder: Path, text: str = OWN) -> cl.Job:
    path = folder / "job.py"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return learn.complete(cl.load_job(path))


def test_a_model_of_ones_own_trains_the_same_from_its_file_and_from_its_bundle(
    tmp_path: Path, five: Any, federate: Federate
) -> None:
    made = own(tmp_path)
    state = federate(made, five)
    assert state.facts["history"][-1]["accuracy"] > 0.9
    shipped = cl.Job.from_bytes(made.to_bytes())
    assert (federate(shipped, five).tensors["model"] == state.tensors["model"]).all()
    model = learn.build_model(shipped, state)
    assert type(model).__name__ == "Net"
    running = model.state_dict()["body.1.running_mean"]
    assert running.abs().max() > 0  # BatchNorm's statistics are averaged with the rest


@pytest.mark.parametrize(
    ("replace", "by", "says"),
    [
        (
            "        return self.body(x)",
            "        raise ValueError(f'row {x[0]}')",
            "round 1: .* ValueError, line 14",
        ),
        ("            super().__init__()", "            raise KeyError('x')", "raises KeyError, line 7"),
        ("torch.nn.Linear(30, 8)", "torch.nn.LazyLinear(8)", "'body.0' takes its shape from data"),
        ("cl.Torch(Net,", "cl.Torch(loss,", "raises TypeError"),
    ],
)
def test_code_that_raises_is_named_by_type_and_line_without_its_message(
    tmp_path: Path, five: Any, federate: Federate, replace: str, by: str, says: str
) -> None:
    text = OWN.replace(replace, by)
    with pytest.raises(TaskError, match=says) as caught:
        federate(dataclasses.replace(own(tmp_path, text), evaluate=None), five)
    assert "tensor" not in str(caught.value)


def test_initial_values_that_were_never_made_are_missed_early(tmp_path: Path, five: Any, federate: Federate) -> None:
    (tmp_path / "job.py").write_text(textwrap.dedent(OWN), encoding="utf-8")
    with pytest.raises(JobError, match="initial values"):
        federate(cl.load_job(tmp_path / "job.py"), five)


# --- when it goes wrong


def test_a_model_that_diverges_names_the_round_and_the_mend(five: Any, federate: Federate) -> None:
    made = job(cl.Torch(cl.nets.MLP([16]), "mse", cl.SGD(1e6)), table=cl.Table("c", "mean area", ignore=["target"]))
    with pytest.raises(TaskError, match=r"round 1: .*diverged.*learning rate"):
        federate(dataclasses.replace(made, evaluate=None), five)


def test_a_site_with_one_class_takes_part_with_a_warning(five: Any, federate: Federate) -> None:
    frames = {**five, "site-1": five["site-1"][five["site-1"]["target"] == 1].reset_index(drop=True)}
    for task in (
        cl.Torch(cl.nets.Linear(), "bce", cl.SGD(0.1)),
        cl.Sklearn(SGDClassifier(loss="log_loss")),
        cl.Sklearn(LogisticRegression()),
    ):
        made = job(task, rounds=2)
        assert "one class only" in learn.Trainer(made, frames["site-1"], "site-1").warnings[0]
        assert federate(made, frames).facts["history"][-1]["accuracy"] > 0.8


def test_labels_that_the_contract_does_not_name(five: Any) -> None:
    frame = five["site-1"].assign(target=lambda rows: rows["target"] * 7)
    with pytest.raises(DataError) as caught:
        learn.Trainer(job(BACK_ENDS["linear"][0]), frame, "site-1")
    assert "label that the contract does not name" in str(caught.value)
    assert "7" not in caught.value.message.replace(str(int((frame["target"] == 7).sum())), "")


def test_a_site_without_rows_to_train_on(five: Any) -> None:
    frame = five["site-1"].assign(part="test")
    table = cl.Table("cancer", target="target", split="part")
    with pytest.raises(DataError, match="site site-1: no row is left to train on"):
        learn.Trainer(job(BACK_ENDS["linear"][0], table=table), frame, "site-1")
    with pytest.raises(DataError, match="besides 'train' and 'test'"):
        learn.Trainer(job(BACK_ENDS["linear"][0], table=table), frame.assign(part="valid"), "site-1")


def test_an_unknown_task_and_an_unknown_block_are_task_errors(five: Any) -> None:
    from cloister.vector import Block, Layout, Query

    trainer = learn.Trainer(job(BACK_ENDS["linear"][0]), five["site-1"], "site-1")
    layout = Layout((Block("secrets", (1,), bound=1.0),))
    config = {"round": 0, "columns": [["mean area", "number"]]}
    with pytest.raises(TaskError, match="'steal' is not known"):
        trainer.answer(Query("steal", layout, 1, config=config))
    with pytest.raises(TaskError, match="names \\['target'\\], which the job's contract does not give"):
        trainer.answer(Query("profile", layout, 1, config={"round": 0, "columns": [["target", "number"]]}))
    with pytest.raises(TaskError, match="secrets"):
        trainer.answer(Query("profile", layout, 1, config=config))
