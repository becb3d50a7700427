"""`cloister site data`: which tables lie behind the names that jobs use."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.cli.output import AsJson, facts, finish, table
from cloister.cli.site_folder import SiteOption, allow_dataset, set_line, site_folder
from cloister.vector.errors import UsageError

if TYPE_CHECKING:
    from cloister.site.settings import DataSource, SiteFolder

app = typer.Typer(help="The tables behind the names that jobs use.", no_args_is_help=True)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="As jobs call it: cl.Table(NAME, ...).")],
    where: Annotated[str, typer.Argument(metavar="FILE|URL", help="CSV, Parquet, .npz, or an SQLAlchemy URL.")],
    unit: Annotated[str, typer.Option(help="The column that says whose a row is, such as patient_id.")] = "",
    query: Annotated[str, typer.Option(help="With a URL: what to read. Or end the URL with ?table=NAME.")] = "",
    allow: Annotated[
        bool, typer.Option("--allow", help="Also let jobs use it (allow.datasets of the policy).")
    ] = False,
    folder: SiteOption = None,
    as_json: AsJson = False,
) -> None:
    """Bind a name to a file, or to what a database answers (read-only); its columns and a profile are kept here."""
    from cloister.site.settings import SiteFolder, write_private

    here = SiteFolder(site_folder(folder))
    here.settings()
    source = source_of(where, query, unit)
    profile = look(here, name, source)
    kept = {key: str(value) for key, value in source.model_dump(exclude_none=True).items() if value}
    value = "{" + ", ".join(f"{key} = {json.dumps(text, ensure_ascii=False)}" for key, text in kept.items()) + "}"
    text = (here.root / "site.toml").read_text("utf-8")
    write_private(here.root / "site.toml", set_line(text, "data", name, value).encode("utf-8"))
    if allow:
        text = (here.root / "policy.toml").read_text("utf-8")
        write_private(here.root / "policy.toml", allow_dataset(text, name).encode("utf-8"))
    told = {"dataset": name, "where": source.where, "unit": unit or None, **profile}
    shown = {
        "where": source.where,
        "rows": profile["rows"],
        "columns": len(profile["columns"]),
        "unit": unit or "row",
    }
    step = f"cloister site run {here.root} (a running agent offers it now)"
    finish(told, as_json, [facts(f"dataset {name}", shown)], step if allow else "cloister site policy edit")


@app.command(name="list")
def list_(folder: SiteOption = None, as_json: AsJson = False) -> None:
    """The datasets, whether each can be read now, and whether jobs may use it."""
    from cloister.site.settings import SiteFolder
    from cloister.vector import CloisterError

    here = SiteFolder(site_folder(folder))
    allowed, found = here.policy().allow.datasets, []
    for name, source in here.settings().data.items():
        row: dict[str, Any] = {"dataset": name, "where": source.where, "unit": source.unit or None}
        row["jobs"] = name in allowed
        try:
            profile = look(here, name, source)
            found.append({**row, "rows": profile["rows"], "columns": profile["columns"], "fault": None})
        except CloisterError as fault:
            found.append({**row, "rows": None, "columns": {}, "fault": str(fault)})
    rows = [
        (
            row["dataset"],
            row["where"],
            row["unit"] or "row",
            "yes" if row["jobs"] else "no",
            row["fault"] or f"{row['rows']:,} rows, {len(row['columns'])} columns",
        )
        for row in found
    ]
    shown = table(f"data of {here.settings().id}", ("name", "where", "unit", "jobs", "now"), rows, (0, 1, 2, 3, 4))
    finish({"datasets": found}, as_json, [shown], "cloister site data add NAME FILE")


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="The dataset's name.")],
    folder: SiteOption = None,
    as_json: AsJson = False,
) -> None:
    """Unbind a name. The file stays where it is; what was spent of its budget stays spent."""
    from cloister.site.settings import SiteFolder, write_private

    here = SiteFolder(site_folder(folder))
    if name not in here.settings().data:
        known = ", ".join(here.settings().data) or "none"
        raise UsageError(f"there is no dataset {name!r}; there are: {known}.", mend="`cloister site data list`.")
    text = (here.root / "site.toml").read_text("utf-8")
    write_private(here.root / "site.toml", set_line(text, "data", name, None).encode("utf-8"))
    (here.root / "profiles" / f"{name}.json").unlink(missing_ok=True)
    finish({"removed": name}, as_json, [f"{name} is bound no more"], f"cloister site run {here.root}")


def source_of(where: str, query: str, unit: str) -> DataSource:
    """Raises: UsageError: no such file, or a URL that does not say what to read."""
    from cloister.site.settings import DataSource

    if "://" not in where:
        path = Path(where)
        if not path.is_file():
            raise UsageError(f"there is no file {path}.", mend="Check the path.")
        if query:
            raise UsageError("--query is for databases.", mend="Leave it out, or give a URL.")
        return DataSource(file=path.resolve(), unit=unit)
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(where)
    except (ArgumentError, ValueError):
        raise UsageError(
            "this is no SQLAlchemy URL.", mend="For example sqlite:////srv/heart.db?table=visits."
        ) from None
    named = url.query.get("table")
    if bool(query) == bool(named):
        raise UsageError(
            "the URL does not say what to read.", mend="End it with ?table=NAME, or add --query SELECT..."
        )
    if named:
        parts = str(named).replace('"', '""').split(".")
        query = "SELECT * FROM " + ".".join(f'"{part}"' for part in parts)
    text = url.difference_update_query(["table"]).render_as_string(hide_password=False)
    return DataSource(url=text, query=query, unit=unit)


def look(here: SiteFolder, name: str, source: DataSource) -> dict[str, Any]:
    """Reads the table in a confined process and keeps its profile at the site. Raises: DataError, WorkerDied."""
    from cloister.site.settings import write_private
    from cloister.site.training import Task, read_profile

    task = Task(here.settings().id, source, here.state(f"look-{name}"), here.policy().limits, here.worker_log)
    profile = asyncio.run(read_profile(task))
    (here.root / "profiles").mkdir(exist_ok=True, mode=0o700)
    write_private(here.root / "profiles" / f"{name}.json", json.dumps(profile, indent=1).encode("utf-8"))
    return profile
