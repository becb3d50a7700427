"""What a declarative specification is: an immutable dataclass, checked by pydantic, that reads and writes JSON.

    @spec
    class SGD:
        lr: Positive
        momentum: float = 0.0

    as_json(SGD(0.1))                                  # {"is": "SGD", "lr": 0.1, "momentum": 0.0}
    from_json({"is": "SGD", "lr": 0.1, "momentum": 0.0})

A wrong setting raises `JobError` with the spec's and the field's name, wherever the spec is made.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar, dataclass_transform

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError

from cloister.vector.errors import JobError

T = TypeVar("T")
KIND = "is"

Positive = Annotated[float, Field(gt=0, le=1e9)]
NotNegative = Annotated[float, Field(ge=0, le=1e9)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


def as_tuple(value: Any) -> Any:
    """Lists (as JSON has them) become tuples, at every depth."""
    return tuple(as_tuple(entry) for entry in value) if isinstance(value, list | tuple) else value


Names = Annotated[tuple[Name, ...], BeforeValidator(as_tuple)]

_REGISTRY: dict[str, type[Any]] = {}
_CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


def unwritten(*, default: Any = None) -> Any:
    """A field that lives in the process only: not in the manifest, not compared, not shown."""
    return dataclasses.field(default=default, compare=False, repr=False, metadata={"json": False}, kw_only=True)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, unwritten))
def spec(cls: type[T]) -> type[T]:
    """Makes a class a specification: frozen, strictly validated, known by its name in manifests."""
    made: Any = pydantic.dataclasses.dataclass(frozen=True, config=_CONFIG)(cls)
    init = made.__init__

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except ValidationError as fault:
            raise _job_error(made, fault) from None

    made.__init__ = checked
    _REGISTRY[cls.__name__] = made
    return made  # type: ignore[no-any-return]


def _job_error(cls: type[Any], fault: ValidationError) -> JobError:
    """The first field that does not fit, and why; of a field with alternatives, why none of them fits."""
    errors = fault.errors(include_url=False, include_context=False)
    head, *inner = errors[0]["loc"] or ("",)
    fields = [field.name for field in dataclasses.fields(cls)]
    known = fields[head] if isinstance(head, int) and head < len(fields) else str(head)
    if errors[0]["type"] in {"unexpected_keyword_argument", "unexpected_positional_argument"}:
        setting = f"setting {known!r}" if isinstance(head, str) else f"setting number {head + 1}"
        return JobError(f"{cls.__name__} has no {setting}.", mend=f"It has {', '.join(fields)}.")
    within = [part for part in inner[:1] if isinstance(part, str) and part.isidentifier() and part not in _REGISTRY]
    where = ".".join([known, *within])
    reasons = [each["msg"].removeprefix("Value error, ") for each in errors if each["loc"][:1] == (head,)]
    return JobError(f"{cls.__name__}: {where}: {'; '.join(dict.fromkeys(reasons[:4]))}.")


def is_spec(value: Any) -> bool:
    return type(value).__name__ in _REGISTRY and dataclasses.is_dataclass(value)


def as_json(value: Any) -> Any:
    """The spec (or a list, mapping or plain value in one) as JSON values."""
    if is_spec(value):
        written = {
            field.name: as_json(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.metadata.get("json", True)
        }
        return {KIND: type(value).__name__, **written}
    if isinstance(value, Mapping):
        return {key: as_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(entry) for entry in value]
    return value


def from_json(data: Any, depth: int = 0) -> Any:
    """The value that `as_json` wrote; a JSON object without a kind becomes a dict. Raises JobError."""
    if depth > 16:  # the deepest manifest we write has 4 levels
        raise JobError("the manifest is nested too deeply.")
    if isinstance(data, list):
        return [from_json(entry, depth + 1) for entry in data]
    if isinstance(data, float) and not math.isfinite(data):
        raise JobError("the manifest holds a number that is not finite.")
    if not isinstance(data, dict):
        return data
    values = {key: from_json(entry, depth + 1) for key, entry in data.items() if key != KIND}
    if KIND not in data:
        return values
    kind = data[KIND]
    if not isinstance(kind, str) or kind not in _REGISTRY:
        raise JobError("the manifest names a specification that is not known here.", mend="Update cloister here.")
    made: Callable[..., Any] = _REGISTRY[kind]
    process_only = {f.name for f in dataclasses.fields(_REGISTRY[kind]) if not f.metadata.get("json", True)}
    if process_only & set(values):
        raise JobError(f"{kind}: a manifest cannot hold {sorted(process_only & set(values))}.")
    return made(**values)
