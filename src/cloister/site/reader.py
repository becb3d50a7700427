"""Reading a database: a process of its own asks the steward's query, read-only, and writes the answer as CSV.

A training process has no network, so this is done before it starts; the table lies in the run's private folder and is
deleted with it. Trusted: the address and the query are the steward's, and nothing of a job is in reach.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import os
import sys
from pathlib import Path

from cloister.site.settings import DataSource, write_private
from cloister.vector.errors import DataError

SECONDS = 600.0
READ_ONLY = {
    "sqlite": "PRAGMA query_only = ON",
    "postgresql": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "mysql": "SET SESSION TRANSACTION READ ONLY",
    "mariadb": "SET SESSION TRANSACTION READ ONLY",
}


def export_of(home: Path) -> Path:
    """Where a database's answer lies for the training process with this folder: beside it, to be read only."""
    return home.with_name(home.name + ".csv")


async def table_of(source: DataSource, home: Path, log: Path, site: str) -> Path:
    """The file that holds a dataset; a database's answer is written below `home`, anew each time.

    Args: log: where a database's complaint is kept; it stays at the site.
    Raises: DataError: there is no such file, or the database does not answer the query.
    """
    if source.file is not None:
        if not source.file.is_file():
            raise DataError(
                "there is no file where site.toml says this dataset lies.",
                mend="Correct the path under [data] in site.toml, or put the file there.",
                site=site,
            )
        return source.file
    table = export_of(home)
    request = json.dumps({"url": source.url, "query": source.query, "table": str(table)}).encode("utf-8")
    command = (sys.executable, "-I", "-m", "cloister.site.reader")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stderr=pipe)
    try:
        _, said = await asyncio.wait_for(process.communicate(request), SECONDS)
    except TimeoutError:
        said = f"the query took longer than {SECONDS:g} seconds".encode()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    if process.returncode:
        write_private(log, said)
        mend = "The site's worker.log says why; `cloister site data list` tries it again."
        raise DataError("the database behind this dataset does not answer its query.", mend=mend, site=site)
    return table


def main() -> None:
    """Reads {"url", "query", "table"} on standard input; raises for whatever the database says against it."""
    from sqlalchemy import text

    request = json.load(sys.stdin)
    engine = _engine(request["url"])
    with engine.connect() as connection:
        connection.execute(text(READ_ONLY[engine.dialect.name]))
        connection.commit()
        rows = connection.execution_options(stream_results=True).execute(text(request["query"]))
        with open(os.open(request["table"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(rows.keys())
            writer.writerows([int(cell) if isinstance(cell, bool) else cell for cell in row] for row in rows)
        connection.rollback()


def _engine(url: str):  # type: ignore[no-untyped-def]
    """Raises: ValueError: a database that cannot be told to read only."""
    import sqlite3

    from sqlalchemy import create_engine, make_url

    where = make_url(url)
    if where.get_backend_name() not in READ_ONLY:
        raise ValueError(f"databases that can be read are {', '.join(READ_ONLY)}")
    if where.get_backend_name() == "sqlite":  # opened read-only, so that a missing file is not made
        path = Path(where.database or "").resolve()
        return create_engine("sqlite://", creator=lambda: sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True))
    return create_engine(where)


if __name__ == "__main__":
    main()
