"""How near the sealed sum's arithmetic comes to what the machine can do.

    python benchmarks/seal.py [--quick] [--threads N] [--json]

The ceiling is AES-256-CTR keystream plus an addition, by hand, in this same run, one mask at a time: nothing that
runs the protocol can beat it by much. Times are the best of a few; ratios are what to compare between machines.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated

import numpy as np
import typer
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from rich.console import Console
from rich.table import Table

from cloister.seal import masks, shamir
from cloister.seal.threshold import threshold

TARGET_RATIO = 1.3
TARGET_RECOVERY_SECONDS = 0.3


@dataclass(frozen=True)
class Row:
    """One measurement. ceiling_seconds and ratio are None where the bar is a time, not the ceiling."""

    what: str
    sites: int
    words: int
    masks: int
    seconds: float
    ceiling_seconds: float | None
    ratio: float | None
    met: bool


def best(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest run."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def ceiling_pass(words: np.ndarray, stretch_bytes: int) -> None:
    """One keystream over `words`, added by hand in stretches of so many bytes."""
    stream = Cipher(AES256(bytes(32)), CTR(bytes(16))).encryptor()
    zeros, scratch = bytes(stretch_bytes), np.empty(stretch_bytes, np.uint8)
    mask, step = scratch.view(np.uint32), stretch_bytes // 4
    for at in range(0, len(words), step):
        part = words[at : at + step]
        stream.update_into(memoryview(zeros)[: part.nbytes], scratch.data)
        np.add(part, mask[: len(part)], out=part)


def ceiling(words: np.ndarray, repeats: int) -> float:
    """Seconds of one mask, by the faster of a pass that stays in cache and one over the whole vector."""
    stretches = (1 << 17, words.nbytes)
    return min(best(lambda size=size: ceiling_pass(words, size), repeats) for size in stretches)


def masking(what: str, sites: int, size: int, count: int, threads: int, repeats: int) -> Row:
    """`count` masks laid on (or taken off) a vector of `size` words, beside the ceiling of as many."""
    words = np.zeros(size, np.uint32)
    seeds = [(os.urandom(32), 1 if place % 2 else -1) for place in range(count)]
    before = ceiling(words, repeats)
    seconds = best(lambda: masks.apply_masks(words, seeds, threads=threads), repeats)
    one_mask = min(before, ceiling(words, repeats))
    ratio = seconds / (one_mask * count)
    return Row(what, sites, size, count, seconds, one_mask * count, ratio, ratio <= TARGET_RATIO)


def recovery(sites: int, dropped: int) -> Row:
    """Every survivor's self secret and every dropout's mask secret, from share bytes as they arrive."""
    t = threshold(sites)
    points = list(range(dropped + 1, sites + 1))[:t]
    shares = [shamir.to_bytes(shamir.random_element(os.urandom)) for _ in points]

    def work() -> None:
        weights = shamir.weights(points)
        for _ in range(sites):
            shamir.interpolate(weights, [shamir.from_bytes(share) for share in shares])

    seconds = best(work, 3)
    return Row(f"recover {sites} secrets", sites, 0, 0, seconds, None, None, seconds <= TARGET_RECOVERY_SECONDS)


def splitting(sites: int) -> Row:
    """One site's two secrets, shared among all."""
    t, points = threshold(sites), list(range(1, sites + 1))
    seconds = best(lambda: [shamir.split(1, t, points, os.urandom) for _ in range(2)], 3)
    return Row("share 2 secrets", sites, 0, 0, seconds, None, None, seconds <= TARGET_RECOVERY_SECONDS)


def measure(quick: bool, threads: int) -> list[Row]:
    rows = []
    for size in (1_000_000,) if quick else (1_000_000, 10_000_000):
        for sites in (10, 100):
            repeats = 5 if size * sites <= 100_000_000 else 2
            dropped = sites // 10
            alive = sites - dropped
            rows.append(masking("client masks", sites, size, sites, threads, repeats))
            rows.append(masking("server unmasks, none dropped", sites, size, sites, threads, repeats))
            if size * alive * (1 + dropped) <= 1_000_000_000:
                count = alive * (1 + dropped)  # a dropout leaves a pair mask in every survivor's words
                rows.append(masking(f"server unmasks, {dropped} dropped", sites, size, count, threads, repeats))
    rows.append(splitting(500))
    rows.append(recovery(500, dropped=50))
    return rows


def table(rows: list[Row]) -> Table:
    shown = Table(title=f"Sealed sum against AES-256-CTR plus add (bar: {TARGET_RATIO} times the ceiling)")
    for heading in ("what", "sites", "words", "masks", "seconds", "ns/word/mask", "ceiling", "ratio", "bar"):
        shown.add_column(heading, justify="left" if heading == "what" else "right")
    for row in rows:
        each = f"{row.seconds / (row.words * row.masks) * 1e9:.3f}" if row.masks else ""
        shown.add_row(
            row.what,
            str(row.sites),
            f"{row.words:,}" if row.words else "",
            str(row.masks or ""),
            f"{row.seconds:.4f}",
            each,
            "" if row.ceiling_seconds is None else f"{row.ceiling_seconds:.4f}",
            f"< {TARGET_RECOVERY_SECONDS} s" if row.ratio is None else f"{row.ratio:.2f}",
            "[green]met[/]" if row.met else "[red]missed[/]",
        )
    return shown


def main(
    quick: Annotated[bool, typer.Option(help="One million words only.")] = False,
    threads: Annotated[int, typer.Option(help="Cores that share one vector; the ceiling has one.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measures masking, unmasking and share recovery; exits 1 where a bar is missed."""
    rows = measure(quick, threads)
    if as_json:
        print(json.dumps({"threads": threads, "cores": os.cpu_count(), "rows": [asdict(row) for row in rows]}))
    else:
        Console().print(table(rows))
    raise typer.Exit(0 if all(row.met for row in rows) else 1)


if __name__ == "__main__":
    typer.run(main)
