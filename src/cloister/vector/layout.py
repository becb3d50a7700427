"""Layout: named blocks <-> one flat vector of integers that sites can add up.

A layout says what a site's answer consists of: blocks with a name, a shape and a *bound* on every
coordinate. `FixedPoint` turns bounded floats into integers mod 2**bits such that the sum over all sites
provably cannot wrap, and turns the opened sum back (docs/protocol.md, section "Fixed point").

    layout = Layout((Block("delta", (3,), bound=8.0, weighted=True), Block("loss", (), bound=1e6, wide=True)))
    coder = FixedPoint(layout, sites=5, bits=32)
    words, clipped = coder.encode({"delta": delta, "loss": loss}, weight=rows / max_rows)
    coder.decode(sum_of_words)          # {"delta": float64[3], "loss": float64[]}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.vector.errors import BoundError, LayoutError

BITS = (16, 20, 24, 32, 64)
WIDE_DIGITS = 50  # binary digits that a `wide` coordinate carries: under float64's 53, so the sums stay exact
NOISE_TAILS = 13  # deviations that noise never exceeds
SHARES = 16  # weights of a sum together, at most; more than 1 where a large site was not there to be counted
CHUNK = 1 << 14  # coordinates encoded at a time: the float64 scratch of one chunk stays in cache
# x + ROUND has round_half_even(x) in its lowest mantissa bits, for |x| < 2**51: one addition instead of rint and cast
ROUND = 1.5 * 2.0**52
ROUND_BITS = int(np.float64(ROUND).view(np.int64))

Words = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]


def word_dtype(bits: int) -> np.dtype[Any]:
    """The numpy dtype that carries one word: uint32 up to 32 bits, uint64 at 64."""
    return np.dtype(np.uint64 if bits == 64 else np.uint32)


@dataclass(frozen=True)
class Noise:
    """What every site adds to a block before it is summed: discrete Gaussian noise on a grid (room `privacy`).

    Attributes:
      step: of the grid, in the block's units. The block travels as whole steps.
      radius: how much one protected unit can change what is summed, as an L2 norm in steps, rounding included.
      deviation: of the noise in steps. Over the radius it is the noise multiplier.
      shared: the honest sites that must survive together reach this deviation; else each site by itself.
      colluders: sites whose noise does not count; None: as many as the seal withstands.
      rotation: hex seed of the random signs, if the block is rotated before it is rounded.
      central: no site adds any: whoever opens the sum adds all of it (in simulations only).
    """

    step: float
    radius: float
    deviation: float
    shared: bool = False
    colluders: int | None = None
    rotation: str = ""
    central: bool = False

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) and value > 0 for value in (self.step, self.radius, self.deviation)):
            raise LayoutError("noise needs a positive step, radius and deviation")
        if self.colluders is not None and (type(self.colluders) is not int or self.colluders < 0):
            raise LayoutError(f"noise without that of {self.colluders!r} sites")

    @property
    def multiplier(self) -> float:
        return self.deviation / self.radius

    def as_json(self) -> dict[str, Any]:
        numbers = {name: float(getattr(self, name)).hex() for name in ("step", "radius", "deviation")}
        flags = {"shared": self.shared, "colluders": self.colluders, "rotation": self.rotation}
        return {**numbers, **flags, "central": self.central}

    @classmethod
    def from_json(cls, data: Any) -> Noise:
        numbers: dict[str, Any] = {name: float.fromhex(data[name]) for name in ("step", "radius", "deviation")}
        flags = {name: data[name] for name in ("shared", "colluders", "rotation", "central")}
        if any(type(flags[name]) is not bool for name in ("shared", "central")) or type(flags["rotation"]) is not str:
            raise ValueError
        return cls(**numbers, **flags)


def padded(size: int) -> tuple[int, int]:
    """How a rotated vector is cut: into pieces of one power of two. Returns: pieces, and coordinates of each.

    Pieces of about an eighth pad the vector by an eighth at most; from 2**16 on a piece would leave the cache.
    """
    piece = 1 << min(max((max(size, 1) // 8).bit_length() - 1, 4), 16)
    return -(-size // piece), piece


@dataclass(frozen=True)
class Block:
    """One named part of an answer.

    Attributes:
      name: unique in its layout.
      shape: of the array; () is a scalar.
      bound: largest magnitude of one coordinate; larger ones are clipped *and counted*.
      clip: largest L2 norm of the whole block, or None; `privacy.clip` applies it before encoding.
      weighted: multiplied by rows / max_rows before it is summed (a mean over rows); else summed as it is.
      wide: carried in as many words as WIDE_DIGITS binary digits need (statistics), else in one (deltas).
      noise: what each site adds to it for differential privacy, or None.
    """

    name: str
    shape: tuple[int, ...]
    bound: float
    clip: float | None = None
    weighted: bool = False
    wide: bool = False
    noise: Noise | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.bound) and self.bound > 0):
            raise LayoutError(f"block {self.name!r}: bound {self.bound} is not a positive number")
        if self.clip is not None and not (math.isfinite(self.clip) and self.clip > 0):
            raise LayoutError(f"block {self.name!r}: clip {self.clip} is not a positive number")
        if any(side < 0 for side in self.shape):
            raise LayoutError(f"block {self.name!r}: shape {self.shape} has a negative side")
        if self.noise is not None and self.weighted:
            raise LayoutError(f"block {self.name!r} has noise and weights: its cost would depend on rows")

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def coordinates(self) -> int:
        """How many travel: `size`, or what it is padded to where the block is rotated."""
        return math.prod(padded(self.size)) if self.noise and self.noise.rotation else self.size

    def as_json(self) -> dict[str, Any]:
        """Without floats (they are written as C99 hex strings), so that it can be part of signed bytes."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "bound": float(self.bound).hex(),
            "clip": None if self.clip is None else float(self.clip).hex(),
            "weighted": self.weighted,
            "wide": self.wide,
            **({"noise": self.noise.as_json()} if self.noise else {}),
        }

    @classmethod
    def from_json(cls, data: Any) -> Block:
        """Raises: LayoutError: `data` is not what `as_json` writes."""
        try:
            if set(data) - {"noise"} != {"name", "shape", "bound", "clip", "weighted", "wide"}:
                raise ValueError("unknown or missing keys")
            if not isinstance(data["name"], str) or not all(type(side) is int for side in data["shape"]):
                raise ValueError("name or shape of another type")
            if type(data["weighted"]) is not bool or type(data["wide"]) is not bool:
                raise ValueError("a flag that is not a boolean")
            return cls(
                name=data["name"],
                shape=tuple(data["shape"]),
                bound=float.fromhex(data["bound"]),
                clip=None if data["clip"] is None else float.fromhex(data["clip"]),
                weighted=data["weighted"],
                wide=data["wide"],
                noise=Noise.from_json(data["noise"]) if "noise" in data else None,
            )
        except (KeyError, TypeError, ValueError, OverflowError) as fault:
            raise LayoutError(f"a block of the layout does not parse: {fault}") from None


