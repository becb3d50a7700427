"""Bundles: one job, one sequence of bytes, one digest; and nothing but a JobError or MalformedMessage from junk."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cloister as cl
from cloister import learn
from cloister.job.data import MOST_CATEGORIES
from cloister.vector import canonical, pack, unpack
from cloister.vector.errors import JobError, MalformedMessage

names = st.text(min_size=1, max_size=12)
rates = st.floats(min_value=1e-6, max_value=10.0)
labels = st.lists(st.text("abcxyz0123", min_size=1, max_size=4), min_size=2, max_size=5, unique=True)


@st.composite
def tables(draw: st.DrawFn) -> cl.Table:
    target, split, *others = draw(st.lists(names, min_size=4, max_size=8, unique=True))
    kinds = st.one_of(st.sampled_from(["number", "category"]), labels)
    return cl.Table(
        draw(names),
        target=target,
        columns=draw(st.none() | st.fixed_dictionaries(dict.fromkeys(others[1:], kinds))),
        split=draw(st.sampled_from([None, split])),
        ignore=others[:1],
    )


@st.composite
def jobs(draw: st.DrawFn) -> cl.Job:
    table = draw(tables())
    net = draw(st.just(cl.nets.Linear()) | st.builds(cl.nets.MLP, st.lists(st.integers(1, 99), max_size=3)))
    optimizer = draw(st.builds(cl.SGD, rates, momentum=st.sampled_from([0.0, 0.9])) | st.builds(cl.Adam, rates))
    loss = draw(st.sampled_from(["bce", "mse", "cross_entropy"]))
    if loss == "cross_entropy":
        table = dataclasses.replace(table, classes=tuple(draw(labels)))
    steps = draw(st.sampled_from([{}, {"epochs": 2}, {"steps": 7}]))
    return cl.Job(
        table,
        cl.Torch(net, loss, optimizer, batch_size=draw(st.integers(1, 512)), **steps),
        cl.FedAvg(rounds=draw(st.integers(1, 100)), server_lr=draw(rates)),
        prepare=draw(st.sampled_from([[], [cl.Impute()], [cl.OneHot(min_rows=3), cl.Standardize(by="site")]])),
        evaluate=draw(st.none() | st.builds(cl.Evaluate, st.integers(1, 5))),
        seed=draw(st.integers(0, 2**63 - 1)),
        name=draw(st.none() | names),
    )


@given(jobs())
@settings(max_examples=60, deadline=None)
def test_round_trip(job: cl.Job) -> None:
    data = job.to_bytes()
    again = cl.Job.from_bytes(data)
    assert again == job
    assert again.to_bytes() == data
    assert again.digest == job.digest
    assert not again.ships_code
    assert json.loads(canonical(job.manifest())) == job.manifest()


EXAMPLE = cl.Job(
    cl.Table("heart", target="disease", columns={"age": "number", "cp": [1, 2, 3]}),
    cl.Torch(cl.nets.MLP([8]), "bce", cl.SGD(0.1)),
    cl.FedAvg(rounds=2),
    prepare=[cl.Impute(), cl.OneHot()],
)

junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["is", "lr", "name", "x"]), inner),
    max_leaves=6,
)


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(path for key, entry in entries for path in paths(entry, (*here, key)))]


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    copied = value.copy()
    copied[path[0]] = replaced(value[path[0]], path[1:], by)
    return copied


FACTS, TENSORS = unpack(EXAMPLE.to_bytes())


@given(st.sampled_from(paths(FACTS)[1:]), junk)
@settings(max_examples=300, deadline=None)
def test_a_manifest_with_junk_in_one_place_is_refused(path: tuple[Any, ...], by: Any) -> None:
    """Whatever stands anywhere: a job that writes the very same bytes, or one of the two errors."""
    data = pack(replaced(FACTS, path, by), TENSORS)
    with contextlib.suppress(JobError, MalformedMessage):
        assert cl.Job.from_bytes(data).to_bytes() == data


@given(st.integers(0, len(EXAMPLE.to_bytes()) - 1), st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_a_changed_byte_is_refused_or_another_job(at: int, change: int) -> None:
    data = bytearray(EXAMPLE.to_bytes())
    data[at] ^= change
    with contextlib.suppress(JobError, MalformedMessage):
        assert cl.Job.from_bytes(bytes(data)).digest != EXAMPLE.digest


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises((JobError, MalformedMessage)):
        cl.Job.from_bytes(data)


def test_deep_and_long_manifests_are_refused() -> None:
    nested: Any = []
    for _ in range(500):
        nested = [nested]
    with pytest.raises((JobError, MalformedMessage)):
        cl.Job.from_bytes(pack(replaced(FACTS, ("manifest", "job", "prepare"), nested), {}))
    many = [str(number) for number in range(MOST_CATEGORIES + 1)]
    with pytest.raises(JobError):
        cl.Job.from_bytes(pack(replaced(FACTS, ("manifest", "job", "data", "columns", "cp"), many), {}))


def test_fields_of_the_process_cannot_come_from_a_manifest() -> None:
    model = {"is": "Code", "name": "Net", "shapes": None, "function": "print"}
    with pytest.raises(JobError, match="function"):
        cl.Job.from_bytes(pack(replaced(FACTS, ("manifest", "job", "task", "model"), model), {}))


# --- job files

OWN = """
import torch
import cloister as cl

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))

    def forward(self, x):
        return self.body(x)

