"""Progress of a run for people, on standard error: steps as lines, training rounds as a live bar."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from cloister.cli.events import measured, sentence, style
from cloister.cli.output import progress


class Progress:
    """Steps as lines, rounds as a live bar (or as lines where standard error is no terminal).

    Args: rounds: of training. quiet: show nothing (`--json`).
    """

    def __init__(self, *, rounds: int, quiet: bool) -> None:
        self._rounds, self._quiet = rounds, quiet
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *details: object) -> None:
        self.trained()

    def trained(self) -> None:
        """There are no more rounds to count."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def say(self, text: str, style: str = "dim") -> None:
        if self._quiet:
            return
        console = self._bar.console if self._bar else progress
        console.print(f"[{style}]{escape(text)}[/{style}]" if style else text, soft_wrap=True)

    def event(self, event: Mapping[str, Any]) -> None:
        """Any event: rounds move the bar, the rest is said."""
        if event["event"] == "round":
            self.round(event)
        elif (text := sentence(event)) and event["event"] != "done":
            self.say(text, style(event) or "dim")

    def train(self) -> None:
        """From here on there are rounds to count."""
        if self._quiet or not sys.stderr.isatty():
            return
        columns = (
            SpinnerColumn(),
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
        )
        self._bar = Bar(*columns, console=progress, transient=True)
        self._task = self._bar.add_task("training", total=self._rounds, facts="")
        self._bar.start()

    def round(self, event: Mapping[str, Any]) -> None:
        """One opened round of the run."""
        facts = f"{event['survivors']} of {event['sites']} sites  {measured(event)}"
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=event["trained"], facts=facts)
        elif event["stage"] == "train":
            self.say(f"round {event['trained']:>3} of {self._rounds}  {facts}")
