"""The walls around training code. `enter` is called by the worker, on itself, before it reads anything.

Each wall is one function that either stands or says that it does not; the agent logs which stand. Further walls
(Landlock, an empty network namespace, seccomp) join the table `WALLS`.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h
MIB = 1 << 20


@dataclass(frozen=True)
class WorkerLimits:
    """What one training process may use.

    Attributes:
      seconds: wall time for one query (and for reading the table); the agent kills a worker that takes longer.
      memory_mb: address space in MiB.
      file_mb: size of one file that it writes, in MiB.
      threads: of numerical libraries.
    """

    seconds: float = 3600.0
    memory_mb: int = 16384
    file_mb: int = 256
    threads: int = 1

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def _no_new_privileges(_: WorkerLimits) -> bool:
    return _prctl(PR_SET_NO_NEW_PRIVS, 1)


def _memory(limits: WorkerLimits) -> bool:
    return _limit(resource.RLIMIT_AS, limits.memory_mb * MIB)


def _file_size(limits: WorkerLimits) -> bool:
    return _limit(resource.RLIMIT_FSIZE, limits.file_mb * MIB)


def _no_core_dump(_: WorkerLimits) -> bool:
    return _limit(resource.RLIMIT_CORE, 0)  # a core file would hold the table in clear


WALLS: dict[str, Callable[[WorkerLimits], bool]] = {
    "no-new-privileges": _no_new_privileges,
    "memory": _memory,
    "file-size": _file_size,
    "no-core-dump": _no_core_dump,
}


def enter(limits: WorkerLimits) -> list[str]:
    """Confines this process for good. Returns: the names of the walls that stand."""
    return [name for name, build in WALLS.items() if build(limits)]


def die_with(agent: int) -> None:
    """Has the kernel kill this process when its agent ends, however that ends.

    Args: agent: the agent's process id, to notice one that ended before the kernel was asked.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != agent:
        os._exit(1)


def environment(home: str, threads: int) -> dict[str, str]:
    """All that a worker sees of the environment: no credentials, no proxies, no paths of the agent's user."""
    return {
        "HOME": home,
        "TMPDIR": home,
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }


def _limit(which: int, most: int) -> bool:
    _, hard = resource.getrlimit(which)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    try:
        resource.setrlimit(which, (most, most))
    except (ValueError, OSError):
        return False
    return True


def _prctl(option: int, value: int) -> bool:
    return bool(ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) == 0)
