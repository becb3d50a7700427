"""The same federated work in Flower, in pfl-research, in a loop by hand and in cloister: `make bench-peers`.

    python benchmarks/peers.py [--install] [--quick] [--write]

Training: FedAvg over 1,000 clients of 50 images, cohort 50, one epoch, batches of 10 (see workload.py). Sealing: one
round of 50 sites and a million parameters that train nothing, with Flower's SecAgg+ over the complete graph, and its
plain FedAvg. The peers live in .venv-peers, each in a virtual environment of its own; one that is not there is left
out, and the table says so. --write puts table and plot into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import cloister as cl
import page
import round as sealed
import simulation
import workload
from cloister.round.loop import cores

HOME = page.HERE.parent / ".venv-peers"
TORCH = "torch==2.13.0"
PACKAGES = {"flower": ("flwr[simulation]==1.41.0", TORCH), "pfl": ("pfl[pytorch]==0.6.0", TORCH)}
SCRIPTS = {"flower": "flower.py", "pfl": "pfl_research.py"}
SHOWN = {"flower": "Flower 1.41", "pfl": "pfl-research 0.6"}
LIMIT_SECONDS = 900
BAR = 20.0  # how often a sealed round fits into one of SecAgg+


def install() -> None:
    for name, packages in PACKAGES.items():
        if not python(name).exists():
            venv.create(HOME / name, with_pip=True)
        print(f"{name}: {' '.join(packages)}", flush=True)
        ended = subprocess.run([python(name), "-m", "pip", "install", "-q", *packages], check=False)
        if ended.returncode:
            print(f"{name} cannot be installed here; it is left out.", file=sys.stderr)


def python(name: str) -> Path:
    return HOME / name / "bin" / "python"


def peer(name: str, what: str, rounds: int) -> float | None:
    """Seconds of a peer's fastest round; None if it is not installed, or fails."""
    script = page.HERE / "peers" / SCRIPTS[name]
    if not python(name).exists():
        return None
    try:
        command = [python(name), script, what, str(rounds)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)
        lines = [line for line in ended.stdout.splitlines() if line.startswith('{"seconds"')]
        return float(min(json.loads(lines[-1])["seconds"]))
    except (IndexError, subprocess.TimeoutExpired):
        print(f"{SHOWN[name]}, {what}: it ended without a result.", file=sys.stderr)
        return None


def training(quick: bool) -> dict[str, dict[str, float | None]]:
    """Clients per second: by model, by contender."""
    found: dict[str, dict[str, float | None]] = {}
    models: dict[str, Any] = {"mlp": cl.nets.MLP([128]), "cnn": simulation.Net}
    for name, make in (("mlp", simulation.perceptron), ("cnn", simulation.Net)):
        rows = simulation.throughput(name, make, models[name], 5 if quick else 20, min(2, cores()))
        speeds: dict[str, float | None] = {
            ("" if row.what.startswith("by hand") else "cloister, ") + row.what.removesuffix(" to serial"): (
                row.clients_per_second
            )
            for row in rows
            if "at once" not in row.what  # what the machine gives, no contender
        }
        for other, rounds in (("pfl", 20), ("flower", 2)):
            seconds = peer(other, name, rounds)
            where = "one thread" if other == "pfl" else f"{cores()} Ray actors"
            speeds[f"{SHOWN[other]}, {where}"] = None if seconds is None else workload.COHORT / seconds
        found[name] = speeds
    return found


def sealing(quick: bool) -> dict[str, float | None]:
    """Seconds of a round: by contender."""
    ours, _ = sealed.whole_round(2 if quick else 5, workload.SEALED_SITES)
    return {
        "cloister, sealed": ours,
        "Flower 1.41, SecAgg+": peer("flower", "secagg", 1),
        "Flower 1.41, FedAvg, not sealed": peer("flower", "plain", 3),
    }


def lines_of(trained: dict[str, dict[str, float | None]], rounds: dict[str, float | None]) -> list[str]:
    lines = ["| model | contender | clients/s | to the loop by hand |", "|---|---|---|---|"]
    for model, speeds in trained.items():
        by_hand = speeds["by hand, one thread"]
        for name, speed in speeds.items():
            told = "not installed | " if speed is None or by_hand is None else f"{speed:,.0f} | {speed / by_hand:.2f}"
            lines.append(f"| {model} | {name} | {told} |")
    lines += ["", f"A round of {workload.SEALED_SITES} sites and a million parameters, two cores:", ""]
    lines += ["| contender | seconds | to ours |", "|---|---|---|"]
    ours = rounds["cloister, sealed"]
    assert ours is not None
    for name, seconds in rounds.items():
        told = "not installed | " if seconds is None else f"{seconds:.2f} | {seconds / ours:.1f}"
        lines.append(f"| {name} | {told} |")
    return [*lines, "", "![Clients per second, and seconds of a sealed round](performance-peers.svg)"]


def plot(trained: dict[str, dict[str, float | None]], rounds: dict[str, float | None]) -> None:
    def draw(shown: Any) -> None:
        for axes, (title, values, form) in zip(
            shown.subplots(3, 1),
            (
                ("perceptron, clients/s", trained["mlp"], "{:,.0f}"),
                ("convolutional net, clients/s", trained["cnn"], "{:,.0f}"),
                ("a round of 50 sites, a million parameters, seconds", rounds, "{:.1f}"),
            ),
            strict=True,
        ):
            there = {name: value for name, value in values.items() if value is not None}
            page.bars(axes, list(there), list(there.values()), form)
            axes.set_title(title, loc="left", fontsize=9)

    page.figure(page.DOCS / "performance-peers.svg", draw, (7.0, 5.6))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="the peers into .venv-peers, first (long)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    arguments = parser.parse_args()
    if arguments.install:
        install()
    measured_at = page.stamp()
    rounds = sealing(arguments.quick)
    trained = training(arguments.quick)
    lines = lines_of(trained, rounds)
    print("\n".join(lines))
    if arguments.write:
        plot(trained, rounds)
        page.write("peers", [f"Measured {measured_at}", "", *lines])
    ours, theirs = rounds["cloister, sealed"], rounds["Flower 1.41, SecAgg+"]
    return 0 if ours is None or theirs is None or theirs >= BAR * ours else 1


if __name__ == "__main__":
    sys.exit(main())
