"""Verify: replays a finished run from its evidence alone, offline, and says plainly what is proven and what is not.

The chain of what rests on what, each link checked by itself:

    root key -> rosters -> coordinator's and sites' keys -> receipts, one chain -> plans, contexts, survivor sets
    job -> query -> plan; opened sum -> receipt's sum root; job + state + opened sum -> next state -> receipt -> model
    sites' signed masked vectors -> opened sum (audits); receipts -> log -> checkpoints, cosigned by sites

Everything between the masked vectors and the model is recomputed with the same code that ran (`Program`), so the
coordinator can have altered nothing there. Every breach is a finding with the name of its error and of the file in
which it shows; a claim is proven only if it holds for every round. Never proven is what happened before a site
masked: see `verdict.BEYOND`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from cloister.job import Job
from cloister.round.checks import (
    ReceiptedRound,
    check_receipt,
    check_signatures,
    check_submission,
    checkpoint,
    heads,
    opened,
    vouches_for_itself,
)
from cloister.round.evidence import SIMULATION, Evidence, file_of
from cloister.round.ledgers import Ledgers
from cloister.round.program import Program
from cloister.round.replay import check_total, make_program, next_state, replayed
from cloister.round.verdict import BEYOND, Claim, Finding, Outcome, Verdict, count
from cloister.seal import audit, merkle
from cloister.seal.identity import fingerprint_words
from cloister.seal.labels import ZERO32
from cloister.seal.log import Checkpoint
from cloister.seal.messages import Keys
from cloister.seal.roster import Roster, TrustedRoster
from cloister.vector import State, digest
from cloister.vector.errors import BadModel, BadSum, CloisterError, LedgerRolledBack, StaleReceipt

HASH_BYTES = 32


def verify(
    evidence: Evidence, *, asked: Mapping[str, int] | None = None, told: Callable[[str], None] = lambda what: None
) -> Verdict:
    """Replays a run. Nothing in the evidence is trusted but its root keys; it never raises for what it holds.

    Args: asked: the audits that the reader asked for: nonce in hex -> leaves to be shown. told: what is looked at
      now, for people who wait.
    """
    return _Replay(evidence, asked or {}, told).verdict()


class _Replay:
    def __init__(self, evidence: Evidence, asked: Mapping[str, int], told: Callable[[str], None]) -> None:
        self._evidence, self._asked, self._told = evidence, asked, told
        self._findings: list[Finding] = []
        self._claims: list[Claim] = []
        self._rosters: dict[bytes, Roster] = {}
        self._rounds: list[ReceiptedRound] = []
        self._cosigners: frozenset[str] = frozenset()
        self._ledgers, self._fallen = Ledgers(), list[tuple[ReceiptedRound, LedgerRolledBack]]()

    def verdict(self) -> Verdict:
        self._follow_rosters()
        if not self._rosters:
            rest = Claim("all else", "not proven", "nothing can be judged without the members' keys")
            return Verdict((*self._claims, rest, *BEYOND), tuple(self._findings))
        steps = (
            self._check_receipts,
            self._check_analyst,
            self._check_sites,
            self._check_consistency,
            self._replay_model,
            self._check_audits,
            self._check_log,
            self._check_ledgers,
        )
        for step in steps:
            step()
        return Verdict((*self._claims, *BEYOND), tuple(self._findings))

    @contextmanager
    def _finding(self, where: str, file: str) -> Iterator[None]:
        """Turns a refusal into a finding."""
        try:
            yield
        except CloisterError as fault:
            self._found(fault, where, file)

    def _found(self, fault: CloisterError, where: str, file: str) -> None:
        self._findings.append(Finding(fault.name, where, fault.message, fault.mend, fault.site, file))

    def _claim(self, of: str, before: int, proven: str, unproven: str, *, enough: bool = True) -> None:
        """Failed if something was found since `before`; else proven where there was enough to look at."""
        found = self._findings[before:]
        outcome: Outcome = "FAILED" if found else "proven" if enough else "not proven"
        self._claims.append(Claim(of, outcome, found[0].sentence if found else proven if enough else unproven))

    @property
    def _complete(self) -> bool:
        """Whether every receipt could be opened: without one nothing holds for the whole run."""
        return bool(self._rounds) and len(self._rounds) == len(self._evidence.rounds)

    # who is who

    def _follow_rosters(self) -> None:
        before, trusted = len(self._findings), TrustedRoster(self._evidence.roots, self._evidence.quorum)
        for version, signed in enumerate(self._evidence.rosters, 1):
            own = version == 1 and not self._evidence.pinned and vouches_for_itself(signed)
            with self._finding(f"roster {version}", "trust.json" if own else file_of("rosters", version)):
                roster = trusted.update(signed)
                self._rosters[roster.digest] = roster
        self._claims.append(self._root())
        self._claim(
            "members",
            before,
            f"{count(len(self._rosters), 'roster')} in one chain, signed by the root key",
            "there is no roster",
            enough=bool(self._rosters),
        )

    def _root(self) -> Claim:
        """Whose federation this is: the one thing that the evidence cannot show by itself."""
        words = " / ".join(fingerprint_words(key) for key in self._evidence.roots)
        if any(roster.federation == SIMULATION for roster in self._rosters.values()):
            return Claim("root key", "not proven", "a simulation: one process made all keys and played all parties")
        if not self._evidence.pinned:
            why = f"trusted as found: compare its words with the operator's ({words})"
            return Claim("root key", "not proven", why)
        if not self._rosters:
            return Claim("root key", "not proven", f"no roster is signed by the one that you pinned ({words})")
        return Claim("root key", "proven", f"the one that you pinned ({words})")

    # receipts

    def _check_receipts(self) -> None:
        before, last_round, last_receipt = len(self._findings), -1, ZERO32
        for place, each in enumerate(self._evidence.rounds):
            with self._finding(f"receipt {place}", file_of("receipts", place)):
                self._rounds.append(ReceiptedRound(place, *opened(each.receipt, self._rosters), each))
        for known in self._rounds:
            with self._finding(known.where, known.file("receipts")):
                known.receipt.check_follows(self._rounds[0].receipt.plan.run, last_round, last_receipt)
            last_round, last_receipt = known.receipt.plan.round, known.receipt.digest
            with self._finding(known.where, known.file("receipts")):
                check_receipt(known.receipt, known.roster)
        self._claim(
            "receipts",
            before,
            f"{count(len(self._rounds), 'receipt')}: signed, in one chain of one run, each within the rules",
            "not all can be read",
            enough=self._complete,
        )

    def _check_analyst(self) -> None:
        before, signed, analyst = len(self._findings), self._evidence.submission, ""
        if signed is not None and self._complete:
            first, job = self._rounds[0], self._evidence.job
            with self._finding("job", "job.signature"):
                if digest(job) == first.receipt.plan.job:  # else it is the job that is found to be another one
                    analyst = check_submission(signed, job, first.receipt.plan.run, first.roster)
        why = f"signed by the analyst {analyst}, for this run"
        self._claim("job", before, why, "no signature of its analyst to judge", enough=analyst != "")

    def _check_sites(self) -> None:
        before = len(self._findings)
        for each in self._rounds:
            self._told(f"signatures of {each.where}")
            for signed in audit.signed_roots(each.receipt):
                with self._finding(each.where, each.file("receipts")):
                    signed.verify(each.roster.key_of(signed.site, "site"))
        vectors = sum(len(each.receipt.u3) for each in self._rounds)
        self._claim(
            "masked vectors",
            before,
            f"{vectors}, each signed for by its site, for its round alone",
            "not all receipts can be read",
            enough=self._complete,
        )

    def _check_consistency(self) -> None:
        before, seen = len(self._findings), 0
        for each in self._rounds:
            if each.evidence.consistency is not None:
                seen += 1
                with self._finding(each.where, each.file("consistency")):
                    check_signatures(each, each.evidence.consistency)
        self._claim(
            "survivors",
            before,
            "in every round a threshold of sites signed one and the same set",
            f"signatures are there for {seen} of {len(self._evidence.rounds)} rounds",
            enough=self._complete and seen == len(self._rounds),
        )

    # the model

    def _replay_model(self) -> None:
        before, done, ended, more = len(self._findings), 0, False, False
        job, final = self._read_job(), self._read_final()
        with self._finding("job", "job.bundle"):
            if job is not None and final is not None:
                program = replayed(lambda: make_program(job, final))
                state, done = self._recompute(program, job)
                ended = self._complete and done == len(self._rounds)
                more = ended and program.ask(state) is not None
        self._claim(
            "model",
            before,
            f"it follows, bit for bit, from the job and {count(done, 'opened sum')}",
            f"{done} of {len(self._evidence.rounds)} steps could be recomputed from opened sums",
            enough=ended,
        )
        if more:
            self._claims.append(Claim("end of the run", "not proven", "the job has more to ask"))

    def _read_job(self) -> Job | None:
        with self._finding("job", "job.bundle"):
            job = Job.from_bytes(self._evidence.job)
            if self._complete and any(each.receipt.plan.job != job.digest for each in self._rounds):
                raise BadModel("the job is not the one that the receipts name.")
            return job
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
            if each.evidence.total is None:
                return state, done
            self._told(f"model of {each.where}")
            found, file = len(self._findings), self._file_of_step(each, job)
            with self._finding(each.where, each.file("totals")):
                total = bytes(each.evidence.total)
                check_total(each, total)
                with self._finding(each.where, file):
                    state = next_state(program, state, each, total, job)
            if len(self._findings) > found:
                return state, done
        return state, len(self._rounds)

    def _file_of_step(self, each: ReceiptedRound, job: Job) -> str:
        """Which file is to blame if this step cannot be recomputed, or comes out otherwise."""
        if each.receipt.plan.job != job.digest:
            return "job.bundle"
        doubted = any(finding.file == "state.bundle" for finding in self._findings)
        return "state.bundle" if doubted and each.place == 0 else each.file("receipts")

    # the sums

    def _check_audits(self) -> None:
        before, full = len(self._findings), 0
        chances: list[float] = []
        for each in self._rounds:
            shown, total = self._audited(each), audit.leaves(each.receipt)
            full += shown == total
            if 0 < shown < total:
                chances.append(audit.caught(total, -(-total // 10), shown))
        rounds = len(self._rounds)
        self._claim(
            "sums",
            before,
            f"{rounds}, word for word those of the signed masked vectors",
            f"audits show {full} of {rounds} to be, word for word, those of the signed masked vectors",
            enough=self._complete and full == rounds,
        )
        if chances and len(self._findings) == before:
            mine = all(nonce in self._asked for each in self._rounds for nonce in each.evidence.audits)
            self._claims.append(
                Claim(
                    "pieces of sums",
                    "proven",
                    f"those challenged in {count(len(chances), 'round')} are right, which finds an altered tenth with"
                    f" a chance of {min(chances):.0%} at least"
                    + ("" if mine else ", if nonces and their number are your own"),
                )
            )

    def _audited(self, each: ReceiptedRound) -> int:
        """How many leaves of this round's sum answers show rightly."""
        shown: set[int] = set()
        for nonce, data in sorted(each.evidence.audits.items()):
            self._told(f"audit of {each.where}")
            with self._finding(each.where, each.file("audits", nonce)):
                answer = audit.Audit.from_bytes(bytes(data))
                if answer.nonce.hex() != nonce:
                    raise BadSum("an audit that answers another nonce")
                wanted = min(self._asked.get(nonce, 0), audit.leaves(each.receipt))
                if len(answer.chunks) < wanted:  # those shown could be the ones before the first altered one
                    raise BadSum(f"{len(answer.chunks)} leaves of the sum were shown where {wanted} were asked for.")
                audit.verify(answer, each.receipt, each.roster)
                shown |= {chunk.index for chunk in answer.chunks}
        return len(shown)

    # the log

    def _check_log(self) -> None:
        """Every head that anybody signed for, the coordinator or a site in its keys, is one of this one log."""
        before, data = len(self._findings), self._evidence.leaves or b""
        log = [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]
        found = self._heads()
        newest = max((head.size for head, _, _ in found), default=0)
        with self._finding("log", "log/leaves"):
            whole = found and len(self._findings) == before
            if len(data) % HASH_BYTES or (whole and len(log) > newest):
                raise StaleReceipt("the log has leaves that no checkpoint vouches for, or part of one")
        roots = heads(log, {head.size for head, _, _ in found})
        for head, where, file in found if self._evidence.leaves is not None else ():
            with self._finding(where, "log/leaves" if head.size == newest else file):
                if roots.get(head.size) != head.root:
                    raise StaleReceipt("a checkpoint that is no head of this log: it was split or rolled back")
        at = 0
        for each in self._rounds if newest and log else ():
            with self._finding(each.where, each.file("receipts")):
                leaf = merkle.leaf_hash(each.evidence.receipt)
                if leaf not in log[at:newest]:
                    raise StaleReceipt("the receipt is not in the log, or not in its order")
                at = log.index(leaf, at) + 1
        signers = f", cosigned by {', '.join(sorted(self._cosigners))}" if self._cosigners else ""
        self._claim(
            "log",
            before,
            f"every receipt is in one log of {newest}; {count(len(found), 'checkpoint')} of it, the coordinator's and"
            f" those that sites carried, agree{signers}",
            "its leaves or its checkpoint are not there",
            enough=self._complete and newest > 0 and bool(log),
        )

    def _follow_ledgers(self, each: ReceiptedRound, keys: Sequence[Keys]) -> None:
        """In one run every round opens after the one before it was receipted."""
        fallen = self._ledgers.take(
            each.place, keys, each.receipt.u3, lambda site: each.roster.key_of(site, "site"), lambda said: each.place
        )
        self._fallen += [(each, fault) for fault in fallen]

    def _check_ledgers(self) -> None:
        """The keys of all rounds were read with the log."""
        before = len(self._findings)
        for each, fault in self._fallen:
            self._found(fault, each.where, each.file("keys"))
        self._claim(
            "ledgers",
            before,
            "no site's privacy ledger was put back: its charges were counted on in every round",
            "the sites' keys are not all there, or they keep no privacy ledgers",
            enough=self._complete and self._ledgers.said and all(each.evidence.keys for each in self._rounds),
        )

    def _heads(self) -> list[tuple[Checkpoint, str, str]]:
        """Checkpoints, where they were found, and in which file: the coordinator's, and those that sites carried."""
        found: list[tuple[Checkpoint, str, str]] = []
        for name, note in sorted(self._evidence.checkpoints.items()):
            where, file = f"checkpoint {name}", f"log/{name}.checkpoint"
            with self._finding(where, file):
                head, cosigned = checkpoint(note, self._rosters)
                self._cosigners |= cosigned
                found.append((head, where, file))
        for each in self._rounds:
            self._told(f"keys of {each.where}")
            if each.evidence.keys is not None:
                with self._finding(each.where, each.file("keys")):
                    entries = audit.key_entries(each.evidence.keys, each.receipt, each.roster)
                    self._follow_ledgers(each, entries)
                    for entry in entries:
                        if entry.checkpoint:
                            head, _ = checkpoint(entry.checkpoint, self._rosters)
                            found.append((head, f"{each.where}, keys of {entry.site}", each.file("keys")))
        return found
