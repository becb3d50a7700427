"""The HTTP interface of a coordinator: paths, limits, bodies and problem documents (docs/protocol.md, "Transport").

Everything but enrolment, rosters and parts is a POST of one signed envelope. An error is an RFC 9457 problem
document whose `error` is the stable name of a class in `vector.errors`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from cloister.seal.labels import lp
from cloister.vector import CloisterError
from cloister.vector.errors import (
    AddressInUse,
    BadSignature,
    BadUpload,
    EnvironmentFailure,
    InvitationError,
    MalformedMessage,
    NotInRoster,
    PeerError,
    PolicyRefused,
    StorageFull,
    UsageError,
    error_names,
)

ENROLL = "/v1/enroll"
ROSTERS = "/v1/rosters"  # + /{version} or /latest
POLL = "/v1/poll"
MESSAGES = "/v1/messages"
PARTS = "/v1/parts"  # + /{sha256}
FETCH = "/v1/fetch"
JOBS = "/v1/jobs"
RUNS = "/v1/runs"
EVENTS = "/v1/events"
RESULTS = "/v1/results"
STOP = "/v1/stop"
LOG = "/v1/log"
AUDITS = "/v1/audits"

MAX_MESSAGE_BYTES = 8 << 20  # one envelope; our largest, a list of keys, is 0.1 MiB at 128 sites and 1 at 2,048
MAX_BUNDLE_BYTES = 512 << 20  # a job with its initial tensors; GitHub takes 2 GiB for a release's file
MAX_ANSWER_BYTES = 512 << 20  # 64 messages of a mailbox, the log, a run's events, a leaf of a sum of 2,048 sites
MAX_BLOB_BYTES = 2 << 30  # what a digest names: a query or state with a model of 500 million float32
HOLD_SECONDS = 25.0  # a long poll; proxies cut idle requests at 30 s (HAProxy's examples) to 60 s (nginx, AWS ELB)
GRACE_SECONDS = 3.0  # how long after its last sign of life a site still counts as there
AUDIT_SECONDS = 600.0  # to hash all masked vectors of a round: 100 of 40 MB in 4 s from a cached disk
MAX_AUDIT_LEAVES = 44  # shown in one answer: as many challenges find an altered tenth with 99% (seal.audit)
MAX_AUDIT_BYTES = 32 << 20  # of one answer, which is made in memory; a single leaf may be larger
RUN_HEX, DIGEST_HEX = r"^[0-9a-f]{32}$", r"^[0-9a-f]{64}$"

# what sites send to MESSAGES, and what the coordinator puts into their mailboxes
SITE_TYPES = ("catalogue", "keys", "shares", "masked", "consistent", "unmask", "refuse")
MAILBOX_TYPES = ("job", "open", "keylist", "ciphertexts", "survivors", "consistency", "receipt", "void", "done")


class Body(BaseModel):
    """A JSON body: unknown fields are refused, so that a typo never passes as a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_bytes(self) -> bytes:
        return self.model_dump_json().encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Any:
        """Raises: MalformedMessage: not a JSON body of this kind."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as fault:
            where = [".".join(map(str, error["loc"])) or "body" for error in fault.errors(include_input=False)]
            raise MalformedMessage(f"a {cls.__name__} body is wrong at {', '.join(where[:5])}") from None


class Enroll(Body):
    """To ENROLL. token, key, proof: hex. proof: signature of the new key over `enrol_proof_body`."""

    token: str = Field(pattern=r"^[0-9a-f]{32}$")
    id: str = Field(max_length=63)
    role: str = Field(pattern=r"^(site|analyst)$")
    key: str = Field(pattern=r"^[0-9a-f]{64}$")
    proof: str = Field(pattern=r"^[0-9a-f]{128}$")


class Poll(Body):
    """Envelope "poll": the messages numbered above `after`, waiting for them up to `hold` seconds."""

    after: int = Field(ge=0)
    hold: float = Field(ge=0, le=60)


class Catalogue(Body):
    """Envelope "catalogue": what a site offers: {dataset: {column: "number" | "category"}}. Names, never values."""

    datasets: dict[str, dict[str, str]]


class Missing(Body):
    """Answer to "masked": SHA-256 (hex) of the parts still to be put; none means that the upload is accepted."""

    missing: list[str] = []


Scope = Literal["round", "run", "waiting", "lifted"]


class Refusal(Body):
    """Envelope "refuse": this site does not answer this round, or none of this run, by its `scope`.

    "waiting": none of this run until its steward has read the job. "lifted": now it may be asked.
    """

    error: str = Field(max_length=64)
    message: str = Field(max_length=2000)
    mend: str = Field(default="", max_length=2000)
    site: str = Field(default="", max_length=63)
    rule: str = Field(default="", max_length=200)
    scope: Scope = "round"


class JobNotice(Body):
    """Mailbox "job": a run that this site may take part in. job: digest (hex) of the bundle. submission: of the
    analyst's signed envelope that holds it, through FETCH. roster: the version that the run is bound to. name: of the
    job, for people."""

    run: str = Field(pattern=RUN_HEX)
    job: str = Field(pattern=r"^[0-9a-f]{64}$")
    submission: str = Field(pattern=r"^[0-9a-f]{64}$")
    roster: int = Field(ge=1)
    analyst: str
    name: str = ""


class Void(Body):
    """Mailbox "void": the round ended without a sum."""

    reason: str


class Done(Body):
    """Mailbox "done": the run is over: "done", "failed" or "stopped"."""

    status: str


class RunRef(Body):
    """Envelopes "status" (run may be ""), "result", "stop"."""

    run: str = Field(default="", pattern=r"^([0-9a-f]{32})?$")


class EntryRef(Body):
    """Envelope "entry": a receipt's place in the log. receipt: SHA-256 (hex) of its signed bytes. since: the size of
    the head that the asker verified last."""

    receipt: str = Field(pattern=DIGEST_HEX)
    since: int = Field(ge=0, le=1 << 62)


class Challenge(Body):
    """Envelope "audit": show `count` leaves of the round's sum, those that the nonce (32 bytes, hex) picks.

    skip: how many of these were shown in answers before; one answer holds as many as its limits allow.
    """

    run: str = Field(pattern=RUN_HEX)
    round: int = Field(ge=0, le=1 << 62)
    nonce: str = Field(pattern=DIGEST_HEX)
    count: int = Field(ge=1, le=1 << 32)
    skip: int = Field(default=0, ge=0, le=1 << 32)


class Watch(Body):
    """Envelope "watch": the events of a run numbered above `after`, waiting for them up to `hold` seconds."""

    run: str = Field(pattern=RUN_HEX)
    after: int = Field(ge=0)
    hold: float = Field(ge=0, le=60)


# what the coordinator answers to analysts: the fields that are acted upon; others are for people, and passed on


class Told(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


Digest = Annotated[str, Field(pattern=DIGEST_HEX)]
RunId = Annotated[str, Field(pattern=RUN_HEX)]


class Submitted(Told):
    run: RunId


class RunLine(Told):
    run: RunId
    status: str


class Status(Told):
    """Of the federation; of one run the same fields as `RunLine`."""

    runs: list[RunLine] = []


class RoundLine(Told):
    """Of an opened round: what it can be verified with. kept: whether it can be audited."""

    round: int
    total: Digest | None
    keylist: Digest | None
    consistency: Digest | None
    kept: bool


class RunResult(RunLine):
    job: Digest
    submission: Digest
    state: Digest | None
    receipts: list[Digest]
    rounds: list[RoundLine]

    @model_validator(mode="after")
    def _a_receipt_of_each(self) -> RunResult:
        if len(self.receipts) != len(self.rounds):
            raise ValueError("as many receipts as rounds")
        return self


class Happened(Told):
    """An event of a run. The others beside `number` and `event`: of one that ends the run, or is about a site."""

    number: int
    event: str
    error: str = ""
    message: str = ""
    mend: str = ""
    site: str = ""
    sites: int | list[str] = 0

    @model_validator(mode="after")
    def _a_round_has_a_size(self) -> Happened:
        if self.event == "round" and not (isinstance(self.sites, int) and self.sites > 0):
            raise ValueError("the sites of a round")
        return self


def told(kind: Any, data: bytes) -> Any:
    """A coordinator's answer, as JSON values. Args: kind: of it, a `Told` or a list of them.

    Raises: MalformedMessage: it has not what is read of it.
    """
    try:
        TypeAdapter(kind).validate_json(data)
        return json.loads(data)
    except (ValueError, RecursionError):
        raise MalformedMessage("the coordinator's answer does not parse.", mend="Ask its operator.") from None


class Problem(BaseModel):
    """RFC 9457, with the error's own fields beside the standard ones."""

    type: str
    title: str
    status: int
    detail: str
    error: str
    mend: str = ""
    site: str = ""
    rule: str = ""


