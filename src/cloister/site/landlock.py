"""Landlock by its three system calls: this process, for good, sees only the files that are named here.

Documented in the kernel's userspace-api/landlock.rst; rights that a kernel's ABI does not know are left out, as that
page recommends. Needs neither root nor a daemon. Programs cannot be started, and TCP is refused from ABI 4 on.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
VERSION_FLAG, PATH_BENEATH = 1, 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV  # all that a rule on a plain file may name
ALL_RIGHTS = (1 << 13) - 1  # of ABI 1
ADDED = {2: REFER, 3: TRUNCATE, 5: IOCTL_DEV}
TCP, SCOPES = 0b11, 0b11  # bind and connect, from ABI 4; abstract sockets and signals to others, from ABI 6


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("tcp", ctypes.c_uint64), ("scopes", ctypes.c_uint64)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("rights", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def version() -> int:
    """The kernel's Landlock ABI; 0 where there is none."""
    return max(0, _call(CREATE_RULESET, None, 0, VERSION_FLAG))


def restrict(readable: Iterable[Path], writable: Iterable[Path]) -> bool:
    """Shuts everything but these files and folders (and what lies in them); `no_new_privs` must be set before.

    Args: readable: may be read. writable: may also be written, made and removed. One that does not exist is left out.
    Returns: whether the wall stands.
    """
    abi = version()
    if not abi:
        return False
    rights = ALL_RIGHTS
    for since, right in ADDED.items():
        rights |= right if abi >= since else 0
    ruleset = _Ruleset(rights, TCP if abi >= 4 else 0, SCOPES if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    handle = _call(CREATE_RULESET, ctypes.byref(ruleset), size, 0)
    if handle < 0:
        return False
    try:
        allowed = [(path, READ_FILE | READ_DIR) for path in readable]
        allowed += [(path, rights & ~EXECUTE) for path in writable]
        if not all(_allow(handle, path, access) for path, access in allowed):
            return False
        return _call(RESTRICT_SELF, handle, 0) == 0
    finally:
        os.close(handle)


def _allow(ruleset: int, path: Path, rights: int) -> bool:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return True  # what is not there needs no leave
    try:
        rule = _PathBeneath(rights if path.is_dir() else rights & FILE_RIGHTS, parent)
        return _call(ADD_RULE, ruleset, PATH_BENEATH, ctypes.byref(rule), 0) == 0
    finally:
        os.close(parent)


def _call(number: int, *arguments: object) -> int:
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    return int(syscall(ctypes.c_long(number), *arguments))
