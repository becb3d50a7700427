"""Verify: replays a finished run from its evidence alone, offline, and says plainly what is proven and what is not.

The chain of what rests on what, each link checked by itself:

    root key -> rosters -> coordinator's and sites' keys -> receipts, one chain -> plans, contexts, survivor sets
    job -> query -> plan; opened sum -> receipt's sum root; job + state + opened sum -> next state -> receipt -> model
    sites' signed masked vectors -> opened sum (audits); receipts -> log -> checkpoints, cosigned by sites

Everything between the masked vectors and the model is recomputed with the same code that ran (`Program`), so the
coordinator can have altered nothing there. Every breach is a finding with the name of its error; a claim is proven
only if it holds for every round. Never proven is what happened before a site masked: see `BEYOND`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from cloister.job import Job
from cloister.round.evidence import Evidence, RoundEvidence, file_of
from cloister.round.program import Program
from cloister.seal import audit, derive, merkle
from cloister.seal.identity import fingerprint_words
from cloister.seal.labels import ZERO32, fields
from cloister.seal.log import Checkpoint, cosigner_of, cosigners, open_checkpoint, origin_of
from cloister.seal.messages import Consistency
from cloister.seal.plan import check_plan
from cloister.seal.receipt import Receipt, open_receipt
from cloister.seal.roster import Roster, TrustedRoster
from cloister.seal.threshold import MIN_SITES
from cloister.vector import State, digest, open_total
from cloister.vector.errors import (
    BadModel,
    BadSignature,
    BadSum,
    CloisterError,
    ContextMismatch,
    MissingConsistency,
    RosterRefused,
    StaleReceipt,
    TooFewSurvivors,
)

BEYOND = (
    "that sites told the truth about their data, and trained as the job says: each sealed what it chose to seal",
    "that no round was opened that has no receipt: void rounds leave none",
)


Made = TypeVar("Made")


@dataclass(frozen=True)
class Finding:
    """A breach.

    Attributes: name: of the error. where: "round 3", "log" ... site: whom it is about, or "". file: of the evidence,
      in which it shows.
    """

    name: str
    where: str
    message: str
    mend: str = ""
    site: str = ""
    file: str = ""

    @property
    def sentence(self) -> str:
        where = f"{self.where}, site {self.site}" if self.site else self.where
        return f"{self.name} in {self.file} ({where}): {self.message}" + (f" {self.mend}" if self.mend else "")


@dataclass(frozen=True)
class Verdict:
    """Attributes: findings: every breach; none is needed for `ok`. proven, unproven: claims as sentences."""

    findings: tuple[Finding, ...]
    proven: tuple[str, ...]
    unproven: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.findings

    def as_json(self) -> dict[str, Any]:
        found = [vars(finding) for finding in self.findings]
        return {"ok": self.ok, "findings": found, "proven": list(self.proven), "not_proven": list(self.unproven)}

    def lines(self) -> list[str]:
        """The verdict for people."""
        said = "nothing was altered, as far as the evidence goes" if self.ok else f"{len(self.findings)} findings"
        lines = [f"verdict: {said}."]
        for each in self.findings:
            lines.append(f"  found: {each.sentence}")
        lines += [f"  proven: {claim}." for claim in self.proven]
        return lines + [f"  not proven: {claim}." for claim in self.unproven]


def verify(evidence: Evidence) -> Verdict:
    """Replays a run. Nothing in the evidence is trusted but its root keys; it never raises for what it holds."""
    return _Replay(evidence).verdict()


@dataclass(frozen=True)
class _Round:
    """One round whose receipt the coordinator signed."""

    place: int
    receipt: Receipt
    roster: Roster
    evidence: RoundEvidence

    @property
    def where(self) -> str:
        return f"round {self.receipt.plan.round}"

    def file(self, kind: str, nonce: str = "") -> str:
        return file_of(kind, self.place, nonce)


class _Replay:
    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._findings: list[Finding] = []
        self._proven: list[str] = []
        self._unproven: list[str] = []
        self._rosters: dict[bytes, Roster] = {}
        self._rounds: list[_Round] = []
        self._cosigners: frozenset[str] = frozenset()
        self._roots: dict[int, bytes] = {}  # of the log's beginnings

    def verdict(self) -> Verdict:
        steps = (
            self._follow_rosters,
            self._open_receipts,
            self._chain_receipts,
            self._check_sites,
            self._check_consistency,
            self._replay_model,
            self._check_audits,
            self._check_log,
        )
        for step in steps:
            step()
        return Verdict(tuple(self._findings), tuple(self._proven), (*self._unproven, *BEYOND))

    @contextmanager
    def _finding(self, where: str, file: str) -> Iterator[None]:
        """Turns a refusal into a finding."""
        try:
            yield
        except CloisterError as fault:
            self._found(fault, where, file)

    def _found(self, fault: CloisterError, where: str, file: str) -> None:
        self._findings.append(Finding(fault.name, where, fault.message, fault.mend, fault.site, file))

    def _claim(self, before: int, proven: str, unproven: str, *, enough: bool = True) -> None:
        """Proven where there was enough to look at and nothing was found since `before`."""
        if enough and len(self._findings) == before:
            self._proven.append(proven)
        else:
            self._unproven.append(unproven)

    @property
    def _complete(self) -> bool:
        """Whether every receipt could be opened: without one nothing holds for the whole run."""
        return bool(self._rounds) and len(self._rounds) == len(self._evidence.rounds)

    # who is who

    def _follow_rosters(self) -> None:
        before, trusted = len(self._findings), TrustedRoster(self._evidence.roots, self._evidence.quorum)
        for place, signed in enumerate(self._evidence.rosters, 1):
            own = place == 1 and self._evidence.roots and _vouches_for_itself(signed)
            with self._finding(f"roster {place}", "trust.json" if own else file_of("rosters", place)):
                roster = trusted.update(signed)
                self._rosters[roster.digest] = roster
        words = ", ".join(fingerprint_words(key) for key in self._evidence.roots)
        self._claim(
            before,
            f"{len(self._rosters)} rosters follow from the root key ({words})",
            "who the members are: the rosters do not follow from the root key",
            enough=bool(self._rosters),
        )

    # receipts

    def _open_receipts(self) -> None:
        for place, each in enumerate(self._evidence.rounds):
            with self._finding(f"receipt {place}", file_of("receipts", place)):
                self._rounds.append(_Round(place, *_opened(each.receipt, self._rosters), each))

    def _chain_receipts(self) -> None:
        before, last_round, last_receipt = len(self._findings), -1, ZERO32
        for each in self._rounds:
            with self._finding(each.where, each.file("receipts")):
                each.receipt.check_follows(self._rounds[0].receipt.plan.run, last_round, last_receipt)
            last_round, last_receipt = each.receipt.plan.round, each.receipt.digest
            with self._finding(each.where, each.file("receipts")):
                _check_receipt(each.receipt, each.roster)
        count = len(self._rounds)
        self._claim(
            before,
            f"{count} receipts are signed by the coordinator and form one chain of one run; in each the plan, the"
            " threshold and the survivors are within the rules",
            "that the receipts are one unbroken chain",
            enough=self._complete,
        )

    def _check_sites(self) -> None:
        before = len(self._findings)
        for each in self._rounds:
            for signed in audit.signed_roots(each.receipt):
                with self._finding(each.where, each.file("receipts")):
                    signed.verify(each.roster.key_of(signed.site, "site"))
        vectors = sum(len(each.receipt.u3) for each in self._rounds)
        self._claim(
            before,
            f"each of the {vectors} masked vectors that were summed is signed for by its site, for its round alone",
            "that the masked vectors are the sites' own",
            enough=self._complete,
        )

    def _check_consistency(self) -> None:
        before, seen = len(self._findings), 0
        for each in self._rounds:
            if each.evidence.consistency:
                seen += 1
                with self._finding(each.where, each.file("consistency")):
                    _check_signatures(each)
        self._claim(
            before,
            "in every round a threshold of sites signed one and the same survivor set",
            f"that sites agreed on the survivors: signatures are there for {seen} of {len(self._rounds)} rounds",
            enough=self._complete and seen == len(self._rounds),
        )

    # the model

    def _replay_model(self) -> None:
        before, replayed, ended = len(self._findings), 0, False
        job, final = self._read_job(), self._read_final()
        with self._finding("job", "job.bundle"):
            if job is not None and final is not None:
                program = _replayed(lambda: _program(job, final))
                state, replayed = self._recompute(program, job)
                ended = self._complete and replayed == len(self._rounds)
                if ended and program.ask(state) is not None:
                    self._unproven.append("that the run is at its end: the job has more to ask")
        self._claim(
            before,
            f"the final model follows, bit for bit, from the job and the {replayed} opened sums: the initial model,"
            " every query and every state were recomputed",
            f"the model: {replayed} of {len(self._evidence.rounds)} steps could be recomputed",
            enough=ended,
        )

    def _read_job(self) -> Job | None:
        with self._finding("job", "job.bundle"):
            return Job.from_bytes(self._evidence.job)
        return None

    def _read_final(self) -> State | None:
        """The state that the last receipt should name; of another one, only the columns serve on."""
        with self._finding("job", "state.bundle"):
            if self._complete and digest(self._evidence.state) != self._rounds[-1].receipt.state:
                raise BadModel("the final state is not the one that the last receipt names.")
        with self._finding("job", "state.bundle"):
            return State.from_bytes(self._evidence.state)
        return None

    def _recompute(self, program: Program, job: Job) -> tuple[State, int]:
        """The state after as many rounds as the evidence carries, and how many these are."""
        state = program.start()
        for done, each in enumerate(self._rounds if self._complete else ()):
            if not each.evidence.total:
                return state, done
            found, file = len(self._findings), self._file_of_step(each, job)
            with self._finding(each.where, each.file("totals")):
                _check_total(each)
                with self._finding(each.where, file):
                    state = _next_state(program, state, each, job)
            if len(self._findings) > found:
                return state, done
        return state, len(self._rounds)

    def _file_of_step(self, each: _Round, job: Job) -> str:
        """Which file is to blame if this step cannot be recomputed, or comes out otherwise."""
        if each.receipt.plan.job != job.digest:
            return "job.bundle"
        doubted = any(finding.file == "state.bundle" for finding in self._findings)
        return "state.bundle" if doubted and each.place == 0 else each.file("receipts")

    # the sums

    def _check_audits(self) -> None:
        before, full, chances = len(self._findings), 0, []
        for each in self._rounds:
            shown, total = self._audited(each), audit.leaves(each.receipt)
            full += shown == total
            if 0 < shown < total:
                chances.append(audit.caught(total, -(-total // 10), shown))
        if chances and len(self._findings) == before:
            self._proven.append(
                f"in {len(chances)} rounds the challenged pieces of the opened sums are those of the signed masked"
                f" vectors, which finds an altered tenth with a chance of {min(chances):.0%} at least, if the nonces"
                " are your own"
            )
        count = len(self._rounds)
        self._claim(
            before,
            f"all {count} opened sums are, word for word, those of the signed masked vectors",
            "that every opened sum is, word for word, that of the signed masked vectors: audits show it in full for"
            f" {full} of {count}",
            enough=self._complete and full == count,
        )

    def _audited(self, each: _Round) -> int:
        """The most leaves of this round's sum that one answer shows rightly."""
        shown = 0
        for nonce, data in sorted(each.evidence.audits.items()):
            with self._finding(each.where, each.file("audits", nonce)):
                answer = audit.Audit.from_bytes(data)
                if answer.nonce.hex() != nonce:
                    raise BadSum("an audit that answers another nonce")
                shown = max(shown, audit.verify(answer, each.receipt, each.roster))
        return shown

    # the log

    def _check_log(self) -> None:
        """Every head that anybody signed for, the coordinator or a site in its keys, is one of this one log."""
        before, data = len(self._findings), self._evidence.leaves
        log = [data[at : at + 32] for at in range(0, len(data), 32)]
        heads = self._heads()
        newest = max((head.size for head, _, _ in heads), default=0)
        for head, where, file in heads:
            with self._finding(where, "log/leaves" if head.size == newest else file):
                if head.size > len(log) or self._root(log, head.size) != head.root:
                    raise StaleReceipt("a checkpoint that is no head of this log: it was split or rolled back")
        at = 0
        for each in self._rounds if newest else ():
            with self._finding(each.where, each.file("receipts")):
                leaf = merkle.leaf_hash(each.evidence.receipt)
                if leaf not in log[at:newest]:
                    raise StaleReceipt("the receipt is not in the log, or not in its order")
                at = log.index(leaf, at) + 1
        signers = f", cosigned by {', '.join(sorted(self._cosigners))}" if self._cosigners else ""
        self._claim(
            before,
            f"all receipts are in a log of {newest}, and the {len(heads)} checkpoints at hand, of the coordinator and"
            f" of what sites signed, are heads of it{signers}",
            "that the receipts are in the one log that all sites see",
            enough=self._complete and newest > 0,
        )

    def _heads(self) -> list[tuple[Checkpoint, str, str]]:
        """Checkpoints, where they were found, and in which file: the coordinator's, and those that sites carried."""
        heads: list[tuple[Checkpoint, str, str]] = []
        for name, note in sorted(self._evidence.checkpoints.items()):
            where, file = f"checkpoint {name}", f"log/{name}.checkpoint"
            with self._finding(where, file):
                head, cosigned = _checkpoint(note, self._rosters)
                self._cosigners |= cosigned
                heads.append((head, where, file))
        for each in self._rounds:
            if each.evidence.keys:
                with self._finding(each.where, each.file("keys")):
                    for entry in audit.key_entries(each.evidence.keys, each.receipt, each.roster):
                        if entry.checkpoint:
                            head, _ = _checkpoint(entry.checkpoint, self._rosters)
                            heads.append((head, f"{each.where}, keys of {entry.site}", each.file("keys")))
        return heads

    def _root(self, log: list[bytes], size: int) -> bytes:
        if size not in self._roots:
            self._roots[size] = merkle.root(log[:size])
        return self._roots[size]


