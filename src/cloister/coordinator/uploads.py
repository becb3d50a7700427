"""Masked vectors as they lie on disk in parts: read in pieces, never as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cloister.coordinator.blobs import BlobFolder
from cloister.seal.merkle import MerkleBuilder
from cloister.seal.messages import PART_BYTES, MaskedHeader
from cloister.vector.errors import BadUpload

READ_BYTES = 1 << 20  # of a part at a time, when it is hashed


def stored(context: bytes, root: str) -> str:
    """The name under which a part with this root lies: one of its round alone, with which it is deleted.

    The same bytes may come in another round: a short last part by chance, a whole one because somebody wants it
    deleted with a round of his, whose root all sites of the first were shown.
    """
    return f"{context[:16].hex()}{root}"


class Uploads:
    """The uploads of one round. Args: headers: by site. Raises: UsageError: a part is not there any more."""

    def __init__(self, parts: BlobFolder, headers: Mapping[str, MaskedHeader]) -> None:
        self._paths = {
            site: [parts.path(stored(header.context, root.hex())) for root, _ in header.parts]
            for site, header in headers.items()
        }

    def read(self, site: str, offset: int, length: int) -> bytes:
        """A stretch of one masked vector. Raises: BadUpload: it ends before."""
        pieces = []
        while length > 0:
            index, start = divmod(offset, PART_BYTES)
            piece = _piece(self._paths[site], index, start, min(length, PART_BYTES - start))
            if not piece:
                raise BadUpload("a masked vector is shorter than it was", site=site)
            pieces.append(piece)
            offset, length = offset + len(piece), length - len(piece)
        return b"".join(pieces)

    def hashed(self, site: str) -> tuple[MerkleBuilder, int]:
        """The Merkle tree over one masked vector, and its length in bytes."""
        builder, length = MerkleBuilder(), 0
        for path in self._paths[site]:
            with path.open("rb") as file:
                while chunk := file.read(READ_BYTES):
                    builder.update(chunk)
                    length += len(chunk)
        return builder, length


def _piece(paths: list[Path], index: int, start: int, length: int) -> bytes:
    if index >= len(paths):
        return b""
    with paths[index].open("rb") as file:
        file.seek(start)
        return file.read(length)
