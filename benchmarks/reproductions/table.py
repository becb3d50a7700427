"""Rows of a table, measured over seeds, and where the data lie."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import cloister as cl
from cloister import learn
from cloister.round import Program, run
from cloister.simulation.cohort import LocalCohort
from cloister.simulation.engine import SerialEngine
from cloister.simulation.sealing import Ideal
from cloister.vector import State

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
SEEDS = (42, 43, 44, 45, 46)
Frames = Mapping[str, pd.DataFrame]


def fraction(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}".replace("0.", ".")


def rounds(values: Sequence[float]) -> str:
    return f"{np.mean(values):.0f} ± {np.std(values, ddof=1):.0f}"


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
      published: as text, with its deviation where one is published.
      measure: of the data and a seed.
      told: the values of all seeds.
    """

    name: str
    settings: str
    published: str
    measure: Callable[[Any, int], float]
    told: Callable[[Sequence[float]], str] = fraction


def table(rows: Sequence[Row], data: Any) -> list[str]:
    lines = ["| strategy | settings | published | ours, mean ± deviation over five seeds |", "|---|---|---|---|"]
    for row in rows:
        values = []
        for seed in SEEDS:
            began = time.perf_counter()
            values.append(row.measure(data, seed))
            seconds = time.perf_counter() - began
            print(f"{row.name}, {row.settings}, seed {seed}: {values[-1]:.4g}  {seconds:.1f} s", file=sys.stderr)
        lines.append(f"| {row.name} | {row.settings} | {row.published or '-'} | {row.told(values)} |")
    return lines


def alone(job: cl.Job, data: Any) -> State:
    """The job over one table, as a federation of one."""
    columns = job.data.resolve({"one": learn.schema(data)})
    cohort = LocalCohort(job, SerialEngine(job, {"one": data}), ["one"], Ideal(), required=lambda sites: 1)
    return run(Program(job, columns), cohort)
