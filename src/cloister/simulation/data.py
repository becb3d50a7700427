"""From what an analyst has at hand to one site's data for each site.

A folder with one file per site, a mapping of site to data, or one table (a file, a DataFrame, or X and y) or pair of
arrays that is cut into sites. What a mapping holds is looked up when a site is asked, and not kept: one that makes
its values as they are asked for can stand for any number of clients. So does a folder of .npz files; tables are read
at once, for their columns have to agree before anything is asked.
"""

from __future__ import annotations

import contextlib
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cloister.job import Arrays, Job, Table
from cloister.learn import Examples, read_data, read_table, schema
from cloister.learn.arrays import SUFFIX, read_arrays
from cloister.seal.threshold import MIN_SITES
from cloister.simulation.partition import FORMS, cut, in_order, noise
from cloister.vector.errors import DataError, UsageError

Shards = Mapping[str, Any]
DEFAULT_SITES = 5
SUFFIXES = (".csv", SUFFIX)


def shards(
    data: Any, *, target: str | None, sites: int | None = None, seed: int = 0, partition: str = "skewed"
) -> Shards:
    """The data of each site, in the order of their names.

    Args:
      data: a folder (one .csv or .npz file per site, named after it), a mapping of site to table (or to arrays),
        or one table or pair of arrays that is cut into `sites` parts: the path of a file, a DataFrame, or (X, y);
        arrays may come as (x, y, test).
      target: the job's target column; None where the contract is of arrays.
      sites: how many parts (default 5); given with a folder or a mapping, it must agree with them.
      partition: how one table is cut, see `partition.py`.
    Raises: DataError: no or empty tables, or fewer than three. UsageError: an argument makes no sense.
    """
    if not isinstance(partition, str):
        raise UsageError(f"partition={partition!r} is no text.", mend=f"Use one of {FORMS}.")
    if isinstance(data, str | Path):
        path = Path(data)
        if not path.is_file():
            return _checked(_folder(path), sites)
        data = read_table(path) if target is not None else read_arrays(path)
    if isinstance(data, Mapping):
        return _checked(_named(data, target), sites)
    if target is None:
        return _cut_arrays(Examples.of(data), sites, seed, partition)
    if isinstance(data, tuple) and len(data) == 2:
        data = _joined(*data, target)
    if isinstance(data, pd.DataFrame):
        return _cut_table(data, target, sites, seed, partition)
    raise UsageError(
        f"data is a {type(data).__name__}.",
        mend="Give a folder with a file per site, a mapping of site to data, a DataFrame, a file's path, or (X, y).",
    )


def loaded(job: Job, data: Any) -> Any:
    """The data of a path, read once for several simulations; what is no path as it is."""
    if not isinstance(data, str | Path):
        return data
    path = Path(data)
    if not path.is_file():
        return _folder(path)
    return read_table(path) if isinstance(job.data, Table) else read_arrays(path)


def shards_of(job: Job, data: Any, sites: int | None, partition: str) -> Shards:
    """What `shards` gives for a job's contract and seed."""
    target = job.data.target if isinstance(job.data, Table) else None
    return shards(data, target=target, sites=sites, seed=job.seed, partition=partition)


def columns_of(job: Job, data: Shards) -> dict[str, Any]:
    """The feature columns that all sites have, with their types; reads each table once. Raises DataError."""
    if isinstance(job.data, Arrays):
        return {}  # each site's arrays are checked when they are first asked
    same: dict[tuple[Any, ...], dict[str, str]] = {}  # sites of one schema share one dictionary
    schemas = {}
    for site in data:
        found = schema(data[site])
        schemas[site] = same.setdefault(tuple(found.items()), found)
    return dict(job.data.resolve(schemas))


