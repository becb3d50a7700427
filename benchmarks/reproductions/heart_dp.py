"""FLamby's Fed-Heart-Disease under row-level differential privacy: the same rows, split and measure as `heart`.

FLamby publishes local DP-SGD over a grid of epsilons and deltas, as a figure; two of its points are read off. Its
statistics of the columns are not accounted for; here ranges that are publicly known take their place.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import cloister as cl
from cloister import learn

from . import heart
from .table import Frames, Row

load = heart.load
MARKS = ("sex", "fbs", "exang", "cp_2", "cp_3", "cp_4", "restecg_1", "restecg_2")  # 0 or 1
RANGES: dict[str, tuple[float, float]] = {"age": (20, 90), "trestbps": (80, 200), "chol": (0, 600)}
RANGES |= {"thalach": (60, 210), "oldpeak": (-3, 6), **dict.fromkeys(MARKS, (0, 1))}


def private(privacy: cl.RowDP | None) -> Callable[[Frames, int], float]:
    """The plain mean of the hospitals' accuracies on their test rows."""

    def measured(frames: Frames, seed: int) -> float:
        job = cl.Job(
            data=cl.Table("heart", target="disease", split="split", columns=dict.fromkeys(RANGES, "number")),
            prepare=(cl.Standardize(ranges=RANGES),),
            task=cl.Torch(cl.nets.Linear(), "bce", cl.SGD(lr=0.2), epochs=1, batch_size=32),
            algorithm=cl.FedAvg(rounds=15),
            evaluate=None,
            privacy=privacy,
            seed=seed,
        )
        result = cl.simulate(job, frames, engine="serial")
        found = []
        for frame in frames.values():
            said = learn.predict(result.job, result.state, frame) > 0.5
            test = (frame["split"] == "test").to_numpy()
            found.append(float((said == frame["disease"])[test].mean()))
        return float(np.mean(found))

    return measured


GRID = ((10.0, 1e-3, ""), (1.0, 1e-3, "about .70"), (0.1, 1e-4, "about .61"))
ROWS = (
    Row("FedAvg, no privacy", "known ranges", "", private(None)),
    *(
        Row("FedAvg, DP-SGD at the hospitals", f"epsilon {epsilon:g}, delta {delta:g}", published, private(made))
        for epsilon, delta, published in GRID
        for made in (cl.RowDP(epsilon=epsilon, delta=delta, clip=1.0),)
    ),
)