def enrol_proof_body(token: bytes, federation: str, id: str, role: str, key: bytes) -> bytes:
    """What a new member signs (label "enroll") to show that it holds the key that it enrols."""
    return lp(token) + lp(federation.encode()) + lp(id.encode()) + lp(role.encode()) + lp(key)


STATUSES: dict[type[CloisterError], int] = {
    MalformedMessage: 400,
    UsageError: 400,
    BadSignature: 401,
    NotInRoster: 403,
    InvitationError: 403,
    PolicyRefused: 403,
    BadUpload: 422,
    StorageFull: 507,
    AddressInUse: 500,
    EnvironmentFailure: 503,
    PeerError: 409,
    CloisterError: 400,
}


def problem_of(error: CloisterError) -> Problem:
    """The document that a client gets for an error."""
    kind = next(kind for kind in type(error).__mro__ if kind in STATUSES)
    return Problem(
        type=f"https://cloister.invalid/errors/{error.name}",
        title=error.name,
        status=STATUSES[kind],
        detail=error.message,
        error=error.name,
        mend=error.mend,
        site=error.site,
        rule=getattr(error, "rule", ""),
    )


def error_of(data: bytes, status: int) -> CloisterError:
    """The error behind a problem document; an unknown or unreadable one becomes a plain CloisterError."""
    try:
        problem = Problem.model_validate_json(data)
    except ValidationError:
        return CloisterError(f"the coordinator answered with HTTP status {status} and no problem document.")
    return revive(problem.error, problem.detail, problem.mend, problem.site, problem.rule)


def revive(error: str, message: str, mend: str = "", site: str = "", rule: str = "") -> CloisterError:
    """An error of the tree from its stable name and fields, as they came over the wire."""
    kind = error_names().get(error, CloisterError)
    if kind is PolicyRefused:
        return PolicyRefused(message, rule=rule, mend=mend, site=site)
    return kind(message, mend=mend, site=site)