class Renamed(Mapping[str, Any]):
    """A mapping under site ids, read when it is asked.

    Attributes:
      rows: how many a site has, without reading it, where the mapping can say that.
      ahead: prepares for a site that is asked next, where the mapping can do that.
    """

    def __init__(self, data: Mapping[Any, Any], keys: Mapping[str, Any]) -> None:
        self._data, self._keys = data, keys
        if hasattr(data, "rows"):
            self.rows = lambda site: data.rows(keys[site])
        if hasattr(data, "ahead"):
            self.ahead = lambda site: data.ahead(keys[site])

    def __getitem__(self, site: str) -> Any:
        return self._data[self._keys[site]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


class Files(Mapping[str, Examples]):
    """A folder of arrays: a site's file is read when it is asked."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths, self._rows = paths, dict[str, int]()

    def __getitem__(self, site: str) -> Examples:
        found: Examples = _read(self._paths[site], site)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def rows(self, site: str) -> int:
        """From the header of `y`. Of a file that is no such archive 0: reading it says what is wrong."""
        if site not in self._rows:
            self._rows[site] = _rows_of(self._paths[site])
        return self._rows[site]

    def ahead(self, site: str) -> None:
        """Has the system read a site's file into memory, while something else is computed."""
        with contextlib.suppress(OSError), self._paths[site].open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


class Parts(Mapping[str, Examples]):
    """One pair of arrays, cut into sites: a site's rows are copied out when it is asked."""

    def __init__(self, whole: Examples, parts: list[npt.NDArray[np.int64]], partition: str, seed: int) -> None:
        self._whole, self._order = whole, np.concatenate(parts)
        self._partition, self._seed = partition, seed
        self._deviation = float(whole.x.std()) if partition.startswith("noise:") else 0.0
        self._ends = np.cumsum([0, *map(len, parts)])
        self._place = {f"site-{number}": number for number in range(1, len(parts) + 1)}

    def __getitem__(self, site: str) -> Examples:
        rows = self._order[self._ends[self._place[site] - 1] : self._ends[self._place[site]]]
        whole, x = self._whole, self._whole.x[rows]
        if self._deviation:
            x = self._noisy(x, self._place[site])
        return Examples(x, whole.y[rows], None if whole.test is None else whole.test[rows])

    def _noisy(self, x: npt.NDArray[Any], place: int) -> npt.NDArray[np.float32]:
        """Pixels become numbers in [0, 1], as a model sees them, and a little beyond."""
        unit = 255.0 if x.dtype == np.uint8 else 1.0
        added = noise(x.shape, self._partition, place, len(self._place), self._seed)
        noisy: npt.NDArray[np.float32] = ((x + np.float32(self._deviation) * added) / unit).astype(np.float32)
        return noisy

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)

    def rows(self, site: str) -> int:
        return int(self._ends[self._place[site]] - self._ends[self._place[site] - 1])


def _folder(folder: Path) -> Shards:
    if not folder.exists():
        raise DataError(f"the folder {folder} does not exist.", mend="Give a folder that holds one CSV per site.")
    files = sorted(path for path in folder.resolve().iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise DataError(f"the folder {folder} holds no CSV file.", mend="Put one CSV (or .npz) per site into it.")
    keys = _keys(path.stem for path in files)
    paths = dict(sorted(zip(keys, files, strict=True)))
    if all(path.suffix.lower() == SUFFIX for path in files):
        return Files(paths)
    return {site: _read(path, site) for site, path in paths.items()}


def _rows_of(path: Path) -> int:
    try:
        with zipfile.ZipFile(path) as archive, archive.open("y.npy") as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, _ = read(member)
        return int(shape[0])
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile):
        return 0


def _read(path: Path, site: str) -> Any:
    try:
        return read_data(path)
    except DataError as fault:
        fault.site = site
        raise


def _named(data: Mapping[Any, Any], target: str | None) -> Shards:
    """By site id: lower case, since a roster names its sites so. Raises DataError: two of one name."""
    keys = _keys(data)
    if target is None or not isinstance(data, dict):
        return Renamed(data, dict(sorted(keys.items())))
    for name, table in data.items():
        if not isinstance(table, pd.DataFrame):
            raise UsageError(f"site {name!r} has a {type(table).__name__}.", mend="Give a pandas DataFrame per site.")
    return {site: data[key].reset_index(drop=True) for site, key in sorted(keys.items())}


