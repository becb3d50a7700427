"""`cloister site budget`: what every dataset has spent, what is left, and how it came to that."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from cloister.cli.output import AsJson, finish, table
from cloister.vector.errors import UsageError

SUFFIXES = (".svg", ".png", ".pdf")


def budget(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The site's folder.")],
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="The burn-down: .svg, .png or .pdf.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="The accounts, signed by this site's key.")
    ] = None,
    lost: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="After the folder was restored and the newest ledger is gone: take all charges up to N, the one that"
            " the refusal names, for spent. Budgets are spent in full then, until policy.toml grants more.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What each dataset has spent of its privacy budget, over all jobs and coordinators."""
    from cloister.site import budget as site

    if lost is not None:
        from cloister.site.restore import write_off

        told = write_off(folder, lost)
        said = f"{told['lost']} charges that are missing count as spent: {', '.join(told['datasets'])}"
        return finish(told, as_json, [said], f"cloister site budget {folder}")
    if plot is not None and plot.suffix not in SUFFIXES:
        raise UsageError(f"--plot {plot}: not one of {', '.join(SUFFIXES)}.", mend=f"Try {plot.with_suffix('.svg')}.")
    found = site.account(folder, over_time=plot is not None)
    lines: list[Any] = [_accounts(found)] if found["datasets"] else ["nothing has been asked of any dataset yet"]
    if plot is not None:
        burn_down(found).savefig(plot)
        lines.append(f"burn-down in [bold]{plot}[/bold]")
    if export is not None:
        export.write_bytes(site.export(folder))
        lines.append(f"signed statement in [bold]{export}[/bold]")
    return finish(found, as_json, lines, "" if plot else f"cloister site budget {folder} --plot budget.svg")


def _accounts(found: Mapping[str, Any]) -> Any:
    rows = []
    for each in found["datasets"]:
        limit = "-" if each["budget"] is None else f"{each['budget']:g}"
        left = "-" if each["left"] is None else f"{each['left']:.3g}"
        today = str(each["rounds_today"]) + (f" of {each['rounds_a_day']}" if each["rounds_a_day"] else "")
        cost = f"{each['epsilon']:.3g}" + (" + exact" if each["exact_rounds"] else "")
        rows.append([each["name"], cost, limit, left, f"{each['delta']:g}", str(each["rounds"]), today])
    title = f"site {found['site']}, {found['entries']} charges"
    return table(title, ["dataset", "epsilon spent", "budget", "left", "at delta", "rounds", "today"], rows)


def burn_down(found: Mapping[str, Any]) -> Any:
    """A matplotlib figure: for each dataset what was left after each charge, or what was spent without a budget."""
    from matplotlib.figure import Figure

    datasets = found["datasets"]
    figure = Figure(figsize=(6.0, 2.6 * max(len(datasets), 1)), layout="constrained")
    for axes, each in zip(figure.subplots(max(len(datasets), 1), 1, squeeze=False)[:, 0], datasets, strict=False):
        times = [datetime.fromisoformat(at) for at, _ in each["over_time"]]
        spent = [cost for _, cost in each["over_time"]]
        limit = each["budget"]
        shown = spent if limit is None else [limit - cost for cost in spent]
        axes.step(times, shown, where="post", color="#2f5bd8", lw=1.8)
        axes.plot(times, shown, "o", color="#2f5bd8", ms=3)
        if limit is not None:
            axes.axhline(0.0, color="#b3261e", lw=1.2, ls="--")
            axes.set_ylim(-0.05 * limit, 1.05 * limit)
        what = "ε spent (no budget)" if limit is None else f"ε left of {limit:g}"
        axes.set(title=f"{each['name']}, at δ = {each['delta']:g}", ylabel=what)
        axes.tick_params(axis="x", labelrotation=20)
    return figure
