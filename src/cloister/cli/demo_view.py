"""What the demonstration shows at its end: whether it was worth it, what the coordinator saw, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloister.cli.output import size, table
from cloister.cli.progress import METRICS


def lines(outcome: Mapping[str, Any]) -> list[Any]:
    """The end of a demonstration, for people."""
    made: list[Any] = ["", _worth(outcome), "", *_saw(outcome), "", _cost(outcome), ""]
    if struck := outcome["killed"]:
        how = "the sum opened" if struck["opened"] else "[red]the sum did not open[/red]"
        made.append(
            f"[bold]{struck['site']}[/bold] was killed (SIGKILL) in round {struck['round']}, its keys shared: "
            f"{struck['survivors']} of {struck['sites']} sites answered, {struck['threshold']} were needed, {how}"
        )
    else:
        made.append(f"no site was killed: of {len(outcome['sites'])} sites none may be lost in a round")
    made.append(f"rounds opened: {outcome['rounds_opened']} of {outcome['rounds_asked']}")
    made.append(_verdict(outcome))
    made.append(outcome["privacy"]["sentence"])
    made.append(f"results in [bold]{outcome['results']}[/bold]")
    if kept := outcome.get("processes"):
        pids = " ".join(str(pid) for pid in kept.values())
        made += [
            "",
            f"still running at {outcome['url']}: " + ", ".join(f"{name} {pid}" for name, pid in kept.items()),
        ]
        made.append(f"stop them with: kill {pids}")
    return made


def _worth(outcome: Mapping[str, Any]) -> Any:
    columns = [name for name in METRICS if name in outcome["table"]["federated"]]
    rows = [
        [name, *("-" if scores.get(column) is None else f"{scores[column]:.4f}" for column in columns)]
        for name, scores in outcome["table"].items()
    ]
    title = f"Is it worth federating? ({outcome['test_rows']} test rows of all sites; local-only is the sites' mean)"
    return table(title, ["model", *columns], rows)


def _verdict(outcome: Mapping[str, Any]) -> str:
    if outcome["better"]:
        return f"[green]the federated model beats the mean local-only model[/green] ({outcome['judged_by']})"
    return f"[red]the federated model does not beat the mean local-only model[/red] ({outcome['judged_by']})"


def _saw(outcome: Mapping[str, Any]) -> list[Any]:
    seen = outcome["coordinator_saw"]
    rows = [[entry["site"], _words(entry["masked"]), _words(entry["true"]), _said(entry["said"])] for entry in seen]
    title = f"What the coordinator saw of each site in the last round: the first of {seen[0]['words']} words"
    return [table(title, ["site", "masked: all it has", "true: never left the site", "which say"], rows)]


def _words(words: list[int]) -> str:
    return " ".join(f"{word:08x}" for word in words)


def _said(said: Mapping[str, float]) -> str:
    names = {"test/rows": "test rows", "test/correct": "correct", "test/loss": "loss"}
    return ", ".join(f"{said[name]:.4g} {label}" for name, label in names.items() if name in said)


def _cost(outcome: Mapping[str, Any]) -> Any:
    seconds = outcome["seconds"]
    rows = [[name, f"{value:.2f} s"] for name, value in seconds.items()]
    rows += [
        [f"{name} up / down", f"{size(up)} / {size(outcome['bytes']['down'][name])}"]
        for name, up in outcome["bytes"]["up"].items()
    ]
    return table("What it cost", ["phase or site", "seconds or bytes"], rows)
