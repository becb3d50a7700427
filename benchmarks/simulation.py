"""How fast a simulated federation trains, beside the loop that one would write by hand, in the same run.

    python benchmarks/simulation.py [--quick] [--repeats N] [--json]

FedAvg with 1,000 clients of 50 images of 28 x 28, a cohort of 50, one local epoch, batches of 10: a perceptron of
100,000 parameters and a small convolutional net. The loop by hand trains the same clients with torch.nn, torch.optim
and one module for all, on one thread, and averages as it goes: what pays for no federation, seal or check.

All take turns, again and again, of a few rounds each, as a simulation runs them: a core that has slept while others
had their turn is slow to begin. Clients per second are of whole rounds: asking, training, fixed point, summing,
opening, the new model; of the fastest turn. A ratio is the median of the ratios within each turn: a machine that is
shared runs faster and slower, its cores each for itself, and one core meets a fast moment more often than two
together. Every engine has seen every client before the first round that counts.

What two cores can give is measured as well: two serial simulations at once, which share nothing but the machine. The
bar for two processes is 1.8 times the bar of one, which is 90 % of two cores; to the serial engine itself, 90 % of
what the two simulations at once reach in the same run, where that is less than two.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

import cloister as cl
from cloister import learn
from cloister.algorithms import Terms, Trained
from cloister.learn import trainer
from cloister.learn.models import declarative
from cloister.round import Program
from cloister.round.loop import cores
from cloister.simulation.cohort import LocalCohort
from cloister.simulation.engine import Engine, make_engine
from cloister.simulation.sealing import Ideal
from cloister.vector import State
from workload import BATCH, CLIENTS, COHORT, LR, ROWS, Net, epoch, perceptron
from workload import images as drawn

TARGETS = {"mlp": 1.5, "cnn": 1.0}  # of the serial engine, to the loop by hand
TARGET_SHARE = 0.9  # of what so many processes could reach
TARGET_OVERHEAD_SECONDS = 100e-6
ROUNDS_A_TURN = 4
TARGET_GROWTH_BYTES = 64 << 20


@dataclass(frozen=True)
class Row:
    """One measurement. ratio: to the loop by hand, or to the serial engine. target: the least (None: no bar)."""

    model: str
    what: str
    clients_per_second: float
    ratio: float
    target: float | None

    @property
    def met(self) -> bool:
        return self.target is None or self.ratio >= self.target


def images() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    x, y = drawn()
    return {f"client-{at}": (x[at], y[at]) for at in range(CLIENTS)}


def by_hand(
    make: Callable[[], nn.Module], data: Mapping[str, tuple[np.ndarray, np.ndarray]], *, compiled: bool = False
) -> Callable[[], None]:
    """One round of the bare loop. Its images are floats in memory already."""
    torch.manual_seed(0)
    module = make()
    forward = torch.compile(module) if compiled else module
    model = {name: value.clone() for name, value in module.state_dict().items()}
    names = list(data)
    tensors = {site: (torch.from_numpy(x).float() / 255, torch.from_numpy(y)) for site, (x, y) in data.items()}
    rng = np.random.default_rng(0)

    def round_() -> None:
        mean = {name: torch.zeros_like(value) for name, value in model.items()}
        for at in rng.choice(CLIENTS, COHORT, replace=False):
            x, y = tensors[names[at]]
            module.load_state_dict(model)
            epoch(forward, x, y)
            for name, value in module.state_dict().items():
                mean[name] += value / COHORT
        model.update(mean)

    return round_


def compiled_by_hand(
    make: Callable[[], nn.Module], data: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, Callable[[], None]]:
    """The same with torch.compile; nothing, with a note, where no C++ compiler is."""
    round_ = by_hand(make, data, compiled=True)
    try:
        round_()
    except Exception as fault:
        print(f"torch.compile is left out: {type(fault).__name__}.", file=sys.stderr)
        return {}
    return {"compiled": round_}


class Rounds:
    """A simulation that goes on by one training round a call, as `cl.simulate` does."""

    def __init__(self, job: cl.Job, data: Mapping[str, Any], engine: Engine) -> None:
        self._program, self.engine = Program(job, {}), engine
        self._cohort = LocalCohort(job, engine, list(data), Ideal())
        self.state: State = self._program.start()
        self()  # the profile: how many rows there are

    def warm(self) -> None:
        """Asks every client once, so that the engine has made whatever it keeps of them."""
        query = self._program.ask(self.state)
        assert query is not None
        self._cohort.sum(replace(query, fraction=1.0))

    def __call__(self) -> None:
        query = self._program.ask(self.state)
        assert query is not None
        self.state = self._program.learn(self.state, self._cohort.sum(query))
        self._cohort.settle(self.state)


class AtOnce:
    """So many serial simulations, each in a process of its own: a call is a round of all of them."""

    def __init__(self, job: cl.Job, data: Mapping[str, Any], count: int) -> None:
        context, self._ends = multiprocessing.get_context("fork"), list[Connection]()
        for _ in range(count):
            here, there = context.Pipe()
            context.Process(target=self._rounds, args=(job, data, there), daemon=True).start()
            self._ends.append(here)

    @staticmethod
    def _rounds(job: cl.Job, data: Mapping[str, Any], end: Connection) -> None:
        rounds = Rounds(job, data, make_engine("serial", job, data))
        rounds.warm()
        while end.recv():
            rounds()
            end.send(True)

    def __call__(self) -> None:
        for end in self._ends:
            end.send(True)
        for end in self._ends:
            end.recv()

    def close(self) -> None:
        for end in self._ends:
            end.send(False)


def job_of(model: Any, cohort: float = COHORT / CLIENTS, shape: tuple[int, ...] = (1, 28, 28)) -> cl.Job:
    task = cl.Torch(model, "cross_entropy", cl.SGD(lr=LR), epochs=1, batch_size=BATCH)
    return learn.complete(
        cl.Job(cl.Arrays("images", shape, 10), task, cl.FedAvg(rounds=10**6, cohort=cohort), evaluate=None)
    )


def in_turns(contenders: Mapping[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of a round of each one, turn by turn; a first turn of each warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, round_ in contenders.items():
            begin = time.perf_counter()
            for _ in range(ROUNDS_A_TURN):
                round_()
            if repeat:
                seconds[name].append((time.perf_counter() - begin) / ROUNDS_A_TURN)
    return seconds


def faster(base: list[float], seconds: list[float]) -> float:
    """How many times as fast as the base, in the median turn."""
    return statistics.median(one / other for one, other in zip(base, seconds, strict=True))


def throughput(name: str, make: Callable[[], nn.Module], model: Any, repeats: int, processes: int) -> Iterator[Row]:
    data, job = images(), job_of(model)
    torch.set_num_threads(1)
    engines = {"serial": make_engine("serial", job, data)}
    if declarative(job):
        engines["batched"] = make_engine("batched", job, data)
    if processes > 1:
        engines["processes"] = make_engine("processes", job, data, processes)
    at_once = AtOnce(job, data, processes)
    try:
        rounds = {what: Rounds(job, data, engine) for what, engine in engines.items()}
        for each in rounds.values():
            each.warm()
        contenders = {"by hand": by_hand(make, data), "at once": at_once, **rounds, **compiled_by_hand(make, data)}
        seconds = in_turns(contenders, repeats)
    finally:
        for running in (at_once, *engines.values()):
            running.close()
    best = {what: min(rounds_) for what, rounds_ in seconds.items()}
    yield Row(name, "by hand, one thread", COHORT / best["by hand"], 1.0, None)
    if "compiled" in seconds:
        ratio = faster(seconds["by hand"], seconds["compiled"])
        yield Row(name, "by hand, torch.compile", COHORT / best["compiled"], ratio, None)
    ceiling = processes * faster(seconds["serial"], seconds["at once"])
    if processes > 1:
        speed = processes * COHORT / best["at once"]
        yield Row(name, f"{processes} serial simulations at once, to one", speed, ceiling, None)
    for what in rounds:
        ratio, speed = faster(seconds["by hand"], seconds[what]), COHORT / best[what]
        if what != "processes":
            yield Row(name, f"{what}, one thread", speed, ratio, TARGETS[name] if what == "serial" else None)
            continue
        to_serial, least = faster(seconds["serial"], seconds[what]), TARGET_SHARE * min(processes, ceiling)
        yield Row(name, f"{what}, {processes} processes to serial", speed, to_serial, least)
        yield Row(name, f"{what}, {processes} processes", speed, ratio, TARGET_SHARE * processes * TARGETS[name])


class Nothing:
    """A model that learns nothing at no cost: what is left is the engine."""

    def few(self, rows: int) -> int:
        return 0

    def train(self, flat: np.ndarray, rows: Any, seed: int, round_: int, terms: Terms) -> Trained:
        return Trained(np.zeros(flat.shape, np.float32), 0.0, 0)


def overhead(repeats: int) -> float:
    """Seconds a client of an engine whose task is empty."""
    x, y = np.zeros((3, 1), np.float32), np.array([0, 1, 2])
    data = {f"client-{at}": (x, y) for at in range(CLIENTS)}
    job = job_of(cl.nets.Linear(), cohort=1.0, shape=(1,))
    original, trainer.back_end = trainer.back_end, lambda *_: Nothing()  # type: ignore[assignment]
    try:
        rounds = Rounds(job, data, make_engine("serial", job, data))
        return min(in_turns({"empty": rounds}, repeats)["empty"]) / CLIENTS
    finally:
        trainer.back_end = original


class Crowd(Mapping[str, Any]):
    """100,000 clients, each made when it is asked."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __getitem__(self, site: str) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(int(site.partition("-")[2]))
        y = rng.integers(0, 10, 20)
        return rng.normal(size=(20, 16)).astype(np.float32) + y[:, None], y

    def __iter__(self) -> Iterator[str]:
        return (f"client-{at}" for at in range(self._count))

    def __len__(self) -> int:
        return self._count


