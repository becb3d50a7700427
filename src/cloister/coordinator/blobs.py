"""Files named by their content: a blob by the SHA-256 of its bytes, a stream by a name that holds their Merkle root.

A blob appears under its name only when it is whole (write aside, rename), so a kill at any moment leaves either all
of it or nothing. `put` also waits for the disk, or leaves that to `flush`. `put_stream` does not: what it took in
this process is as it was (`took`); what an earlier one left is hashed again before it is used (`OpenRound`).
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from cloister.coordinator.store import storage_full
from cloister.seal.merkle import MerkleBuilder
from cloister.vector.crash import durable
from cloister.vector.errors import BadUpload, UsageError


class BlobFolder:
    """A folder; the port that a cloud store would implement too: put, put_stream, took, path, has, delete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._aside = path / "incoming"
        self._aside.mkdir(parents=True, exist_ok=True)
        self._took: dict[str, int] = {}  # length, by name

    def clear_incoming(self) -> None:
        """Removes what a killed process left half-written; only for the one process that serves the folder."""
        for left_over in self._aside.iterdir():
            left_over.unlink(missing_ok=True)

    def _place(self, name: str) -> Path:
        return self._path / name[:2] / name

    def has(self, name: str) -> bool:
        return self._place(name).exists()

    def path(self, name: str) -> Path:
        """Where the blob lies, to be read. Raises: UsageError: there is none."""
        place = self._place(name)
        if not place.exists():
            raise UsageError(f"there is no blob {name[:16]}...", mend="It may be of an older run.")
        return place

    def read(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def put(self, data: bytes | memoryview, *, flush: bool = True) -> str:
        """Stores the bytes and returns their digest (hex). Args: flush: whether to wait for the disk, as `flush` does
        for a blob that is here; one that was not waited for may be torn after a loss of power, and is put anew.

        Raises: StorageFull.
        """
        name = hashlib.sha256(data).hexdigest()
        try:
            if not self._holds(name, data):
                aside = self._aside / secrets.token_hex(8)
                try:
                    aside.write_bytes(data)
                    with durable("coordinator.blob"):
                        self._commit(aside, name, flush=flush)
                finally:
                    aside.unlink(missing_ok=True)
            elif flush:
                self.flush(name)
        except OSError as fault:
            raise storage_full(fault, str(self._path)) from fault
        return name

    def _holds(self, name: str, data: bytes | memoryview) -> bool:
        place = self._place(name)
        if not place.exists() or place.stat().st_size != len(data):
            return False
        with place.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == name

    def flush(self, name: str) -> None:
        """Waits until a blob is on the disk. Raises: StorageFull."""
        try:
            _flush(self._place(name))
        except OSError as fault:
            raise storage_full(fault, str(self._path)) from fault

    async def put_stream(self, name: str, root: str, length: int, chunks: AsyncIterator[bytes]) -> None:
        """Stores a stream as it arrives, never holding more than one chunk of it in memory. Args: root: in hex.

        Raises: BadUpload: it is not the `length` bytes with this Merkle root; nothing is kept. StorageFull.
        """
        aside, builder, size = self._aside / secrets.token_hex(8), MerkleBuilder(), 0
        try:
            with aside.open("wb") as file:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > length:
                        break
                    builder.update(chunk)
                    file.write(chunk)
                if size != length or builder.root().hex() != root:
                    raise BadUpload(f"a part of {size} bytes is not the one of {length} bytes that was announced.")
            with durable("coordinator.part"):
                self._commit(aside, name, flush=False)
            self._took[name] = length
        except OSError as fault:
            raise storage_full(fault, str(self._path)) from fault
        finally:
            aside.unlink(missing_ok=True)

    def took(self, name: str, length: int) -> bool:
        """Whether `put_stream` took this blob, of this length, in this process: no loss of power tore it since."""
        return self._took.get(name) == length

    def _commit(self, aside: Path, name: str, *, flush: bool) -> None:
        if flush:
            _flush(aside)
        place = self._place(name)
        place.parent.mkdir(exist_ok=True)
        aside.replace(place)

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            self._took.pop(name, None)
            with durable("coordinator.delete"):
                self._place(name).unlink(missing_ok=True)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
