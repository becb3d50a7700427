"""The walls around training code. `enter` is called by the worker, on itself, before it reads anything.

Each wall is one function that either stands or says that it does not; the agent logs which stand.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cloister.site import landlock, seccomp

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
MIB = 1 << 20
# What Python and its numerical libraries read besides their own files; nothing here is a secret of this machine.
SYSTEM = (
    *("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/etc/nsswitch.conf"),
    *("/dev/random", "/dev/urandom", "/dev/zero", "/sys/devices/system/cpu", "/sys/fs/cgroup"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat"),  # of other processes nothing
)


@dataclass(frozen=True)
class WorkerLimits:
    """What one training process may use.

    Attributes:
      seconds: wall time for one query (and for reading the table); the agent kills a worker that takes longer.
      cpu_seconds: processor time in its whole life.
      memory_mb: address space in MiB.
      file_mb: size of one file that it writes, in MiB.
      free_mb: room on its folder's disk, in MiB, that it must leave; the agent kills a worker that takes it.
      threads: of numerical libraries.
    """

    seconds: float = 3600.0
    cpu_seconds: int = 86400
    memory_mb: int = 16384
    file_mb: int = 256
    free_mb: int = 256
    threads: int = 1

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Room:
    """What is left to a training process.

    Attributes: table: its data, to read. home: its folder, to read and write. memory: another one, for what it keeps.
    """

    limits: WorkerLimits
    table: Path
    home: Path
    memory: Path | None = None


def _no_new_privileges(_: Room) -> bool:
    return _prctl(PR_SET_NO_NEW_PRIVS, 1)


def _memory(room: Room) -> bool:
    return _limit(resource.RLIMIT_AS, room.limits.memory_mb * MIB)


def _processor(room: Room) -> bool:
    return _limit(resource.RLIMIT_CPU, room.limits.cpu_seconds)


def _file_size(room: Room) -> bool:
    return _limit(resource.RLIMIT_FSIZE, room.limits.file_mb * MIB)


def _no_core_dump(_: Room) -> bool:
    return _limit(resource.RLIMIT_CORE, 0)  # a core file would hold the table in clear


def _no_network(_: Room) -> bool:
    """An empty network namespace: not even loopback is up. Root needs no user namespace for it."""
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    return bool(unshare(CLONE_NEWNET) == 0 or unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0)


def _files(room: Room) -> bool:
    """Landlock: libraries and the one table to read, the own folder to write; no key, no other table, no program."""
    libraries = {sys.prefix, sys.base_prefix, sys.exec_prefix, *filter(os.path.isabs, sys.path)}
    readable = [Path(path) for path in (*SYSTEM, *libraries)]
    return landlock.restrict(
        [*readable, room.table], [room.home, Path(os.devnull), *([room.memory] if room.memory else [])]
    )


def _system_calls(_: Room) -> bool:
    """seccomp: no other process, no socket, no dangerous call. Last, for it refuses what other walls need."""
    return seccomp.restrict()


WALLS: dict[str, Callable[[Room], bool]] = {
    "no-new-privileges": _no_new_privileges,
    "memory": _memory,
    "processor": _processor,
    "file-size": _file_size,
    "no-core-dump": _no_core_dump,
    "no-network": _no_network,
    "files": _files,
    "system-calls": _system_calls,
}
REQUIRED_FOR_CODE = frozenset({"no-new-privileges", "no-network", "files", "system-calls"})  # else none of it runs


def enter(room: Room) -> list[str]:
    """Confines this process for good. Returns: the names of the walls that stand."""
    return [name for name, build in WALLS.items() if build(room)]


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
