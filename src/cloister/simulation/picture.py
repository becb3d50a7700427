"""How the rows lie: how many of each label at each site, for a picture of a partition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from cloister.job import Arrays, Job
from cloister.job.data import text
from cloister.learn import Examples
from cloister.learn.partition import Partition

MOST_SITES = 200  # that are counted
MOST_LABELS = 10  # of numbers that are counted one by one; more are cut into quartiles


def partition_of(job: Job, data: Mapping[str, Any]) -> Partition | None:
    """Counts by label. None where that would load what is only loaded when a site is asked, of many sites."""
    lazy = not isinstance(data, dict) and not hasattr(data, "rows")
    if lazy and len(data) > MOST_SITES:
        return None
    sites = list(data)[:MOST_SITES]
    targets = [_target(job, data[site]) for site in sites]
    labels, coded = _labels(job, pd.concat(targets, ignore_index=True))
    ends = np.cumsum([len(target) for target in targets])[:-1]
    counts = [np.bincount(part[part >= 0], minlength=len(labels)).tolist() for part in np.split(coded, ends)]
    return Partition(labels, dict(zip(sites, counts, strict=True)), len(data))


def _target(job: Job, data: Any) -> pd.Series[Any]:
    if isinstance(job.data, Arrays):
        return pd.Series(Examples.of(data).y)
    target: pd.Series[Any] = data[job.data.target]
    return target


def _labels(job: Job, target: pd.Series[Any]) -> tuple[list[str], Any]:
    """The labels' names, and each row's place among them (-1: missing)."""
    if not job.labels and target.nunique() > MOST_LABELS:
        quarters = pd.qcut(target.rank(method="first"), 4, labels=False).fillna(-1).astype(int)
        return [f"quarter {at}" for at in range(1, 5)], quarters.to_numpy()
    spelled = target.map(lambda value: None if pd.isna(value) else text(value))
    known = [label for label in job.labels if label in set(spelled)] or sorted(set(spelled.dropna()))
    place = {label: at for at, label in enumerate(known)}
    return known, np.array([place.get(label, -1) for label in spelled], np.int64)
