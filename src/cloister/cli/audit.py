"""`cloister audit privacy JOB`: attacks on a job's own training, and whether it keeps what it claims."""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli.output import AsJson, finish, say, table

if TYPE_CHECKING:
    from cloister.simulation.audit import Audit

app = typer.Typer(help="Attacks on a job's own training, by whoever submits or approves it.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """A group of its own, also while there is one audit."""


@app.command("privacy")
def privacy(
    job_file: Annotated[Path, typer.Argument(metavar="JOB.py", help="The job file, with privacy=cl.RowDP(...).")],
    data: Annotated[
        Path | None, typer.Option("--data", help="As for `simulate`; without it the bundled table.")
    ] = None,
    sites: Annotated[int | None, typer.Option("--sites", help="Into how many sites one table is cut.")] = None,
    canaries: Annotated[int, typer.Option(min=100, help="How many are planted: more make the bound sharper.")] = 1000,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where report.html is written.")] = Path("audit"),
    as_json: AsJson = False,
) -> None:
    """Plant canaries, guess members, invert gradients: bounds epsilon from below; exit 1 if above the claim."""
    from cloister.cli.simulate import bundled_or_refused
    from cloister.job import load_job
    from cloister.simulation.audit import audit

    job = load_job(job_file)
    source = data if data is not None else bundled_or_refused(job.data.target)
    found = audit(job, source, sites, canaries=canaries, say=say)
    out.mkdir(parents=True, exist_ok=True)
    report = out / "report.html"
    report.write_text(_page(found, job.name or job.data.name), "utf-8")
    rows = [[name, value] for name, value in _facts(found)]
    lines: list[Any] = [table("What an attacker finds", ["", ""], rows), _verdict(found)]
    finish({**found.as_json(), "report": str(report)}, as_json, lines, f"open {report}")
    if found.broken:
        raise typer.Exit(1)


def _verdict(found: Audit) -> str:
    most = max(found.lower, found.lower_gaussian)
    if found.broken:
        return f"BROKEN: epsilon is at least {most:.2f}, the job claims {found.claimed:.2f}. Do not run it."
    return f"nothing contradicts the claim: epsilon is at least {most:.2f}, the job claims {found.claimed:.2f}."


def _facts(found: Audit) -> list[tuple[str, str]]:
    told = [
        ("epsilon that the training claims", f"{found.claimed:.2f} at delta {found.delta:g}"),
        ("at least, by one-run guesses", f"{found.lower:.2f} ({found.right} of {found.guessed} right)"),
        ("at least, if the noise is Gaussian", f"{found.lower_gaussian:.2f} ({found.canaries} canaries)"),
    ]
    if found.membership_auc is not None:
        told.append(("membership from the final model, AUC", f"{found.membership_auc:.3f} (0.5 is a coin)"))
    return told + [(f"a row read off {name}", f"correlation {value:.2f}") for name, value in found.inversion.items()]


def _page(found: Audit, name: str) -> str:
    """One self-contained page: no script, nothing from elsewhere."""
    rows = "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in _facts(found))
    tone = "#b3261e" if found.broken else "#23835f"
    picture = _pictures(found) if found.pictures else ""
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Privacy audit: {html.escape(name)}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<style>body{{font:16px/1.5 system-ui;max-width:60em;margin:2em auto;padding:0 1em}}
th{{text-align:left;padding-right:2em;font-weight:400}}td{{font-variant-numeric:tabular-nums}}.verdict{{color:{tone};font-weight:600}}</style>
<h1>Privacy audit: {html.escape(name)}</h1><p class="verdict">{html.escape(_verdict(found))}</p><table>{rows}</table>
<h2>One row, read off what leaves</h2><p>The first is the row itself. The second is what its own update would show to
anybody: sealing is why nobody sees it. The third is what the sum over all sites shows, the last the job's noise.</p>
{picture}</html>"""


def _pictures(found: Audit) -> str:
    """The rows as strips of colour, or as images where they are square, side by side; inline SVG."""
    import math

    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 2.6), layout="constrained")
    for axes, (name, row) in zip(
        figure.subplots(1, len(found.pictures), squeeze=False)[0], found.pictures.items(), strict=True
    ):
        side = math.isqrt(row.size)
        image = row.reshape(side, side) if side * side == row.size and side > 3 else row.reshape(-1, 1)
        limit = float(np.abs(found.pictures["the row"]).max()) or 1.0
        axes.imshow(image, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto" if image.shape[1] == 1 else "equal")
        axes.set_title(name, fontsize=9, wrap=True)
        axes.set_xticks([])
        axes.set_yticks([])
    written = io.StringIO()
    figure.savefig(written, format="svg")
    return written.getvalue().partition("<svg")[1] + written.getvalue().partition("<svg")[2]