def _keys(names: Any) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for name in names:
        site = site_id(str(name))
        if site in keys:
            raise DataError(f"two tables are both of site {site!r}.", mend="Rename one of them.")
        keys[site] = name
    return keys


def site_id(name: str) -> str:
    """The id under which a roster can list a site: lower case letters, digits, '.', '_' and '-', at most 63."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).lstrip("._-")[:63] or "site"


def _checked(tables: Shards, sites: int | None) -> Shards:
    if sites is not None and sites != len(tables):
        raise UsageError(f"sites={sites}, but the data has {len(tables)}.", mend="Leave sites out, or match it.")
    if len(tables) < MIN_SITES:
        raise DataError(
            f"a federation needs at least {MIN_SITES} sites, the data has {len(tables)}: "
            "with two, each learns the other's part by subtracting its own.",
            mend="Add a site's table, or give one table and sites=N to have it cut.",
        )
    if isinstance(tables, dict):
        for site, table in tables.items():
            if len(table) == 0:
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


def _count(sites: int | None) -> int:
    count = DEFAULT_SITES if sites is None else sites
    if not isinstance(count, int) or count < MIN_SITES:
        raise UsageError(
            f"a federation needs at least {MIN_SITES} sites, not {count}: "
            "with two, each learns the other's part by subtracting its own.",
            mend=f"Use sites={MIN_SITES} or more.",
        )
    return count


def _cut_table(table: pd.DataFrame, target: str, sites: int | None, seed: int, partition: str) -> Shards:
    if table.empty:
        raise DataError("the table has no rows.", mend="Check the file.")
    kind, _, column = partition.partition(":")
    if kind == "by":
        return _checked(_by_column(table, target, column), sites)
    count = _count(sites)
    if target not in table.columns:
        raise _no_column(table, target)
    if kind == "sorted":
        if column not in table.columns:
            raise _no_column(table, column)
        parts = in_order(table[column], count)
    else:
        parts = cut(partition, table[target], count, seed)
    cut_sites = {f"site-{number}": table.iloc[rows].reset_index(drop=True) for number, rows in enumerate(parts, 1)}
    if kind == "noise":
        deviations = _deviations(table.drop(columns=target))
        for place, (site, part) in enumerate(cut_sites.items(), 1):
            added = noise((len(part), len(deviations)), partition, place, count, seed) * deviations.to_numpy()
            noisy = {name: part[name] + added[:, at] for at, name in enumerate(deviations.index)}
            cut_sites[site] = part.assign(**noisy)
    return cut_sites


def _deviations(table: pd.DataFrame) -> pd.Series[float]:
    """Of the columns that are numbers, and no mere marks of yes and no."""
    numbers = table.select_dtypes("number")
    return numbers.loc[:, numbers.nunique() > 2].std()


def _by_column(table: pd.DataFrame, target: str, column: str) -> Shards:
    """One site for each value of a column. The column says whose a row is, so no model may see it."""
    if column not in table.columns:
        raise _no_column(table, column)
    if column == target:
        raise UsageError(f"partition='by:{column}' would cut by the target itself.", mend="Use shards:1.")
    return _named({value: part.drop(columns=column) for value, part in table.groupby(column)}, target)


def _no_column(table: pd.DataFrame, name: str) -> DataError:
    columns = ", ".join(map(str, table.columns))
    return DataError(f"the table has no column {name!r}.", mend=f"Its columns are: {columns}.")


def _cut_arrays(whole: Examples, sites: int | None, seed: int, partition: str) -> Shards:
    if partition.startswith(("by:", "sorted:")):
        raise UsageError("arrays have no columns to cut by.", mend="Give a mapping of site to (x, y).")
    if not len(whole):
        raise DataError("the arrays have no row.", mend="Check the file.")
    if len(whole.x) != len(whole):
        raise DataError(f"x has {len(whole.x)} rows and y {len(whole)}.", mend="Give one label per row.")
    return Parts(whole, cut(partition, pd.Series(whole.y), _count(sites), seed), partition, seed)
