"""report.html: what came out, whether it was worth it, what it cost and what left the sites, on one page.

One self-contained file: no script at all, no font, image or style from elsewhere (its own content security policy
forbids them), light and dark, on a phone or on paper. Everything that is not ours is escaped by the template.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import pandas as pd
from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from cloister.learn.charts import Reference, Series, bars, lines, number, shares, strip
from cloister.learn.comparison import HIGHER_IS_BETTER, Comparison
from cloister.learn.partition import Partition
from cloister.learn.result import Result, added
from cloister.vector import digest

LABELS = {"accuracy": "Accuracy", "auc": "AUC", "loss": "Loss", "rmse": "RMSE", "mae": "MAE"}
HEADLINE = ("accuracy", "rmse", "loss")  # the first that was measured carries the verdict
MOST_DRAWN = 60  # sites in a picture
MOST_LISTED = 200  # sites and receipts that the page lists one by one


def render(result: Result) -> str:
    """The whole page."""
    history = result.history
    page = {
        "title": result.job.name or result.job.data.name,
        "target": result.job.data.target,
        "digest": result.job.digest.hex(),
        "model_sha256": digest(result.model_bytes).hex(),
        "parameters": sum(int(value.size) for value in result.tensors.values()),
        "task": type(result.job.task).__name__,
        "algorithm": result.job.algorithm.name,
        "code": result.job.ships_code,
        "verdict": _verdict(result),
        "facts": _facts(result, history),
        "comparison": _comparison(result.comparison),
        "curves": _curves(result, history),
        "lie": _lie(result),
        "malice": _malice(result),
        "rounds": _rounds(result, history),
        "seal": result.privacy.seal,
        "privacy": _privacy(result),
        "receipts": [digest(receipt).hex() for receipt in result.receipts[-MOST_LISTED:]],
        "receipts_before": max(0, len(result.receipts) - MOST_LISTED),
        "history": [[_cell(str(name), value) for name, value in row.items()] for row in history.to_dict("records")],
        "columns": [str(name).replace("_", " ") for name in history],
        "manifest": json.dumps(result.job.manifest(), indent=2, sort_keys=True),
    }
    return template("report.html.j2").render(page)


@cache
def template(name: str) -> Template:
    """A page of this room. Everything that is not ours is escaped."""
    loader = FunctionLoader(lambda name: files("cloister.learn").joinpath(name).read_text("utf-8"))
    pages = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return pages.get_template(name)


def _verdict(result: Result) -> dict[str, str]:
    """The answer in a sentence or two, and its tone: "good", "even" or "bad"."""
    comparison = result.comparison
    scores: Mapping[str, float | None] = comparison.federated if comparison else result.final
    name = next((metric for metric in HEADLINE if scores.get(metric) is not None), None)
    if name is None:
        return {"tone": "even", "head": "Trained.", "text": "The job asked for no evaluation."}
    ours, label = scores[name], LABELS[name].lower() if name != "rmse" else "RMSE"
    assert ours is not None
    alone = comparison.local_mean(name) if comparison else None
    if comparison is None or alone is None:
        text = "Measured by sealed sums over all sites' test rows."
        return {"tone": "even", "head": f"{label.capitalize()} {number(ours)}.".replace("Rmse", "RMSE"), "text": text}
    sign = 1.0 if HIGHER_IS_BETTER[name] else -1.0
    gain, noise = sign * (ours - alone), 0.5 / max(comparison.test_rows, 1)
    better, equal, worse = comparison.against_local(name)
    pooled = comparison.pooled.get(name)
    text = f"The federated model reaches {label} {number(ours)}; a site alone reaches {number(alone)} on average"
    text += f", and all rows in one place {number(pooled)}." if pooled is not None else "."
    text += f" It beats the site's own model at {better} of {better + equal + worse} sites"
    text += f" and equals it at {equal}." if equal else "."
    if gain > noise and better > worse:
        return {"tone": "good", "head": "Federating pays here.", "text": text}
    if gain > noise:
        return {"tone": "even", "head": "Federating pays for some sites.", "text": text}
    if gain < -noise:
        return {"tone": "bad", "head": "Federating does not pay here.", "text": text}
    return {"tone": "even", "head": "Federating makes no difference here.", "text": text}


def _facts(result: Result, history: pd.DataFrame) -> list[tuple[str, str]]:
    """The row of numbers under the title."""
    trained = history[history["round"] > 0] if len(history) else history
    found = [("Rounds", f"{len(trained)}")]
    if len(trained):
        fewest, most = int(trained["sites"].min()), int(history["sites"].max())
        found.append(("Sites in each sum", f"{most}" if fewest == most else f"{fewest}–{most}"))
        found.append(("Training rows", f"{int(history['rows'].max()):,}"))
    opened = [event for event in result.events if event.get("event") == "round"]  # preparation and evaluation too
    for name, label, shown in (
        ("seconds", "Time", duration),
        ("bytes_up", "Sent by sites", _bytes),
        ("bytes_down", "Sent to sites", _bytes),
    ):
        if total := sum(added(event[name]) for event in opened if event.get(name)):
            found.append((label, shown(total)))
    if len(trained) and trained["clipped"].sum() > 0:
        found.append(("Values clipped", f"{int(trained['clipped'].sum()):,}"))
    return found


def _comparison(comparison: Comparison | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    metrics = [name for name in LABELS if comparison.federated.get(name) is not None]
    rows = []
    for label, role, scores in (
        ("A site alone", "local", {name: comparison.local_mean(name) for name in metrics}),
        ("Federated", "federated", comparison.federated),
        ("All rows in one place", "pooled", comparison.pooled),
    ):
        rows.append({"label": label, "role": role, "values": [number(scores.get(name)) for name in metrics]})
    sites = [
        {
            "site": site,
            "rows": f"{comparison.train_rows.get(site, 0):,}",
            "values": [number(scores.get(m)) for m in metrics],
        }
        for site, scores in list(comparison.local.items())[:MOST_LISTED]
    ]
    return {
        "metrics": [LABELS[name] for name in metrics],
        "rows": rows,
        "sites": sites,
        "more_sites": max(0, len(comparison.local) - MOST_LISTED),
        "test_rows": f"{comparison.test_rows:,}",
        "strips": [
            {"label": LABELS[name], "better": better(name), "svg": _strip(comparison, name)} for name in metrics
        ],
    }


def better(metric: str, high: str = "right", low: str = "left") -> str:
    return f"{high if HIGHER_IS_BETTER[metric] else low} is better"


def _strip(comparison: Comparison, metric: str) -> Markup:
    levels = [
        Reference(name, role, value)
        for name, role, value in (
            ("all rows in one place", "pooled", comparison.pooled.get(metric)),
            ("federated", "federated", comparison.federated.get(metric)),
        )
        if value is not None
    ]
    return strip(
        list(comparison.local_values(metric).items()), levels, label=f"{LABELS[metric]} of each site's own model"
    )


def _lie(result: Result) -> dict[str, Any] | None:
    """How the rows lie, where a simulation knows it."""
    found = result.conditions.get("partition")
    if not isinstance(found, Partition):
        return None
    drawn = list(found.counts.items())[:MOST_DRAWN]
    svg = shares(drawn, found.labels, label="Rows of each label at each site")
    return {"labels": found.labels, "svg": svg, "sites": len(drawn), "of": found.sites} if svg else None


def _malice(result: Result) -> str:
    """What malicious sites did in a simulation; empty where there were none."""
    told = result.conditions
    if "attack" not in told:
        return ""
    names = ", ".join(told["attackers"][:MOST_DRAWN])
    text = f"{len(told['attackers'])} sites were malicious ({told['attack']}): {names}."
    success = told.get("backdoor_success")
    return text if success is None else f"{text} The model falls for {success:.1%} of rows with the backdoor's mark."


def _curves(result: Result, history: pd.DataFrame) -> list[dict[str, Any]]:
    found = []
    rounds = [int(value) for value in history["round"]] if len(history) else []
    for name, label in LABELS.items():
        series = [Series("test", "federated", _values(history, name))] if name in history else []
        if name == "loss" and "train_loss" in history:
            series.append(Series("training", "training", _values(history, "train_loss")))
        if name == "accuracy" and "site_accuracy" in history:
            series.append(Series("mean of sites", "training", _values(history, "site_accuracy")))
        if not series:
            continue
        comparison, references = result.comparison, []
        if comparison is not None:
            pairs = (
                ("a site alone", "local", comparison.local_mean(name)),
                ("pooled", "pooled", comparison.pooled.get(name)),
            )
            references = [Reference(shown, role, value) for shown, role, value in pairs if value is not None]
        legend = [(line.name, line.role, number(_last(line.values))) for line in series]
        legend += [(reference.name, f"{reference.role} dashed", number(reference.value)) for reference in references]
        svg = lines(rounds, series, references)
        if svg:
            found.append({"label": label, "legend": legend, "svg": svg})
    return found


def _rounds(result: Result, history: pd.DataFrame) -> list[dict[str, Any]]:
    """Who took part, and the seconds by phase, for each round of training."""
    trained = history[history["round"] > 0] if len(history) else history
    if not len(trained):
        return []
    rounds = [int(value) for value in trained["round"]]
    asked = _asked(result, trained)
    counted = [float(value) for value in trained["sites"]]
    missing = [max(0.0, before - after) for before, after in zip(asked, counted, strict=True)]
    stacks = [("in the sum", counted), ("missing", missing)] if any(missing) else [("in the sum", counted)]
    found = [{"label": "Sites", "legend": [name for name, _ in stacks], "svg": bars(rounds, stacks)}]
    phases = _phases(result, rounds)
    if svg := bars(rounds, phases, " s") if phases else None:
        found.append({"label": "Seconds", "legend": [name for name, _ in phases], "svg": svg})
    return found


def _asked(result: Result, trained: pd.DataFrame) -> list[float]:
    """Sites asked in each round: from the events, else the most that ever answered in one round."""
    most = int(trained["sites"].max())
    return [float(result.trained.get(int(round_), {}).get("sites", most)) for round_ in trained["round"]]


def _phases(result: Result, rounds: Sequence[int]) -> list[tuple[str, list[float]]]:
    """Seconds of each phase, by round; empty where none was told."""
    told: list[Mapping[str, float]] = [result.trained.get(round_, {}).get("seconds", {}) for round_ in rounds]
    names = list(dict.fromkeys(name for seconds in told for name in seconds))
    return [(str(name), [float(seconds.get(name, 0.0)) for seconds in told]) for name in names]


def _privacy(result: Result) -> list[tuple[str, str]]:
    statement = result.privacy
    found = [("Statement", statement.sentence)]
    if statement.epsilon is None or statement.delta is None:
        found.append(("Differential privacy", "none"))
    else:
        spent = f"ε = {statement.epsilon:.3g} at δ = {statement.delta:.3g}, for one {statement.unit}"
        found.append(("Differential privacy", f"{statement.mechanism}: {spent}"))
    code = (
        "the job file's source, approved by its digest" if result.job.ships_code else "none: the job is declarative"
    )
    return [*found, ("Colluding sites withstood", str(statement.colluders)), ("Code that ran at sites", code)]


def _values(history: pd.DataFrame, name: str) -> list[float | None]:
    return [None if pd.isna(value) else float(value) for value in history[name]]


def _last(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)


def _cell(name: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if name.startswith("bytes_"):
        return _bytes(float(value))
    if name in ("round", "sites", "rows", "clipped", "test_rows"):
        return f"{int(value):,}"
    return number(float(value)) if isinstance(value, int | float) else str(value)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