@dataclass(frozen=True)
class Layout:
    """Named blocks in a fixed order. Raises LayoutError on two blocks of one name or on none."""

    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        names = [block.name for block in self.blocks]
        if not names or len(set(names)) != len(names):
            raise LayoutError(f"a layout needs blocks with distinct names, got {names}")

    def __getitem__(self, name: str) -> Block:
        for block in self.blocks:
            if block.name == name:
                return block
        raise LayoutError(f"no block {name!r}; there are {[block.name for block in self.blocks]}")

    def as_json(self) -> list[dict[str, Any]]:
        return [block.as_json() for block in self.blocks]

    @classmethod
    def from_json(cls, data: Any) -> Layout:
        if not isinstance(data, list):
            raise LayoutError("a layout is a list of blocks")
        return cls(tuple(Block.from_json(entry) for entry in data))


@dataclass(frozen=True)
class _Slot:
    """Where a block lies in the flat vector and how its coordinates are scaled."""

    block: Block
    start: int  # first word
    limbs: int  # words a coordinate
    exponent: int  # value * 2**exponent is rounded to an integer

    @property
    def stop(self) -> int:
        return self.start + self.limbs * self.block.coordinates


class FixedPoint:
    """Encodes one site's answer and decodes the sum over at most `sites` of them.

    A coordinate x becomes round_half_even(2**f * x), with f as large as (n + 1) * 2**f * bound <= 2**(bits - 1)
    allows, so no sum over n sites can wrap. A `wide` coordinate is cut into limbs that are summed apart. Weights are
    shares of all rows, so of many sites they add up to about 1, not to n: weighted coordinates have room for weights
    of SHARES together, and `open_total` refuses a sum whose rows say that there were more.

    Attributes: size: words of the flat vector. dtype: uint32 or uint64.
    Raises: BoundError: the number of sites leaves no room for the bound.
    """

    def __init__(self, layout: Layout, sites: int, bits: int = 32) -> None:
        if bits not in BITS:
            raise BoundError(f"bits={bits} is not one of {BITS}")
        if sites < 1:
            raise BoundError(f"a sum needs at least one site, got {sites}")
        self.layout, self.sites, self.bits = layout, sites, bits
        self.dtype = word_dtype(bits)
        self._limb_bits = bits - 1 - math.ceil(math.log2(sites + 1))
        slots, start = [], 0
        for block in layout.blocks:
            slot = self._slot(block, start)
            slots.append(slot)
            start = slot.stop
        self._slots, self.size = tuple(slots), start

    def _slot(self, block: Block, start: int) -> _Slot:
        limbs, digits = 1, min(self._limb_bits, WIDE_DIGITS)
        if block.weighted and not block.wide and SHARES < self.sites < 1 << (self.bits - 1):  # n / 2 of rounding fits
            digits = min(self.bits - 1 - math.ceil(math.log2(SHARES + 1)), WIDE_DIGITS)
        if block.wide and self._limb_bits >= 1:
            limbs = math.ceil(WIDE_DIGITS / self._limb_bits)
            digits = WIDE_DIGITS
        if block.noise is not None:
            most = block.noise.radius if block.noise.shared else block.bound / block.noise.step
            most += NOISE_TAILS * block.noise.deviation
            if digits < 1 or most >= 2.0**digits:
                raise BoundError(
                    f"block {block.name!r}: {self.bits} bits cannot carry its noise over {self.sites} sites.",
                    mend="Use cl.Job(..., bits=32) or 64.",
                )
            return _Slot(block, start, limbs, 0)
        mantissa, power = math.frexp(block.bound)
        exponent = digits - (power - 1 if mantissa == 0.5 else power)  # so that 2**exponent * bound <= 2**digits
        if digits < 4:
            raise BoundError(
                f"block {block.name!r}: {self.bits} bits cannot carry a sum over {self.sites} sites.",
                mend="Use more bits or fewer sites.",
            )
        return _Slot(block, start, limbs, exponent)

    def step(self, name: str) -> float:
        """The rounding step of one coordinate of a block: an encoded value is off by at most half of it."""
        return math.ldexp(1.0, -self._slot_of(name).exponent)

    def _slot_of(self, name: str) -> _Slot:
        for slot in self._slots:
            if slot.block.name == name:
                return slot
        raise LayoutError(f"no block {name!r} in this layout")

    def encode(self, values: Mapping[str, npt.NDArray[Any] | float], weight: float) -> tuple[Words, int]:
        """Turns one site's answer into words.

        Args:
          values: an array (or number) for each block, of the block's shape; finite.
          weight: rows / max_rows, in [0, 1]; multiplies the weighted blocks.
        Returns: words[size], and how many coordinates were clipped to their bound (never silently).
        Raises: LayoutError: a name, shape or value that the layout does not allow.
        """
        if set(values) != {slot.block.name for slot in self._slots}:
            raise LayoutError(
                f"the answer has blocks {sorted(values)}, the layout {[slot.block.name for slot in self._slots]}"
            )
        if not 0.0 <= weight <= 1.0:
            raise LayoutError(f"weight {weight} is outside [0, 1]")
        words = np.empty(self.size, self.dtype)
        return words, sum(self.put(words, name, value, weight) for name, value in values.items())

    def put(self, words: Words, name: str, value: npt.NDArray[Any] | float, weight: float = 1.0) -> int:
        """Encodes one block into its place in `words`; returns how many coordinates were clipped."""
        slot = self._slot_of(name)
        block, clipped = slot.block, 0
        array = np.asarray(value)
        if array.shape != block.shape:
            raise LayoutError(f"block {name!r} has shape {array.shape}, not {block.shape}")
        if array.dtype.kind not in "fiub":
            raise LayoutError(f"block {name!r} has dtype {array.dtype}, which is no real number")
        scale = math.ldexp(weight if block.weighted else 1.0, slot.exponent)
        if not block.shape:
            return self._put_number(words, slot, float(array), scale)
        flat, scratch = array.reshape(-1), np.empty(min(CHUNK, block.size))
        narrow = slot.limbs == 1 and self.bits <= 32  # ROUND_BITS has no bit that would be kept
        for at in range(0, block.size, CHUNK):
            part = flat[at : at + CHUNK]
            largest = max(float(np.maximum.reduce(part)), -float(np.minimum.reduce(part)))
            if not math.isfinite(largest):
                raise LayoutError(f"block {name!r} holds NaN or infinity")
            scaled = scratch[: part.size]
            scaled[...] = part
            if largest > block.bound:
                clipped += int(np.count_nonzero(np.abs(scaled) > block.bound))
                np.clip(scaled, -block.bound, block.bound, out=scaled)
            scaled *= scale
            scaled += ROUND
            integers = scaled.view(np.int64)
            if not narrow:
                integers -= ROUND_BITS
            self._store(slot, at, integers, words)
        return clipped

    def put_steps(self, words: Words, name: str, steps: npt.NDArray[np.int64]) -> None:
        """Puts a block that carries noise into its place. Args: steps: int64[coordinates], noise included."""
        slot = self._slot_of(name)
        if slot.block.noise is None or steps.shape != (slot.block.coordinates,):
            raise LayoutError(f"block {name!r} does not travel as {steps.shape} steps")
        self._store(slot, 0, steps, words)

    def _put_number(self, words: Words, slot: _Slot, value: float, scale: float) -> int:
        """The same for a scalar, without arrays: an answer has a dozen of them."""
        bound = slot.block.bound
        if not math.isfinite(value):
            raise LayoutError(f"block {slot.block.name!r} holds NaN or infinity")
        integer = round(min(max(value, -bound), bound) * scale)  # Python rounds half to even as well
        for limb in range(slot.limbs):
            last = limb == slot.limbs - 1
            digits = integer if last else integer & ((1 << self._limb_bits) - 1)
            words[slot.start + limb] = digits & ((1 << self.bits) - 1)
            integer >>= self._limb_bits
        return int(abs(value) > bound)

    def _store(self, slot: _Slot, at: int, integers: npt.NDArray[np.int64], words: Words) -> None:
        size, mask = slot.block.coordinates, (1 << self._limb_bits) - 1
        for limb in range(slot.limbs):
            last = limb == slot.limbs - 1
            digits = integers if last else integers & mask
            start = slot.start + limb * size + at
            # C-style wrap of a negative integer is its residue mod 2**32 or 2**64: what the sum needs
            words[start : start + integers.size] = digits
            integers = integers if last else integers >> self._limb_bits
        if self.bits < 32:
            words[slot.start : slot.stop] &= self.dtype.type((1 << self.bits) - 1)

    def decode(self, words: Words) -> dict[str, Floats]:
        """Turns the opened sum (words mod 2**bits) back into float64 arrays, block by block.

        Raises: LayoutError: another length or dtype than this coder's.
        """
        if words.shape != (self.size,) or words.dtype != self.dtype:
            raise LayoutError(f"a total of {words.shape} {words.dtype}, expected ({self.size},) {self.dtype}")
        values: dict[str, Floats] = {}
        for slot in self._slots:
            noise, total = slot.block.noise, np.empty(slot.block.coordinates, np.float64)
            for at in range(0, len(total), CHUNK):  # the result itself is all the memory that this takes
                self._decode(slot, words, at, total[at : at + CHUNK])
            # a rotated block stays flat: whoever asked for it turns it back
            shape = (-1,) if noise is not None and noise.rotation else slot.block.shape
            values[slot.block.name] = total.reshape(shape)
        return values

    def _decode(self, slot: _Slot, words: Words, at: int, total: Floats) -> None:
        """A stretch of one block, from its coordinate `at` on."""
        size, noise = slot.block.coordinates, slot.block.noise
        starts = range(slot.start + at, slot.start + slot.limbs * size, size)
        limbs = [self._signed(words[start : start + len(total)]) for start in starts]
        total[...] = limbs.pop()
        while limbs:
            total *= 2.0**self._limb_bits
            total += limbs.pop()
        step = noise.step if noise is not None else math.ldexp(1.0, -slot.exponent)
        total *= math.ldexp(step, min(self.bits, 32) - 32)  # of the words' upper bits: a power of two, exact

    def _signed(self, words: Words) -> npt.NDArray[np.int32] | npt.NDArray[np.int64]:
        """What the words stand for; of fewer than 32 bits, in the upper ones."""
        if self.bits < 32:
            words = words << np.uint32(32 - self.bits)
        return words.view(np.int64) if self.bits == 64 else words.view(np.int32)
