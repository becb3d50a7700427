"""policy.toml: what a steward allows, in one readable file. What is not named is refused.

Each rule is a line; `PolicyFile.parse` remembers which, so that a refusal can name it.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError

from cloister.round import Policy
from cloister.site.sandbox import MIB, WorkerLimits
from cloister.vector.errors import UsageError

HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-(?:24:00|([01]\d|2[0-3]):([0-5]\d))")


class Strict(BaseModel):
    """A section of a steward's file: an unknown setting is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _hours(text: Any) -> tuple[int, int] | None:
    found = HOURS.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ValueError('hours are written "20:00-06:00"')
    begin_hour, begin, end_hour, end = (int(part) for part in found.groups(default="0"))
    if text.endswith("-24:00"):
        end_hour = 24
    return 60 * begin_hour + begin, 60 * end_hour + end


class Allow(Strict):
    """[allow]: which jobs may run, and which rounds are answered."""

    datasets: tuple[str, ...] = ()
    analysts: tuple[str, ...] = ()
    declarative: bool = False
    code: Literal["never", "reviewed", "signed-by"] = "never"
    signed_by: tuple[str, ...] = ()
    seals: tuple[Literal["complete", "sparse"], ...] = ("complete", "sparse")
    hours: Annotated[tuple[int, int] | None, BeforeValidator(_hours)] = None
    min_cohort: int = Field(default=3, ge=3)
    min_survivors: int = Field(default=3, ge=3)
    assume_colluders: int = Field(default=0, ge=0)
    max_upload_mb: int = Field(default=200, ge=1)


class Privacy(Strict):
    """[privacy]: whose presence a job's differential privacy must protect."""

    require: Literal["none", "rows", "sites"] = "none"


class Budget(Strict):
    """[budget.DATASET]: what all jobs together may spend of a dataset. rounds_a_day: of answers, in UTC days."""

    epsilon: float = Field(gt=0)
    delta: float = Field(gt=0, lt=1)
    rounds_a_day: int | None = Field(default=None, ge=1)


class WorkerSettings(Strict):
    """[worker]: what one training process may use."""

    seconds: float = Field(default=3600.0, gt=0)
    cpu_seconds: int = Field(default=86400, ge=1)
    memory_mb: int = Field(default=16384, ge=512)
    file_mb: int = Field(default=256, ge=1)
    free_mb: int = Field(default=256, ge=0)
    threads: int = Field(default=1, ge=1)


class PolicyFile(Strict):
    """The whole file. Attributes: budget: by dataset. `lines`: rule ("allow.code") -> line of the file."""

    allow: Allow = Allow()
    privacy: Privacy = Privacy()
    budget: dict[str, Budget] = {}
    worker: WorkerSettings = WorkerSettings()
    _lines: dict[str, int] = PrivateAttr(default_factory=dict)

    @classmethod
    def parse(cls, text: str, name: str = "policy.toml") -> PolicyFile:
        """Raises: UsageError: no TOML, or a rule that is not known or not so; names the line."""
        policy = parse_toml(text, name, cls)
        policy._lines = rule_lines(text)
        return policy

    @property
    def lines(self) -> dict[str, int]:
        return self._lines

    @property
    def limits(self) -> WorkerLimits:
        return WorkerLimits(**self.worker.model_dump())

    def as_policy(
        self,
        approved: frozenset[str],
        denied: Mapping[str, str] | None = None,
        units: Mapping[str, str] | None = None,
    ) -> Policy:
        """The rules as `round.decide_job` and `decide_plan` read them.

        Args: approved: hex digests of jobs. denied: of others, with the steward's reason. units: columns, by dataset.
        """
        rules = self.allow.model_dump(exclude={"max_upload_mb"})
        return Policy(
            **rules,
            max_upload_bytes=self.allow.max_upload_mb * MIB,
            require=self.privacy.require,
            approved=approved,
            denied=denied or {},
            units=units or {},
            lines=self.lines,
        )


Model = TypeVar("Model", bound=Strict)


def parse_toml(text: str, name: str, model: type[Model]) -> Model:
    """Raises: UsageError: names the file, the line and the setting."""
    try:
        return model.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as fault:
        raise UsageError(f"{name} is no TOML: {fault}.", mend="Correct that line.") from None
    except ValidationError as fault:
        first = fault.errors(include_url=False)[0]
        setting = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
        lines = rule_lines(text)
        line = next((lines[rule] for rule in (setting, *_parents(setting)) if rule in lines), 0)
        where = f"{name}, line {line}" if line else name
        raise UsageError(
            f"{where}: {setting}: {first['msg'].removeprefix('Value error, ')}.", mend="Correct that setting."
        ) from None


def rule_lines(text: str) -> dict[str, int]:
    """Where each setting of a TOML text stands: "allow.code" -> 7; a section by its header."""
    found: dict[str, int] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[([^\[\]]+)\]", line):
            section = header[1].strip().replace('"', "")
            found.setdefault(section, number)
        elif key := re.match(r"""\s*([\w.-]+|"[^"]+")\s*=""", line):
            name = key[1].strip('"')
            found[f"{section}.{name}" if section else name] = number
    return found


def _parents(setting: str) -> list[str]:
    parts = setting.split(".")
    return [".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]


def policy_toml(datasets: list[str]) -> str:
    """The first policy.toml: declarative jobs on the datasets given at joining; code only after approval."""
    return f"""\
# What this site allows. What is not named here is refused. Check a change with `cloister site policy check`.
[allow]
datasets = {json.dumps(sorted(datasets), ensure_ascii=False)}
analysts = ["*"]              # who may submit; "*" is every analyst of the signed roster
declarative = true            # jobs that ship no code
code = "reviewed"             # jobs that ship code: never | reviewed (`cloister site review`) | signed-by
signed_by = []                # with "signed-by": analysts whose code runs unread; that of others is reviewed
seals = ["complete", "sparse"]  # graphs of masks; both hold against a malicious coordinator
hours = "00:00-24:00"         # when rounds are answered, in this machine's time; "20:00-06:00" spans midnight
min_cohort = 3                # fewest sites that a round asks
min_survivors = 3             # a sum of fewer sites is never opened with this site's help
assume_colluders = 0          # sites assumed to collude with the coordinator; at least two others must remain
max_upload_mb = 200           # one masked answer

[privacy]
require = "none"              # whose presence a job's differential privacy must protect: none | rows | sites

[worker]                      # one training process; it has no say in what leaves
seconds = 3600                # wall time for one question
cpu_seconds = 86400           # processor time in its whole life
memory_mb = 16384
threads = 1

# [budget.NAME]               # of a dataset, over all jobs and for ever
# epsilon = 8.0
# delta = 1e-6
# rounds_a_day = 200
"""
