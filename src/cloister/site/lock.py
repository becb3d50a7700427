"""One agent per folder: two agents with one identity would answer a round twice."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from cloister.vector.errors import StateLocked


class FolderLock:
    """Holds a folder for this process; the kernel lets go when the process ends, however it ends.

    Raises: StateLocked: on entering, when another process holds the folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def __enter__(self) -> FolderLock:
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(file)
            raise StateLocked(
                f"another agent (process {holder}) works in {self._path.parent}.",
                mend="Stop it first, or give this one a folder of its own.",
            ) from None
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode("ascii"))
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
