"""Fuzzes every decoder of vector, seal, job, wire and round: it parses, or raises a CloisterError, nothing else.

    python tests/fuzz/decoders.py --inputs 1000000 --seed 1        all targets in turn; exit code 1 if any is found
    python tests/fuzz/decoders.py --target seal.plan --inputs 5000
    python tests/fuzz/decoders.py --target seal.plan --hex 7b7d    one input again

Inputs are mutations of honest messages: bytes flipped, cut, repeated, spliced; lengths set to extremes; values of
JSON replaced. Where a signature would keep mutations out, the mutated body is signed anew, as a lying peer would do.
What parses must also be the bytes that writing it gives, where a format has one form only. An input that takes over
two seconds of the processor, or memory without bounds, is a finding too. The same seed gives the same inputs.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

SLOW_SECONDS = 2.0
MEMORY_BYTES = 6 << 30
EVIL_NUMBERS = (0, 1, -1, 2, 7, 255, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 2**200, -(2**63), 0.5, 1e308, -0.0)
EVIL = (
    *EVIL_NUMBERS,
    float("nan"),
    float("inf"),
    None,
    True,
    False,
    "",
    "a",
    "A" * 300,
    "00" * 32,
    "0x1p+9999",
    "BF16",
    "BOOL",
    "F8_E4M3",
    "I64",
    "U8",
    "nan",
    "é\ud800",
    "\0",
    [],
    {},
    [[]],
    [0] * 40,
    ["bonn", "bonn"],
    {"name": "x"},
)


@dataclass(frozen=True)
class Target:
    """A decoder.

    Attributes: decode: takes bytes; returns what it read. seeds: honest inputs. wrap: puts a mutated seed into what
      decode takes (framing, signature). back: the bytes of what was read, where a format has one form only.
    """

    name: str
    decode: Callable[[bytes], Any]
    seeds: tuple[bytes, ...]
    wrap: Callable[[bytes], bytes] = bytes
    back: Callable[[Any], bytes] | None = None


@dataclass(frozen=True)
class Found:
    """A breach of the rule: how it showed, where in the source, and the first input that did it."""

    target: str
    fault: str
    where: str
    data: bytes


# Mutations --------------------------------------------------------------------------------------------------------


def mutated(rng: random.Random, target: Target) -> bytes:
    seed = rng.choice(target.seeds)
    if rng.random() < 0.02:
        return target.wrap(seed)
    data = seed
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        data = _once(rng, data, target)
    return target.wrap(data)


def _once(rng: random.Random, data: bytes, target: Target) -> bytes:
    if data[:1] in (b"{", b"[") and rng.random() < 0.8:
        return _json(rng, data)
    return rng.choice(_MUTATIONS)(rng, data, target)


def _place(rng: random.Random, data: bytes) -> int:
    return rng.randrange(len(data) + 1)


def _flip(rng: random.Random, data: bytes, target: Target) -> bytes:
    if not data:
        return rng.randbytes(1)
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _cut(rng: random.Random, data: bytes, target: Target) -> bytes:
    return data[: _place(rng, data)]


def _delete(rng: random.Random, data: bytes, target: Target) -> bytes:
    at = _place(rng, data)
    return data[:at] + data[at + rng.choice((1, 8, 32, 64)) :]


def _insert(rng: random.Random, data: bytes, target: Target) -> bytes:
    at = _place(rng, data)
    return data[:at] + rng.choice((b"\0", b"\xff", b"\n", rng.randbytes(8), rng.randbytes(32))) + data[at:]


def _repeat(rng: random.Random, data: bytes, target: Target) -> bytes:
    start = _place(rng, data)
    return data[:start] + data[start : start + rng.choice((1, 8, 72, 200))] * rng.choice((2, 3)) + data[start:]


def _splice(rng: random.Random, data: bytes, target: Target) -> bytes:
    other = rng.choice(target.seeds)
    return data[: _place(rng, data)] + other[_place(rng, other) :]


def _length(rng: random.Random, data: bytes, target: Target) -> bytes:
    size = rng.choice((4, 8))
    value = rng.choice((0, 1, len(data), 2**31, 2**32 - 1, 2**62, 2**64 - 1)) % (1 << 8 * size)
    at = rng.choice((0, 0, _place(rng, data)))
    return data[:at] + value.to_bytes(size, rng.choice(("big", "little"))) + data[at + size :]


def _noise(rng: random.Random, data: bytes, target: Target) -> bytes:
    return rng.randbytes(rng.choice((0, 1, 8, 32, 100)))


_MUTATIONS = (_flip, _flip, _cut, _delete, _insert, _repeat, _splice, _length, _noise)


def _json(rng: random.Random, data: bytes) -> bytes:
    """One value of a JSON document replaced, removed, repeated or moved."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return data[: rng.randrange(len(data) + 1)]
    holders = list(_holders(document))
    if rng.random() < 0.02 or not holders:
        return rng.choice((b"[" * 100_000, b"{}", b"[]", b"null", b'{"a":1}', json.dumps(rng.choice(EVIL)).encode()))
    holder, key = rng.choice(holders)
    action = rng.random()
    if action < 0.7:
        holder[key] = rng.choice(EVIL)
    elif action < 0.8:
        del holder[key]
    elif action < 0.9:
        other, where = rng.choice(holders)
        holder[key] = json.loads(json.dumps(other[where]))
    elif isinstance(holder, list):
        holder.append(holder[key])
    else:
        holder[rng.choice(("", "x", str(key) + "_"))] = rng.choice(EVIL)
    try:
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return data


