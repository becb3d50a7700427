"""Flower's side of `peers.py`, run by the Python of .venv-peers/flower: prints the seconds of each round as JSON.

    python flower.py mlp|cnn|plain|secagg ROUNDS

mlp, cnn: FedAvg over the workload's clients with Flower's newest API (ServerApp, ClientApp, messages).
plain, secagg: sites that train nothing and return a vector; without secure aggregation, and with SecAgg+ over the
complete graph, the graph that gives a sealed sum's guarantee. One Ray actor for each core.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.update(FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS="0", OMP_NUM_THREADS="1")
HERE = str(Path(__file__).resolve().parents[1])
os.environ["PYTHONPATH"] = HERE  # for the actors
sys.path.insert(0, HERE)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.client import NumPyClient  # noqa: E402
from flwr.client.mod import secaggplus_mod  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.common import ndarrays_to_parameters  # noqa: E402
from flwr.server import ServerConfig  # noqa: E402
from flwr.server.compat import LegacyContext  # noqa: E402
from flwr.server.strategy import FedAvg as LegacyFedAvg  # noqa: E402
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow  # noqa: E402
from flwr.serverapp import Grid, ServerApp  # noqa: E402
from flwr.serverapp.strategy import FedAvg  # noqa: E402
from flwr.simulation import run_simulation  # noqa: E402

import workload as work  # noqa: E402

BACKEND: Any = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": os.cpu_count()}}
MARKS: list[float] = []  # when each round began
SECONDS: list[float] = []  # how long each took, where its end is seen


def training(model: str, rounds: int) -> tuple[ServerApp, ClientApp]:
    client, server = ClientApp(), ServerApp()

    @client.train()  # type: ignore[untyped-decorator]
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        module = work.MODELS[model]()
        module.load_state_dict(message.content["arrays"].to_torch_state_dict())
        x, y = client_data(int(context.node_config["partition-id"]))
        work.epoch(module, x, y)
        content = {"arrays": ArrayRecord(module.state_dict()), "metrics": MetricRecord({"num-examples": work.ROWS})}
        return Message(content=RecordDict(content), reply_to=message)

    class Timed(FedAvg):
        def configure_train(self, *args: Any, **named: Any) -> Any:
            MARKS.append(time.perf_counter())
            return super().configure_train(*args, **named)

    @server.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        strategy = Timed(fraction_train=work.COHORT / work.CLIENTS, fraction_evaluate=0.0)
        strategy.start(grid, ArrayRecord(work.MODELS[model]().state_dict()), num_rounds=rounds + 2)

    return server, client


_DATA: list[Any] = []


def client_data(at: int) -> tuple[torch.Tensor, torch.Tensor]:
    if not _DATA:
        _DATA.extend(work.images())
    x, y = _DATA
    return torch.from_numpy(x[at]).float() / 255, torch.from_numpy(y[at])


class Returns(NumPyClient):
    def fit(self, parameters: Any, config: Any) -> tuple[Any, int, dict[str, Any]]:
        return parameters, 1, {}


def sealing(sealed: bool, rounds: int) -> tuple[ServerApp, ClientApp]:
    client = ClientApp(client_fn=lambda _: Returns().to_client(), mods=[secaggplus_mod] if sealed else [])
    server = ServerApp()

    class Timed(LegacyFedAvg):
        def configure_fit(self, *args: Any, **named: Any) -> Any:
            MARKS.append(time.perf_counter())
            return super().configure_fit(*args, **named)

        def aggregate_fit(self, *args: Any, **named: Any) -> Any:
            found = super().aggregate_fit(*args, **named)
            SECONDS.append(time.perf_counter() - MARKS[-1])
            return found

    @server.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        strategy = Timed(
            fraction_evaluate=0.0,
            min_fit_clients=work.SEALED_SITES,
            min_available_clients=work.SEALED_SITES,
            initial_parameters=ndarrays_to_parameters([np.zeros(work.SEALED_WORDS, np.float32)]),
        )
        legacy = LegacyContext(context=context, config=ServerConfig(num_rounds=rounds + 1), strategy=strategy)
        fit = SecAggPlusWorkflow(num_shares=1.0, reconstruction_threshold=2 / 3) if sealed else None
        DefaultWorkflow(fit_workflow=fit)(grid, legacy)

    return server, client


def main(what: str, rounds: int) -> None:
    seal = what in ("plain", "secagg")
    server, client = sealing(what == "secagg", rounds) if seal else training(what, rounds)
    with contextlib.redirect_stdout(sys.stderr):
        run_simulation(server, client, work.SEALED_SITES if seal else work.CLIENTS, backend_config=BACKEND)
    seconds = SECONDS or [after - before for before, after in itertools.pairwise(MARKS)]
    print(json.dumps({"seconds": seconds[1:] or seconds}))  # the first round starts the actors


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
