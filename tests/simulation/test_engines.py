"""One class of tests for all engines: the same integers, whatever computes them, and whatever befalls it."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import SGDClassifier

import cloister as cl
from cloister.learn import Trainer
from cloister.simulation import shards
from cloister.simulation.engine import AutoEngine, SerialEngine, make_engine
from cloister.simulation.processes import ProcessEngine
from cloister.vector import digest
from cloister.vector.errors import BoundError, TaskError, UsageError, WorkerDied

EXACT = [("serial", None), ("processes", 1), ("processes", 3), ("auto", 2)]


class Sites(Mapping[str, Any]):
    """Clients that exist only while somebody looks at them."""

    def __init__(self, count: int, rows: int = 6) -> None:
        self.names = [f"client-{at}" for at in range(count)]
        self._rows = rows

    def __getitem__(self, site: str) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(int(site.rpartition("-")[2]))
        x = rng.normal(size=(self.rows(site), 4)).astype(np.float32)
        return x, (x[:, 0] > 0).astype(np.int64)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, site: str) -> int:
        return self._rows + int(site.rpartition("-")[2]) % 5


class Fatal(Sites):
    """One client whose data kill the process that reads them: `times` times, counted in a file."""

    def __init__(self, count: int, folder: Path, times: int) -> None:
        super().__init__(count)
        self._folder, self._times = folder, times

    def __getitem__(self, site: str) -> tuple[np.ndarray, np.ndarray]:
        if site == "client-3":
            deaths = len(list(self._folder.iterdir()))
            if deaths < self._times:
                (self._folder / str(deaths)).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(site)


def job(**changes: Any) -> cl.Job:
    task = cl.Torch(cl.nets.MLP([5]), "bce", cl.SGD(0.1), batch_size=4)
    settings: dict[str, Any] = {"algorithm": cl.FedAvg(rounds=2, cohort=0.5), "evaluate": None, **changes}
    return cl.Job(cl.Arrays("signals", (4,), 2), task, **settings)


@pytest.mark.parametrize(("engine", "processes"), EXACT)
@pytest.mark.parametrize("seal", ["ideal", "masks"])
def test_every_engine_gives_the_same_bits(whole, make_job, engine, processes, seal):
    made = make_job(algorithm=cl.FedAvg(rounds=2, cohort=0.7))
    expected = cl.simulate(made, whole, sites=5, engine="serial")
    result = cl.simulate(made, whole, sites=5, seal=seal, engine=engine, processes=processes)
    assert result.state.to_bytes() == expected.state.to_bytes()


@pytest.mark.parametrize(("engine", "processes"), EXACT)
def test_a_mapping_is_read_when_a_site_is_asked(engine, processes):
    result = cl.simulate(job(), Sites(40), engine=engine, processes=processes)
    expected = cl.simulate(job(), {site: Sites(40)[site] for site in Sites(40)}, engine="serial")
    assert digest(result.model_bytes) == digest(expected.model_bytes)
    assert result.history["sites"].tolist() == [40, 20, 20]


@pytest.mark.parametrize("seal", ["ideal", "masks"])
def test_a_killed_process_is_replaced_and_nothing_counts_twice(tmp_path, seal):
    expected = cl.simulate(job(), Sites(20), engine="serial")
    result = cl.simulate(job(), Fatal(20, tmp_path, times=1), seal=seal, engine="processes", processes=2)
    assert len(list(tmp_path.iterdir())) == 1
    assert result.state.to_bytes() == expected.state.to_bytes()


def test_a_site_that_kills_again_and_again_is_named(tmp_path):
    with pytest.raises(WorkerDied, match=r"site client-3: .*killed twice.*SIGKILL"):
        cl.simulate(job(), Fatal(20, tmp_path, times=9), engine="processes", processes=2)


def test_faults_come_from_processes_with_their_cause(tmp_path):
    class Spoiled(Sites):
        def __getitem__(self, site):
            x, y = super().__getitem__(site)
            return (np.sign(x) * np.float32(1e38), y) if site == "client-2" else (x, y)

    events: list[dict[str, Any]] = []
    cl.simulate(job(), Spoiled(12), engine="processes", processes=2, progress=events.append)
    told = [event for event in events if event["event"] == "refused"]
    assert {event["site"] for event in told} <= {"client-2"}


def test_when_no_site_has_an_answer_the_first_says_why():
    class Spoiled(Sites):
        def __getitem__(self, site):
            x, y = super().__getitem__(site)
            return np.sign(x) * np.float32(1e38), y

    with pytest.raises(TaskError, match="diverged") as error:
        cl.simulate(job(), Spoiled(12), engine="processes", processes=2)
    assert error.value.site.startswith("client-")


def test_what_is_nobodys_fault_says_what_it_was():
    class Broken(Sites):
        def __getitem__(self, site):
            raise MemoryError("no room")

    with pytest.raises(WorkerDied, match="MemoryError") as error:
        cl.simulate(job(), Broken(12), engine="processes", processes=2)
    assert "no room" in str(error.value.__cause__)


def test_auto_starts_processes_once_a_round_takes_long(monkeypatch):
    engine = make_engine("auto", job(), Sites(10), 2)
    assert isinstance(engine, AutoEngine)
    monkeypatch.setattr("cloister.simulation.engine.SLOW_SECONDS", 0.0)
    result = cl.simulate(job(algorithm=cl.FedAvg(rounds=4)), Sites(10), engine="auto", processes=2)
    assert (
        result.state.to_bytes()
        == cl.simulate(job(algorithm=cl.FedAvg(rounds=4)), Sites(10), engine="serial").state.to_bytes()
    )


def test_unknown_engines_and_senseless_numbers_of_processes_are_refused():
    with pytest.raises(UsageError, match="auto, serial, processes, batched"):
        make_engine("fast", job(), Sites(3))
    with pytest.raises(UsageError, match="makes no sense"):
        make_engine("processes", job(), Sites(3), 0)
    with pytest.raises(UsageError, match="makes no sense"):
        make_engine("serial", job(), Sites(3), 2)


def test_few_trainers_are_kept(monkeypatch):
    monkeypatch.setattr("cloister.simulation.engine.MOST_KEPT", 3)
    engine = SerialEngine(job(), Sites(10))
    made = [engine.trainer(site) for site in Sites(10)]
    assert all(isinstance(each, Trainer) for each in made)
    assert len(engine._kept) == 3
    assert engine.trainer("client-0") is made[0]
    assert engine.trainer("client-9") is not made[9]


def test_processes_end_with_the_simulation():
    engine = ProcessEngine(SerialEngine(job(), Sites(4)), 2)
    engine._begin(*_some_query(), apart=False)
    pids = [worker.process.pid for worker in engine._workers]
    engine.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def _some_query() -> Any:
    from cloister.round import Program
    from cloister.vector import FixedPoint

    program = Program(job(), {})
    query = program.ask(program.start())
    assert query is not None
    return query, FixedPoint(query.sealed_layout, 4)


def test_largest_sites_are_asked_first():
    engine = ProcessEngine(SerialEngine(job(), Sites(10)), 2)
    ordered = engine._by_size(list(Sites(10)))
    assert [Sites(10).rows(site) for site in ordered] == sorted((6 + at % 5 for at in range(10)), reverse=True)
    tables = shards(pd.DataFrame({"x": range(30), "y": [0, 1] * 15}), target="y", sites=3)
    assert ProcessEngine(SerialEngine(job(), tables), 2)._by_size(list(tables)) == list(tables)


def test_sums_too_coarse_to_learn_from_are_refused():
    with pytest.raises(BoundError, match=r"16 bits carry the delta of one of 40 sites in steps of 0\.3\d?: nothing"):
        cl.simulate(job(bits=16), Sites(40), engine="serial")


@pytest.mark.parametrize(("engine", "processes"), EXACT)
def test_what_sites_remember_is_theirs_on_every_engine(engine, processes):
    made = job(algorithm=cl.SCAFFOLD(rounds=4, cohort=0.5))
    result = cl.simulate(made, Sites(12), engine=engine, processes=processes)
    assert result.state.to_bytes() == cl.simulate(made, Sites(12), engine="serial").state.to_bytes()
    assert result.state.to_bytes() != cl.simulate(job(), Sites(12), engine="serial").state.to_bytes()


class Wide(Sites):
    """Few rows of many columns, of two sizes; client-4 diverges, client-6 breaks the contract."""

    def __getitem__(self, site: str) -> Any:
        at = int(site.partition("-")[2])
        rng = np.random.default_rng(at)
        x, y = rng.normal(size=(10 + at % 2, 60)).astype(np.float32), rng.integers(0, 2, 10 + at % 2)
        return x * np.float32(1e38 if at == 4 else 1), y + 7 * (at == 6)


@pytest.mark.parametrize(("engine", "processes"), [("serial", None), ("batched", None), *EXACT])
@pytest.mark.parametrize("measured", [None, cl.Evaluate(holdout=0.3)])
def test_sites_that_are_trained_together_are_told_apart(engine, processes, measured, monkeypatch):
    made = cl.Job(
        cl.Arrays("signals", (60,), 2),
        cl.Torch(cl.nets.MLP([5]), "bce", cl.SGD(0.1), batch_size=4),
        cl.FedAvg(rounds=2, cohort=0.8),
        evaluate=measured,
    )
    events: list[dict[str, Any]] = []
    found = cl.simulate(made, Wide(20), engine=engine, processes=processes, progress=events.append)
    told = {(event["site"], event["error"]) for event in events if event["event"] == "refused"}
    assert told == {("client-4", "TaskError"), ("client-6", "DataError")}
    monkeypatch.setattr("cloister.simulation.engine.at_once", lambda job, query: 1)
    alone = cl.simulate(made, Wide(20), engine="serial")
    if engine == "batched" and measured:  # which measures all of them in one product
        np.testing.assert_allclose(found.state.tensors["model"], alone.state.tensors["model"], atol=1e-6)
    else:
        assert found.state.to_bytes() == alone.state.to_bytes()


@pytest.mark.parametrize(("most_bytes", "sizes"), [(1 << 26, [32, 8]), (1, [1] * 40)])
def test_fewer_sites_are_held_together_where_their_data_are_large(most_bytes, sizes, monkeypatch):
    held: list[int] = []
    monkeypatch.setattr("cloister.simulation.engine.MOST_TOGETHER_BYTES", most_bytes)
    monkeypatch.setattr("cloister.simulation.engine.begin", lambda trainers, query: held.append(len(trainers)) or {})
    cl.simulate(job(algorithm=cl.FedAvg(rounds=1)), Sites(40), engine="serial")
    assert held == sizes


@pytest.mark.parametrize("optimizer", [cl.SGD(0.1), cl.Adam(0.01)])
def test_many_clients_at_once_give_the_same_model_to_rounding(optimizer):
    task = cl.Torch(cl.nets.MLP([5]), "bce", optimizer, batch_size=4)
    made = dataclasses.replace(job(evaluate=cl.Evaluate(holdout=0.3)), task=task)
    batched, serial = (cl.simulate(made, Sites(30), engine=engine) for engine in ("batched", "serial"))
    np.testing.assert_allclose(batched.state.tensors["model"], serial.state.tensors["model"], atol=1e-6)
    for column in ("loss", "accuracy", "site_accuracy", "auc", "train_loss", "rows", "sites"):
        np.testing.assert_allclose(batched.history[column], serial.history[column], atol=1e-5)


def test_batched_faults_are_the_sites_own():
    class Spoiled(Sites):
        def __getitem__(self, site):
            x, y = super().__getitem__(site)
            if site == "client-2":
                return np.sign(x) * np.float32(1e38), y
            return (x, y + 7) if site == "client-3" else (x, y)

    events: list[dict[str, Any]] = []
    made = job(algorithm=cl.FedAvg(rounds=1))
    cl.simulate(made, Spoiled(12), engine="batched", progress=events.append)
    told = {(event["site"], event["error"]) for event in events if event["event"] == "refused"}
    assert told == {("client-2", "TaskError"), ("client-3", "DataError")}


@pytest.mark.parametrize(
    "change",
    [{"algorithm": cl.SCAFFOLD(rounds=2)}, {"task": cl.Sklearn(SGDClassifier(loss="log_loss"))}],
)
def test_what_cannot_be_batched_is_refused(change):
    with pytest.raises(UsageError, match="Use engine='processes'"):
        make_engine("batched", dataclasses.replace(job(), **change), Sites(3))


class Own(torch.nn.Module):
    """With a frozen part, which travels and does not learn."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.frozen, self.last = (torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
        self.frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.frozen(self.first(x))))


