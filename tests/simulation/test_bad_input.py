"""What people get wrong: a clear line that names the client, the round and the way out, or sense made of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import cloister as cl
from cloister.vector.errors import DataError, JobError, TaskError, UsageError


class Normed(torch.nn.Module):
    """With BatchNorm, and an attribute that no pickle takes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
        self.hook = lambda value: value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.hook(self.layers(x))


def not_a_number(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """For the client whose first number is 99."""
    loss = model(batch["x"]).square().mean()
    return torch.where((batch["x"] == 99).any(), torch.full((), torch.nan), 1.0) * loss


def clients(count: int = 5, rows: int = 9, **others: Any) -> dict[str, Any]:
    found = {}
    for at in range(count):
        x = np.random.default_rng(at).normal(size=(rows, 4)).astype(np.float32)
        found[f"c{at}"] = (x, (x[:, 0] > 0).astype(np.int64))
    return {**found, **others}


def job(model: Any = Normed, loss: Any = "bce", batch_size: int = 4) -> cl.Job:
    task = cl.Torch(model, loss, cl.SGD(0.1), batch_size=batch_size)
    return cl.Job(cl.Arrays("signals", (4,), 2), task, cl.FedAvg(rounds=2), evaluate=None)


def refused(made: cl.Job, data: Any, **settings: Any) -> tuple[cl.Result, list[Any]]:
    events: list[Any] = []
    result = cl.simulate(made, data, progress=events.append, **settings)
    return result, [event for event in events if event["event"] == "refused"]


@pytest.mark.parametrize("engine", ["serial", "processes", "auto"])
def test_one_client_s_loss_that_is_no_number_is_its_own_affair(engine):
    wild = np.full((9, 4), 99, np.float32)
    result, told = refused(job(loss=not_a_number), clients(c3=(wild, np.arange(9) % 2)), engine=engine)
    assert [(event["site"], event["message"].split(":")[0]) for event in told] == [
        ("c3", "round 1"),
        ("c3", "round 2"),
    ]
    assert all("Lower the learning rate" in event["mend"] for event in told)
    assert result.history["sites"].tolist() == [5, 4, 4]
    assert np.isfinite(result.state.tensors["model"]).all()


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_all_clients_losses_that_are_no_numbers_end_the_run(engine):
    wild = {f"c{at}": (np.full((9, 4), 99, np.float32), np.arange(9) % 2) for at in range(5)}
    with pytest.raises(TaskError, match=r"^site c\d: round 1: 0 of 5 .* not finite. Lower the learning rate"):
        cl.simulate(job(loss=not_a_number), wild, engine=engine)


def test_batchnorm_of_one_row():
    with pytest.raises(TaskError, match=r"BatchNorm takes two rows at least.*nn.GroupNorm"):
        cl.simulate(job(batch_size=1), clients())
    result, told = refused(job(batch_size=4), clients(rows=9))  # 9 = 4 + 5: the lone row joins a batch
    assert result.history["sites"].tolist() == [5, 5, 5]
    assert not told
    one = clients(rows=1)["c0"]
    result, told = refused(job(), clients(c2=one))
    assert {event["site"] for event in told} == {"c2"}
    assert result.history["sites"].tolist() == [5, 4, 4]


def test_a_model_that_no_pickle_takes_trains_on_every_core():
    serial, processes = (
        cl.simulate(job(), clients(), engine=engine, processes=None) for engine in ("serial", "processes")
    )
    assert serial.state.to_bytes() == processes.state.to_bytes()


def test_models_that_no_site_could_make_again_are_refused_when_the_job_is_made():
    class Inner(torch.nn.Module):
        pass

    with pytest.raises(JobError, match=r"an instance of Normed is no model.*Pass the class"):
        job(Normed())
    with pytest.raises(JobError, match="not at the top level of the job file"):
        job(Inner)
    with pytest.raises(UsageError, match=r"cannot train this model: its BatchNorm keeps statistics.*processes"):
        cl.simulate(job(), clients(), engine="batched")


def test_an_empty_client_is_left_out_and_told():
    nothing = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    result, told = refused(job(), clients(c2=nothing))
    assert {(event["site"], event["error"]) for event in told} == {("c2", "DataError")}
    assert all("leave the site out" in event["mend"] for event in told)
    assert result.history["sites"].tolist() == [4, 4, 4]


def test_an_empty_table_is_refused_by_name(whole, make_job):
    with pytest.raises(DataError, match=r"^site b: the table has no rows"):
        cl.simulate(make_job(), {"a": whole, "b": whole.iloc[:0], "c": whole})


def test_a_client_of_one_class_takes_part_and_one_of_unknown_labels_does_not():
    x, _ = clients()["c1"]
    result, told = refused(job(), clients(c1=(x, np.zeros(9, np.int64)), c4=(x, np.full(9, 7))))
    assert {event["site"] for event in told} == {"c4"}
    assert "It names 0, 1" in told[0]["mend"]
    assert "7" not in told[0]["message"]  # no value of the data is told
    assert result.history["sites"].tolist() == [4, 4, 4]


def test_a_client_whose_numbers_are_none_is_told_which_rows_not_which_values():
    x, y = clients()["c1"]
    x[3:5, 2] = np.nan
    result, told = refused(job(cl.nets.Linear()), clients(c1=(x, y)))
    assert {(event["site"], event["message"]) for event in told} == {("c1", "x has 2 rows with NaN or infinity.")}
    assert result.history["sites"].tolist() == [4, 4, 4]


def test_labels_that_are_too_few_are_not_left_out_in_silence():
    with pytest.raises(DataError, match="x has 40 rows and y 30"):
        cl.simulate(job(cl.nets.Linear()), (np.zeros((40, 4), np.float32), np.arange(30) % 2))


@pytest.mark.parametrize("partition", ["skewed", "iid", "dirichlet:0.1", "sizes:1", "shards:2", "noise:1"])
def test_more_clients_than_rows(partition):
    x, y = np.zeros((10, 4), np.float32), np.arange(10) % 2
    with pytest.raises(UsageError, match=r"10 rows.*Use at most 10"):
        cl.simulate(job(cl.nets.Linear()), (x, y), sites=20, partition=partition)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"partition": "oval"}, "Use one of skewed, iid, dirichlet:ALPHA"),
        ({"partition": "dirichlet:wide"}, "needs a positive number"),
        ({"engine": "fast"}, "not one of auto, serial, processes, batched, ray"),
        ({"seal": "wax"}, "not one of ideal, masks"),
        ({"dropouts": 1.5}, "not a probability"),
        ({"dropouts": {1: ["nobody"]}}, "The sites are: site-1"),
        ({"sites": 2}, "at least 3 sites"),
        ({"sites": "many"}, "Use sites=3 or more"),
        ({"partition": None}, "is no text. Use one of skewed"),
        ({"attack": "scowl"}, "Use one of none, label-flip, sign-flip"),
        ({"attack": "alie", "attackers": ["nobody"]}, "The sites are: site-1"),
        ({"processes": 0}, "makes no sense"),
        ({"engine": "serial", "processes": 2}, "Use engine='processes'"),
    ],
)
def test_unknown_values_name_the_known(settings, told):
    x = np.zeros((40, 4), np.float32)
    with pytest.raises(UsageError, match=told):
        cl.simulate(job(cl.nets.Linear()), (x, np.arange(40) % 2), **settings)
