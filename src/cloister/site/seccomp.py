"""seccomp: system calls that training code never needs answer "not permitted", by a filter of classic BPF.

A short list of refusals rather than of leaves: numerical libraries use hundreds of calls, and files, programs and the
network have walls of their own (Landlock, an empty network namespace). What is refused widens the kernel's surface,
reaches other processes, makes new ones, or takes memory past the limits. Documented in the kernel's
userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

PR_SET_SECCOMP, MODE_FILTER = 22, 2  # linux/prctl.h, linux/seccomp.h
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
LOAD, JUMP_EQUAL, JUMP_GREATER_EQUAL, JUMP_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # places in struct seccomp_data
CLONE_THREAD = 0x10000
X32 = 0x40000000  # x86-64's second set of numbers, which would pass by the first
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# name: its number on x86-64 and on aarch64; None where that has it not
DENIED: dict[str, tuple[int | None, int | None]] = {
    # other processes' memory, files and names
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "open_by_handle_at": (304, 265), "pidfd_getfd": (438, 438), "kcmp": (312, 272),
    # a view of the machine of one's own: what Landlock and the namespaces were set up against
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsmount": (432, 432),
    "unshare": (272, 97), "setns": (308, 268),
    # kernel surface with a history of escapes
    "bpf": (321, 280), "userfaultfd": (323, 282), "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    # the kernel itself
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    # new processes: threads are made by clone, which is looked into
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    # sockets: one with a path (of a database, of a container daemon) is no network and, to Landlock, no file
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    # memory that no limit counts, or that outlives the process and is shared with others of the same user
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "semget": (64, 190), "mq_open": (240, 180),
}  # fmt: skip
CLONE = (56, 220)
CLONE3 = 435  # its flags lie in memory, where a filter cannot look; told "not there", libc takes clone


def restrict() -> bool:
    """Sets the filter on this thread and all that it makes, for good. Returns: whether the wall stands."""
    machine = os.uname().machine
    if machine not in AUDIT:
        return False
    code = program(machine)
    buffer = ctypes.create_string_buffer(code)
    header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    filter = ctypes.create_string_buffer(header)
    return bool(ctypes.CDLL(None, use_errno=True).prctl(PR_SET_SECCOMP, MODE_FILTER, filter, 0, 0) == 0)


def program(machine: str) -> bytes:
    """The filter for a machine: instructions of 8 bytes (struct sock_filter)."""
    which = list(AUDIT).index(machine)
    refuse, absent = _do(RETURN, ERRNO | errno.EPERM), _do(RETURN, ERRNO | errno.ENOSYS)
    steps = [_do(LOAD, ARCHITECTURE), _do(JUMP_EQUAL, AUDIT[machine], 1, 0), refuse, _do(LOAD, NUMBER)]
    steps += [_do(JUMP_GREATER_EQUAL, X32, 0, 1), refuse]
    for numbers in DENIED.values():
        if (number := numbers[which]) is not None:
            steps += [_do(JUMP_EQUAL, number, 0, 1), refuse]
    steps += [_do(JUMP_EQUAL, CLONE3, 0, 1), absent]
    steps += [
        _do(JUMP_EQUAL, CLONE[which], 0, 3),
        _do(LOAD, FIRST_ARGUMENT),
        _do(JUMP_SET, CLONE_THREAD, 1, 0),
        refuse,
    ]
    return b"".join([*steps, _do(RETURN, ALLOW)])


def _do(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)