def _holders(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        for key, inner in list(value.items()):
            yield value, key
            yield from _holders(inner)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield value, place
            yield from _holders(inner)


# The loop ---------------------------------------------------------------------------------------------------------


def try_one(target: Target, data: bytes) -> Found | None:
    from cloister.vector import CloisterError

    started = time.process_time()
    try:
        read = target.decode(data)
        if target.back is not None and target.back(read) != data:
            return Found(target.name, "reads what it does not write", target.name, data)
    except CloisterError:
        pass
    except Exception as fault:
        frames = traceback.extract_tb(fault.__traceback__)
        ours = [frame for frame in frames if "/src/cloister/" in frame.filename] or list(frames)
        where = f"{ours[-1].filename.rpartition('/src/')[2]}:{ours[-1].lineno}"
        return Found(target.name, type(fault).__name__, where, data)
    if time.process_time() - started > SLOW_SECONDS:
        return Found(target.name, f"took {time.process_time() - started:.1f} s", target.name, data)
    return None


def fuzz(
    targets: list[Target], inputs: int, seed: int, tell: Callable[[str], None] = lambda line: None
) -> list[Found]:
    """Runs `inputs` inputs over all targets in turn. Returns: one `Found` for each kind of breach."""
    rng, found = random.Random(seed), dict[tuple[str, str, str], Found]()
    started = time.monotonic()
    for number in range(inputs):
        target = targets[number % len(targets)]
        breach = try_one(target, mutated(rng, target))
        if breach is not None and (breach.target, breach.fault, breach.where) not in found:
            found[breach.target, breach.fault, breach.where] = breach
            tell(f"FOUND {breach.target}: {breach.fault} at {breach.where}\n  --hex {breach.data[:2000].hex()}")
        if (number + 1) % 100_000 == 0:
            rate = (number + 1) / (time.monotonic() - started)
            tell(f"{number + 1:,} inputs, {len(found)} found, {rate:,.0f} a second")
    return list(found.values())


def bundle_parts(data: bytes) -> tuple[bytes, bytes, bytes]:
    """A bundle's facts, its safetensors header, and what follows that."""
    at = 8 + int.from_bytes(data[:8], "big")
    (size,) = struct.unpack_from("<Q", data, at)
    return data[8:at], data[at + 8 : at + 8 + size], data[at + 8 + size :]


def bundle_of(facts: bytes, header: bytes, rest: bytes) -> bytes:
    return len(facts).to_bytes(8, "big") + facts + struct.pack("<Q", len(header)) + header + rest


def main() -> int:
    from targets import all_targets

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", help="one of them only")
    parser.add_argument("--hex", help="this input only, with its trace")
    parser.add_argument("--list", action="store_true", help="name the targets")
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    targets = [target for target in all_targets() if asked.target in (None, target.name)]
    if asked.list or not targets:
        print("\n".join(target.name for target in all_targets()))
        return 0 if asked.list else 2
    if asked.hex is not None:
        print(targets[0].decode(bytes.fromhex(asked.hex)))
        return 0
    found = fuzz(targets, asked.inputs, asked.seed, lambda line: print(line, flush=True))
    print(f"{asked.inputs:,} inputs into {len(targets)} decoders (seed {asked.seed}): {len(found)} found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
