"""Tensors plus a few facts as bytes: the one container that queries, answers and states travel and rest in.

    LP(canonical JSON) || safetensors          LP(x) = u64be(len x) || x

No code runs on loading (no pickle), and the bytes are deterministic: the same content has the same digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cloister.vector.errors import MalformedMessage

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]
MAX_FACTS_BYTES = 1 << 26  # facts are for people; a header above 64 MiB is an attack (safetensors allows 100 MB)
_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def canonical(data: Any) -> bytes:
    """JSON with sorted keys, no spaces, ASCII only: equal content, equal bytes. Raises ValueError on NaN."""
    return _JSON.encode(data).encode("ascii")


def digest(data: bytes) -> bytes:
    """SHA-256: the name of anything that is named by its content."""
    return hashlib.sha256(data).digest()


def pack(facts: Mapping[str, Any], tensors: Tensors) -> bytes:
    """Args: facts: JSON values. tensors: numeric arrays by name, any order."""
    header = canonical(dict(facts))
    arrays = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}  # keeps a scalar a scalar
    return len(header).to_bytes(8, "big") + header + save(arrays)


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """Raises: MalformedMessage: not what `pack` writes."""
    length = int.from_bytes(data[:8], "big")
    if len(data) < 8 or length > min(len(data) - 8, MAX_FACTS_BYTES):
        raise MalformedMessage(f"a bundle of {len(data)} bytes is cut off or has no header")
    try:
        facts = json.loads(data[8 : 8 + length])
        if not isinstance(facts, dict):
            raise ValueError("facts are no object")
        return facts, load(data[8 + length :])
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError, OverflowError) as fault:
        raise MalformedMessage(f"a bundle does not parse: {type(fault).__name__}") from None