def loss(model, batch):
    return torch.nn.functional.binary_cross_entropy_with_logits(model(batch["x"]).squeeze(1), batch["y"])

job = cl.Job(
    cl.Table("t", target="y", classes=2),
    cl.Torch(Net, loss=loss, optimizer=cl.SGD(lr=0.05)),
    cl.FedAvg(rounds=2),
)
"""


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "job.py"
    path.write_text(textwrap.dedent(text), encoding="utf-8", newline="")
    return path


def test_a_job_file_has_the_same_digest_wherever_it_lies(tmp_path: Path) -> None:
    here = learn.complete(cl.load_job(write(tmp_path / "here", OWN)))
    there = learn.complete(cl.load_job(write(tmp_path / "there" / "deeper", OWN.replace("\n", "\r\n"))))
    assert here.digest == there.digest
    assert here.ships_code
    assert str(tmp_path).encode() not in here.to_bytes()


def test_a_job_with_code_travels_with_source_and_initial_tensors(tmp_path: Path) -> None:
    job = learn.complete(cl.load_job(write(tmp_path, OWN)))
    again = cl.Job.from_bytes(job.to_bytes())
    assert again.source == job.source == OWN
    assert list(again.task.model.parameters()[0]) == [  # type: ignore[union-attr]
        *("body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias", "body.2.weight", "body.2.bias"),
        *("body.1.running_mean", "body.1.running_var"),
    ]
    assert again.initial is not None
    assert job.initial is not None
    assert all((again.initial[name] == job.initial[name]).all() for name in job.initial)
    facts, tensors = unpack(job.to_bytes())
    with pytest.raises(JobError, match="canonical"):
        cl.Job.from_bytes(pack({**facts, "source": OWN + "\n"}, tensors))
    with pytest.raises(JobError):
        cl.Job.from_bytes(pack(facts, {name: tensor + 1 for name, tensor in tensors.items()}))


def test_a_declarative_job_ships_no_source(tmp_path: Path) -> None:
    text = """
        import cloister as cl
        job = cl.Job(cl.Table("t", "y"), cl.Torch(cl.nets.Linear(), "bce", cl.SGD(0.1)), cl.FedAvg(rounds=1))
    """
    job = cl.load_job(write(tmp_path, text))
    assert job.source is None
    assert not job.ships_code


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1", "has no `job`"),
        ("x = (", "line 1"),
        ("import cloister as cl\n\ncl.SGD(lr=-1)", "line 3 raises JobError: SGD: lr"),
        ("x = 1\nraise RuntimeError('no luck')", "job.py, line 2 raises RuntimeError: no luck"),
        ("import sys; sys.exit(3)", "SystemExit"),
        (
            """
            import cloister as cl
            from os import getcwd as there
            job = cl.Job(cl.Table("t", "y"), cl.Torch(there, "bce", cl.SGD(0.1)), cl.FedAvg(rounds=1))
            """,
            "has no 'getcwd' of its own",
        ),
    ],
)
def test_a_job_file_that_fails_says_where(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(JobError) as caught:
        cl.load_job(write(tmp_path, text))
    assert says in str(caught.value).replace("<job file>", "job.py")


def test_a_missing_job_file_is_a_job_error(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="cannot be read"):
        cl.load_job(tmp_path / "job.py")


def test_code_outside_a_file_cannot_be_submitted() -> None:
    namespace: dict[str, Any] = {}
    exec("def net(): ...", namespace)
    job = dataclasses.replace(EXAMPLE, task=cl.Torch(namespace["net"], "bce", cl.SGD(0.1)))
    assert job.ships_code
    assert len(job.digest) == 32
    with pytest.raises(JobError, match="file of its own"):
        job.to_bytes()