def _vouches_for_itself(signed: bytes) -> bool:
    """Whether a roster is signed as it says itself: then it is whole, and who does not trust its roots means another
    federation."""
    try:
        roster = Roster.from_bytes((fields(signed) or [b""])[0])
        TrustedRoster(roster.roots, roster.quorum).update(signed)
    except CloisterError:
        return False
    return True


def _opened(signed: bytes, rosters: Mapping[bytes, Roster]) -> tuple[Receipt, Roster]:
    """The receipt and its roster. Raises: BadSignature: no coordinator signed it. RosterRefused: no such roster."""
    for key in {member.key for roster in rosters.values() for member in roster.coordinators}:
        try:
            receipt = open_receipt(signed, key)
        except BadSignature:
            continue
        if receipt.roster not in rosters:
            raise RosterRefused("a receipt under a roster that no root key signed, or that is not there")
        if key in [member.key for member in rosters[receipt.roster].coordinators]:
            return receipt, rosters[receipt.roster]
    raise BadSignature("a receipt that no coordinator of its roster signed")


def _checkpoint(note: bytes, rosters: Mapping[bytes, Roster]) -> tuple[Checkpoint, frozenset[str]]:
    """The head that a coordinator signed, and which sites cosigned it. Raises: BadSignature, MalformedMessage."""
    for roster in reversed(list(rosters.values())):
        names = {cosigner_of(roster.federation, member.id): member.id for member in roster.sites}
        keys = {cosigner_of(roster.federation, member.id): member.key for member in roster.sites}
        for coordinator in roster.coordinators:
            try:
                head = open_checkpoint(note, origin_of(roster.federation), coordinator.key)
            except BadSignature:
                continue
            return head, frozenset(names[name] for name in cosigners(note, keys))
    raise BadSignature("a checkpoint that no coordinator signed")


