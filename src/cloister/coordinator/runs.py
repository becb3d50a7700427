"""The runs: a thread for each, started by a submission or by a restart, and what the outside may do with them."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Mapping
from typing import Any

from cloister.coordinator.cohort import RemoteCohort, Stopped
from cloister.coordinator.hub import Hub, Stopping
from cloister.coordinator.rounds import OpenRound, enough_for, void_round
from cloister.coordinator.store import Round, Run, Tx
from cloister.job import Job
from cloister.round import Program, run
from cloister.seal.plan import Plan
from cloister.vector import State
from cloister.vector.errors import CloisterError, DuplicateMessage, RoundVoid, StateLocked, StorageFull
from cloister.wire import Envelope, api

log = logging.getLogger("cloister.coordinator")


class Runs:
    """Attributes: rounds: the open ones by (run, number)."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.rounds: dict[tuple[str, int], OpenRound] = {}

    def resume(self) -> None:
        """After a start: rebuilds the open rounds from their transcripts and goes on with all runs not yet over."""
        for each in self._hub.store.look(lambda tx: tx.runs("running")):
            last = self._hub.store.look(lambda tx, id=each.id: tx.last_round(id))  # type: ignore[misc]
            if last is not None and last.outcome == "open":
                self._reopen(each, last)
            for member in self._hub.members.at(each.roster).sites:
                self._hub.presence.heard(member.id, extra_seconds=self._hub.patience.restart)
            self._start(each)

    def _reopen(self, each: Run, last: Round) -> None:
        """A round that cannot go on is left closed; the run then opens another."""
        try:
            plan, job = Plan.from_bytes(last.plan), Job.from_bytes(self._hub.blobs.read(each.job))
            enough = enough_for(job, plan.algorithm.rpartition(".")[2], len(plan.sites))
            self.rounds[each.id, last.number] = OpenRound(self._hub, each, last, enough)
        except CloisterError as fault:
            log.warning("run %s: round %d cannot go on: %s", each.id[:8], last.number, fault)
            void_round(self._hub, each.id, last.number, Plan.from_bytes(last.plan), fault)

    def submit(self, envelope: Envelope, signed: bytes) -> str:
        """A new run of the job in the envelope, under the id that the analyst chose; the same again is the same run.

        Raises: JobError, MalformedMessage: the bundle, or it is for simulations alone.
          DuplicateMessage: the id belongs to another job.
        """
        hub, job = self._hub, Job.from_bytes(envelope.body)
        job.algorithm.require_federation()
        id = envelope.run or secrets.token_hex(16)
        new = Run(
            id=id,
            job=hub.blobs.put(envelope.body),
            name=job.name or job.data.name,
            analyst=envelope.sender,
            submission=hub.blobs.put(signed),
            roster=hub.members.refresh().version,
            submitted=hub.now(),
            status="running",
            stopping=False,
            columns=None,
            state=None,
            error=None,
        )
        notice = api.JobNotice(
            run=id, job=new.job, submission=new.submission, roster=new.roster, analyst=new.analyst, name=new.name
        ).to_bytes()

        def write(tx: Tx) -> bool:
            tx.accept_number(envelope.sender, envelope.seq)
            for known in tx.runs():
                if known.id == id:
                    if (known.job, known.analyst) != (new.job, new.analyst):
                        raise DuplicateMessage("the id of this run belongs to another job.")
                    return False
            tx.add_run(new)
            for member in hub.members.current.sites:
                tx.mail(member.id, hub.letter("job", member.id, id, 0, notice))
            tx.add_event(id, {"event": "submitted", "job": new.job, "name": new.name, "analyst": new.analyst})
            return True

        if hub.store.run_tx("submit", write):
            self._start(new)
        return id

    def _start(self, each: Run) -> None:
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._work, args=(each, loop), name=f"run {each.id[:8]}", daemon=True).start()

    def _work(self, each: Run, loop: asyncio.AbstractEventLoop) -> None:
        """The thread of one run, to its end. Nothing that it raises ends the coordinator."""

        def finish(status: str, error: Mapping[str, str] | None = None) -> None:
            asyncio.run_coroutine_threadsafe(self._finish(each, status, error), loop).result()

        while True:
            try:
                job = Job.from_bytes(self._hub.blobs.read(each.job))
                cohort = RemoteCohort(self._hub, each, job, self.rounds, loop)
                run(Program(job, cohort.columns()), cohort, cohort)
                return finish("done")
            except Stopping:
                return None
            except Stopped as fault:
                return finish("stopped", fault.as_json())
            except (StorageFull, StateLocked) as fault:
                log.warning("run %s waits: %s", each.id[:8], fault)
                time.sleep(self._hub.patience.disk)
            except CloisterError as fault:
                return finish("failed", fault.as_json())
            except Exception as fault:
                log.exception("run %s failed", each.id[:8])
                error = CloisterError(
                    f"unexpected {type(fault).__name__}.", mend="The coordinator's log has the trace."
                )
                return finish("failed", error.as_json())

    async def _finish(self, each: Run, status: str, error: Mapping[str, str] | None) -> None:
        for key in [key for key in self.rounds if key[0] == each.id]:
            del self.rounds[key]
        body = api.Done(status=status).to_bytes()

        def write(tx: Tx) -> None:
            tx.set_run(each.id, status=status, error=error)
            for member in self._hub.members.at(each.roster).sites:
                tx.mail(member.id, self._hub.letter("done", member.id, each.id, 0, body))
            tx.add_event(each.id, {"event": status, **(error or {})})

        self._hub.store.run_tx("finish", write)

    def stop(self, envelope: Envelope) -> None:
        """Ends a run after its present round. Raises: UsageError: there is none."""
        id = api.RunRef.from_bytes(envelope.body).run

        def write(tx: Tx) -> None:
            tx.accept_number(envelope.sender, envelope.seq)
            tx.run(id)
            tx.set_run(id, stopping=True)
            tx.touched.add(f"run/{id}")

        self._hub.store.run_tx("stop", write)

    # what sites say about a run

    def refuse(self, envelope: Envelope) -> None:
        """A site does not answer this round, or none of this run; recorded for the analyst, with its reason."""
        refusal = api.Refusal.from_bytes(envelope.body)
        body = {**refusal.model_dump(), "site": envelope.sender}

        def write(tx: Tx) -> None:
            tx.accept_number(envelope.sender, envelope.seq)
            if tx.run(envelope.run).status != "running":
                return  # it comes late: "done" or "failed" stays the last event
            if refusal.scope == "lifted":
                tx.lift_refusal(envelope.run, envelope.sender)
                tx.add_event(envelope.run, {"event": "approved", "site": envelope.sender})
                return
            if refusal.scope != "round":
                tx.refuse_run(envelope.run, envelope.sender, refusal.model_dump_json())
            tx.add_event(envelope.run, {"event": "refused", "round": envelope.round, **body})
            for (id, number), round in self.rounds.items():
                if id == envelope.run and (number == envelope.round or refusal.scope != "round"):
                    round.drop(tx, envelope.sender)

        self._hub.store.run_tx("refuse", write)

    def catalogue(self, envelope: Envelope) -> None:
        """A site's agent began, and says what it offers."""
        api.Catalogue.from_bytes(envelope.body)

        def write(tx: Tx) -> None:
            tx.accept_number(envelope.sender, envelope.seq)
            tx.set_catalogue(envelope.sender, envelope.body)
            tx.touched.add("catalogue")
            for round in self.rounds.values():
                round.drop(tx, envelope.sender)  # it forgot its secrets, or the message that opened the round

        self._hub.store.run_tx("catalogue", write)

    def round_of(self, envelope: Envelope) -> OpenRound:
        """Raises: RoundVoid: the round is over."""
        round = self.rounds.get((envelope.run, envelope.round))
        if round is None:
            raise RoundVoid(f"round {envelope.round} is over.", site=envelope.sender)
        return round

    # what analysts see

    def status(self, id: str) -> dict[str, Any]:
        """The federation, or one run. Raises: UsageError: there is no such run."""
        hub = self._hub
        if id:
            one, rounds, refusals = hub.store.look(lambda tx: (tx.run(id), tx.rounds(id), tx.run_refusals(id)))
            outcomes = [each.outcome for each in rounds]
            counts = {outcome: outcomes.count(outcome) for outcome in ("done", "void", "open")}
            return {**_summary(one), "rounds": counts, "refusals": refusals, "error": one.error}
        bodies, waiting, runs = hub.store.look(lambda tx: (tx.catalogues(), tx.enrolments(), tx.runs()))
        offers = {site: sorted(api.Catalogue.from_bytes(body).datasets) for site, body in bodies.items()}
        sites = [member.id for member in hub.members.refresh().sites]
        return {
            "federation": hub.folder.federation,
            "roster": hub.members.current.version,
            "sites": [
                {"site": site, "live": hub.presence.is_live(site), "datasets": offers.get(site, [])} for site in sites
            ],
            "waiting": [{"id": row.id, "role": row.role} for row in waiting],
            "runs": [_summary(each) for each in runs],
        }

    def result(self, id: str) -> dict[str, Any]:
        """What a run has come to so far: digests for FETCH, and the history."""
        one, rounds, kept = self._hub.store.look(lambda tx: (tx.run(id), tx.rounds(id), tx.rounds_with_uploads(id)))
        done = [each for each in rounds if each.blob is not None]
        state = State() if one.state is None else State.from_bytes(self._hub.blobs.read(one.state))
        return {
            **_summary(one),
            "submission": one.submission,
            "state": one.state,
            "roster": one.roster,
            "receipts": [each.blob for each in done],
            "rounds": [
                {
                    "round": each.number,
                    **{name: getattr(each, name) for name in ("total", "keylist", "consistency")},
                    "kept": each.number in kept,
                }
                for each in done
            ],
            "history": state.facts.get("history", []),
            "error": one.error,
        }


def _summary(one: Run) -> dict[str, Any]:
    return {"run": one.id, "name": one.name, "status": one.status, "analyst": one.analyst, "job": one.job}