def crowd(clients: int, cohort: int, rounds: int) -> dict[str, Any]:
    """A large cohort of a crowd: time of a round, and memory after the first and after the last."""
    job = cl.Job(
        cl.Arrays("crowd", (16,), 10),
        cl.Torch(cl.nets.MLP([32]), "cross_entropy", cl.SGD(lr=LR), batch_size=BATCH),
        cl.FedAvg(rounds=10**6, cohort=cohort / clients),
        evaluate=None,
        bits=64,  # what 32 bits leave to one of 100,000 is too coarse
    )
    data = Crowd(clients)
    running = Rounds(job, data, make_engine("serial", job, data))
    running()
    before = resident_bytes()
    begin = time.perf_counter()
    for _ in range(rounds):
        running()
    seconds = (time.perf_counter() - begin) / rounds
    return {
        "clients": clients,
        "cohort": cohort,
        "rounds": rounds,
        "seconds_per_round": seconds,
        "resident_bytes": resident_bytes(),
        "growth_bytes": resident_bytes() - before,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repetitions, a smaller crowd.")] = False,
    repeats: Annotated[int, typer.Option(help="Turns of each contender.")] = 12,
    processes: Annotated[int, typer.Option(help="Of the process engine.")] = min(2, cores()),
    as_json: Annotated[bool, typer.Option("--json", help="One object on standard output.")] = False,
) -> None:
    """Measure a simulation beside the loop by hand; exit code 1 where a bar is missed."""
    repeats = 3 if quick else repeats
    rows = [
        *throughput("mlp", perceptron, cl.nets.MLP([128]), repeats, processes),
        *throughput("cnn", Net, Net, repeats, processes),
    ]
    empty = overhead(2 if quick else 5)
    large = crowd(10_000, 1_000, 2) if quick else crowd(100_000, 10_000, 3)
    bars = [row.met for row in rows]
    bars += [empty <= TARGET_OVERHEAD_SECONDS, large["growth_bytes"] <= TARGET_GROWTH_BYTES]
    if as_json:
        told = [{**asdict(row), "met": row.met} for row in rows]
        print(json.dumps({"rows": told, "overhead_seconds": empty, "crowd": large, "met": all(bars)}))
    else:
        show(rows, empty, large)
    raise typer.Exit(0 if all(bars) else 1)


def show(rows: list[Row], empty: float, large: Mapping[str, Any]) -> None:
    table = Table(title=f"FedAvg, {CLIENTS} clients of {ROWS} images, cohort {COHORT}, batches of {BATCH}")
    for column in ("model", "engine", "clients/s", "ratio", "bar"):
        table.add_column(column, justify="left" if column in ("model", "engine") else "right")
    for row in rows:
        bar = "" if row.target is None else f"{'met' if row.met else 'MISSED'}: {row.target:.2f}"
        table.add_row(row.model, row.what, f"{row.clients_per_second:,.0f}", f"{row.ratio:.2f}", bar)
    console = Console()
    console.print(table)
    console.print(f"an empty task: {empty * 1e6:.0f} µs a client (bar: {TARGET_OVERHEAD_SECONDS * 1e6:.0f})")
    console.print(
        f"{large['clients']:,} clients, cohort {large['cohort']:,}: {large['seconds_per_round']:.1f} s a round, "
        f"{large['resident_bytes'] / 2**20:.0f} MiB, grown by {large['growth_bytes'] / 2**20:.1f} MiB "
        f"in {large['rounds']} rounds (bar: {TARGET_GROWTH_BYTES >> 20})"
    )


if __name__ == "__main__":
    typer.run(main)
