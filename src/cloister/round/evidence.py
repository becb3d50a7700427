"""What a run leaves behind so that anyone can replay it offline: a results folder, as names and bytes.

    trust.json                      {"roots": [hex, ..], "quorum": 1}: the root keys that the saver had pinned
    job.bundle                      the job, as its digest names it
    job.signature                   LP(header) LP(signature) of the envelope in which its analyst submitted it
    state.bundle                    the final state: model, fitted preparation, history, columns
    rosters/00001.roster            the signed rosters, by version
    receipts/00000.receipt          the signed receipts of the run, in order; void rounds have none
    totals/00000.words              the words of each opened sum, bucket by bucket, little endian, 4 bytes each or 8
    keys/00000.message              message 2: every site's signed keys, with the head of the log that it knew
    consistency/00000.message       message 8: the signatures on its survivor set
    audits/00000-NONCE.audit        answers to honest-sum challenges (seal/audit.py), NONCE in hex
    log/leaves                      leaf hashes of the whole log of receipts, 32 bytes each
    log/NAME.checkpoint             checkpoints of it: the coordinator's newest, and any that sites hold

Numbers are places in the order of receipts, not round numbers. Only trust.json, the bundles, rosters and receipts are
always there; `verify` says what it could not prove for lack of the others. What is there must be whole: an empty file
is no missing one. Reading and writing files is the caller's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import SupportsBytes

from cloister.vector.bundle import canonical
from cloister.vector.errors import MalformedMessage

SIMULATION = "simulation"  # the federation of a simulated run, whose keys one process made; no other is named so
NUMBERED = re.compile(r"(rosters|receipts|totals|keys|consistency|audits)/([0-9]{5})(?:-([0-9a-f]{64}))?\.[a-z]+")
NOTED = re.compile(r"log/([a-z0-9][a-z0-9._-]{0,62})\.checkpoint")  # as ids are: names are shown on terminals
SUFFIX = {
    "rosters": "roster",
    "receipts": "receipt",
    "totals": "words",
    "keys": "message",
    "consistency": "message",
    "audits": "audit",
}
REQUIRED = ("job.bundle", "state.bundle", "trust.json")
Content = (
    bytes | memoryview | SupportsBytes
)  # what `bytes` makes bytes of; of a large file, only when it is looked at


def file_of(kind: str, place: int, nonce: str = "") -> str:
    """Where it lies in the folder. Args: kind: of SUFFIX. nonce: of an audit, hex."""
    return f"{kind}/{place:05d}{'-' + nonce if nonce else ''}.{SUFFIX[kind]}"


@dataclass(frozen=True)
class RoundEvidence:
    """Of one opened round; None is what is not there. Attributes: audits: by nonce, in hex."""

    receipt: bytes
    total: Content | None = field(default=None, repr=False)
    consistency: bytes | None = field(default=None, repr=False)
    audits: Mapping[str, Content] = field(default_factory=dict, repr=False)
    keys: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Evidence:
    """Attributes: roots, quorum: who must have signed the rosters; the one thing that is taken on trust. checkpoints:
    by name. submission: job.signature. pinned: whether the roots are the reader's own, and not those that were found
    with the rest. The others as in the module's list. Raises: MalformedMessage: a quorum that these roots cannot be.
    """

    roots: tuple[bytes, ...]
    quorum: int
    rosters: tuple[bytes, ...]
    job: bytes = field(repr=False)
    state: bytes = field(repr=False)
    rounds: tuple[RoundEvidence, ...]
    leaves: bytes | None = field(default=None, repr=False)
    checkpoints: Mapping[str, bytes] = field(default_factory=dict)
    submission: bytes | None = field(default=None, repr=False)
    pinned: bool = False

    def __post_init__(self) -> None:
        if type(self.quorum) is not int or not 1 <= self.quorum <= len(self.roots):
            raise MalformedMessage(
                f"trust.json: {len(self.roots)} root keys of which {self.quorum!r} must have signed."
            )

    def trusting(self, *roots: bytes) -> Evidence:
        """The same evidence, judged by root keys that the reader has pinned: any of them must have signed."""
        return replace(self, roots=roots, quorum=1, pinned=True)

    def to_files(self) -> dict[str, Content]:
        """By path in the results folder."""
        files: dict[str, Content] = {
            "trust.json": trust_file(self.roots, self.quorum),
            "job.bundle": self.job,
            "state.bundle": self.state,
        }
        for version, roster in enumerate(self.rosters, 1):
            files[file_of("rosters", version)] = roster
        for place, each in enumerate(self.rounds):
            files |= round_files(place, each)
        beside = {"job.signature": self.submission, "log/leaves": self.leaves}
        files |= {name: data for name, data in beside.items() if data is not None}
        return files | {f"log/{name}.checkpoint": note for name, note in self.checkpoints.items()}

    @classmethod
    def from_files(cls, files: Mapping[str, Content]) -> Evidence:
        """Args: files: by path, with "/" between parts; other files of the folder are passed over. Sums and
          audits may be large: `bytes` is called on them one at a time, when they are looked at.

        Raises: MalformedMessage: what must be there is not, or something belongs to nothing; names the file.
        """
        if missing := [name for name in REQUIRED if name not in files]:
            raise _broken(missing[0], "is missing.")
        found: dict[str, dict[int, Content]] = {kind: {} for kind in SUFFIX}
        audits: dict[int, dict[str, Content]] = {}
        for path, data in files.items():
            parts = NUMBERED.fullmatch(path)
            if parts is None:
                continue
            kind, place = parts[1], int(parts[2])
            if parts[3]:
                audits.setdefault(place, {})[parts[3]] = data
            else:
                found[kind][place] = data if kind == "totals" else bytes(data)
        _check_places(found, audits)
        roots, quorum = _read_trust(bytes(files["trust.json"]))
        rounds = tuple(
            RoundEvidence(
                receipt=bytes(receipt),
                total=found["totals"].get(place),
                keys=_bytes(found["keys"].get(place)),
                consistency=_bytes(found["consistency"].get(place)),
                audits=audits.get(place, {}),
            )
            for place, receipt in sorted(found["receipts"].items())
        )
        notes = {name[1]: bytes(data) for path, data in files.items() if (name := NOTED.fullmatch(path))}
        rosters = tuple(bytes(data) for _, data in sorted(found["rosters"].items()))
        job, state = bytes(files["job.bundle"]), bytes(files["state.bundle"])
        leaves, submission = _bytes(files.get("log/leaves")), _bytes(files.get("job.signature"))
        return cls(roots, quorum, rosters, job, state, rounds, leaves, notes, submission)


def trust_file(roots: tuple[bytes, ...], quorum: int) -> bytes:
    """trust.json."""
    return canonical({"roots": [key.hex() for key in roots], "quorum": quorum})


def round_files(place: int, each: RoundEvidence) -> dict[str, Content]:
    """What there is of one round, by path."""
    parts = {"receipts": each.receipt, "totals": each.total, "keys": each.keys, "consistency": each.consistency}
    files = {file_of(kind, place): data for kind, data in parts.items() if data is not None}
    return files | {file_of("audits", place, nonce): data for nonce, data in each.audits.items()}


def _bytes(data: Content | None) -> bytes | None:
    return None if data is None else bytes(data)


def _check_places(found: Mapping[str, Mapping[int, Content]], audits: Mapping[int, Mapping[str, Content]]) -> None:
    """Raises: MalformedMessage: a roster or receipt is missing in between, or something belongs to no receipt."""
    receipts = found["receipts"]
    for kind, first in (("rosters", 1), ("receipts", 0)):
        expected = range(first, first + max(len(found[kind]), 1))
        for place in expected:
            if place not in found[kind]:
                raise _broken(file_of(kind, place), "is missing.")
    for kind in ("totals", "keys", "consistency"):
        for place in sorted(found[kind].keys() - receipts.keys()):
            raise _broken(file_of(kind, place), "belongs to no receipt.")
    for place in sorted(audits.keys() - receipts.keys()):
        raise _broken(file_of("audits", place, min(audits[place])), "belongs to no receipt.")


def _read_trust(data: bytes) -> tuple[tuple[bytes, ...], int]:
    try:
        trust = json.loads(data)
        roots, quorum = tuple(bytes.fromhex(key) for key in trust["roots"]), trust["quorum"]
        if trust_file(roots, quorum) == data:
            return roots, quorum
    except (KeyError, ValueError, TypeError, RecursionError):
        pass
    raise _broken("trust.json", "does not parse.")


def _broken(file: str, what: str) -> MalformedMessage:
    return MalformedMessage(f"{file} of the folder {what}", mend="Fetch the results again.")
