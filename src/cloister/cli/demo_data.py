"""What the demonstration trains on: the bundled table cut into sites, or a folder of the user's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cloister.cli import bundled
from cloister.vector.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from cloister.job import Job

Tables = dict[str, Path]
Loss = Literal["bce", "cross_entropy", "mse"]
ROUNDS = 20
SPLIT = "split"
MOST_CLASSES = 20  # a numeric target with more values is a number to predict


def split_bundled(sites: int, seed: int) -> dict[str, pd.DataFrame]:
    """The bundled table cut into sites, with skewed label and size shares. Raises: UsageError: too few sites."""
    from cloister.simulation import shards

    return dict(shards(bundled.breast_cancer(), target=bundled.TARGET, sites=sites, seed=seed))


def write(frames: Mapping[str, pd.DataFrame], folder: Path) -> Tables:
    """Writes one CSV per site; a site's own folder and nobody else's, in a real federation."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for site, frame in frames.items():
        found[site] = folder / f"{site}.csv"
        frame.to_csv(found[site], index=False)
    return found


def tables_of(folder: Path) -> Tables:
    """The CSVs of a folder by site id. Raises: DataError: none, fewer than three, or a site without rows."""
    from cloister.simulation import shards
    from cloister.simulation.data import site_id

    files = {site_id(path.stem): path for path in sorted(folder.glob("*")) if path.suffix.lower() == ".csv"}
    return {site: files[site] for site in shards(folder, target="")}


def changed(job: Job, rounds: int | None, seed: int | None) -> Job:
    """The job with other rounds or another seed where they are given, ready to be submitted."""
    from cloister.learn import complete

    if rounds is not None:
        job = dataclasses.replace(job, algorithm=dataclasses.replace(job.algorithm, rounds=rounds))
    return complete(job if seed is None else dataclasses.replace(job, seed=seed))


def job_over(tables: Tables, target: str | None) -> Job:
    """The demonstration's job: an MLP by FedAvg over every column of the tables but the target.

    A column "split" that says "train" or "test" of every row is taken at its word.

    Args: target: None for the bundled table. Raises: DataError: no such column, or nothing to tell apart.
    """
    from cloister import learn
    from cloister.algorithms import FedAvg
    from cloister.job import SGD, Impute, Job, OneHot, Standardize, Table, Torch, nets

    name, column = (bundled.NAME, bundled.TARGET) if target is None else ("demo", target)
    frames = {site: learn.read_table(path) for site, path in tables.items()}
    loss, classes = _target_of(frames, column)
    has_split = all(SPLIT in frame and set(frame[SPLIT]) <= {"train", "test"} for frame in frames.values())
    kinds = {
        kind for frame in frames.values() for name, kind in learn.schema(frame).items() if name not in (column, SPLIT)
    }
    return Job(
        data=Table(name, target=column, classes=classes, split=SPLIT if has_split else None),
        prepare=(Impute(), OneHot(), Standardize()) if "category" in kinds else (Impute(), Standardize()),
        task=Torch(model=nets.MLP((32,)), loss=loss, optimizer=SGD(lr=0.1), epochs=1, batch_size=32),
        algorithm=FedAvg(rounds=ROUNDS),
    )


def _target_of(frames: Mapping[str, pd.DataFrame], target: str) -> tuple[Loss, tuple[str, ...] | None]:
    """The loss that fits the target column, and its labels in order. The demonstration may look: it has all rows."""
    from cloister.job.data import missing_column, text

    labels: set[str] = set()
    numeric = True
    for site, frame in frames.items():
        if target not in frame:
            raise missing_column(target, map(str, frame.columns), site)
        labels |= {text(value) for value in frame[target]} - {""}
        numeric = numeric and frame[target].dtype.kind == "f"
    if len(labels) < 2:
        raise DataError(f"column {target!r} has fewer than two values.", mend="Choose another --target.")
    if len(labels) > MOST_CLASSES:
        if not numeric:
            raise DataError(f"column {target!r} has {len(labels)} different texts.", mend="Choose another --target.")
        return "mse", None
    ordered = sorted(labels, key=lambda label: (float(label), label) if numeric else (0.0, label))
    return ("bce" if len(ordered) == 2 else "cross_entropy"), None if ordered == ["0", "1"] else tuple(ordered)
