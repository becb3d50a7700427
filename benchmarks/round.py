"""Whole sealed rounds: how long they take, how many bytes they send, and how both grow.

    python benchmarks/round.py [--quick] [--json]

The simulator's round runs the federation's own machines, every message and mask, in one process. The coordinator's
opening is that of such a round, from its secrets to its sum: taking off all masks. The masked vectors were added up
as they arrived, as a coordinator does; a row of its own says what that takes. Its ceiling is the bare loop of
`seal.py`, AES-256-CTR plus add, for as many masks, in the same run. The federation's round goes over TLS to a
coordinator in a process of its own; its ten sites are in miniature (the real client and seal machine, all in one
process, which is slower than ten), and train for two seconds, as sites do on machines of their own. It stands beside
`unsealed.py`: the same vectors over the same transport, without a seal.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

import cloister as cl
import memory
import miniature
import seal as arithmetic
import unsealed
from cloister import learn
from cloister.round import Program
from cloister.seal import masks
from cloister.simulation.cohort import LocalCohort
from cloister.simulation.engine import make_engine
from cloister.simulation.sealing import Masks
from cloister.vector import Block, FixedPoint, Layout, Query

SITES, WORDS, TRAINING_SECONDS, ROUNDS = 50, 1_000_000, 2.0, 4
INPUTS, CLASSES, HIDDEN = 1000, 10, 989  # 999,889 parameters


@dataclass(frozen=True)
class Row:
    """One measurement. ratio: what the bar is about. least, most: the bar, where there is one."""

    what: str
    value: float
    unit: str
    ratio: float | None = None
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool:
        measured = self.value if self.ratio is None else self.ratio
        return (self.least is None or measured >= self.least) and (self.most is None or measured <= self.most)


def job_of(bits: int = 32) -> cl.Job:
    task = cl.Torch(cl.nets.MLP([HIDDEN]), "cross_entropy", cl.SGD(lr=0.05))
    data = cl.Arrays("numbers", (INPUTS,), CLASSES)
    return learn.complete(cl.Job(data, task, cl.FedAvg(rounds=10**6), evaluate=None, bits=bits))


class Rounds:
    """A simulated federation with masks that goes on by one round a call. Attributes: event: of the newest round."""

    def __init__(self, sites: int) -> None:
        rng, job = np.random.default_rng(0), job_of()
        one = (rng.normal(size=(10, INPUTS)).astype(np.float32), np.arange(10))
        data = {f"site-{at:03d}": one for at in range(sites)}
        self.event: dict[str, Any] = {}
        self._program = Program(job, {})
        self._cohort = LocalCohort(
            job, make_engine("serial", job, data), list(data), Masks(job, data), observe=self.event.update
        )
        self._state = self._program.start()
        self()  # the profile

    def __call__(self) -> None:
        query = self._program.ask(self._state)
        assert query is not None
        self._state = self._program.learn(self._state, self._cohort.sum(query))
        self._cohort.settle(self._state)


def whole_round(repeats: int, sites: int = SITES) -> tuple[float, dict[str, float]]:
    """Seconds of the fastest round, and of its parts."""
    rounds, found = Rounds(sites), []
    for _ in range(repeats):
        begin = time.perf_counter()
        rounds()
        found.append((time.perf_counter() - begin, dict(rounds.event["seconds"])))
    return min(found, key=lambda each: each[0])


def one_round(sites: int, dropped: int, words: int, bits: int = 32) -> Any:
    """A round of numbers instead of training, up to its opened sum."""
    names = [f"site-{at:03d}" for at in range(sites)]
    query = Query("train", Layout((Block("delta", (words,), 8.0, weighted=True),)), 10, {}, {"round": 1, "step": 0})
    coder = FixedPoint(query.sealed_layout, sites, bits)
    round_: Any = Masks(job_of(bits), names).round(query, names, coder)
    numbers = np.arange(coder.size, dtype=np.uint32) & np.uint32((1 << bits) - 1)
    for name in names[dropped:]:
        round_.add([name], numbers)
    opened = round_.open()[0]
    expected = numbers * np.uint32(sites - dropped) & np.uint32((1 << bits) - 1)
    assert np.array_equal(opened, expected), "the sum is wrong"
    return round_


def opening(round_: Any, cores: int, repeats: int) -> tuple[float, float]:
    """Seconds of the opening, and of adding up the masked vectors before it; the best of some."""
    server, found = round_._server, []
    for _ in range(repeats):
        begin = time.perf_counter()
        for site in server.u3:
            server.add(site, round_._read)
        added = time.perf_counter()
        server.total(round_._read, threads=cores)
        found.append((time.perf_counter() - added, added - begin))
    return min(each for each, _ in found), min(each for _, each in found)


def openings(sites: int, words: int, repeats: int) -> tuple[list[Row], float]:
    """The coordinator's opening on one core and on two; and bytes up a site to those of its float32 vector."""
    rows, up = [], 0.0
    for dropped in (0, sites // 10):
        round_ = one_round(sites, dropped, words)
        count = (sites - dropped) * (1 + dropped)  # a dropout leaves a pair mask in every survivor's words
        scratch = np.zeros(words, np.uint32)
        before = arithmetic.ceiling(scratch, repeats)
        (one, adding), (two, _) = (opening(round_, cores, repeats) for cores in (1, 2))
        ceiling = min(before, arithmetic.ceiling(scratch, repeats)) * count
        name = f"opening, n={sites}, d={words:,}, {dropped} dropped"
        rows.append(Row(f"{name}, one core", one, "s", one / ceiling, most=1.3))
        rows.append(Row(f"{name}, two cores", two, "s", one / two, least=1.8))
        rows.append(Row(f"adding up {sites - dropped} masked vectors as they arrive", adding, "s"))
        up = max(round_.traffic()["bytes_up"].values()) / (4 * words) if not dropped else up
    return rows, up


def bytes_up(sites: int, words: int, at_32: float) -> list[Row]:
    at_20 = max(one_round(sites, 0, words, 20).traffic()["bytes_up"].values()) / (4 * words)
    name = f"bytes up of a site to float32, n={sites}, d={words:,}"
    return [Row(f"{name}, 32 bits", at_32, "x", most=1.02), Row(f"{name}, 20 bits", at_20, "x", most=0.65)]


def growth(repeats: int, quick: bool) -> dict[str, list[tuple[int, float]]]:
    """Seconds of one site's masking, by sites (a million words) and by words (20 sites)."""

    def mask(sites: int, words: int) -> float:
        vector, seeds = np.zeros(words, np.uint32), [(os.urandom(32), 1 if at % 2 else -1) for at in range(sites)]
        return arithmetic.best(lambda: masks.apply_masks(vector, seeds), repeats)

    by_sites = (10, 25, 50, 75, 100)
    by_words = tuple(million * 1_000_000 for million in ((1, 2, 3, 4) if quick else (1, 2, 4, 6, 8, 10)))
    return {
        "sites": [(sites, mask(sites, 1_000_000)) for sites in by_sites],
        "words": [(words, mask(20, words)) for words in by_words],
    }


def linearity(points: Sequence[tuple[int, float]]) -> float:
    """The largest deviation from the straight line through all points, relative to the line there."""
    x, y = np.array(points, float).T
    line = np.polyval(np.polyfit(x, y, 1, w=1 / y), x)
    return float(np.max(np.abs(y - line) / line))


async def federation(folder: Path, words: int, training: list[float]) -> tuple[list[float], list[dict[str, float]]]:
    """Seconds from round to round, and those of the phases of each, of sites that train for so long."""
    found: list[dict[str, Any]] = []

    async def run(process: int, hub: Path, members: list[memory.Member], analyst: memory.Member) -> None:
        async with await analyst.client() as client:
            living = asyncio.create_task(miniature.run(members, training))
            while not all(each["live"] for each in (await client.status())["sites"]):
                await asyncio.sleep(0.1)
            started = await client.submit(memory.make_job(words, rounds=1 + ROUNDS).to_bytes())
            await living
            events = await client.events(started)
            found.extend(e for e in events if e["event"] == "round" and e["stage"] == "train")

    await memory.served(folder, len(training), run)
    return np.diff([each["at"] for each in found]).tolist(), [each["seconds"] for each in found[1:]]


def federations(folder: Path) -> tuple[list[Row], list[dict[str, float]]]:
    """A sealed federation beside an unsealed one: sites in step, ten machines' work on one; and sites that differ.

    The unsealed one keeps nothing, so what it is held against is a round up to its open sum.
    """
    rows, phases = [], []
    for what, fastest, bar in (("2 s of training, in step", 2.0, None), ("1.5 to 2 s of training", 1.5, 0.1)):
        training = np.linspace(fastest, TRAINING_SECONDS, 10).tolist()
        name = f"federation, n=10, d={WORDS:,}, {what}"
        plain = min(asyncio.run(unsealed.rounds(folder / f"plain-{fastest}", WORDS, training)))
        sealed, phases = asyncio.run(federation(folder / f"sealed-{fastest}", WORDS, training))
        rows.append(Row(f"{name}, unsealed", plain, "s"))
        opened = min(sum(each.values()) for each in phases)
        rows.append(Row(f"{name}, sealed, to its sum: what is over it", opened, "s", opened / plain - 1, most=bar))
        rows.append(Row(f"{name}, sealed, learnt from and saved", min(sealed), "s", min(sealed) / plain - 1))
    return rows, phases


def measure(quick: bool) -> dict[str, Any]:
    repeats = 2 if quick else 4
    seconds, parts = whole_round(repeats)
    ceiling = arithmetic.ceiling(np.zeros(WORDS, np.uint32), repeats) * SITES * SITES
    sites = 30 if quick else 100
    rows = [Row(f"sealed round in the simulator, n={SITES}, d={WORDS:,}", seconds, "s", seconds / ceiling)]
    opened, up = openings(sites, WORDS, repeats)
    rows += [*opened, *bytes_up(sites, WORDS, up)]
    series = growth(repeats, quick)
    for name, points in series.items():
        rows.append(Row(f"masking by {name}: off a straight line by", linearity(points), "x", most=0.2))
    with tempfile.TemporaryDirectory(prefix="cloister-") as folder:
        found, phases = federations(Path(folder))
    rows += found
    return {"rows": rows, "series": series, "parts": parts, "phases": phases, "seconds": seconds}


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer sites and repetitions.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One object on standard output.")] = False,
) -> None:
    """Measures whole sealed rounds; exit code 1 where a bar is missed."""
    found = measure(quick)
    rows: list[Row] = found["rows"]
    met = all(row.met for row in rows)
    if as_json:
        told = [{**asdict(row), "met": row.met} for row in rows]
        print(json.dumps({**found, "rows": told, "met": met}))
    else:
        Console().print(table(rows))
    raise typer.Exit(0 if met else 1)


def table(rows: list[Row]) -> Table:
    shown = Table(title="Whole sealed rounds")
    for heading in ("what", "measured", "ratio", "bar"):
        shown.add_column(heading, justify="left" if heading == "what" else "right")
    for row in rows:
        bar = f"≥ {row.least}" if row.least is not None else f"≤ {row.most}" if row.most is not None else ""
        verdict = f"{'[green]met[/]' if row.met else '[red]missed[/]'} {bar}" if bar else ""
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        shown.add_row(row.what, f"{row.value:.3f} {row.unit}", ratio, verdict)
    return shown


if __name__ == "__main__":
    typer.run(main)
