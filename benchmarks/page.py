"""docs/performance.md and its plots: `make bench` runs every benchmark, ARGS=--write puts what it measured there.

    python benchmarks/page.py [--quick] [--write] [--only NAME]

Each benchmark runs in a process of its own, one after the other. The parts of the page stand between markers, as in
docs/reproductions.md; `peers.py` writes its own. Exits 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
PAGE = DOCS / "performance.md"
NAMES = ("seal", "round", "memory", "simulation")
LIBRARIES = ("cryptography", "numpy", "torch")
INK, SECOND, PALE = "#1f5fa8", "#c2571a", "#9a9a9a"


def write(name: str, lines: Sequence[str]) -> None:
    """Puts the lines between `<!-- name -->` and `<!-- /name -->`."""
    inside = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    body = "\n".join(lines) + "\n"
    PAGE.write_text(inside.sub(lambda found: found[1] + body + found[2], PAGE.read_text()))


def stamp(libraries: Sequence[str] = LIBRARIES) -> str:
    """Where and when a part was measured."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    versions = ", ".join(f"{each} {importlib.metadata.version(each)}" for each in libraries)
    load, today = os.getloadavg()[0], datetime.datetime.now(datetime.UTC)
    return (
        f"{today:%Y-%m-%d}, {os.cpu_count()} cores of {model[1] if model else 'a CPU'}, "
        f"Python {platform.python_version()}, {versions}; load before it {load:.1f}."
    )


def figure(path: Path, draw: Any, size: tuple[float, float] = (7.0, 2.6)) -> None:
    """An SVG whose bytes depend on nothing but what is drawn."""
    with mpl.rc_context({"svg.hashsalt": "cloister", "svg.fonttype": "none", "font.size": 9}):
        shown = Figure(figsize=size, layout="constrained")
        draw(shown)
        for axes in shown.axes:
            axes.spines[["top", "right"]].set_visible(False)
        shown.savefig(path, metadata={"Date": None})


def bars(axes: Any, names: Sequence[str], values: Sequence[float], form: str = "{:,.0f}") -> None:
    """Horizontal bars, the first on top, cloister's in colour."""
    colours = [INK if name.startswith("cloister") else PALE for name in names]
    drawn = axes.barh(range(len(names)), values, color=colours)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.bar_label(drawn, [form.format(value) for value in values], padding=3)
    axes.margins(x=0.2)


# --- the parts


def seal(found: Any) -> list[str]:
    lines = ["| what | sites | words | seconds | to its ceiling | bar |", "|---|---|---|---|---|---|"]
    for row in found:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        bar = "< 0.3 s" if row["ratio"] is None else "≤ 1.3"
        words = f"{row['words']:,}" if row["words"] else ""
        verdict = "met" if row["met"] else "**missed**"
        lines.append(
            f"| {row['what']} | {row['sites']} | {words} | {row['seconds']:.3f} | {ratio} | {bar} {verdict} |"
        )
    return lines


def round(found: Any) -> list[str]:
    lines = ["| what | measured | ratio | bar |", "|---|---|---|---|"]
    for row in found["rows"]:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        bar = f"≥ {row['least']}" if row["least"] else f"≤ {row['most']}" if row["most"] else ""
        verdict = ("met" if row["met"] else "**missed**") if bar else ""
        lines.append(f"| {row['what']} | {row['value']:.3f} {row['unit']} | {ratio} | {bar} {verdict} |")

    def draw(shown: Figure) -> None:
        left, right = shown.subplots(1, 2)
        left.plot(*zip(*found["series"]["sites"], strict=True), "o-", color=INK)
        left.set(xlabel="sites (a million words)", ylabel="seconds of masking, one site", xlim=0, ylim=0)
        right.plot(*zip(*((x / 1e6, y) for x, y in found["series"]["words"]), strict=True), "o-", color=SECOND)
        right.set(xlabel="million words (20 sites)", xlim=0, ylim=0)

    figure(DOCS / "performance-growth.svg", draw)
    return [*lines, "", "![A site's masking, by sites and by words](performance-growth.svg)"]


def memory(found: Any) -> list[str]:
    mega = {name: found[name] / 1e6 for name in ("idle", "baseline", "opened", "learnt", "upload_bytes")}
    verdict = "met" if found["met"] else "**missed**"

    def draw(shown: Figure) -> None:
        axes = shown.subplots()
        names = ("before the run", "waits for the uploads", "until the sum is open", "until the round is saved")
        bars(axes, names, [mega[name] for name in ("idle", "baseline", "opened", "learnt")], "{:,.0f} MB")
        axes.axvline(mega["baseline"] + 3 * mega["upload_bytes"], color=SECOND, linestyle=":")

    figure(DOCS / "performance-memory.svg", draw, (7.0, 1.8))
    return [
        f"{found['sites']} uploads of {mega['upload_bytes']:.0f} MB: {found['uploads_above']:.2f} uploads above the "
        f"coordinator that waits for them, until the sum is open (bar: < 3, {verdict}; dotted).",
        "",
        "![The coordinator's resident memory](performance-memory.svg)",
    ]


def simulation(found: Any) -> list[str]:
    lines = ["| model | engine | clients/s | ratio | bar |", "|---|---|---|---|---|"]
    for row in found["rows"]:
        bar = f"≥ {row['target']:.2f} {'met' if row['met'] else '**missed**'}" if row["target"] else ""
        lines.append(
            f"| {row['model']} | {row['what']} | {row['clients_per_second']:,.0f} | {row['ratio']:.2f} | {bar} |"
        )
    crowd = found["crowd"]
    return [
        *lines,
        "",
        f"An empty task: {found['overhead_seconds'] * 1e6:.0f} µs a client (bar: 100). {crowd['clients']:,} clients, "
        f"cohort {crowd['cohort']:,}: {crowd['seconds_per_round']:.1f} s a round, memory grown by "
        f"{crowd['growth_bytes'] / 2**20:.1f} MiB in {crowd['rounds']} rounds (bar: 64).",
    ]


PARTS = {"seal": seal, "round": round, "memory": memory, "simulation": simulation}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller numbers, where a benchmark has them")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md, with its plots")
    parser.add_argument("--only", choices=NAMES, help="one of them")
    arguments = parser.parse_args()
    missed = []
    for name in (arguments.only,) if arguments.only else NAMES:
        measured_at = stamp()
        command = [sys.executable, str(HERE / f"{name}.py"), *(["--quick"] if arguments.quick else [])]
        if not arguments.write:
            print(f"== benchmarks/{name}.py", flush=True)
            missed += [name] * (subprocess.run(command, check=False).returncode != 0)
            continue
        ended = subprocess.run([*command, "--json"], check=False, capture_output=True, text=True)
        if not ended.stdout.strip():
            sys.stderr.write(ended.stderr[-2000:])
            return 1
        missed += [name] * (ended.returncode != 0)
        write(name, [f"Measured {measured_at}", "", *PARTS[name](_rows(json.loads(ended.stdout)))])
        print(f"wrote {name} into {PAGE.name}" + (": a bar is missed" if ended.returncode else ""), flush=True)
    return 1 if missed else 0


def _rows(found: Any) -> Any:
    """seal.py prints its rows alone."""
    return found["rows"] if isinstance(found, dict) and set(found) <= {"rows", "threads", "cores"} else found


if __name__ == "__main__":
    sys.exit(main())
