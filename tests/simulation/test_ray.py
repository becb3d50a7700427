"""The same integers from a Ray cluster of two nodes, whichever worker or node dies in the middle of a round."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cloister as cl
from cloister.simulation.ray import RayEngine
from cloister.vector.errors import EnvironmentFailure, TaskError, UsageError, WorkerDied

try:
    import ray
    from ray.cluster_utils import Cluster
except ImportError:
    ray = None

needs_ray = pytest.mark.skipif(ray is None, reason="Ray is not installed: pip install 'cloister[ray]'")


class Clients(Mapping[str, Any]):
    """Clients that exist only where somebody looks at them. One of them may kill who looks, so many times."""

    def __init__(self, count: int, folder: Path | None = None, deaths: int = 0) -> None:
        self._count, self._folder, self._deaths = count, folder, deaths

    def __getitem__(self, site: str) -> tuple[np.ndarray, np.ndarray]:
        at = int(site.rpartition("-")[2])
        if self._folder is not None and at == 3:
            died = len(list(self._folder.iterdir()))
            if died < self._deaths:
                (self._folder / str(died)).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        x = np.random.default_rng(at).normal(size=(6 + at % 5, 4)).astype(np.float32)
        return x, (x[:, 0] > 0).astype(np.int64)

    def __iter__(self) -> Iterator[str]:
        return (f"client-{at}" for at in range(self._count))

    def __len__(self) -> int:
        return self._count


def job(**changes: Any) -> cl.Job:
    task = cl.Torch(cl.nets.MLP([5]), "bce", cl.SGD(0.1), batch_size=4)
    settings: dict[str, Any] = {"algorithm": cl.FedAvg(rounds=3, cohort=0.6), **changes}
    return cl.Job(cl.Arrays("signals", (4,), 2), task, **settings)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one processor each, real processes; workers take this file's classes as values."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    node = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=node)
    node.pop("include_dashboard")
    second = made.add_node(**node)
    made.wait_for_nodes()
    ray.init(address=made.address, log_to_driver=False)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield made, second
    ray.shutdown()
    made.shutdown()


@needs_ray
@pytest.mark.parametrize("seal", ["ideal", "masks"])
def test_two_nodes_give_the_same_bits(cluster, seal):
    expected = cl.simulate(job(), Clients(20), engine="serial")
    result = cl.simulate(job(), Clients(20), seal=seal, engine="ray")
    assert result.state.to_bytes() == expected.state.to_bytes()
    assert len({node["NodeID"] for node in ray.nodes() if node["Alive"]}) == 2


@needs_ray
def test_what_sites_remember_is_theirs(cluster):
    made = job(algorithm=cl.SCAFFOLD(rounds=3, cohort=0.6))
    expected = cl.simulate(made, Clients(12), engine="serial")
    assert cl.simulate(made, Clients(12), engine="ray").state.to_bytes() == expected.state.to_bytes()


@needs_ray
def test_a_worker_that_is_killed_in_a_round_is_replaced(cluster, tmp_path):
    expected = cl.simulate(job(), Clients(20), engine="serial")
    result = cl.simulate(job(), Clients(20, tmp_path, deaths=1), engine="ray")
    assert len(list(tmp_path.iterdir())) == 1
    assert result.state.to_bytes() == expected.state.to_bytes()


@needs_ray
def test_a_site_that_kills_again_and_again_is_named(cluster, tmp_path):
    with pytest.raises(WorkerDied, match=r"site client-3: a worker was killed 2 times"):
        cl.simulate(job(algorithm=cl.FedAvg(rounds=3)), Clients(12, tmp_path, deaths=9), engine="ray")


@needs_ray
def test_faults_come_back_as_they_are(cluster):
    class Spoiled(Clients):
        def __getitem__(self, site: str) -> tuple[np.ndarray, np.ndarray]:
            x, y = super().__getitem__(site)
            return np.sign(x) * np.float32(1e38), y

    with pytest.raises(TaskError, match=r"not finite|diverged") as error:
        cl.simulate(job(), Spoiled(8), engine="ray")
    assert error.value.site.startswith("client-")


@needs_ray
def test_data_that_cannot_be_sent_say_so(cluster):
    class Held(dict[str, Any]):
        def __reduce__(self) -> Any:
            raise TypeError("cannot pickle a lock")

    with pytest.raises(UsageError, match=r"cannot be sent to Ray: a Held that cannot be pickled.*processes"):
        RayEngine(job(), (Held(), None, False))


@needs_ray
def test_a_node_that_is_lost_costs_a_round_nothing(cluster):
    made, second = cluster
    expected = cl.simulate(job(algorithm=cl.FedAvg(rounds=6)), Clients(20), engine="serial")

    def lose(event: Mapping[str, Any]) -> None:
        if event.get("trained") == 2:
            made.remove_node(second, allow_graceful=False)

    result = cl.simulate(job(algorithm=cl.FedAvg(rounds=6)), Clients(20), engine="ray", progress=lose)
    assert result.state.to_bytes() == expected.state.to_bytes()


def test_without_ray_the_mend_is_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EnvironmentFailure, match=r"pip install 'cloister\[ray\]'"):
        cl.simulate(job(), Clients(6), engine="ray")
