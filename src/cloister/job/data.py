"""Data contracts: what a job asks of each site's data. No data is ever part of a job."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from cloister.job.spec import Name, Names, as_tuple, spec
from cloister.vector.errors import DataError, JobError

Kind = Literal["number", "category"]
ARRAY = "array"  # what a site's schema says of `x` and `y`
EMPTY = "empty"  # what a site's schema says of a column without a value: it fits any type
MOST_CLASSES = 10_000
MOST_CATEGORIES = 10_000


def text(value: Any) -> str:
    """The one spelling of a category or label, whatever type a reader gave it: 3.0 and "3" are "3"; missing is ""."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        return str(int(value)) if value.is_integer() else repr(float(value))
    return str(value)


def _labels(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        if not 2 <= value <= MOST_CLASSES:
            raise ValueError(f"classes={value} is not between 2 and {MOST_CLASSES}")
        return tuple(str(label) for label in range(value))
    return _texts(value)


def _texts(value: Any) -> Any:
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
        return value
    texts = tuple(text(entry) for entry in value)
    if len(set(texts)) != len(texts) or "" in texts:
        raise ValueError("entries are empty or not distinct")
    return texts


def _columns(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {name: kind if isinstance(kind, str) else _texts(kind) for name, kind in value.items()}


Texts = Annotated[tuple[str, ...], Field(min_length=1, max_length=MOST_CATEGORIES)]
Labels = Annotated[Annotated[tuple[str, ...], Field(min_length=2, max_length=MOST_CLASSES)], BeforeValidator(_labels)]
Columns = Annotated[dict[Name, Kind | Texts], BeforeValidator(_columns)]


@spec
class Table:
    """A table with one row for each person (or case), one file at each site.

    Attributes:
      name: the dataset's name; the steward of each site binds it to a file.
      target: column to predict.
      columns: the features and their types, "number", "category" or the list of categories. No other column
        is read. None: every column that the sites have, with the types their tables show.
      classes: the labels of the target, in order, or how many (0, 1, ...). The second of two is the positive.
      split: column that says "train" or "test" for each row; None holds out `Evaluate.holdout` at random.
      ignore: columns that are not features.
    """

    name: Name
    target: Name
    columns: Columns | None = None
    classes: Labels | None = None
    split: Name | None = None
    ignore: Names = ()

    def __post_init__(self) -> None:
        special = {self.target, self.split}
        if self.split == self.target:
            raise JobError(f"Table: {self.target!r} cannot be both target and split.")
        if self.columns is not None:
            if not self.columns:
                raise JobError("Table: columns is empty.", mend="Leave it out to use every column.")
            if wrong := sorted(name for name in self.columns if name in special or name in self.ignore):
                raise JobError(f"Table: {wrong} are features and also target, split or ignored.")

    def resolve(self, schemas: Mapping[str, Mapping[str, str]]) -> dict[str, Kind]:
        """The features that every site has, sorted by name, with their types; without a value anywhere, a number.

        Args: schemas: site -> column -> "number", "category" or "empty" (it has no value at that site).
        Raises: DataError: names the site and the column that does not fit, and the mend.
        """
        if not schemas:
            raise DataError("no site offers this table.", mend=f"Bind {self.name!r} to a file at each site.")
        for site in sorted(schemas):
            for name in self.required():
                self._require(name, schemas[site], site)
        names = self.columns if self.columns is not None else self._shared(schemas)
        resolved = {name: self._kind(name, schemas) for name in sorted(names)}
        if not resolved:
            raise DataError("the table has no feature besides target, split and ignored columns.")
        return resolved

    def required(self) -> list[str]:
        """The columns that the contract names, target first."""
        return [self.target, *([self.split] if self.split else []), *sorted(self.columns or ())]

    def _require(self, name: str, schema: Mapping[str, str], site: str) -> None:
        if name not in schema:
            raise missing_column(name, schema, site)

    def _shared(self, schemas: Mapping[str, Mapping[str, str]]) -> set[str]:
        everywhere = set().union(*schemas.values()) - {self.target, self.split, *self.ignore}
        having = Counter(name for schema in schemas.values() for name in schema)
        for name in sorted(everywhere, key=lambda name: (-having[name], name)):  # what most have is what is meant
            for site in sorted(schemas):
                if name not in schemas[site]:
                    error = missing_column(name, schemas[site], site)
                    error.mend = f"{error.mend} Or add it to the contract's ignore list.".strip()
                    raise error
        return everywhere

    def _kind(self, name: str, schemas: Mapping[str, Mapping[str, str]]) -> Kind:
        declared = None if self.columns is None else self.columns[name]
        kinds = {site: schemas[site][name] for site in sorted(schemas) if schemas[site][name] != EMPTY}
        if declared is not None and declared != "number":
            return "category"  # numbers may serve as categories
        texts = [site for site, kind in kinds.items() if kind != "number"]
        if texts and (declared == "number" or len(texts) < len(kinds)):
            raise DataError(
                f"column {name!r} holds text, " + ("the contract says number." if declared else "elsewhere numbers."),
                mend=f"Look for cells that are no numbers, or declare columns={{{name!r}: 'category'}}.",
                site=texts[0],
            )
        return "category" if texts else "number"

    def categories(self, name: str) -> tuple[str, ...] | None:
        """The declared categories of a column, or None if it declares none."""
        declared = (self.columns or {}).get(name)
        return declared if isinstance(declared, tuple) else None


@spec
class Arrays:
    """Examples as arrays: images, signals, or numbers that need no preparation. One pair (X, y) at each site.

    At a site it is an .npz file with `x` [rows, *shape], `y` [rows] and, if it has a test set of its own, `test`
    (bool [rows]). Bytes (uint8) are pixels: they reach the model as float32 in [0, 1].

    Attributes:
      name: the dataset's name; the steward of each site binds it to a file.
      shape: of one example, (1, 28, 28) say: channels first, as torch has it.
      classes: the labels in `y`, in order, or how many (0, 1, ...); None predicts a number.
    """

    name: Name
    shape: Annotated[
        tuple[Annotated[int, Field(ge=1, le=2**20)], ...], BeforeValidator(as_tuple), Field(min_length=1)
    ]
    classes: Labels | None = None

    # what a table's contract has besides
    target, split, ignore = "y", None, ()
    columns: ClassVar[Mapping[str, Kind | Texts]] = MappingProxyType({})

    @property
    def inputs(self) -> int:
        """Numbers in one example."""
        return math.prod(self.shape)

    def resolve(self, schemas: Mapping[str, Mapping[str, str]]) -> dict[str, Kind]:
        """No columns. Raises: DataError: a site has no arrays."""
        for site in sorted(schemas):
            if schemas[site].get("x") != ARRAY:
                raise DataError(
                    "the contract asks for arrays, the data is a table.",
                    mend="Bind an .npz file with x and y, or use cl.Table(...).",
                    site=site,
                )
        return {}

    def required(self) -> list[str]:
        return []

    def categories(self, name: str) -> None:
        return None


def missing_column(name: str, there: Iterable[str], site: str = "") -> DataError:
    """The error for a column that is not there; names columns with a similar name, or all if there are few."""
    columns: Sequence[str] = sorted(there)
    close = difflib.get_close_matches(name, columns, n=3, cutoff=0.6)
    if close:
        mend = f"Did you mean {' or '.join(repr(column) for column in close)}?"
    else:
        mend = f"Columns there: {', '.join(columns[:12])}{', ...' if len(columns) > 12 else ''}."
    return DataError(f"the table has no column {name!r}.", mend=mend, site=site)
