"""One run as its site lives it: the job, a training process, and one round of the seal after another.

The mailbox delivers the coordinator's messages; a reply goes out for each. While the worker trains, the messages
about keys and shares go on. Whatever goes wrong ends as one signed refusal without data values, and the next round
finds this site ready again.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cloister.job import Job
from cloister.round import Decision, Policy, contribute, decide_job, decide_plan, private
from cloister.round.decide import privacy_unit
from cloister.seal.client import SealClient
from cloister.seal.masks import packed_bytes
from cloister.seal.plan import Plan
from cloister.seal.receipt import open_receipt
from cloister.seal.roster import Roster
from cloister.seal.state import SitePhase
from cloister.site.desk import Desk, TurnedAway
from cloister.site.ledger import Charge, Limit, dataset_key
from cloister.site.memory import RunMemory
from cloister.site.settings import DataSource, write_private
from cloister.site.training import Task, Worker
from cloister.site.verdicts import verdict_on
from cloister.vector import Answer, CloisterError, Query, digest
from cloister.vector.errors import (
    ContextMismatch,
    DataError,
    EnvironmentFailure,
    JobError,
    LedgerRolledBack,
    PolicyRefused,
    StaleReceipt,
    TaskError,
    ThresholdTooLow,
    TooFewSites,
    UnexpectedMessage,
    Unreachable,
    WorkerDied,
)
from cloister.wire import Envelope, open_envelope
from cloister.wire.api import JobNotice, Void

REPLIES = {"keylist": "shares", "survivors": "consistent", "consistency": "unmask"}
VERDICT_SECONDS = 1.0  # between two looks for the verdict on a job that waits for one
WITHOUT_ROUND = ("job", "done")


@dataclass(frozen=True)
class Accepted:
    """A job that may run here. key: the coordinator's. data: what lies behind the job's dataset."""

    notice: JobNotice
    job: Job
    bundle: bytes
    roster: Roster
    key: bytes
    data: DataSource

    @property
    def ships_code(self) -> bool:
        """Then nothing that its worker says is passed on in words."""
        return self.job.ships_code or self.job.source is not None


@dataclass
class Round:
    """The round under way. charge: what an answer costs. sealing: the task that waits for one, and uploads it."""

    plan: Plan
    query: Query
    seal: SealClient
    began: float
    charge: Charge
    sealing: asyncio.Task[None] | None = None


class SiteRun:
    """Args: desk: what all runs of this site share. run: its id, hex. `deliver` feeds it, `work` lives it.
    recalled: it was waiting for a verdict when an earlier agent ended.
    """

    def __init__(self, desk: Desk, run: str, *, recalled: bool = False) -> None:
        self.run, self._recalled = run, recalled
        self._desk, self._journal = desk, desk.journal
        self._mail: asyncio.Queue[Envelope] = asyncio.Queue()
        self._tasks: asyncio.TaskGroup
        self._accepted: Accepted | None = None
        self._unfit: CloisterError | None = None  # why this site takes no part in the whole run
        self._round: Round | None = None
        self._charges: Mapping[bytes, int] = {}  # of other sites' ledgers, as known when the newest round came
        self._review: asyncio.Task[None] | None = None  # waits for the steward's verdict
        self._worker: asyncio.Task[Worker] | None = None
        self._memory = RunMemory(desk.folder.root / "memory" / run, desk.site)
        # the question, its answer, and its name: of a voided round it serves again
        self._training: tuple[Query, asyncio.Task[Answer], bytes] | None = None
        # the training whose answer may have left under masks, and the name of the question that this was for
        self._masked: tuple[asyncio.Task[Answer], bytes] | None = None
        self._steps: dict[str, Callable[[Envelope], Awaitable[None]]] = {
            "job": self._announced,
            "open": self._opened,
            **dict.fromkeys(("keylist", "ciphertexts", "survivors", "consistency"), self._relayed),
            "receipt": self._receipted,
            "void": self._voided,
            "done": self._done,
        }

    def deliver(self, envelope: Envelope) -> None:
        """Takes a message off the mailbox, which forgets it then: what must outlive a crash is journalled first.

        Raises: CloisterError: a receipt that breaks the chain, another announcement than before.
        """
        if envelope.type == "job":
            self._journal.once(f"{self.run}/notice", envelope.body)
        elif envelope.type == "receipt":
            self._keep_receipt(envelope.body)
        elif envelope.type == "open":
            self._charges = self._journal.charges()
        self._mail.put_nowait(envelope)

    async def work(self) -> None:
        """Answers messages until "done". Raises: Unreachable, in a group: the coordinator is away for too long."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                if self._recalled:
                    self._tasks.create_task(self._guarded(self._begin(), None))
                while True:
                    envelope = await self._mail.get()
                    step = self._steps.get(envelope.type, self._unknown)
                    await self._guarded(step(envelope), None if envelope.type in WITHOUT_ROUND else envelope.round)
                    if envelope.type == "done":
                        break
                self._end_round()
                self._stop_training()
                if self._review is not None:
                    self._review.cancel()
        finally:
            self._stop_training()
            try:
                if self._worker is not None:
                    await _close(self._worker)
            finally:
                shutil.rmtree(self._home, ignore_errors=True)

    # --- messages

    async def _announced(self, envelope: Envelope) -> None:
        notice: JobNotice = JobNotice.from_bytes(envelope.body)
        if notice.run != self.run:
            raise ContextMismatch("a job was announced under another run's name.")
        self._desk.note("announced", run=self.run, job=notice.job, analyst=notice.analyst, name=notice.name)
        await self._begin()

    async def _begin(self) -> None:
        """Decides on the run; one that the steward has to read first waits, and is heard of again then."""
        accepted = await self._known()
        if self._decide(accepted).waits:
            self._review = self._tasks.create_task(self._guarded(self._await_verdict(accepted), None))
            return
        await self._accept()
        notice = accepted.notice
        if self._review is not None or self._recalled:
            self._desk.note("lifted", run=self.run, job=notice.job)
            said = PolicyRefused("the steward has approved the job.", rule="review")
            await self._desk.stand(said, self.run, None, "lifted")
        self._desk.tell("job", run=self.run, name=accepted.job.name or notice.name, analyst=notice.analyst)
        self._tasks.create_task(self._guarded(self._prepare(), None))

    async def _await_verdict(self, accepted: Accepted) -> None:
        facts = {"job": accepted.notice.job, "analyst": accepted.notice.analyst, "name": accepted.notice.name}
        if not self._recalled:
            self._desk.note("waiting", run=self.run, **facts)
        self._desk.tell("review", run=self.run, **facts)
        decision = self._decide(accepted)
        fault = PolicyRefused(decision.told, rule=decision.rule, mend=decision.mend)
        await self._desk.stand(fault, self.run, None, "waiting")
        while self._decide(accepted).waits:
            await asyncio.sleep(VERDICT_SECONDS)
        await self._begin()

    def _decide(self, accepted: Accepted) -> Decision:
        return decide_job(self._policy(), accepted.job, accepted.notice.analyst)

    async def _accept(self) -> Accepted:
        """Decides by the policy as it is now. Raises: PolicyRefused, and whatever rules the run out here."""
        accepted = await self._known()
        self._decide(accepted).require(self._desk.site)
        if self._unfit is not None:
            raise self._unfit
        return accepted

    async def _known(self) -> Accepted:
        """The run's job, read once."""
        if reason := self._journal.held(f"{self.run}/distrust"):
            raise StaleReceipt(f"this site trusts the run no more: {reason.decode()}")
        body = self._journal.held(f"{self.run}/notice")
        if body is None:
            raise UnexpectedMessage("a round of a run that was never announced to this site.")
        notice: JobNotice = JobNotice.from_bytes(body)
        if self._accepted is None:
            self._accepted = await self._read_job(notice)
        return self._accepted

    async def _read_job(self, notice: JobNotice) -> Accepted:
        roster = await self._desk.rosters.at(notice.roster)
        key = roster.key_of(self._desk.coordinator, "coordinator")
        signed = await self._desk.fetch(bytes.fromhex(notice.submission))
        said = open_envelope(signed, lambda id: roster.key_of(id, "analyst"), self._desk.coordinator)
        named = ("submit", notice.analyst, self.run, notice.job)
        if (said.type, said.sender, said.run, digest(said.body).hex()) != named:
            raise ContextMismatch("the analyst signed for another job or run than the one announced.")
        bundle = said.body
        job = Job.from_bytes(bundle)
        job.algorithm.require_federation()
        if not (kept := self._desk.folder.jobs / notice.job).exists():
            kept.parent.mkdir(exist_ok=True, mode=0o700)
            write_private(kept, bundle)
        data = self._desk.settings.data.get(job.data.name)
        if data is None:
            mend = f"`cloister site data add {job.data.name} FILE` binds it."
            raise DataError(f"there is no dataset {job.data.name!r} here.", mend=mend)
        return Accepted(notice, job, bundle, roster, key, data)

    async def _prepare(self) -> None:
        """Starts the worker, so that a table that does not fit is told before a round needs it."""
        try:
            worker = await self._ready_worker()
        except WorkerDied as fault:  # perhaps for once: the next question starts another
            self._desk.tell("warning", run=self.run, message=str(fault))
            return
        self._desk.note("prepared", run=self.run, walls=list(worker.walls), warnings=list(worker.warnings))
        for warning in worker.warnings:
            self._desk.tell("warning", run=self.run, message=warning)

    async def _opened(self, envelope: Envelope) -> None:
        self._end_round()
        if self._decide(await self._known()).waits:
            return  # the coordinator is being told
        accepted = await self._accept()
        await self._desk.follow_log(bytes.fromhex(self.run))  # what a crash left open, before it takes part again
        if envelope.round <= self._journal.last_receipt(bytes.fromhex(self.run))[0]:
            self._desk.tell("late", run=self.run, round=envelope.round, message="the sum is open already.")
            return  # this site was away, and the receipt came with the question
        policy = self._policy()
        number = 1 + await asyncio.to_thread(self._desk.ledger.charges, self._desk.settings.federation)
        seal = self._new_seal(accepted, policy, number)
        try:
            plan = seal.open(envelope.body)
        except (ThresholdTooLow, TooFewSites) as fault:
            fault.mend = policy.cited("allow.min_survivors", "allow.assume_colluders") or fault.mend
            raise
        if (plan.run.hex(), plan.round) != (self.run, envelope.round) or plan.job != accepted.job.digest:
            raise ContextMismatch("the plan is of another run, round or job than its envelope and its announcement.")
        if plan.bits != accepted.job.bits:
            raise ContextMismatch(f"the plan has words of {plan.bits} bits, the job's have {accepted.job.bits}.")
        now = time.localtime()
        decide_plan(
            policy,
            upload_bytes=packed_bytes(plan.words, plan.bits),
            min_survivors=plan.min_survivors,
            sites=len(plan.sites),
            seal=plan.graph,
            minute=60 * now.tm_hour + now.tm_min,
        ).require(self._desk.site)
        data = await self._desk.fetch(plan.query)
        query = Query.from_bytes(data)
        if (query.sealed_layout, query.max_rows, query.buckets) != (plan.layout, plan.max_rows, plan.buckets):
            raise ContextMismatch("the query asks for another vector than the plan announces.")
        if not query.admits(plan.sites):
            raise ContextMismatch("the plan asks other sites than the query names.")
        if type(query.config.get("step")) is not int:
            raise ContextMismatch("the query does not say which step of the program it is.")
        charge = await asyncio.to_thread(self._cost, accepted, query, plan.round)
        whole = replace(charge, events=private.ahead(accepted.job, query) or charge.events)
        await asyncio.to_thread(self._desk.ledger.require, whole, self._limit(charge))
        asked = {"run": self.run, "round": plan.round, "task": query.task, "sites": len(plan.sites)}
        self._desk.note("asked", **asked, words=plan.words, plan=plan.digest.hex(), query=plan.query.hex())
        keys = seal.keys(digest(data))
        self._journal.raise_counter(f"{self.run}/rounds", plan.round + 1)
        self._round = Round(plan, query, seal, time.monotonic(), charge)
        self._train(plan.query, query, data)
        self._desk.tell("asked", **asked)
        await self._send("keys", keys, plan.round)

    async def _relayed(self, envelope: Envelope) -> None:
        round = self._current(envelope)
        if round is None:
            return
        reply = round.seal.receive(envelope.body)
        if envelope.type in ("keylist", "survivors"):
            self._journal.raise_charges(round.seal.charges)
        if envelope.type == "ciphertexts":
            if round.sealing is None:
                round.sealing = self._tasks.create_task(self._guarded(self._contribute(round), round.plan.round))
        elif reply is not None:
            await self._send(REPLIES[envelope.type], reply, round.plan.round)

    async def _receipted(self, envelope: Envelope) -> None:
        round = self._current(envelope)
        if round is not None:  # else this site is not in that sum, and `deliver` has checked the chain
            if round.seal.phase is SitePhase.UNMASKED:
                self._compare(round, envelope.body)
            else:
                self._desk.tell("late", run=self.run, round=envelope.round, message="the sum was opened without it.")
            self._end_round()
        await self._desk.follow_log(bytes.fromhex(self.run))

    def _compare(self, round: Round, signed: bytes) -> None:
        """Raises: StaleReceipt: the receipt tells another story than this site saw."""
        try:
            round.seal.receive(signed)
        except StaleReceipt as fault:
            self._journal.once(f"{self.run}/distrust", fault.message.encode())
            raise
        receipt = round.seal.receipt
        if receipt is not None:
            seconds = time.monotonic() - round.began
            survivors = len(receipt.u3)
            self._desk.tell("receipt", run=self.run, round=round.plan.round, survivors=survivors, seconds=seconds)

    async def _voided(self, envelope: Envelope) -> None:
        void: Void = Void.from_bytes(envelope.body)
        self._desk.note("void", run=self.run, round=envelope.round, reason=void.reason)
        self._desk.tell("void", run=self.run, round=envelope.round, message=void.reason)
        if self._current(envelope) is not None:
            self._end_round()  # the training goes on: the same query may be asked again

    async def _done(self, envelope: Envelope) -> None:
        self._memory.forget()
        self._desk.note("done", run=self.run)
        self._desk.tell("done", run=self.run)

    async def _unknown(self, envelope: Envelope) -> None:
        raise UnexpectedMessage(f"a message of the unknown type {envelope.type!r}.")

    # --- training and sealing

    def _train(self, name: bytes, query: Query, data: bytes) -> None:
        """Starts training for `query`, unless that runs already or has an answer, or one under way serves as well."""
        if self._training is not None:
            begun, known, asked = self._training
            failed = known.done() and (known.cancelled() or known.exception() is not None)
            if self._masked is not None and self._masked[0] is known:
                serves = self._masked[1] == name  # two sums that one answer is in would differ by those of others
            else:
                serves = asked == name or self._serves(begun, query)
            if serves and not failed:
                return
        task = asyncio.create_task(self._answer(query, data, self._stop_training()))
        self._training = (query, task, name)
        self._tasks.create_task(self._watch(task))

    def _serves(self, begun: Query, query: Query) -> bool:
        return self._accepted is not None and self._accepted.job.algorithm.serves(begun, query)

    async def _answer(self, query: Query, data: bytes, before: asyncio.Task[Answer] | None) -> Answer:
        """Args: before: a training that was stopped: its worker is on its way out, and must not be asked any more."""
        began = time.monotonic()
        if before is not None:
            await asyncio.wait({before})
        worker = await self._ready_worker()
        if self._accepted is not None and self._accepted.job.algorithm.stateful:
            self._memory.asked(query.config["step"], digest(data))
        answer = await worker.answer(query, data)
        self._desk.tell("trained", run=self.run, task=query.task, seconds=time.monotonic() - began)
        return answer

    async def _watch(self, task: asyncio.Task[Answer]) -> None:
        """Has a training that failed refused at once, so that nobody waits for this site."""
        await asyncio.wait({task})
        current = self._training is not None and self._training[1] is task and self._round is not None
        if task.cancelled() or task.exception() is None or task.exception() is self._unfit or not current:
            return
        assert self._round is not None
        await self._guarded(asyncio.shield(task), self._round.plan.round)

    async def _contribute(self, round: Round) -> None:
        assert self._training is not None
        begun, task, _ = self._training
        await asyncio.to_thread(round.seal.lay)
        await asyncio.wait({task})
        if task.cancelled() or task.exception() is not None:
            return  # `_watch` tells why
        answer = task.result()
        if begun is not round.query and self._accepted is not None:
            aged = self._accepted.job.algorithm.aged(answer.values, begun, round.query)
            answer = replace(answer, values=aged)
        try:
            words = await asyncio.to_thread(contribute, answer, round.query, round.plan.coder)
        except TaskError as fault:
            raise self._in_our_words(fault) from None
        charged = await asyncio.to_thread(self._desk.ledger.charge, round.charge, self._limit(round.charge))
        self._desk.note("charged", run=self.run, round=round.plan.round, charge=charged.hash)
        self._masked = task, round.plan.query
        header, payload = await asyncio.to_thread(round.seal.mask, words)
        self._desk.note("answered", run=self.run, round=round.plan.round, type="masked", message=digest(header).hex())
        await self._desk.upload(header, payload, self.run, round.plan.round)
        self._desk.tell("uploaded", run=self.run, round=round.plan.round, bytes=len(payload))

    def _cost(self, accepted: Accepted, query: Query, number: int) -> Charge:
        """What this round's answer releases. Raises: ContextMismatch: more than the job's privacy allows."""
        job, source = accepted.job, accepted.data
        events = None if job.privacy is None else tuple(private.check(job, query))
        return Charge(
            dataset=dataset_key(source.where, source.unit),
            name=job.data.name,
            unit=privacy_unit(job),
            events=events,
            run=self.run,
            round=number,
            job=accepted.notice.job,
            federation=self._desk.settings.federation,
        )

    def _limit(self, charge: Charge) -> Limit | None:
        """Read anew each time, as the policy is."""
        policy = self._desk.folder.policy()
        budget = policy.budget.get(charge.name)
        line = policy.lines.get(f"budget.{charge.name}", 0)
        return None if budget is None else Limit(budget.epsilon, budget.delta, budget.rounds_a_day, line)

    def _in_our_words(self, fault: TaskError) -> TaskError:
        """The names in an answer of shipped code are that code's choice: they could spell out data."""
        if self._accepted is not None and self._accepted.ships_code:
            return TaskError(
                "the job's code gave an answer that cannot be sealed: other blocks, shapes, or not finite."
            )
        return fault

    async def _ready_worker(self) -> Worker:
        """The run's worker, started again if it ended."""
        task = self._worker
        if task is None or (task.done() and (task.cancelled() or task.exception() or not task.result().alive)):
            assert self._accepted is not None
            accepted, desk = self._accepted, self._desk
            described = Task(
                site=desk.site,
                data=accepted.data,
                home=self._home,
                limits=desk.folder.policy().limits,
                log=desk.folder.worker_log,
                job=accepted.bundle,
                ships_code=accepted.ships_code,
                memory=self._memory.folder if accepted.job.algorithm.stateful else None,
            )
            task = self._worker = asyncio.create_task(Worker.start(described))
        return await asyncio.shield(task)

    # --- the small things

    @property
    def _home(self) -> Path:
        return self._desk.folder.state(self.run)

    def _policy(self) -> Policy:
        """Read anew each time: a steward's change holds from the next decision on."""
        desk, job = self._desk, self._accepted.notice.job if self._accepted is not None else ""
        said = verdict_on(desk.folder, desk.identity.public, job)
        approved = frozenset({job} if said and said["verdict"] == "approved" else ())
        denied = {job: said["reason"]} if said and said["verdict"] == "denied" else {}
        return desk.folder.policy().as_policy(approved, denied, desk.settings.units)

    def _new_seal(self, accepted: Accepted, policy: Policy, charge: int) -> SealClient:
        return SealClient(
            self._desk.site,
            self._desk.identity,
            accepted.roster,
            accepted.key,
            journal=self._journal,
            randomness=os.urandom,
            min_survivors=policy.min_survivors,
            assume_colluders=policy.assume_colluders,
            last_round=self._journal.counter(f"{self.run}/rounds") - 1,
            last_receipt=self._journal.last_receipt(bytes.fromhex(self.run))[1],
            checkpoint=self._journal.head(),
            charge=charge,
            least=self._charges,
        )

    def _keep_receipt(self, data: bytes) -> None:
        """Every site of the roster gets every receipt of a run, also of rounds that it was not part of."""
        run = bytes.fromhex(self.run)
        receipt = open_receipt(data, self._desk.rosters.coordinator_key(self._desk.coordinator))
        last_round, last = self._journal.last_receipt(run)
        if receipt.digest == last:
            return
        receipt.check_follows(run, last_round, last)
        self._memory.receipted(receipt)
        if self._desk.site in receipt.u3:
            self._training = None  # handed in
        self._journal.add_receipt(run, receipt.plan.round, receipt.digest, data)
        self._desk.note("receipt", run=self.run, round=receipt.plan.round, receipt=receipt.digest.hex())

    def _current(self, envelope: Envelope) -> Round | None:
        """The round under way if the message is of it; messages of others come late and change nothing."""
        round = self._round
        return round if round is not None and round.plan.round == envelope.round else None

    def _end_round(self) -> None:
        if self._round is not None and self._round.sealing is not None:
            sealing = self._round.sealing
            if sealing is not asyncio.current_task():
                sealing.cancel()
        self._round = None

    def _stop_training(self) -> asyncio.Task[Answer] | None:
        """Returns: the training that was under way; it ends its worker, whose answer nobody asks for any more."""
        task = self._training[1] if self._training is not None else None
        self._training = None
        if task is None or task.done():
            return None
        task.cancel()
        return task

    async def _send(self, type: str, body: bytes, round: int) -> None:
        self._desk.note("answered", run=self.run, round=round, type=type, message=digest(body).hex())
        await self._desk.send(type, body, self.run, round)

    async def _guarded(self, step: Awaitable[object], round: int | None) -> None:
        """Takes one step; what goes wrong in it becomes a refusal, and the run goes on.

        Args: round: which the step is of; None for the run as a whole.
        """
        try:
            await step
        except Unreachable:
            raise
        except TurnedAway as late:
            self._desk.tell("late", run=self.run, round=round, message=str(late))
            self._end_round()
        except CloisterError as fault:
            await self._refuse(fault, round)
        except Exception as fault:
            self._desk.crashed(fault)
            await self._refuse(
                EnvironmentFailure(f"an error inside the site's agent ({type(fault).__name__})."), round
            )

    async def _refuse(self, fault: CloisterError, round: int | None) -> None:
        self._end_round()
        old_ledger = isinstance(fault, LedgerRolledBack) and fault.site == self._desk.site  # its own
        whole_run = round is None or isinstance(fault, DataError | JobError) or fault is self._unfit or old_ledger
        if whole_run:
            self._unfit = fault
        await self._desk.refuse(fault, self.run, round, whole_run=whole_run)


async def _close(task: asyncio.Task[Worker]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and task.exception() is None:
        await task.result().close()
