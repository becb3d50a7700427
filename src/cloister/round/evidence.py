"""What a run leaves behind so that anyone can replay it offline: a results folder, as names and bytes.

    trust.json                      {"roots": [hex, ..], "quorum": 1}: the root keys that the saver had pinned
    job.bundle                      the job, as its digest names it
    state.bundle                    the final state: model, fitted preparation, history, columns
    rosters/00001.roster            the signed rosters, by version
    receipts/00000.receipt          the signed receipts of the run, in order; void rounds have none
    totals/00000.words              the words of each opened sum, 4 bytes each (8 at 64 bits), little endian
    keys/00000.message              message 2: every site's signed keys, with the head of the log that it knew
    consistency/00000.message       message 8: the signatures on its survivor set
    audits/00000-NONCE.audit        answers to honest-sum challenges (seal/audit.py), NONCE in hex
    log/leaves                      leaf hashes of the whole log of receipts, 32 bytes each
    log/NAME.checkpoint             checkpoints of it: the coordinator's newest, and any that sites hold

Numbers are places in the order of receipts, not round numbers. Only trust.json, the bundles, rosters and receipts are
always there; `verify` says what it could not prove for lack of the others. Reading and writing files is the caller's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cloister.vector.bundle import canonical
from cloister.vector.errors import MalformedMessage

NUMBERED = re.compile(r"(rosters|receipts|totals|keys|consistency|audits)/([0-9]{5})(?:-([0-9a-f]{64}))?\.[a-z]+")
SUFFIX = {
    "rosters": "roster",
    "receipts": "receipt",
    "totals": "words",
    "keys": "message",
    "consistency": "message",
    "audits": "audit",
}
REQUIRED = ("job.bundle", "state.bundle", "trust.json")
Buffer = bytes | memoryview


def file_of(kind: str, place: int, nonce: str = "") -> str:
    """Where it lies in the folder. Args: kind: of SUFFIX. nonce: of an audit, hex."""
    return f"{kind}/{place:05d}{'-' + nonce if nonce else ''}.{SUFFIX[kind]}"


@dataclass(frozen=True)
class RoundEvidence:
    """Of one opened round; b"" is what is not there. Attributes: audits: by nonce, in hex."""

    receipt: bytes
    total: Buffer = field(default=b"", repr=False)
    consistency: bytes = field(default=b"", repr=False)
    audits: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    keys: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Evidence:
    """Attributes: roots, quorum: who must have signed the rosters; the one thing that is taken on trust. checkpoints:
    by name. The others as in the module's list. Raises: MalformedMessage: a quorum that these roots cannot be."""

    roots: tuple[bytes, ...]
    quorum: int
    rosters: tuple[bytes, ...]
    job: bytes = field(repr=False)
    state: bytes = field(repr=False)
    rounds: tuple[RoundEvidence, ...]
    leaves: bytes = field(default=b"", repr=False)
    checkpoints: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if type(self.quorum) is not int or not 1 <= self.quorum <= len(self.roots):
            raise MalformedMessage(
                f"trust.json: {len(self.roots)} root keys of which {self.quorum!r} must have signed."
            )

    def trusting(self, *roots: bytes) -> Evidence:
        """The same evidence, judged by root keys that the reader has pinned: any of them must have signed."""
        return replace(self, roots=roots, quorum=1)

    def to_files(self) -> dict[str, Buffer]:
        """By path in the results folder."""
        trust = {"roots": [key.hex() for key in self.roots], "quorum": self.quorum}
        files: dict[str, Buffer] = {
            "trust.json": canonical(trust),
            "job.bundle": self.job,
            "state.bundle": self.state,
        }
        for version, roster in enumerate(self.rosters, 1):
            files[file_of("rosters", version)] = roster
        for place, each in enumerate(self.rounds):
            parts = {"receipts": each.receipt, "totals": each.total}
            parts |= {"keys": each.keys, "consistency": each.consistency}
            files |= {file_of(kind, place): data for kind, data in parts.items() if data}
            files |= {file_of("audits", place, nonce): data for nonce, data in each.audits.items()}
        if self.leaves:
            files["log/leaves"] = self.leaves
        return files | {f"log/{name}.checkpoint": note for name, note in self.checkpoints.items()}

    @classmethod
    def from_files(cls, files: Mapping[str, Buffer]) -> Evidence:
        """Args: files: by path, with "/" between parts; other files of the folder are passed over. Of large totals
          pass views of mapped files: they are read one at a time.

        Raises: MalformedMessage: what must be there is not.
        """
        totals: dict[int, Buffer] = {}
        numbered: dict[str, dict[int, bytes]] = {kind: {} for kind in SUFFIX}
        audits: dict[int, dict[str, bytes]] = {}
        for path, data in files.items():
            found = NUMBERED.fullmatch(path)
            if found is None:
                continue
            place = int(found[2])
            if found[1] == "totals":
                totals[place] = data
            elif found[3]:
                audits.setdefault(place, {})[found[3]] = bytes(data)
            else:
                numbered[found[1]][place] = bytes(data)
        receipts = numbered["receipts"]
        if sorted(receipts) != list(range(len(receipts))) or not receipts:
            raise MalformedMessage("the folder has no receipts, or one is missing.", mend="Fetch the results again.")
        if missing := [name for name in REQUIRED if name not in files]:
            raise MalformedMessage(f"the folder lacks {missing[0]}.", mend="Fetch the results again.")
        try:
            trust = json.loads(bytes(files["trust.json"]))
            roots, quorum = tuple(bytes.fromhex(key) for key in trust["roots"]), trust["quorum"]
        except (KeyError, ValueError, TypeError, RecursionError):
            raise MalformedMessage(
                "trust.json of the folder does not parse.", mend="Fetch the results again."
            ) from None
        job, state = bytes(files["job.bundle"]), bytes(files["state.bundle"])
        rounds = tuple(
            RoundEvidence(
                receipt=receipts[place],
                total=totals.get(place, b""),
                keys=numbered["keys"].get(place, b""),
                consistency=numbered["consistency"].get(place, b""),
                audits=audits.get(place, {}),
            )
            for place in range(len(receipts))
        )
        notes = {
            path.removeprefix("log/").removesuffix(".checkpoint"): bytes(data)
            for path, data in files.items()
            if path.startswith("log/") and path.endswith(".checkpoint")
        }
        rosters = tuple(data for _, data in sorted(numbered["rosters"].items()))
        return cls(roots, quorum, rosters, job, state, rounds, bytes(files.get("log/leaves", b"")), notes)
