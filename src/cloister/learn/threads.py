"""One thread for BLAS: sums in one order on every machine, and no threads that wait for each other."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.linalg.blas  # loaded before it is looked for
from threadpoolctl import ThreadpoolController


@functools.cache
def _libraries() -> list[Any]:
    """The BLAS libraries of numpy and scipy in this process."""
    assert np.__version__
    assert scipy.linalg.blas.__name__
    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within it numpy multiplies in this thread alone; afterwards as before."""
    changed = [(each, before) for each in _libraries() if (before := each.get_num_threads()) > 1]
    for library, _ in changed:
        library.set_num_threads(1)
    try:
        yield
    finally:
        for library, before in changed:
            library.set_num_threads(before)
