"""`cloister site`: what the steward types."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from cloister.cli import site_data, site_policy
from cloister.cli.output import AsJson, facts, finish, stream, table
from cloister.cli.site_folder import SiteOption, site_folder
from cloister.vector.errors import UsageError

app = typer.Typer(help="Run a site beside its data (steward).", no_args_is_help=True)
app.add_typer(site_data.app, name="data")
app.add_typer(site_policy.app, name="policy")

Folder = Annotated[Path, typer.Argument(help="The site's folder, as `site join` made it.")]
Bindings = Annotated[
    list[str] | None, typer.Option("--data", metavar="NAME=FILE", help="Bind a dataset's name to a CSV (repeatable).")
]


@app.command()
def join(
    code: Annotated[str, typer.Argument(help="The invitation: cloister1:...")],
    data: Bindings = None,
    folder: Annotated[Path | None, typer.Option("--folder", "-f", help="Default: named like the site.")] = None,
    proxy: Annotated[
        str, typer.Option(metavar="URL", help="The way out: http://[USER:PASSWORD@]HOST:PORT. Default: HTTPS_PROXY.")
    ] = "",
    proxy_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM of the CA of a proxy that opens TLS, if yours does.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Join a federation: make this site's key, here, and enrol it with a one-time invitation."""
    from cloister.site import join as enrol
    from cloister.wire import Invitation

    invitation = Invitation.decode(code)
    folder = folder or Path(invitation.id)
    words = enrol(invitation, folder, bindings(data or []), proxy, proxy_ca)
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
def review(
    digest: Annotated[str, typer.Argument(help="12 or more digits of one job; without it, those that wait.")] = "",
    all_: Annotated[bool, typer.Option("--all", help="Also jobs that run by rule or are decided.")] = False,
    web: Annotated[bool, typer.Option("--web", help="As a page in the browser, on this machine only.")] = False,
    port: Annotated[int, typer.Option(help="Of the page; 0 takes a free one.")] = 0,
    folder: SiteOption = None,
    as_json: AsJson = False,
) -> None:
    """Show the jobs that wait for you: who signed, what would leave, what it costs, the code, what looks odd."""
    from cloister.cli.site_review import as_text, jobs_seen, page_of
    from cloister.site.settings import SiteFolder
    from cloister.site.steward import whole_digest

    here = SiteFolder(site_folder(folder))
    here.settings()
    if web:
        from cloister.cli.site_web import serve

        return serve(here, port, lambda url: stream({"event": "page", "url": url}, as_json))
    seen = jobs_seen(here)
    if digest:
        whole = whole_digest(here, digest)
        chosen = [job for job in seen if job["job"] == whole]
    else:
        chosen = [job for job in seen if all_ or job["state"] == "waits"]
    pages = [page_of(here, job) for job in chosen]
    lines = [part for page in pages for part in as_text(page)] or ["no job waits for you"]
    decide = f"cloister site approve {chosen[0]['job'][:12]}" if chosen else "cloister site review --all"
    return finish({"jobs": pages}, as_json, lines, decide)


@app.command()
def approve(
    digest: Annotated[str, typer.Argument(help="12 or more digits of the job's digest.")],
    folder: SiteOption = None,
    as_json: AsJson = False,
) -> None:
    """Let one job run here, signed with this site's key; a run that waits for it goes on."""
    from cloister.site import approve as allow

    full = allow(site_folder(folder), digest)
    finish({"approved": full}, as_json, [f"job {full[:12]} may run here"], "cloister site log")


@app.command()
def deny(
    digest: Annotated[str, typer.Argument(help="12 or more digits of the job's digest.")],
    reason: Annotated[str, typer.Option(help="One line, for the log and for the analyst.")],
    folder: SiteOption = None,
    as_json: AsJson = False,
) -> None:
    """Refuse one job, signed with this site's key; `approve` takes it back."""
    from cloister.site import deny as refuse

    full = refuse(site_folder(folder), digest, reason)
    finish({"denied": full}, as_json, [f"job {full[:12]} does not run here"], "cloister site log")


@app.command()
def log(
    verify: Annotated[
        bool, typer.Option("--verify", help="Only check the chain of hashes, and say its head.")
    ] = False,
    last: Annotated[int, typer.Option(help="Entries to show, the newest; 0 for all.")] = 40,
    folder: SiteOption = None,
    as_json: AsJson = False,
) -> None:
    """Show everything that was asked, answered, refused and decided here; each entry is checked on the way."""
    from contextlib import closing

    from cloister.site.journal import Journal
    from cloister.site.settings import SiteFolder

    here = SiteFolder(site_folder(folder))
    here.settings()
    with closing(Journal(here.journal)) as journal:
        entries = list(journal.entries())  # raises where the chain is broken
    if verify:
        found = {"entries": len(entries), "whole": True, "last": entries[-1].at if entries else None}
        return finish(found, as_json, [f"{len(entries):,} entries, each follows from the one before"], "")
    shown = entries[-last:] if last else entries
    rows = [(f"{entry.number}", entry.at, entry.kind, told(entry.facts)) for entry in shown]
    told_all = [{"number": entry.number, "at": entry.at, "kind": entry.kind, **entry.facts} for entry in shown]
    page = table(f"log of {here.settings().id}", ("", "at (UTC)", "what", ""), rows, (1, 2, 3))
    return finish({"entries": told_all}, as_json, [page], "cloister site log --verify")


def told(facts: dict[str, Any]) -> str:
    """The facts of an entry for people: digests and ids cut to their first digits."""
    shown = {key: fact for key, fact in facts.items() if fact not in ("", None, [], False) and key != "signature"}
    return ", ".join(
        f"{key} {fact[:12] if isinstance(fact, str) and re.fullmatch('[0-9a-f]{32,}', fact) else fact}"
        for key, fact in shown.items()
    )


@app.command()
def doctor(folder: SiteOption = None, as_json: AsJson = False) -> int:
    """Check the walls, the key, the files, the data and the connection; every fault with its mend."""
    from cloister.cli.site_doctor import as_json as as_rows
    from cloister.cli.site_doctor import examine
    from cloister.site.settings import SiteFolder

    here = SiteFolder(site_folder(folder))
    here.settings()
    found = examine(here)
    styles = {"good": "green", "missing": "yellow", "bad": "red"}
    rows = [
        (f"[{styles[check.state]}]{check.state}[/]", check.name, escape(f"{check.what} {check.mend}".strip()))
        for check in found
    ]
    bad = sum(check.state == "bad" for check in found)
    lines = [
        table(f"site {here.settings().id}", ("", "check", ""), rows, (0, 1, 2)),
        f"{bad} of {len(found)} are bad",
    ]
    finish({"bad": bad, "checks": as_rows(found)}, as_json, lines, "")
    return 1 if bad else 0


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
