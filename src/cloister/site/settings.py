"""A site's folder: who it is (site.toml), what it allows (policy.toml), and what it keeps beside them.

    site.toml      id, federation, coordinator, what lies behind each dataset name
    policy.toml    the steward's rules (`policy.py`), and the limits of the training process
    identity.key   this site's Ed25519 key, readable by its owner only; it never leaves the folder
    pinned.json    the coordinator's TLS certificate and the federation's root key, as the invitation named them; the
                   certificate's SHA-256 only, while a proxy that opens TLS hides it
    rosters/       every roster version accepted, as signed by the root (`rosters.py`)
    journal.db     what this site promised, said and refused (`journal.py`)
    ledger.db      what each dataset's privacy budget was spent on (`ledger.py`)
    lock           held by the running agent
    jobs/, verdicts/  what was announced here, and what the steward decided on it (`verdicts.py`)
    state/         one private folder per run for its training process
    memory/        what algorithms have this site keep between a run's rounds (`memory.py`)
    worker.log     what the last failing training process printed; may hold data values, stays here

Made by `enrol.py`; a steward edits the two TOML files, the rest is the agent's.
"""

from __future__ import annotations

import json
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from cloister.seal.identity import Identity
from cloister.site.policy import PolicyFile, Strict, parse_toml
from cloister.vector import digest
from cloister.vector.crash import durable
from cloister.vector.errors import UsageError
from cloister.vector.files import replace_file


class DataSource(Strict):
    """Where a dataset lies: a file, or a query that a database answers. unit: the column that says whose a row is."""

    file: Path | None = None
    url: str | None = None
    query: str | None = None
    unit: str = ""

    @property
    def where(self) -> str:
        """The file, or the database without its password."""
        address = re.sub(r"//([^:/@]*):[^@]*@", r"//\1:***@", self.url or "")
        return str(self.file) if self.file is not None else f"{address}: {self.query}"

    @model_validator(mode="before")
    @classmethod
    def _of_path(cls, given: Any) -> Any:
        return {"file": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _one_place(self) -> DataSource:
        if (self.file is None) == (self.url is None) or (self.url is None) != (self.query is None):
            raise ValueError("a dataset is a file, or a url with a query")
        return self


class ProxySettings(Strict):
    """[proxy]: see `wire.Proxy`. ca: the PEM file of the CA of a proxy that opens TLS."""

    url: str = ""
    ca: Path | None = None


class SiteSettings(Strict):
    """site.toml. Attributes: patience_seconds: how long an absent coordinator is asked again before giving up.
    ledger: the file of the privacy ledger, where several federations' agents share it; None: ledger.db in the folder.
    """

    id: str
    federation: str
    coordinator: str
    patience_seconds: float = Field(default=600.0, gt=0)
    data: dict[str, DataSource] = {}
    proxy: ProxySettings = ProxySettings()
    ledger: Path | None = None

    @property
    def units(self) -> dict[str, str]:
        """By dataset, the column that says whose a row is."""
        return {name: source.unit for name, source in self.data.items() if source.unit}


@dataclass(frozen=True)
class Pinned:
    """What the invitation vouched for. Attributes: certificate: PEM; "" where a proxy that opens TLS hid it, until it
    is seen. fingerprint: its SHA-256. root_key: 32 bytes, Ed25519."""

    certificate: str
    fingerprint: bytes
    root_key: bytes

    def to_bytes(self) -> bytes:
        fields = {"certificate": self.certificate, "fingerprint": self.fingerprint.hex()}
        return json.dumps({**fields, "root_key": self.root_key.hex()}, indent=1).encode("ascii")


@dataclass(frozen=True)
class SiteFolder:
    """The paths of one site's folder. Reading raises UsageError with the file's and the setting's name."""

    root: Path

    @property
    def journal(self) -> Path:
        return self.root / "journal.db"

    @property
    def ledger(self) -> Path:
        shared = self.settings().ledger
        return self.root / "ledger.db" if shared is None else self.root / shared

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def rosters(self) -> Path:
        return self.root / "rosters"

    @property
    def worker_log(self) -> Path:
        return self.root / "worker.log"

    @property
    def verdicts(self) -> Path:
        return self.root / "verdicts"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    def state(self, name: str) -> Path:
        """The private folder of one training process. Args: name: the run's id (hex)."""
        return self.root / "state" / name

    def settings(self) -> SiteSettings:
        """Relative data files are relative to the folder."""
        settings = parse_toml(self._text("site.toml"), str(self.root / "site.toml"), SiteSettings)
        data = {
            name: source if source.file is None else source.model_copy(update={"file": self.root / source.file})
            for name, source in settings.data.items()
        }
        return settings.model_copy(update={"data": data})

    def policy(self) -> PolicyFile:
        return PolicyFile.parse(self._text("policy.toml"), str(self.root / "policy.toml"))

    def _text(self, name: str) -> str:
        try:
            return (self.root / name).read_text("utf-8")
        except OSError:
            raise UsageError(f"there is no {self.root / name}.", mend=_JOIN) from None
        except UnicodeDecodeError:
            raise UsageError(f"{self.root / name} is no UTF-8 text.", mend="Save it as UTF-8.") from None

    def identity(self) -> Identity:
        try:
            return Identity.from_bytes((self.root / "identity.key").read_bytes())
        except (OSError, ValueError):
            raise UsageError(f"{self.root / 'identity.key'} is missing or no key.", mend=_JOIN) from None

    def pinned(self) -> Pinned:
        try:
            fields = json.loads((self.root / "pinned.json").read_text())
            der = ssl.PEM_cert_to_DER_cert(fields["certificate"]) if fields["certificate"] else b""
            fingerprint = digest(der) if der else bytes.fromhex(fields["fingerprint"])
            return Pinned(fields["certificate"], fingerprint, bytes.fromhex(fields["root_key"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UsageError(f"{self.root / 'pinned.json'} is missing or does not parse.", mend=_JOIN) from None


_JOIN = "Join with an invitation first: `cloister site join INVITATION --folder FOLDER`."


def write_private(path: Path, content: bytes) -> None:
    """Writes a file that only its owner can read, whole or not at all, on the disk before it returns.

    Raises: StorageFull, EnvironmentFailure.
    """
    with durable("site.file"):
        replace_file(path, content, 0o600)


def site_toml(settings: dict[str, Any]) -> str:
    """The first site.toml, with a comment beside each setting.

    Args: settings: id, federation, coordinator, data, and proxy if there is one.
    """
    proxy = "".join(f"{name} = {_toml(value)}\n" for name, value in settings.get("proxy", {}).items() if value)
    if proxy:
        proxy = f"\n[proxy]                       # the way out; ca: of a proxy that opens TLS\n{proxy}"
    data = "\n".join(f"{_toml(name)} = {_toml(str(path))}" for name, path in sorted(settings["data"].items()))
    return f"""\
# Who this site is and where its data lies. Nothing of this file is sent but the id and the datasets' columns.
id = {_toml(settings["id"])}
federation = {_toml(settings["federation"])}
coordinator = {_toml(settings["coordinator"])}
patience_seconds = 600        # an absent coordinator is asked again this long, then the agent gives up
{proxy}
[data]                        # name = file; `cloister site data add` writes it. policy.toml says what jobs may use
{data}
"""


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
