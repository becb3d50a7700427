"""Files that are replaced whole: whatever is cut off in between, there is the old one or the new one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from cloister.vector.errors import EnvironmentFailure, StorageFull


def replace_file(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Writes a file whole or not at all; it is on the disk before this returns.

    Args: mode: who may read it, less what the umask takes away.
    Raises: StorageFull, EnvironmentFailure.
    """
    draft = path.with_name(path.name + ".new")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as fault:
        if fault.errno == errno.ENOSPC:
            raise StorageFull(f"no room is left for {path}.", mend="Free some space and try again.") from None
        raise EnvironmentFailure(f"{path} cannot be written: {fault.strerror}.") from None
