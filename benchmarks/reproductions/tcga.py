"""Fed-TCGA-BRCA of FLamby: survival of breast cancer in six regions, a linear Cox model, C-index.

A job with a loss of its own. The target says time and event in one number: days + 1, negative where the patient was
last seen alive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

import cloister as cl
from cloister import learn
from cloister.vector import State

from .table import DATA, Row, alone

REGIONS = ("Northeast", "South", "West", "Midwest", "Europe", "Canada")
FEATURES = 39
Arrays = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.bool_]]
Regions = Mapping[str, Arrays]


def cox(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Cox 1972, partial likelihood, with the batch as the risk set.

    The mean of event * (log of the sum of exp(score) of those who lived as long, less the own score).
    """
    order = torch.argsort(batch["y"].abs(), descending=True, stable=True)
    scores, event = model(batch["x"])[order].reshape(-1), (batch["y"][order] > 0).float()
    return (event * (torch.logcumsumexp(scores, 0) - scores)).mean()


def linear() -> torch.nn.Module:
    return torch.nn.Linear(FEATURES, 1)


def load() -> Regions | None:
    folder = DATA / "fed-tcga-brca"
    if not folder.is_dir():
        return None
    rows = pd.read_csv(folder / "brca.csv").merge(pd.read_csv(folder / "train_test_split.csv"), on="pid")
    x = rows.drop(columns=["pid", "E", "T", "fold", "fold2"]).to_numpy(np.float32)
    y = np.where(rows["E"] == 1, rows["T"] + 1, -rows["T"] - 1).astype(np.float32)
    region, test = rows["fold2"].str[-1].astype(int).to_numpy(), (rows["fold"] == "test").to_numpy()
    return {name: (x[region == at], y[region == at], test[region == at]) for at, name in enumerate(REGIONS)}


def concordance(y: npt.NDArray[np.float32], scores: npt.NDArray[np.float64]) -> float:
    """Harrell's C-index: of pairs of which one surely died first, how often its score is larger; ties half."""
    time, event = np.abs(y), y > 0
    comparable = event[:, None] & ((time[:, None] < time) | ((time[:, None] == time) & ~event))
    larger, equal = scores[:, None] > scores, scores[:, None] == scores
    return float((comparable * (larger + 0.5 * equal)).sum() / comparable.sum())


def job(algorithm: Any, optimizer: cl.SGD | cl.Adam, seed: int, **local: int) -> cl.Job:
    return cl.Job(
        data=cl.Arrays("tcga-brca", (FEATURES,)),
        task=cl.Torch(linear, cox, optimizer, batch_size=8, **local),
        algorithm=algorithm,
        evaluate=None,
        seed=seed,
    )


def mean_index(made: cl.Job, state: State, data: Regions) -> float:
    """The plain mean of the regions' C-indices on their test rows."""
    found = [concordance(y[test], learn.predict(made, state, x[test])) for x, y, test in data.values()]
    return float(np.mean(found))


def federated(algorithm: Any, lr: float) -> Callable[[Regions, int], float]:
    def measured(data: Regions, seed: int) -> float:
        result = cl.simulate(job(algorithm, cl.SGD(lr), seed, steps=100), data, engine="serial")
        return mean_index(result.job, result.state, data)

    return measured


def central(*regions: str) -> Callable[[Regions, int], float]:
    def measured(data: Regions, seed: int) -> float:
        held = tuple(np.concatenate(part) for part in zip(*(data[name] for name in regions), strict=True))
        made = learn.complete(job(cl.FedAvg(rounds=1, bound=64.0), cl.Adam(0.1), seed, epochs=5))
        return mean_index(made, alone(made, held), data)

    return measured


OPT: dict[str, Any] = {"rounds": 5, "beta1": 0.9, "tau": 1e-8}
AVERAGED: dict[str, Any] = {"rounds": 5, "bound": 64.0}
ROWS = (
    Row("pooled", "Adam 0.1, 5 epochs", ".676 ± .085", central(*REGIONS)),
    *(
        Row(f"local: {region}", "Adam 0.1, 5 epochs", published, central(region))
        for region, published in zip(REGIONS, (".728", ".750", ".498", ".656", ".712", ".691"), strict=True)
    ),
    Row("FedAvg", "lr 0.1", ".732 ± .162", federated(cl.FedAvg(**AVERAGED), 0.1)),
    Row("FedProx", "lr 0.1, proximal 0.1", ".729", federated(cl.FedProx(**AVERAGED, proximal=0.1), 0.1)),
    Row("SCAFFOLD", "lr 0.01", ".687", federated(cl.SCAFFOLD(**AVERAGED, control_bound=4096.0), 0.01)),
    Row("FedAdagrad", "lr 0.01, server_lr 1", ".813 ± .004", federated(cl.FedAdagrad(server_lr=1.0, **OPT), 0.01)),
    Row(
        "FedAdam",
        "lr 0.01, server_lr 0.1",
        ".815 ± .023",
        federated(cl.FedAdam(server_lr=0.1, beta2=0.999, **OPT), 0.01),
    ),
    Row(
        "FedYogi",
        "lr 0.01, server_lr 0.1",
        ".815",
        federated(cl.FedYogi(server_lr=0.1, beta2=0.999, **OPT), 0.01),
    ),
    Row("Cyclic, unsealed", "lr 0.01, 5 transfers", ".658", federated(cl.Cyclic(**AVERAGED), 0.01)),
    Row("FedAvg", "lr 0.01", "", federated(cl.FedAvg(**AVERAGED), 0.01)),
)
