"""`cloister site`: what the steward types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.output import AsJson, facts, finish, stream
from cloister.vector.errors import UsageError

app = typer.Typer(help="Run a site beside its data (steward).", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="The site's folder, as `site join` made it.")]
Bindings = Annotated[
    list[str] | None, typer.Option("--data", metavar="NAME=FILE", help="Bind a dataset's name to a CSV (repeatable).")
]


@app.command()
def join(
    code: Annotated[str, typer.Argument(help="The invitation: cloister1:...")],
    data: Bindings = None,
    folder: Annotated[Path | None, typer.Option("--folder", "-f", help="Default: named like the site.")] = None,
    as_json: AsJson = False,
) -> None:
    """Join a federation: make this site's key, here, and enrol it with a one-time invitation."""
    from cloister.site import join as enrol
    from cloister.wire import Invitation

    invitation = Invitation.decode(code)
    folder = folder or Path(invitation.id)
    words = enrol(invitation, folder, bindings(data or []))
    result = {"site": invitation.id, "federation": invitation.federation, "folder": folder, "words": words}
    lines = [
        f"site [bold]{invitation.id}[/bold] of {invitation.federation}, in {folder}",
        f"read these words to the operator: [bold]{words}[/bold]",
    ]
    finish(result, as_json, lines, f"cloister site run {folder}")


@app.command()
def run(folder: Folder, as_json: AsJson = False) -> None:
    """Take part in rounds until Ctrl-C; waits for admission and for the coordinator where it must."""
    from cloister.site import run_agent

    run_agent(folder, on_event=lambda event: stream(event, as_json))


@app.command()
def approve(
    folder: Folder,
    digest: Annotated[str, typer.Argument(help="First 12 or more characters of the job's digest.")],
    as_json: AsJson = False,
) -> None:
    """Allow one job that ships code to run here, by its digest."""
    from cloister.site import approve as allow

    full = allow(folder, digest)
    finish({"approved": full}, as_json, [f"job {full[:12]} may run here"], f"cloister site run {folder}")


@app.command()
def status(folder: Folder, as_json: AsJson = False) -> None:
    """What this site is bound to, what it answered, and what it refused."""
    from cloister.site import status as read

    found = read(folder)
    finish(found, as_json, [facts(f"site {found['site']}", found)], f"cloister site run {folder}")


def bindings(texts: list[str]) -> dict[str, Path]:
    """`NAME=FILE` texts as a mapping. Raises UsageError."""
    found = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not (name and equals and file):
            raise UsageError(f"--data {text!r} is not NAME=FILE.", mend="For example --data heart=patients.csv.")
        found[name] = Path(file)
    return found