class Forgetful(Own):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.nn.functional.dropout(x, 0.5, self.training))


class Particular(Own):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) == 1:
            raise ValueError("not alone")
        return super().forward(x)


def squared(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    return (model(batch["x"])[:, 0] - batch["y"]).square().mean()


@pytest.mark.parametrize("loss", ["bce", squared])
@pytest.mark.parametrize("optimizer", [cl.SGD(0.1, momentum=0.5), cl.Adam(0.01)])
def test_models_of_ones_own_are_batched_too(loss, optimizer):
    task = cl.Torch(Own, loss, optimizer, epochs=2, batch_size=4)  # 6 to 10 rows: two steps or three, and odd ends
    made = dataclasses.replace(job(evaluate=cl.Evaluate(holdout=0.2)), task=task)
    batched, serial = (cl.simulate(made, Sites(30), engine=engine) for engine in ("batched", "serial"))
    model = serial.state.tensors["model"]
    assert np.abs(model - cl.simulate(made, Sites(30), engine="serial", seed=9).state.tensors["model"]).max() > 1e-2
    np.testing.assert_allclose(batched.state.tensors["model"], model, atol=1e-5)
    assert batched.final == pytest.approx(serial.final, abs=1e-4)


def test_layers_without_a_batched_form_say_so():
    made = dataclasses.replace(job(), task=cl.Torch(Forgetful, "bce", cl.SGD(0.1), batch_size=4))
    with pytest.raises(UsageError, match=r"cannot train this model: .*such as dropout.*Use engine='processes'"):
        cl.simulate(made, Sites(8), engine="batched")


def test_code_that_raises_at_one_client_is_that_client_s_affair_in_a_batch_too():
    made = dataclasses.replace(job(), task=cl.Torch(Particular, "bce", cl.SGD(0.1), batch_size=4))
    told: list[set[str]] = []
    for engine in ("serial", "batched"):
        events: list[dict[str, Any]] = []
        cl.simulate(made, Sites(12), engine=engine, progress=events.append)
        told.append({event["site"] for event in events if event["event"] == "refused"})
    assert told[0] == told[1]
    assert 0 < len(told[0]) < 6