def _check_receipt(receipt: Receipt, roster: Roster) -> None:
    """A site's checks of the plan, for every site of it, and of the context. Raises: PeerError."""
    plan = receipt.plan
    for site in plan.sites:
        check_plan(plan, roster, site, MIN_SITES, 0)
    if receipt.ctx != derive.round_context(plan, receipt.roster, receipt.previous):
        raise ContextMismatch("the context is not that of the plan, the roster and the receipt before")
    if len(receipt.u3) < max(plan.threshold, plan.min_survivors):
        raise TooFewSurvivors(f"{len(receipt.u3)} survivors opened a sum that takes {plan.threshold}")


def _check_signatures(each: _Round) -> None:
    """Message 8: a threshold of U3 signed exactly this U3, with these roots. Raises: PeerError."""
    receipt, message = each.receipt, Consistency.from_bytes(each.evidence.consistency)
    roots = tuple(audit.signed_roots(receipt))
    u2 = derive.sharers_digest(receipt.ctx, receipt.h1, receipt.u2)
    agreed = derive.survivors_digest(receipt.ctx, receipt.h1, u2, roots)
    if digest(each.evidence.consistency) != receipt.consistency or (message.context, message.u3) != (
        receipt.ctx,
        agreed,
    ):
        raise MissingConsistency("the signatures are on another survivor set than the receipt's")
    signers = {entry.site for entry in message.entries}
    if len(signers) < receipt.plan.threshold or not signers <= set(receipt.u3):
        raise MissingConsistency(f"{len(signers)} signatures of survivors, it takes {receipt.plan.threshold}")
    for entry in message.entries:
        entry.verify(each.roster.key_of(entry.site, "site"), entry.site)


