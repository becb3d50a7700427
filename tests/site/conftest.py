"""Real tables and jobs for the site's tests: the bundled breast-cancer data as a CSV, and small jobs on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sklearn.linear_model import SGDClassifier

import cloister as cl
from cloister.cli import bundled
from cloister.round import Program
from cloister.site import bubblewrap
from cloister.site.sandbox import WorkerLimits
from cloister.site.settings import DataSource
from cloister.site.training import Task
from cloister.vector import Query

OWN_MODEL = """
import torch
from torch import nn
import cloister as cl

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(30, 1)
    def forward(self, x):
        return self.layer(x)

def loss(model, batch):
    {loss}

job = cl.Job(
    data=cl.Table("breast-cancer", target="malignant", classes=2),
    prepare=[cl.Impute(), cl.Standardize()],
    task=cl.Torch(Net, loss=loss, optimizer=cl.SGD(lr=0.1), steps=1),
    algorithm=cl.FedAvg(rounds=2),
)
"""


@pytest.fixture(scope="session")
def breast_cancer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "breast-cancer.csv"
    bundled.breast_cancer().to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def declarative() -> cl.Job:
    return cl.Job(
        data=cl.Table("breast-cancer", target="malignant"),
        task=cl.Sklearn(SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.01)),
        algorithm=cl.FedAvg(rounds=2),
    )


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers behind their own walls alone, whether or not this machine has bubblewrap."""
    monkeypatch.setattr(bubblewrap, "works", lambda: False)


@pytest.fixture
def make_task(tmp_path: Path, breast_cancer: Path) -> Callable[..., Task]:
    def make(job: cl.Job | None = None, table: Path = breast_cancer, seconds: float = 60.0) -> Task:
        return Task(
            site="kent",
            data=DataSource(file=table),
            home=tmp_path / "home",
            limits=WorkerLimits(seconds=seconds),
            log=tmp_path / "worker.log",
            job=b"" if job is None else job.to_bytes(),
            ships_code=job is not None and job.ships_code,
        )

    return make


@pytest.fixture
def profile_query(declarative: cl.Job) -> Query:
    columns = dict.fromkeys(sorted(bundled.breast_cancer().columns.drop("malignant")), "number")
    program = Program(declarative, columns)
    query = program.ask(program.start())
    assert query is not None
    return query
