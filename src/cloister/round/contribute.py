"""From the training code's answer to the integers that are sealed: the trusted part's checks, in one place.

The same function runs in the simulator and in a site's agent, after the (untrusted) training code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from cloister.privacy import clip_l2
from cloister.vector import Answer, FixedPoint, Query
from cloister.vector.errors import LayoutError, TaskError
from cloister.vector.layout import Words
from cloister.vector.query import CLIPPED, ROWS


def contribute(answer: Answer, query: Query, coder: FixedPoint) -> Words:
    """One site's contribution to a sealed sum: clipped, weighted, in fixed point.

    Args:
      answer: from the training code; nothing in it is trusted.
      query: as broadcast.
      coder: of `query.sealed_layout`, for as many sites as the plan names.
    Returns: words[coder.size]. The site's rows and its number of clipped coordinates are words of it.
    Raises: TaskError: blocks, shapes or dtypes differ from the layout, or a value is NaN or infinite.
    """
    rows = min(answer.rows, query.max_rows)
    limits = {block.name: block.clip for block in query.layout.blocks}
    values: dict[str, npt.NDArray[Any] | float] = {ROWS: float(answer.rows), CLIPPED: 0.0}
    clipped = 0
    for name, value in _checked(answer, query).items():
        limit = limits[name]
        values[name] = value
        if limit is not None:
            values[name], shrunk = clip_l2(value, limit)
            clipped += value.size if shrunk else 0
    try:
        words, beyond_bound = coder.encode(values, rows / query.max_rows)
    except LayoutError as fault:
        raise TaskError(f"the answer to {query.task!r} cannot be sealed: {fault}", mend=_MEND) from None
    coder.put(words, CLIPPED, float(clipped + beyond_bound))
    return words


_MEND = "A smaller learning rate, a clip, or a check of the model's loss usually mends it."


def _checked(answer: Answer, query: Query) -> Mapping[str, npt.NDArray[Any]]:
    names = {block.name for block in query.layout.blocks}
    if set(answer.values) != names:
        raise TaskError(
            f"the answer to {query.task!r} has blocks {sorted(answer.values)}, asked were {sorted(names)}."
        )
    for name, value in answer.values.items():
        # NaN is the minimum of anything that holds one: two quick reductions, and no array of flags
        ends = (value.min(), value.max()) if value.dtype.kind == "f" and value.size else ()
        if not all(math.isfinite(end) for end in ends):
            raise TaskError(f"round {query.config.get('round')}: {name!r} holds NaN or infinity.", mend=_MEND)
    return answer.values