def _program(job: Job, final: State) -> Program:
    """The job's program over the columns that the final state names; a wrong name shows in the first digest."""
    columns = final.facts.get("columns")
    if not isinstance(columns, dict) or not all(kind in ("number", "category") for kind in columns.values()):
        raise BadModel("the final state does not name the columns.")
    return Program(job, columns)


def _replayed(compute: Callable[[], Made]) -> Made:
    """What the run computed. Raises: BadModel: it cannot have, since that fails."""
    try:
        return compute()
    except CloisterError:
        raise
    except Exception as fault:  # bytes of a liar reach the algorithm here; whatever they break is a finding
        raise BadModel(f"the step cannot be recomputed: {type(fault).__name__}") from None


def _check_total(each: _Round) -> None:
    """Raises: BadSum."""
    data, plan = each.evidence.total, each.receipt.plan
    if merkle.root_of(data) != each.receipt.sum_root or len(data) != plan.words * plan.coder.dtype.itemsize:
        raise BadSum("the opened sum is not the one that the receipt names")


def _next_state(program: Program, state: State, each: _Round, job: Job) -> State:
    """Recomputes one step: the query of the plan, and from the sum the state of the receipt.

    Raises: BadModel, and what the algorithm raises for such a sum.
    """
    receipt, plan, data = each.receipt, each.receipt.plan, each.evidence.total
    query = _replayed(lambda: program.ask(state))
    if query is None:
        raise BadModel("a receipt after the end of the job")
    if (plan.job, plan.query) != (job.digest, digest(query.to_bytes())):
        raise BadModel("the sites were asked something else than this job asks at this point")
    if (plan.layout, plan.max_rows, plan.bits) != (query.sealed_layout, query.max_rows, job.bits):
        raise BadModel("the plan's layout, rows or bits are not those of the job's query")
    words = np.frombuffer(data, plan.coder.dtype.newbyteorder("<")).astype(plan.coder.dtype)
    after = _replayed(lambda: program.learn(state, open_total(query, plan.coder, words, len(receipt.u3))))
    if digest(after.to_bytes()) != receipt.state:
        raise BadModel("the state that the receipt names is not the one that follows from the sum")
    return after
