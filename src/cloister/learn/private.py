"""DP-SGD at one site: which rows are in a step, and the noise on the sum of their clipped gradients.

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, algorithm 1, https://arxiv.org/abs/1607.00133, with
true Poisson sampling: every unit (a row, or all rows of a patient) is in a step by a coin of its own, whatever the
size of the batch that comes of it. Coins and noise come from the operating system's randomness, never from the job's
seed.

The back ends compute sums of clipped gradients in floating point; here such a sum is rounded to a grid, on which its
noise lies too, so that the noise's low bits cannot tell what they were added to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cloister.job import Job, RowDP
from cloister.learn.prepare import Rows
from cloister.privacy.noise import Stream, gaussian
from cloister.privacy.release import grid
from cloister.vector import Query
from cloister.vector.errors import TaskError

Floats = npt.NDArray[np.float32]
MARGIN = 1.0 - 1e-5  # of the clip, for the rounding of float32 sums
ROWS_AT_ONCE = 512  # of gradients of units: the memory grows with its square


class NoisySteps:
    """The steps of one local training.

    Args: clip: L2 norm of one unit's gradient. multiplier, sampling, steps: see `round.private.Terms`.
      rows: to train on. size: of the model. stream: of coins and noise.
    Attributes: clip: that back ends apply, a hair below the one that is accounted for. steps.
    """

    def __init__(
        self, clip: float, multiplier: float, sampling: float, steps: int, rows: Rows, size: int, stream: Stream
    ) -> None:
        self.clip, self.steps = clip * MARGIN, steps
        self._sampling, self._stream = sampling, stream
        self._noise = grid(clip, size, multiplier)
        self._gaussian = gaussian(self._noise.deviation)
        self._units = rows.units if rows.units is not None else np.arange(len(rows))
        self._count = int(self._units.max()) + 1 if len(rows) else 0

    @classmethod
    def of(cls, job: Job, query: Query, rows: Rows, size: int, stream: Stream) -> NoisySteps:
        """As a query says it. Raises: TaskError: it says nothing of noise."""
        assert isinstance(job.privacy, RowDP)
        try:
            terms = query.config["privacy"]
            multiplier, sampling = float.fromhex(terms["multiplier"]), float.fromhex(terms["sampling"])
            return cls(job.privacy.clip, multiplier, sampling, int(terms["steps"]), rows, size, stream)
        except (KeyError, TypeError, ValueError):
            raise TaskError("the query does not say how much noise the steps get.") from None

    def draw(self) -> npt.NDArray[np.int64]:
        """The rows of one step: all rows of each unit whose coin says so, unit by unit."""
        coins = self._stream.coins(self._sampling, self._count)
        return np.flatnonzero(coins[self._units])

    def gradient(self, total: npt.NDArray[np.floating]) -> Floats:
        """The noisy gradient of one step. Args: total: [d], the sum of the units' clipped gradients."""
        noise = self._noise
        steps = np.rint(total / noise.step).astype(np.int64) + self._gaussian.sample(self._stream, total.size)
        expected = self._sampling * self._count  # known beforehand: the true size of the batch is nobody's business
        return np.asarray(steps * (noise.step / expected), np.float32)

    def weights(self, drawn: npt.NDArray[np.int64]) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Cuts a step's rows into parts of whole units. Yields: the rows, and where in them each unit starts."""
        units = self._units[drawn]
        order = np.argsort(units, kind="stable")
        drawn, units = drawn[order], units[order]
        starts = np.flatnonzero(np.diff(units, prepend=-1))
        first = 0
        while first < len(starts):
            last = max(int(np.searchsorted(starts, starts[first] + ROWS_AT_ONCE, side="right")) - 1, first + 1)
            stop = starts[last] if last < len(starts) else len(drawn)
            yield drawn[starts[first] : stop], starts[first:last] - starts[first]
            first = last


def clip_factors(squares: npt.NDArray[np.floating], clip: float) -> Floats:
    """What each gradient is multiplied by. Args: squares: of their L2 norms, [n]. Returns: float32[n], at most 1."""
    norms = np.sqrt(np.maximum(squares, 0.0, dtype=np.float64))
    return np.asarray(np.minimum(1.0, clip / np.maximum(norms, math.ulp(clip))), np.float32)
