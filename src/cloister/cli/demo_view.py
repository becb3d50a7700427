"""What the demonstration shows at its end: whether it was worth it, what the coordinator saw, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloister.cli.events import METRICS
from cloister.cli.output import size, table


def lines(outcome: Mapping[str, Any]) -> list[Any]:
    """The end of a demonstration, for people."""
    made: list[Any] = [_worth(outcome), _verdict(outcome), _saw(outcome), *_cost(outcome), _struck(outcome)]
    made.append(f"rounds opened: {outcome['rounds_opened']} of {outcome['rounds_asked']}")
    made.append(outcome["privacy"]["sentence"])
    made.append(f"\nresults in [bold]{outcome['results']}[/bold]")
    if kept := outcome.get("processes"):
        made.append(f"still running at {outcome['url']}: " + ", ".join(f"{name} {pid}" for name, pid in kept.items()))
        made.append("stop them with: kill " + " ".join(str(pid) for pid in kept.values()))
    return made


def _worth(outcome: Mapping[str, Any]) -> Any:
    columns = [name for name in METRICS if name in outcome["table"]["federated"]]
    names = {"local-only": "local-only (mean of the sites' own)", "pooled": "pooled (all rows in one place)"}
    rows = [
        [
            names.get(name, name),
            *("-" if scores.get(column) is None else f"{scores[column]:.4f}" for column in columns),
        ]
        for name, scores in outcome["table"].items()
    ]
    title = f"Is it worth federating? On the {outcome['test_rows']} test rows of all sites:"
    return table(title, ["model", *columns], rows)


def _verdict(outcome: Mapping[str, Any]) -> str:
    if outcome["better"]:
        return f"[green]The federated model beats the mean local-only model[/green] ({outcome['judged_by']})."
    return f"[red]The federated model does not beat the mean local-only model[/red] ({outcome['judged_by']})."


def _saw(outcome: Mapping[str, Any]) -> Any:
    seen = outcome["coordinator_saw"]
    rows = []
    for entry in seen:
        rows.append([entry["site"], "sent", _words(entry["masked"]), ""])
        rows.append(
            ["", "[dim]true[/dim]", f"[dim]{_words(entry['true'])}[/dim]", f"[dim]{_said(entry['said'])}[/dim]"]
        )
    title = f"All that the coordinator has of each site in the last round: {seen[0]['words']} words like these"
    return table(title, ["site", "", "words (hexadecimal)", "which say"], rows, left=(0, 1, 2, 3))


def _words(words: list[int]) -> str:
    return " ".join(f"{word:08x}" for word in words)


def _said(said: Mapping[str, float]) -> str:
    names = {"test/correct": "right of", "test/rows": "rows"}
    return " ".join(f"{said[name]:.4g} {label}" for name, label in names.items() if name in said)


def _cost(outcome: Mapping[str, Any]) -> list[Any]:
    seconds = [[name, f"{value:.2f}"] for name, value in outcome["seconds"].items()]
    phases = [[f"  {name}", f"{value:.2f}"] for name, value in outcome["seconds_by_phase"].items()]
    traffic = [[site, size(up), size(outcome["bytes"]["down"][site])] for site, up in outcome["bytes"]["up"].items()]
    return [
        table(
            "Seconds, and of the training by phase of the sealed sum",
            ["", "seconds"],
            seconds[:2] + phases + seconds[2:],
        ),
        table("Bytes of all rounds", ["site", "up", "down"], traffic),
    ]


def _struck(outcome: Mapping[str, Any]) -> str:
    struck = outcome["killed"]
    if not struck:
        return f"No site was killed: of {len(outcome['sites'])} sites none may be lost in a round."
    if not struck["opened"]:
        return f"[red]{struck['site']} was killed in round {struck['round']}, and the sum did not open.[/red]"
    survivors, sites, needed = struck["survivors"], struck["sites"], struck["threshold"]
    return (
        f"[bold]{struck['site']} was killed[/bold] (SIGKILL) in round {struck['round']}, its keys shared: "
        f"{survivors} of {sites} sites answered, {needed} were needed, the sum opened."
    )
