"""Frames on the pipe between agent and worker: kind (one byte), length (u64 big endian), payload.

The reader says beforehand which kinds it expects and how long each may be, so a worker that lies about a length,
speaks out of turn or writes noise costs one refused header and never memory.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import BinaryIO

from cloister.vector.errors import MalformedMessage
from cloister.vector.layout import Layout

HEADER = struct.Struct(">BQ")
MAX_TEXT_BYTES = 1 << 20  # set-up, schema and fault frames: JSON of a table's columns at most (nginx's body limit)
MAX_BODY_BYTES = 1 << 32  # a job bundle or a query: the agent sent it, having checked it against its policy
FACTS_BYTES = 1 << 16  # an answer's row count and safetensors header, beside BLOCK_BYTES for each block
BLOCK_BYTES = 1 << 10


class Kind(IntEnum):
    """What a frame holds. Agent to worker: SETUP, JOB, QUERY. Worker to agent: the others."""

    SETUP = 1  # JSON: what to read, for whom, within which limits
    JOB = 2  # the job bundle
    QUERY = 3  # Query.to_bytes()
    SCHEMA = 4  # JSON: what a steward may know of the table
    READY = 5  # JSON: the table fulfils the contract; from here on the job's own code may run
    ANSWER = 6  # Answer.to_bytes()
    FAULT = 7  # JSON: CloisterError.as_json()


Limits = Mapping[Kind, int]
TEXT: Limits = {Kind.FAULT: MAX_TEXT_BYTES}


def answer_limit(layout: Layout) -> int:
    """The longest honest answer to a query of this layout, in bytes: float64 coordinates and their names."""
    return FACTS_BYTES + sum(8 * block.size + BLOCK_BYTES + 6 * len(block.name) for block in layout.blocks)


def encode(kind: Kind, payload: bytes) -> tuple[bytes, bytes]:
    """Header and payload, to be written one after the other."""
    return HEADER.pack(kind, len(payload)), payload


def parse_header(header: bytes, limits: Limits) -> tuple[Kind, int]:
    """Raises: MalformedMessage: a kind that is not expected now, or longer than it may be."""
    number, length = HEADER.unpack(header)
    kind = next((known for known in limits if known == number), None)
    if kind is None:
        raise MalformedMessage(f"a frame of kind {number} where {[known.name for known in limits]} may come")
    if length > limits[kind]:
        raise MalformedMessage(f"a frame {kind.name} of {length} bytes, at most {limits[kind]} may come")
    return kind, length


def write(stream: BinaryIO, kind: Kind, payload: bytes = b"") -> None:
    for part in encode(kind, payload):
        stream.write(part)
    stream.flush()


def read(stream: BinaryIO, limits: Limits) -> tuple[Kind, bytes]:
    """Raises: EOFError: the other side is gone. MalformedMessage."""
    kind, length = parse_header(_exactly(stream, HEADER.size), limits)
    return kind, _exactly(stream, length)


def _exactly(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError("the pipe was closed")
    return data


async def send(writer: asyncio.StreamWriter, kind: Kind, payload: bytes = b"") -> None:
    writer.writelines(encode(kind, payload))
    await writer.drain()


async def receive(reader: asyncio.StreamReader, limits: Limits) -> tuple[Kind, bytes]:
    """Raises: EOFError (asyncio.IncompleteReadError is one): the worker is gone. MalformedMessage."""
    kind, length = parse_header(await reader.readexactly(HEADER.size), limits)
    return kind, await reader.readexactly(length)
