"""McMahan et al. 2017, table 1: MNIST, 2NN, 100 clients of 600 pictures, a tenth of them a round: rounds to 97 %.

Every round's model is tested on the 10,000 test pictures, which are at no client: this is no part of the federation.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

import cloister as cl
from cloister import learn
from cloister.round import Program, run
from cloister.simulation.cohort import LocalCohort
from cloister.simulation.data import shards_of
from cloister.simulation.engine import make_engine
from cloister.simulation.sealing import Ideal
from cloister.vector import State, Total

from .table import DATA, Row, rounds

Pictures = npt.NDArray[np.uint8]
CLIENTS, GOAL, MOST_ROUNDS = 100, 0.97, 2000


def load() -> tuple[Pictures, Pictures, Pictures, Pictures] | None:
    folder = DATA / "mnist"
    if not folder.is_dir():
        return None

    def read(name: str, header: int) -> Pictures:
        return np.frombuffer(gzip.decompress((folder / f"{name}-ubyte.gz").read_bytes())[header:], np.uint8)

    x, y = read("train-images-idx3", 16).reshape(-1, 784), read("train-labels-idx1", 8)
    return x, y, read("t10k-images-idx3", 16).reshape(-1, 784), read("t10k-labels-idx1", 8)


class Reached(Exception):
    pass


def _reaches(job: cl.Job, state: State, x: Pictures, y: Pictures, goal: float) -> bool:
    """Whether the model is right about so large a part of the pictures; stops where it is wrong too often already."""
    wrong, at_once = 0, 1000
    for at in range(0, len(x), at_once):
        said = learn.predict(job, state, x[at : at + at_once]).argmax(axis=1)
        wrong += int((said != y[at : at + at_once]).sum())
        if len(x) - wrong < goal * len(x):
            return False
    return True


def rounds_to_goal(
    partition: str,
    lr: float,
    model: Any = cl.nets.MLP([200, 200]),
    shape: tuple[int, ...] = (784,),
    goal: float = GOAL,
    most_rounds: int = MOST_ROUNDS,
) -> Callable[[Any, int], float]:
    """The first round whose model is right about so many of the test pictures; not a number if none is."""

    def measured(data: tuple[Pictures, Pictures, Pictures, Pictures], seed: int) -> float:
        x, y, x_test, y_test = data
        x, x_test = x.reshape(-1, *shape), x_test.reshape(-1, *shape)
        job = learn.complete(
            cl.Job(
                data=cl.Arrays("mnist", shape, 10),
                task=cl.Torch(model, "cross_entropy", cl.SGD(lr), epochs=1, batch_size=10),
                algorithm=cl.FedAvg(rounds=most_rounds, cohort=0.1),
                evaluate=None,
                seed=seed,
            )
        )
        clients = shards_of(job, (x, y), CLIENTS, partition)
        engine = make_engine("auto", job, clients)
        cohort = LocalCohort(job, engine, list(clients), Ideal())

        def test(state: State, total: Total) -> None:
            if state.facts["round"] and _reaches(job, state, x_test, y_test, goal):
                raise Reached(state.facts["round"])

        try:
            run(Program(job, {}), cohort, observe=test)
        except Reached as reached:
            return float(reached.args[0])
        finally:
            engine.close()
        return float("nan")

    return measured


ROWS = (
    Row("FedAvg, IID", "B = 10, E = 1, C = 0.1, lr 0.05", "87", rounds_to_goal("iid", 0.05), rounds),
    Row("FedAvg, IID", "B = 10, E = 1, C = 0.1, lr 0.1", "87", rounds_to_goal("iid", 0.1), rounds),
    Row("FedAvg, two shards", "B = 10, E = 1, C = 0.1, lr 0.05", "664", rounds_to_goal("shards:2", 0.05), rounds),
)
