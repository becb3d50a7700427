"""Clipping of a site's contribution, before it is weighted and encoded."""

from __future__ import annotations

import numpy as np

from cloister.vector.bundle import Array

CHUNK = 1 << 18


def l2_norm(values: Array) -> float:
    """Euclidean norm, summed in float64 chunk by chunk (a vector of 100M values needs no copy of its own)."""
    flat = values.reshape(-1)
    parts = (flat[at : at + CHUNK].astype(np.float64) for at in range(0, flat.size, CHUNK))
    return float(np.sqrt(sum(float(np.dot(part, part)) for part in parts)))


def clip_l2(values: Array, limit: float) -> tuple[Array, bool]:
    """Scales `values` down to L2 norm `limit` if it is longer (Abadi et al., CCS 2016, algorithm 1).

    Returns: the values (the same array if short enough), and whether they were clipped.
    """
    norm = l2_norm(values)
    if norm <= limit:
        return values, False
    return values * (limit / norm), True
