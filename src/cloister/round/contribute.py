"""From the training code's answer to the integers that are sealed: the trusted part's checks, in one place.

The same function runs in the simulator and in a site's agent, after the (untrusted) training code.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.privacy import clip_l2
from cloister.privacy.noise import Randomness, Stream, gaussian
from cloister.privacy.release import noisy_steps
from cloister.seal.threshold import colluders_tolerated, threshold
from cloister.vector import Answer, FixedPoint, Query
from cloister.vector.errors import LayoutError, TaskError
from cloister.vector.layout import Noise, Words
from cloister.vector.query import CLIPPED, ROWS


def contribute(answer: Answer, query: Query, coder: FixedPoint, randomness: Randomness = os.urandom) -> Words:
    """One site's contribution to a sealed sum: clipped, weighted, in fixed point.

    Args:
      answer: from the training code; nothing in it is trusted.
      query: as broadcast.
      coder: of `query.sealed_layout`, for as many sites as the plan names.
      randomness: of noise, where the layout asks for it. Only a simulation that claims nothing gives another one.
    Returns: words[coder.size]. The site's rows and its number of clipped coordinates are words of it.
    Raises: TaskError: blocks, shapes or dtypes differ from the layout, or a value is NaN or infinite.
    """
    values, clipped = _checked(answer, query), 0
    hides_sites = any(block.noise and block.noise.shared for block in query.layout.blocks)
    rows = 1 if hides_sites else answer.rows
    weight = min(rows, query.max_rows) / query.max_rows
    words: Words = np.empty(coder.size, coder.dtype)
    stream: Stream | None = None
    try:
        clipped += coder.put(words, ROWS, float(rows))
        for block in query.layout.blocks:
            value = values[block.name]
            if block.clip is not None:
                value, shrunk = clip_l2(value, block.clip)
                clipped += value.size if shrunk else 0
            if block.noise is None:
                clipped += coder.put(words, block.name, value, weight)
            else:
                if not np.isfinite(value).all():  # `put` sees to it elsewhere, and clipping would hide it
                    raise LayoutError(f"block {block.name!r} holds NaN or infinity")
                value = np.clip(value, -block.bound, block.bound)
                stream = stream or Stream(randomness)
                coder.put_steps(words, block.name, noisy_steps(value, block, _honest(block.noise, coder), stream))
    except LayoutError as fault:
        told = f"round {query.config['round']}: " if "round" in query.config else ""
        raise TaskError(f"{told}the answer to {query.task!r} cannot be sealed: {fault}", mend=_MEND) from None
    coder.put(words, CLIPPED, 0.0 if hides_sites else float(clipped))  # whether a site was clipped is its own affair
    return words


def central_noise(query: Query, coder: FixedPoint, randomness: Randomness) -> Words:
    """All the noise of a sum whose sites added none: what whoever opens it adds to its words, wrapping.

    Only a simulation asks for such a sum; a site refuses it (`private.check`).
    """
    words: Words = np.zeros(coder.size, coder.dtype)
    for block in query.layout.blocks:
        if block.noise is not None and block.noise.central:
            drawn = gaussian(block.noise.deviation).sample(Stream(randomness), block.coordinates)
            coder.put_steps(words, block.name, drawn)
    return words


def _honest(noise: Noise, coder: FixedPoint) -> int:
    """Sites whose noise counts: of the fewest that open the sum, those that do not collude."""
    fewest = threshold(coder.sites)
    colluders = colluders_tolerated(coder.sites, fewest) if noise.colluders is None else noise.colluders
    if fewest - colluders < 1:
        raise LayoutError(f"of {fewest} sites that open the sum, {colluders} are said to collude")
    return fewest - colluders


_MEND = "A smaller learning rate, a clip, or a check of the model's loss usually mends it."


def _checked(answer: Answer, query: Query) -> Mapping[str, npt.NDArray[Any]]:
    names = {block.name for block in query.layout.blocks}
    if answer.values.keys() != names:
        raise TaskError(
            f"the answer to {query.task!r} has blocks {sorted(answer.values)}, asked were {sorted(names)}."
        )
    return answer.values
