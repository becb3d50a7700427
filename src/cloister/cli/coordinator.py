"""`cloister coordinator`: what the operator types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.output import AsJson, finish, say, stream, table
from cloister.vector.errors import UsageError

app = typer.Typer(help="Run a federation's coordinator (operator).", no_args_is_help=True)

Folder = Annotated[Path, typer.Option("--folder", "-f", help="The federation's folder.")]
DEFAULT_FOLDER = Path("federation")
DEFAULT_ROOT = Path("root.key")


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="The federation's name: lower case letters, digits, '.', '-'.")],
    folder: Folder = DEFAULT_FOLDER,
    root: Annotated[Path, typer.Option(help="Where the root key is written; keep it offline.")] = DEFAULT_ROOT,
    host: Annotated[str, typer.Option(help="Name or address by which sites reach the coordinator.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8443,
    as_json: AsJson = False,
) -> None:
    """Make a federation: its keys, its certificate, its database, and the root key that signs the roster."""
    from cloister.coordinator import init_coordinator

    init_coordinator(folder, name, host=host, port=port, root_path=root)
    result = {"federation": name, "folder": folder, "root_key": root, "url": f"https://{host}:{port}"}
    lines = [
        f"federation [bold]{name}[/bold] in {folder}, for https://{host}:{port}",
        f"root key in [bold]{root}[/bold]: move it off this machine; only `admit` needs it",
    ]
    finish(result, as_json, lines, "cloister coordinator invite SITE SITE SITE --analyst NAME")


@app.command()
def invite(
    sites: Annotated[list[str], typer.Argument(help="Ids of the sites to invite.")],
    analyst: Annotated[
        list[str] | None, typer.Option("--analyst", help="Invite an analyst too (repeatable).")
    ] = None,
    folder: Folder = DEFAULT_FOLDER,
    as_json: AsJson = False,
) -> None:
    """Print a one-time invitation for each site and analyst; send each to its owner only."""
    from cloister.coordinator import invite as make

    made = [*make(folder, sites, "site"), *(make(folder, analyst, "analyst") if analyst else [])]
    codes = [{"id": entry.id, "role": entry.role, "code": entry.encode()} for entry in made]
    lines = [f"[bold]{entry['id']}[/bold] ({entry['role']})\n  {entry['code']}" for entry in codes]
    finish(
        {"invitations": codes}, as_json, lines, "cloister coordinator serve, then each site: cloister site join CODE"
    )


@app.command()
def pending(folder: Folder = DEFAULT_FOLDER, as_json: AsJson = False) -> None:
    """List who has joined by invitation and waits to be signed into the roster."""
    from cloister.coordinator import pending as waiting

    found = waiting(folder)
    rows = [(entry.id, entry.role, entry.words) for entry in found]
    lines = [table("waiting for admission", ("id", "role", "words to compare"), rows)] if rows else ["nobody waits"]
    result = {"pending": [{"id": entry.id, "role": entry.role, "words": entry.words} for entry in found]}
    finish(result, as_json, lines, "cloister coordinator admit --root root.key" if rows else "")


@app.command()
def admit(
    ids: Annotated[list[str] | None, typer.Argument(help="Whom to admit (default: all who wait).")] = None,
    root: Annotated[Path, typer.Option(help="The root key.")] = DEFAULT_ROOT,
    folder: Folder = DEFAULT_FOLDER,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="The words were compared; do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Sign those who wait into the next roster, after comparing their six words by telephone."""
    from cloister.coordinator import admit as sign
    from cloister.coordinator import pending as waiting

    chosen = [entry for entry in waiting(folder) if not ids or entry.id in ids]
    missing = set(ids or []) - {entry.id for entry in chosen}
    if missing or not chosen:
        who = ", ".join(sorted(missing)) or "nobody"
        raise UsageError(f"{who} waits for admission.", mend="A site appears once it ran `cloister site join CODE`.")
    if not yes and not as_json:
        for entry in chosen:
            say(f"{entry.id} ({entry.role}): {entry.words}")
        typer.confirm("Do these words equal what each of them reads to you?", abort=True, err=True)
    roster = sign(folder, root, [entry.id for entry in chosen])
    result = {"version": roster.version, "admitted": [entry.id for entry in chosen], "sites": len(roster.sites)}
    lines = [f"roster {roster.version} signed: {len(roster.sites)} sites, {len(roster.analysts)} analysts"]
    finish(result, as_json, lines, "cloister submit job.py (as an analyst)")


@app.command()
def serve(
    folder: Folder = DEFAULT_FOLDER,
    host: Annotated[str | None, typer.Option(help="Address to listen on (default: as initialised).")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535)] = None,
    as_json: AsJson = False,
) -> None:
    """Run the coordinator until Ctrl-C. A kill at any moment loses nothing: start it again."""
    from cloister.coordinator import serve as run

    def ready(url: str) -> None:
        if as_json:
            stream({"event": "ready", "url": url}, as_json)
        else:
            finish(
                {}, False, [f"serving {url} (Ctrl-C ends it)"], "each site: cloister site join CODE, then site run"
            )

    run(folder, host=host, port=port, ready=ready)
