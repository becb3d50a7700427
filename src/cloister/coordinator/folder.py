"""A coordinator's folder: its key, its certificate, its settings, its database and its blobs.

coordinator.toml     federation, host, port, keep_rounds            blobs/   queries, jobs, states, sums, receipts
coordinator.key      32 bytes, hex, readable by the owner only      parts/   masked vectors
tls.pem, tls-key.pem the pinned certificate and its key             cloister.db
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloister.coordinator.blobs import BlobFolder
from cloister.coordinator.store import Store
from cloister.round.evidence import SIMULATION
from cloister.seal.identity import Identity
from cloister.seal.labels import ZERO32
from cloister.seal.roster import Member, Roster, sign_roster
from cloister.vector.errors import UsageError

COORDINATOR = "coordinator"  # its id in the roster
CERTIFICATE_DAYS = 3650  # pinned by digest, so its end is a formality: ten years, as for a private CA
SECRET_MODE = 0o600
SETTINGS = ("federation", "host", "port", "keep_rounds")


@dataclass(frozen=True)
class Folder:
    """An initialised coordinator's folder and its settings.

    Attributes: url: what sites and analysts are told. keep_rounds: of how many rounds of each run, the newest, the
      masked vectors are kept, so that they can be audited.
    """

    path: Path
    federation: str
    host: str
    port: int
    keep_rounds: int = 1

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}:{self.port}"

    @property
    def certificate(self) -> Path:
        return self.path / "tls.pem"

    @property
    def certificate_key(self) -> Path:
        return self.path / "tls-key.pem"

    def certificate_digest(self) -> bytes:
        """SHA-256 of the certificate's DER, as invitations pin it."""
        return x509.load_pem_x509_certificate(self.certificate.read_bytes()).fingerprint(hashes.SHA256())

    def identity(self) -> Identity:
        return read_key(self.path / "coordinator.key")

    def store(self) -> Store:
        return Store(self.path / "cloister.db")

    def blobs(self) -> BlobFolder:
        """Queries, jobs, states, opened sums, receipts, and messages 2 and 8."""
        return BlobFolder(self.path / "blobs")

    def parts(self) -> BlobFolder:
        """Masked vectors, in parts."""
        return BlobFolder(self.path / "parts")


def open_folder(path: Path) -> Folder:
    """Raises: UsageError: no coordinator was initialised there, or its settings do not parse."""
    try:
        settings = {"keep_rounds": 1} | tomllib.loads((path / "coordinator.toml").read_text())
        found = Folder(path, **{name: settings[name] for name in SETTINGS})
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{path} is no coordinator's folder.", mend="Make one with `cloister coordinator init NAME`."
        ) from None
    except (tomllib.TOMLDecodeError, KeyError, UnicodeDecodeError) as fault:
        raise UsageError(f"{path / 'coordinator.toml'} does not parse ({fault}).", mend="Restore it.") from None
    if type(found.keep_rounds) is not int or found.keep_rounds < 1:
        raise UsageError(
            f"{path / 'coordinator.toml'}: keep_rounds is {found.keep_rounds!r}.", mend="Keep 1 or more."
        )
    return found


def init_coordinator(
    folder: Path,
    federation: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8443,
    root_path: Path,
    randomness: Callable[[int], bytes] = os.urandom,
) -> Folder:
    """Founds a federation: keys, certificate, database, and roster version 1 with the coordinator alone in it.

    Args: host, port: by which sites reach it. root_path: where the root key is written; only `admit` needs it.
    Raises: UsageError: the folder or the root key exists already, or the name is reserved. RosterRefused: it is none.
    """
    if (folder / "coordinator.toml").exists():
        raise UsageError(f"{folder} holds a coordinator already.", mend="Choose another --folder.")
    if federation == SIMULATION:
        raise UsageError(f"{federation!r} is what simulations are called.", mend="Choose another name.")
    if root_path.exists():
        raise UsageError(f"{root_path} exists, and a root key is never overwritten.", mend="Choose another --root.")
    root, identity = Identity.generate(randomness), Identity.generate(randomness)
    roster = Roster(federation, 1, ZERO32, (root.public,), 1, coordinators=(Member(COORDINATOR, identity.public),))
    folder.mkdir(parents=True, exist_ok=True)
    root_path.parent.mkdir(parents=True, exist_ok=True)
    write_key(root_path, root)
    write_key(folder / "coordinator.key", identity)
    made = Folder(folder, federation, host, port)
    _write_certificate(made)
    store = made.store()
    store.add_roster(1, sign_roster(roster, [root]))
    store.close()
    settings = {name: getattr(made, name) for name in SETTINGS}
    text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
    (folder / "coordinator.toml").write_text(text)  # last: a folder with settings is a whole one
    return made


def write_key(path: Path, identity: Identity) -> None:
    """Writes a private key that only its owner can read. Raises: FileExistsError."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, SECRET_MODE)
    with os.fdopen(handle, "w") as file:
        file.write(identity.to_bytes().hex() + "\n")


def read_key(path: Path) -> Identity:
    """Raises: UsageError: there is no key, or something else."""
    try:
        return Identity.from_bytes(bytes.fromhex(path.read_text().strip()))
    except OSError as fault:
        raise UsageError(f"cannot read the key {path}: {fault.strerror}.", mend="Check the path.") from None
    except ValueError:
        raise UsageError(f"{path} holds no key.", mend="It is one line of 64 hex digits.") from None


def _write_certificate(folder: Folder) -> None:
    """A self-signed TLS certificate: trusted because invitations pin its digest, not because anybody vouches."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{COORDINATOR}.{folder.federation}"[:64])])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks of sites may be behind
        .not_valid_after(now + datetime.timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName(_names(folder.host)), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    handle = os.open(folder.certificate_key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, SECRET_MODE)
    with os.fdopen(handle, "wb") as file:
        file.write(secret)


def _names(host: str) -> list[x509.GeneralName]:
    try:
        return [x509.IPAddress(ipaddress.ip_address(host)), x509.DNSName("localhost")]
    except ValueError:
        return [x509.DNSName(host), x509.DNSName("localhost")]
