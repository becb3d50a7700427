"""pfl-research's side of `peers.py`, run by the Python of .venv-peers/pfl: prints the seconds of each round as JSON.

    python pfl_research.py mlp|cnn ROUNDS

FedAvg over the workload's clients in its simulated backend: one process, one thread, tensors in memory already.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch.nn import functional

import workload as work


class Marks(TrainingProcessCallback[Any]):
    """When each round ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
        self.times.append(time.perf_counter())
        return False, Metrics()


def with_loss(module: torch.nn.Module) -> torch.nn.Module:
    """pfl asks a module for its loss and metrics."""

    def loss(x: torch.Tensor, y: torch.Tensor, eval: bool = False) -> torch.Tensor:
        return functional.cross_entropy(module(x), y)

    def metrics(x: torch.Tensor, y: torch.Tensor, eval: bool = True) -> dict[str, Weighted]:
        return {"loss": Weighted(loss(x, y).item() * len(x), len(x))}

    module.loss, module.metrics = loss, metrics  # type: ignore[assignment]
    return module


def main(name: str, rounds: int) -> None:
    torch.set_num_threads(1)
    x, y = work.images()
    users = {at: (torch.from_numpy(x[at]).float() / 255, torch.from_numpy(y[at])) for at in range(work.CLIENTS)}
    data = FederatedDataset(
        lambda at: Dataset(raw_data=users[at], user_id=at), get_user_sampler("random", list(range(work.CLIENTS)))
    )
    module = with_loss(work.MODELS[name]())
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    marks = Marks()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds + 2,
            evaluation_frequency=10**9,
            train_cohort_size=work.COHORT,
            val_cohort_size=None,
        ),
        SimulatedBackend(data, None, postprocessors=[WeightByDatapoints()]),
        model,
        NNTrainHyperParams(local_batch_size=work.BATCH, local_num_epochs=1, local_learning_rate=work.LR),
        NNEvalHyperParams(local_batch_size=None),
        callbacks=[marks],
        send_metrics_to_platform=False,
    )
    seconds = [after - before for before, after in itertools.pairwise(marks.times)]
    print(json.dumps({"seconds": seconds[1:]}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
