"""From what an analyst has at hand to one table for each site.

A folder with one CSV per site, a dict of tables, one table (a file, a DataFrame, or X and y) that is cut into sites.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cloister.learn import read_table
from cloister.simulation.partition import skewed
from cloister.vector.errors import DataError, UsageError

Shards = dict[str, pd.DataFrame]
FEWEST_SITES = 3  # with two, each would learn the other's part by subtracting its own from the sum
DEFAULT_SITES = 5
SUFFIXES = (".csv",)


def shards(data: Any, *, target: str, sites: int | None = None, seed: int = 0) -> Shards:
    """One table for each site, in the order of their names.

    Args:
      data: a folder (one CSV per site, named after it), a mapping of site to table, or one table that is cut into
        `sites` parts: the path of a CSV, a DataFrame, or a pair (X, y).
      target: the job's target column; label shares are skewed over it where one table is cut.
      sites: how many parts (default 5); given with a folder or a mapping, it must agree with them.
    Raises: DataError: no or empty tables, or fewer than three. UsageError: `data` or `sites` makes no sense.
    """
    if isinstance(data, str | Path):
        path = Path(data)
        if path.is_file():
            return _cut(read_table(path), target, sites, seed)
        return _checked(_folder(path), sites)
    if isinstance(data, pd.DataFrame):
        return _cut(data, target, sites, seed)
    if isinstance(data, tuple) and len(data) == 2:
        return _cut(_joined(*data, target), target, sites, seed)
    if isinstance(data, Mapping):
        return _checked(_named(data), sites)
    raise UsageError(
        f"data is a {type(data).__name__}.",
        mend="Give a folder of CSVs, a dict of site to DataFrame, one DataFrame, the path of a CSV, or (X, y).",
    )


def _folder(folder: Path) -> Shards:
    if not folder.exists():
        raise DataError(f"the folder {folder} does not exist.", mend="Give a folder that holds one CSV per site.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise DataError(f"the folder {folder} holds no CSV file.", mend="Put one CSV per site into it.")
    return _named({path.stem: _read(path, site_id(path.stem)) for path in files})


def _read(path: Path, site: str) -> pd.DataFrame:
    try:
        return read_table(path)
    except DataError as fault:
        fault.site = site
        raise


def _named(tables: Mapping[Any, Any]) -> Shards:
    """Tables by site id: lower case, since a roster names its sites so. Raises DataError: two of one name."""
    found: Shards = {}
    for name, table in tables.items():
        if not isinstance(table, pd.DataFrame):
            raise UsageError(f"site {name!r} has a {type(table).__name__}.", mend="Give a pandas DataFrame per site.")
        site = site_id(str(name))
        if site in found:
            raise DataError(f"two tables are both of site {site!r}.", mend="Rename one of them.")
        found[site] = table.reset_index(drop=True)
    return dict(sorted(found.items()))


def site_id(name: str) -> str:
    """The id under which a roster can list a site: lower case letters, digits, '.', '_' and '-', at most 63."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).lstrip("._-")[:63] or "site"


def _checked(tables: Shards, sites: int | None) -> Shards:
    if sites is not None and sites != len(tables):
        raise UsageError(f"sites={sites}, but the data has {len(tables)}.", mend="Leave sites out, or match it.")
    if len(tables) < FEWEST_SITES:
        raise DataError(
            f"a federation needs at least {FEWEST_SITES} sites, the data has {len(tables)}: "
            "with two, each learns the other's part by subtracting its own.",
            mend="Add a site's table, or give one table and sites=N to have it cut.",
        )
    for site, table in tables.items():
        if table.empty:
            raise DataError("the table has no rows.", mend="Add its rows, or leave the site out.", site=site)
    return tables


def _joined(x: Any, y: Any, target: str) -> pd.DataFrame:
    """One table of X (array [rows, features] or DataFrame) and y (array [rows])."""
    features = x if isinstance(x, pd.DataFrame) else pd.DataFrame(np.asarray(x)).rename(columns="x{}".format)
    labels = np.asarray(y)
    if labels.shape != (len(features),):
        raise UsageError(
            f"X has {len(features)} rows and y the shape {labels.shape}.", mend="Give one label per row."
        )
    if target in features.columns:
        raise UsageError(f"X already has a column {target!r}, the job's target.", mend="Leave it out of X.")
    return features.reset_index(drop=True).assign(**{target: labels})


def _cut(table: pd.DataFrame, target: str, sites: int | None, seed: int) -> Shards:
    count = DEFAULT_SITES if sites is None else sites
    if count < FEWEST_SITES:
        raise UsageError(
            f"a federation needs at least {FEWEST_SITES} sites, not {count}: "
            "with two, each learns the other's part by subtracting its own.",
            mend=f"Use sites={FEWEST_SITES} or more.",
        )
    if table.empty:
        raise DataError("the table has no rows.", mend="Check the file.")
    if target not in table.columns:
        raise DataError(
            f"the table has no column {target!r}.", mend=f"Its columns are: {', '.join(map(str, table.columns))}."
        )
    parts = skewed(table[target], count, seed)
    return {f"site-{number}": table.iloc[rows].reset_index(drop=True) for number, rows in enumerate(parts, 1)}
