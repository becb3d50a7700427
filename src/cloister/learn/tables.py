"""A site's table: reading it, what is in it, and whether it fulfils a job's contract.

No error of this module holds a value of the table: it may travel to the analyst. Line numbers are in
`local_detail`, which stays at the site.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cloister.job.data import EMPTY, Table, missing_column, text
from cloister.vector.errors import DataError

Frame = pd.DataFrame
Strings = npt.NDArray[np.str_]
Floats = npt.NDArray[np.float64]


def read_table(path: str | Path) -> Frame:
    """A CSV file with a header line, in UTF-8: float64 columns where every cell is a number, else text.

    Empty cells and pandas' usual words for "missing" (NA, NaN, null, ...) are missing values.
    Raises: DataError: no such file, no header, no row, a line of another length, two columns of one name.
    """
    path = Path(path)
    try:
        header = _check_lines(path)
        frame = pd.read_csv(path, dtype=str, encoding="utf-8-sig", skipinitialspace=True, index_col=False)
    except OSError as fault:
        raise DataError(
            f"the table cannot be read: {fault.strerror}.", mend="Check the path.", local_detail=str(path)
        ) from None
    except UnicodeDecodeError:
        raise DataError(
            "the table is no UTF-8 text.", mend="Save it as CSV in UTF-8.", local_detail=str(path)
        ) from None
    except (pd.errors.ParserError, csv.Error) as fault:
        raise DataError("the table is no CSV file.", local_detail=f"{path}: {type(fault).__name__}") from None
    frame.columns = pd.Index(header)
    return pd.DataFrame({name: _typed(frame[name]) for name in header})


def read_parquet(path: str | Path) -> Frame:
    """A Parquet file: float64 columns where it holds numbers, truth values as they are, else text.

    Raises: DataError: no such file, no Parquet, no row, two columns of one name.
    """
    try:
        frame = pd.read_parquet(path)
    except OSError as fault:
        why = fault.strerror or "it is no Parquet"
        raise DataError(f"the table cannot be read: {why}.", mend="Check the path.", local_detail=str(path)) from None
    except (ValueError, KeyError) as fault:
        raise DataError(
            "the table is no Parquet file.", local_detail=f"{path}: {type(fault).__name__}: {fault}"
        ) from None
    if not len(frame):
        raise DataError("the table has no row.", local_detail=str(path))
    if not frame.columns.is_unique:
        raise DataError("the table's header has a name more than once.", mend="Rename the columns.")
    return pd.DataFrame({str(name): _plain(frame[name]) for name in frame.columns})


def _plain(column: pd.Series[Any]) -> pd.Series[Any]:
    if pd.api.types.is_bool_dtype(column):
        return column
    if pd.api.types.is_numeric_dtype(column):
        return pd.Series(column.to_numpy(np.float64, na_value=np.nan), index=column.index)
    return column.astype(object).where(column.isna(), column.astype(str)).mask(column.isna())


def _check_lines(path: Path) -> list[str]:
    """Reads the file once as CSV; returns the header. pandas alone would fill short lines in silence."""
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, skipinitialspace=True)
        header = [name.strip() for name in next(reader, [])]
        if not header:
            raise DataError("the table is empty.", mend="Its first line names the columns.", local_detail=str(path))
        if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
            raise DataError("the table's header has no comma.", mend="Save it with commas between the columns.")
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice or "" in header:
            wrong = f"has {twice} more than once" if twice else "has a column without a name"
            raise DataError(f"the table's header {wrong}.", mend="Rename the columns.")
        rows = 0
        for cells in reader:
            rows += bool(cells)
            if cells and len(cells) != len(header):
                raise DataError(
                    f"a line of the table has {len(cells)} cells, the header {len(header)}.",
                    mend="Quote cells that hold a comma.",
                    local_detail=f"{path}, line {reader.line_num}",
                )
    if not rows:
        raise DataError("the table has a header and no row.", local_detail=str(path))
    return header


def _typed(column: pd.Series[Any]) -> pd.Series[Any]:
    """As float64 if every cell is a number. A leading zero makes a code of it: 041 is another one than 41."""
    numbers = pd.to_numeric(column, errors="coerce")
    text = (numbers.isna() & column.notna()).any() or column.str.match(r"[+-]?0\d", na=False).any()
    return column if text else numbers.astype(np.float64)


def schema(frame: Frame) -> dict[str, str]:
    """Each column's type: "number", "category", or "empty" if it has no value. All of a table that may be told."""
    return {str(name): _kind(frame[name]) for name in frame.columns}


def _kind(column: pd.Series[Any]) -> str:
    if column.isna().all():
        return EMPTY
    number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    return "number" if number else "category"


def check(data: Table, frame: Frame, site: str, features: Mapping[str, str]) -> list[str]:
    """Whether a table fulfils the contract.

    Args: features: name -> "number" or "category", as the contract resolves them over all sites.
    Returns: warnings for the steward, one line each.
    Raises: DataError: a column is missing, or a number column holds something else; names site and column.
    """
    there = [str(name) for name in frame.columns]
    for name in [*data.required(), *features]:
        if name not in there:
            raise missing_column(name, there, site)
    if len(frame) == 0:
        raise DataError("the table has no row.", site=site)
    for name, kind in features.items():
        if kind == "number":
            numbers(frame, name, site)
    missing = int(frame[data.target].isna().sum())
    return [f"{missing} rows without a value in {data.target!r} are left out."] if missing else []


def numbers(frame: Frame, name: str, site: str) -> Floats:
    """A column as float64, NaN where missing. Raises DataError: cells that are no finite numbers; counts them."""
    column = frame[name]
    if pd.api.types.is_bool_dtype(column):
        column = column.astype(np.float64)
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    junk = (np.isnan(values) & column.notna().to_numpy()) | np.isinf(values)
    if junk.any():
        raise DataError(
            f"column {name!r} has {int(junk.sum())} cells that are no finite numbers.",
            mend="Mend the cells, or leave them empty (missing).",
            site=site,
            local_detail=f"first at line {int(np.argmax(junk)) + 2} of the file",
        )
    return values


def texts(frame: Frame, name: str) -> tuple[npt.NDArray[np.int64], list[str]]:
    """A column as categories. Returns: code[rows] into the list of texts; a missing value's text is ""."""
    codes, values = pd.factorize(frame[name], use_na_sentinel=False)
    spelled = [text(None if pd.isna(value) else value) for value in values]
    distinct = list(dict.fromkeys(spelled))
    place = {spelling: at for at, spelling in enumerate(distinct)}
    return np.array([place[spelling] for spelling in spelled], np.int64)[codes], distinct
