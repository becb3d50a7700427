"""A site's folder: who it is (site.toml), what it allows (policy.toml), and what it keeps beside them.

    site.toml      id, federation, coordinator, the files behind each dataset name, limits of the training process
    policy.toml    the steward's rules; a rule that is not written down refuses
    identity.key   this site's Ed25519 key, readable by its owner only; it never leaves the folder
    pinned.json    the coordinator's TLS certificate and the federation's root key, as the invitation named them
    rosters/       every roster version accepted, as signed by the root (`rosters.py`)
    journal.db     what this site promised, said and refused (`journal.py`)
    lock           held by the running agent
    state/         one private folder per run for its training process
    worker.log     what the last failing training process printed; may hold data values, stays here

Made by `enrol.py`; a steward edits the two TOML files, the rest is the agent's.
"""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cloister.round import Policy
from cloister.seal.identity import Identity
from cloister.site.sandbox import MIB, WorkerLimits
from cloister.vector.errors import EnvironmentFailure, StorageFull, UsageError

ENOSPC = 28


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WorkerSettings(_Strict):
    """[worker]: what the training process may use."""

    seconds: float = Field(default=3600.0, gt=0)
    memory_mb: int = Field(default=16384, ge=512)
    file_mb: int = Field(default=256, ge=1)
    threads: int = Field(default=1, ge=1)


class SiteSettings(_Strict):
    """site.toml. Attributes: patience_seconds: how long an absent coordinator is asked again before giving up."""

    id: str
    federation: str
    coordinator: str
    patience_seconds: float = Field(default=600.0, gt=0)
    data: dict[str, Path] = {}
    worker: WorkerSettings = WorkerSettings()

    @property
    def limits(self) -> WorkerLimits:
        return WorkerLimits(**self.worker.model_dump())


class Allow(_Strict):
    """[allow]: which jobs may run. Whatever is left out refuses."""

    datasets: list[str] = []
    declarative: bool = False
    source: Literal["never", "approved", "any"] = "never"
    analysts: list[str] = []
    min_survivors: int = Field(default=3, ge=3)
    assume_colluders: int = Field(default=0, ge=0)
    max_upload_mb: int = Field(default=200, ge=1)


class PolicyFile(_Strict):
    """policy.toml."""

    allow: Allow = Allow()

    def as_policy(self, approved: frozenset[str]) -> Policy:
        """The rules as `round.decide_job` and `decide_plan` read them. Args: approved: hex digests of jobs."""
        rules = self.allow
        return Policy(
            datasets=tuple(rules.datasets),
            declarative=rules.declarative,
            source=rules.source,
            approved=approved,
            analysts=tuple(rules.analysts),
            min_survivors=rules.min_survivors,
            assume_colluders=rules.assume_colluders,
            max_upload_bytes=rules.max_upload_mb * MIB,
        )


@dataclass(frozen=True)
class Pinned:
    """What the invitation vouched for. Attributes: certificate: PEM. root_key: 32 bytes, Ed25519."""

    certificate: str
    root_key: bytes


@dataclass(frozen=True)
class SiteFolder:
    """The paths of one site's folder. Reading raises UsageError with the file's and the setting's name."""

    root: Path

    @property
    def journal(self) -> Path:
        return self.root / "journal.db"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def rosters(self) -> Path:
        return self.root / "rosters"

    @property
    def worker_log(self) -> Path:
        return self.root / "worker.log"

    def state(self, name: str) -> Path:
        """The private folder of one training process. Args: name: the run's id (hex)."""
        return self.root / "state" / name

    def settings(self) -> SiteSettings:
        """Relative data files are relative to the folder."""
        settings = _read_toml(self.root / "site.toml", SiteSettings)
        data = {name: self.root / path for name, path in settings.data.items()}
        return settings.model_copy(update={"data": data})

    def policy(self) -> PolicyFile:
        return _read_toml(self.root / "policy.toml", PolicyFile)

    def identity(self) -> Identity:
        try:
            return Identity.from_bytes((self.root / "identity.key").read_bytes())
        except (OSError, ValueError):
            raise UsageError(f"{self.root / 'identity.key'} is missing or no key.", mend=_JOIN) from None

    def pinned(self) -> Pinned:
        try:
            fields = json.loads((self.root / "pinned.json").read_text())
            return Pinned(fields["certificate"], bytes.fromhex(fields["root_key"]))
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(f"{self.root / 'pinned.json'} is missing or does not parse.", mend=_JOIN) from None


_JOIN = "Join with an invitation first: `cloister site join INVITATION --folder FOLDER`."
Model = TypeVar("Model", bound=_Strict)


def _read_toml(path: Path, model: type[Model]) -> Model:
    try:
        return model.model_validate(tomllib.loads(path.read_text("utf-8")))
    except OSError:
        raise UsageError(f"there is no {path}.", mend=_JOIN) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise UsageError(f"{path} is no TOML: {fault}.", mend="Correct that line.") from None
    except ValidationError as fault:
        first = fault.errors()[0]
        setting = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{path}: {setting}: {first['msg']}.", mend="Correct that setting.") from None


def write_private(path: Path, content: bytes) -> None:
    """Writes a file that only its owner can read, whole or not at all, on the disk before it returns.

    Raises: StorageFull, EnvironmentFailure.
    """
    draft = path.with_name(path.name + ".new")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as fault:
        if fault.errno == ENOSPC:
            raise StorageFull(f"no room is left for {path}.", mend="Free some space and try again.") from None
        raise EnvironmentFailure(f"{path} cannot be written: {fault.strerror}.") from None


def site_toml(settings: dict[str, Any]) -> str:
    """The first site.toml, with a comment beside each setting. Args: settings: id, federation, coordinator, data."""
    data = "\n".join(f"{_toml(name)} = {_toml(str(path))}" for name, path in sorted(settings["data"].items()))
    return f"""\
# Who this site is and where its data lies. Nothing of this file is sent but the id and the datasets' columns.
id = {_toml(settings["id"])}
federation = {_toml(settings["federation"])}
coordinator = {_toml(settings["coordinator"])}
patience_seconds = 600        # an absent coordinator is asked again this long, then the agent gives up

[worker]                      # the training process; it has no say in what leaves
seconds = 3600                # wall time for one question
memory_mb = 16384
threads = 1

[data]                        # dataset name = CSV or Parquet file; policy.toml says which of them jobs may use
{data}
"""


def policy_toml(datasets: list[str]) -> str:
    """The first policy.toml: declarative jobs on the datasets given at joining; code only after approval."""
    return f"""\
# What this site allows. A rule that is missing refuses; deleting this file's lines never allows more.
[allow]
datasets = {json.dumps(sorted(datasets), ensure_ascii=False)}
declarative = true            # jobs that ship no code
source = "approved"           # jobs that ship code: never | approved (by `cloister site approve DIGEST`) | any
analysts = ["*"]              # whose jobs; "*" is every analyst of the signed roster
min_survivors = 3             # a sum of fewer sites is never opened with this site's help
assume_colluders = 0          # sites assumed to collude with the coordinator; at least two others must remain
max_upload_mb = 200           # one masked answer
"""


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
