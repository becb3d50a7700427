"""Fed-Heart-Disease of FLamby: four hospitals, logistic regression."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

import cloister as cl
from cloister import learn
from cloister.learn.comparison import measure
from cloister.vector import State

from .table import DATA, ROOT, Frames, Row, alone

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")


def load() -> Frames | None:
    """FLamby's 13 inputs: it standardises the one-hot columns as well."""
    source = DATA / "fed-heart-disease"
    if not source.is_dir():
        return None
    spec = importlib.util.spec_from_file_location("heart_prepare", ROOT / "examples" / "heart" / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    with tempfile.TemporaryDirectory() as folder:
        example.prepare(source, Path(folder))
        return {name: _thirteen(learn.read_table(Path(folder) / f"{name}.csv")) for name in HOSPITALS}


def _thirteen(frame: pd.DataFrame) -> pd.DataFrame:
    encoded = [(frame["cp"] == value).astype(float).rename(f"cp_{value}") for value in (2, 3, 4)]
    encoded += [(frame["restecg"] == value).astype(float).rename(f"restecg_{value}") for value in (1, 2)]
    return pd.concat([frame.drop(columns=["cp", "restecg"]), *encoded], axis=1)


def heart_job(
    algorithm: Any, optimizer: cl.SGD | cl.Adam, seed: int, by: Literal["site", "federation"] = "site", **local: int
) -> cl.Job:
    return cl.Job(
        data=cl.Table("heart", target="disease", split="split"),
        prepare=(cl.Standardize(by=by),),
        task=cl.Torch(cl.nets.Linear(), loss="bce", optimizer=optimizer, batch_size=4, **local),
        algorithm=algorithm,
        evaluate=cl.Evaluate(every=algorithm.rounds),
        seed=seed,
    )


def federated(
    algorithm: Any, lr: float, metric: str = "site_accuracy", by: Literal["site", "federation"] = "site"
) -> Callable[[Frames, int], float]:
    def measured(frames: Frames, seed: int) -> float:
        job = heart_job(algorithm, cl.SGD(lr), seed, by, steps=100)
        return float(cl.simulate(job, frames, engine="serial").history[metric].iloc[-1])

    return measured


def central(*hospitals: str) -> Callable[[Frames, int], float]:
    """The model of these hospitals' training rows together, at all four, each standardised by its own rows."""

    def measured(frames: Frames, seed: int) -> float:
        job, state = _trained(pd.concat([frames[name] for name in hospitals], ignore_index=True), seed)
        return float(np.mean([_accuracy(job, state, frame, frame["split"] == "test") for frame in frames.values()]))

    return measured


def standardised_together(frames: Frames, seed: int) -> float:
    """All rows in one place, in testing as well; still the plain mean over the four hospitals."""
    everything = pd.concat(frames.values(), ignore_index=True)
    job, state = _trained(everything, seed)
    home = np.repeat(list(frames), [len(frame) for frame in frames.values()])
    test = everything["split"] == "test"
    return float(np.mean([_accuracy(job, state, everything, test & (home == name)) for name in frames]))


def _trained(frame: pd.DataFrame, seed: int) -> tuple[cl.Job, State]:
    """One table alone: Adam over 50 epochs, as one round of a federation of one."""
    job = heart_job(cl.FedAvg(rounds=1), cl.Adam(0.001), seed, epochs=50)
    return job, alone(job, frame)


def _accuracy(job: cl.Job, state: State, frame: pd.DataFrame, rows: Any) -> float:
    said = learn.predict(job, state, frame, fit_rows=(frame["split"] == "train").to_numpy())
    found = measure("binary", frame["disease"].to_numpy()[rows], said[rows])["accuracy"]
    assert found is not None
    return found


OPT: dict[str, Any] = {"rounds": 15, "beta1": 0.9, "tau": 1e-8}  # FLamby's, for all three
ROWS = (
    Row("pooled", "Adam 0.001, 50 epochs", ".735", central(*HOSPITALS)),
    Row("pooled, standardised together", "Adam 0.001, 50 epochs", "", standardised_together),
    *(
        Row(f"local: {hospital}", "Adam 0.001, 50 epochs", value, central(hospital))
        for hospital, value in zip(HOSPITALS, (".722", ".629", ".567", ".637"), strict=True)
    ),
    Row("FedAvg", "lr 0.001", ".685", federated(cl.FedAvg(rounds=15), 0.001)),
    Row("FedProx", "lr 0.001, proximal 0.01", "as FedAvg", federated(cl.FedProx(rounds=15, proximal=0.01), 0.001)),
    Row("SCAFFOLD", "lr 0.001", ".684", federated(cl.SCAFFOLD(rounds=15), 0.001)),
    Row(
        "FedAdam",
        "lr 0.01, server_lr 0.01",
        ".7255",
        federated(cl.FedAdam(server_lr=0.01, beta2=0.999, **OPT), 0.01),
    ),
    Row(
        "FedYogi",
        "lr 0.003162, server_lr 0.01",
        ".731",
        federated(cl.FedYogi(server_lr=0.01, beta2=0.999, **OPT), 0.003162),
    ),
    Row(
        "FedAdagrad",
        "lr 0.003162, server_lr 0.316228",
        ".731",
        federated(cl.FedAdagrad(server_lr=0.316228, **OPT), 0.003162),
    ),
    Row("Cyclic, unsealed", "lr 0.01, 15 transfers", ".718", federated(cl.Cyclic(rounds=15), 0.01)),
    Row("FedAvg", "lr 0.01", "", federated(cl.FedAvg(rounds=15), 0.01)),
    Row("FedAvg, standardised by sealed sums", "lr 0.01", "", federated(cl.FedAvg(15), 0.01, by="federation")),
    Row("FedAvgM", "lr 0.001, momentum 0.9", "", federated(cl.FedAvgM(rounds=15), 0.001)),
    Row("FedNova", "lr 0.01", "", federated(cl.FedNova(rounds=15), 0.01)),
    Row("SCAFFOLD", "lr 0.01", "", federated(cl.SCAFFOLD(rounds=15), 0.01)),
    Row("FedDyn", "lr 0.01, alpha 0.01", "", federated(cl.FedDyn(rounds=15), 0.01)),
    Row(
        "Ditto, the sites' own models",
        "lr 0.01, pull 0.1",
        "",
        federated(cl.Ditto(rounds=15), 0.01, "personal_site_accuracy"),
    ),
)
