"""How a vector leaves with noise: rotated, rounded to a grid within a proven length, discrete Gaussian noise added.

The distributed discrete Gaussian of Kairouz, Liu, Steinke, ICML 2021, https://arxiv.org/abs/2102.06387: every site
adds a share of the noise before it masks, so that nobody, the coordinator included, ever sees a sum without noise.
Rounding is repeated until the integers are short enough, so the sensitivity is that of the integers that travel, not
of floats.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from cloister.privacy.noise import Integers, Stream, gaussian
from cloister.privacy.rotation import rotate
from cloister.vector.errors import BoundError
from cloister.vector.layout import Block, Noise

COARSEST = 2.0**13  # steps that a sensitivity is long, at least
FINE_SHARED, FINE_ALONE = 8.0, 128.0  # times sqrt(d): then rounding adds 0.5% to the radius, and 0.8%
SMALLEST_SHARE = 16.0  # steps: from here on a sum of discrete Gaussians is a Gaussian to within exp(-2500)
TRIES = 64  # of the random rounding; each succeeds with a chance of 1 - exp(-1/2) or more


def grid(
    sensitivity: float,
    coordinates: int,
    multiplier: float,
    *,
    shared: bool = False,
    colluders: int | None = None,
    rotation: str = "",
    central: bool = False,
) -> Noise:
    """The noise of a block of which one unit changes the sum by at most `sensitivity` (L2 norm).

    Args: coordinates: that travel. multiplier: of the noise, over the sensitivity with its rounding.
      shared, colluders, rotation, central: see `vector.layout.Noise`.
    """
    fine = FINE_SHARED if shared else FINE_ALONE
    length = max(COARSEST, 2.0 ** math.ceil(math.log2(fine * math.sqrt(coordinates))))
    radius = conditional_radius(length, coordinates) if shared else length + math.sqrt(coordinates)
    return Noise(sensitivity / length, radius, multiplier * radius, shared, colluders, rotation, central)


def conditional_radius(length: float, coordinates: int) -> float:
    """The L2 norm within which a vector of L2 norm `length` is rounded at random (beta = exp(-1/2))."""
    root = math.sqrt(coordinates)
    likely = math.sqrt(length**2 + coordinates / 4 + (length + root / 2))
    return min(length + root, likely)


def noisy_steps(value: npt.NDArray[np.floating], block: Block, honest: int, stream: Stream) -> Integers:
    """What one site adds to the sum for a block that carries noise.

    Args:
      value: of the block's shape; where sites share the noise, no longer than the block's clip.
      honest: sites whose shares of the noise are counted on.
    Returns: int64[block.coordinates].
    Raises: BoundError: so many sites share the noise that each one's part is too coarse.
    """
    noise, size = block.noise, block.coordinates
    assert noise is not None, "the block carries noise"
    flat = value.reshape(-1)
    flat = rotate(flat, noise.rotation) if noise.rotation else flat
    scaled = flat.astype(np.float64) / noise.step
    steps = _rounded(scaled, noise.radius, stream) if noise.shared else np.rint(scaled).astype(np.int64)
    if noise.central:
        return steps
    return steps + gaussian(deviation_of(noise, honest)).sample(stream, size)


def deviation_of(noise: Noise, honest: int) -> float:
    """Of the noise that one site adds, in steps. Raises: BoundError: see `noisy_steps`."""
    if not noise.shared:
        return noise.deviation
    share = noise.deviation / math.sqrt(honest)
    if share < SMALLEST_SHARE:
        raise BoundError(
            f"{honest} sites share noise of {noise.deviation:.0f} steps: each one's part is too coarse.",
            mend="Smaller cohorts, or a smaller epsilon.",
        )
    return share


def _rounded(scaled: npt.NDArray[np.float64], radius: float, stream: Stream) -> Integers:
    """Each coordinate up or down by chance, so that none is biased, until together no longer than `radius`."""
    below = np.floor(scaled)
    for _ in range(TRIES):
        steps = (below + (stream.uniform(scaled.size) < scaled - below)).astype(np.int64)
        if float(np.dot(steps.astype(np.float64), steps.astype(np.float64))) <= radius**2:
            return steps
    # towards zero no coordinate grows; floats put a clipped vector at most a hair over its length
    steps = np.trunc(scaled * (1.0 - 1e-6)).astype(np.int64)
    if float(np.dot(steps.astype(np.float64), steps.astype(np.float64))) > radius**2:
        raise BoundError("a vector is longer than its clip allows: it was not clipped.")
    return steps
