"""What holds for every algorithm: JSON, manifest, documentation, refusals, engines; the example in the page."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression, SGDClassifier

import cloister as cl
from cloister.algorithms import Algorithm, from_json
from cloister.algorithms.base import _REGISTRY
from cloister.algorithms.names import last_layer, mask, matching, normalizing
from cloister.vector.errors import JobError, TaskError

from .problems import least_squares, regression, simulated

PAGE = Path(__file__).parents[2] / "docs" / "algorithms.md"
OURS = {name: kind for name, kind in _REGISTRY.items() if kind.__module__.startswith("cloister.")}
MLP = cl.Torch(cl.nets.MLP([3]), loss="mse", optimizer=cl.SGD(0.02), steps=4, batch_size=16)


def made(name: str) -> Algorithm:
    more = {"PartialSharing": {"private": ["*.bias"]}, "FedBN": {"private": ["*.bias"]}}
    more |= {"FLTrust": {"trusted": ["kent", "leeds", "york"]}, "Cyclic": {"cohort": 1.0}}
    return OURS[name](**{"rounds": 3, "cohort": 0.75, "patience": 2, **more.get(name, {})})


def job(name: str) -> cl.Job:
    algorithm = made(name)
    if "curvature" in algorithm.needs:
        return cl.Job(cl.Table("t", target="y"), cl.Sklearn(LogisticRegression()), algorithm)
    return cl.Job(cl.Table("t", target="y"), MLP, algorithm)


@pytest.mark.parametrize("name", sorted(OURS))
def test_each_survives_json_and_the_manifest_and_is_exported(name):
    algorithm = made(name)
    assert from_json(json.loads(json.dumps(algorithm.as_json()))) == algorithm
    assert cl.Job.from_bytes(job(name).to_bytes()).algorithm == algorithm
    assert getattr(cl, name) is OURS[name]
    assert name in cl.__all__


@pytest.mark.parametrize("name", sorted(OURS))
def test_each_names_its_paper_and_stands_in_the_documentation(name):
    assert f"`{name}`" in PAGE.read_text()
    module = Path(__import__(OURS[name].__module__, fromlist=["_"]).__file__)
    assert "https://" in module.read_text().split('"""')[1], "paper and URL in the module's docstring"
    assert OURS[name].__doc__


def test_a_schedule_travels_with_its_algorithm():
    algorithm = cl.FedAdam(rounds=3, schedule=cl.CosineDecay(floor=0.1, warmup=2))
    assert from_json(json.loads(json.dumps(algorithm.as_json()))) == algorithm
    for junk in ({"name": "Eval"}, {"name": "CosineDecay", "evil": 1}, {}):
        with pytest.raises(JobError):
            from_json({"name": "FedAvg", "rounds": 1, "schedule": junk})


@pytest.mark.parametrize("name", ["SCAFFOLD", "FedRep", "Ditto"])
def test_engines_and_seals_give_the_same_model_also_with_memories(name):
    data = least_squares()
    runs = [
        cl.simulate(job(name), data, **settings)
        for settings in ({"engine": "serial"}, {"engine": "processes", "processes": 2}, {"seal": "masks"})
    ]
    assert len({run.model_bytes for run in runs}) == 1


@pytest.mark.parametrize(
    ("task", "algorithm", "mend"),
    [
        (cl.Sklearn(SGDClassifier(loss="log_loss")), cl.FedProx(rounds=1), "cl.Torch"),
        (cl.Sklearn(LogisticRegression()), cl.FedNova(rounds=1), "optimizer=cl.SGD"),
        (cl.Torch(cl.nets.Linear(), "bce", cl.Adam(0.1)), cl.FedNova(rounds=1), "optimizer=cl.SGD"),
        (cl.Torch(cl.nets.Linear(), "bce", cl.SGD(0.1, momentum=0.9)), cl.SCAFFOLD(rounds=1), "without momentum"),
    ],
)
def test_a_task_that_an_algorithm_cannot_use_is_refused(task, algorithm, mend):
    with pytest.raises(JobError, match=f"{algorithm.name} does not work with this task.") as refused:
        cl.Job(cl.Table("t", target="y"), task, algorithm)
    assert mend in refused.value.mend


SHAPES = [("0.weight", (4, 2)), ("0.bias", (4,)), ("1.weight", (4,)), ("1.bias", (4,)), ("3.weight", (1, 4))]
SHAPES += [("3.bias", (1,)), ("1.running_mean", (4,)), ("1.running_var", (4,))]


def test_names_of_what_stays():
    assert normalizing(SHAPES) == ["1.weight", "1.bias", "1.running_mean", "1.running_var"]
    assert last_layer(SHAPES) == ["3.weight", "3.bias"]
    assert matching(SHAPES, ["3.*", "0.bias"]) == ["3.weight", "3.bias", "0.bias"]
    assert mask(SHAPES, ["0.bias"]).nonzero()[0].tolist() == [8, 9, 10, 11]


@pytest.mark.parametrize(
    ("algorithm", "said"),
    [
        (cl.PartialSharing(rounds=1, private=["head"]), "no tensor of the model is named 'head'"),
        (cl.PartialSharing(rounds=1, private=["*"]), "no tensor is shared"),
        (cl.PartialSharing(rounds=1), "no tensor stays local"),
        (cl.FedBN(rounds=1), "no tensor stays local"),
    ],
)
def test_a_part_that_is_none_or_all_is_refused_with_the_names_there_are(algorithm, said):
    with pytest.raises(JobError, match=re.escape(said)) as refused:
        cl.simulate(regression(algorithm), least_squares(), engine="serial")
    assert "weight, bias" in refused.value.mend


def test_a_local_half_that_diverges_is_told_and_leaves_no_memory():
    with pytest.raises(TaskError, match="round 1: the local model diverged"):
        cl.simulate(regression(cl.SCAFFOLD(rounds=3), lr=1e9), least_squares(), engine="serial")


def test_the_algorithm_of_the_documentation_works(monkeypatch):
    code = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)[-1]
    module = ModuleType("signvote")
    monkeypatch.setitem(sys.modules, "signvote", module)  # dataclasses look it up
    exec(code, module.__dict__)
    data = least_squares(spread=0.2)
    kind: type[cl.FedAvg] = module.SignVote
    end = simulated(regression(kind(rounds=60, schedule=cl.InverseDecay(rate=0.02))), data)
    pooled = pd.concat(data.values())
    x = np.column_stack([pooled[["a", "b"]], np.ones(len(pooled))])
    optimum = np.linalg.lstsq(x, pooled["y"], rcond=None)[0]
    assert np.abs(end - optimum).max() < 0.35, "near the pooled optimum, as far as votes can say"
    assert from_json(kind(rounds=2).as_json()) == kind(rounds=2)
