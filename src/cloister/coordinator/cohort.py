"""The federation as a `round.Cohort` and `round.Store`: each query becomes a sealed round of the sites now there.

The round's loop (`round.run`) works in a thread of its own; whatever touches the database or a seal machine is done
in the event loop, so that there is one writer. A round and the state that was learnt from it become durable in one
transaction, with the receipt that names both.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from cloister.coordinator.hub import Hub, Stopping
from cloister.coordinator.rounds import OpenRound, delete_parts, enough_for, little_endian, void_round
from cloister.coordinator.store import Round, Run, Tx
from cloister.job import Job
from cloister.round import asked
from cloister.seal.buckets import check_buckets, fewest_survivors
from cloister.seal.graph import default_graph
from cloister.seal.labels import ZERO32
from cloister.seal.merkle import leaf_hash
from cloister.seal.plan import Plan
from cloister.seal.receipt import open_receipt
from cloister.seal.state import Phase
from cloister.seal.threshold import MIN_SITES, threshold
from cloister.vector import Query, State, Total, open_buckets
from cloister.vector.errors import (
    CloisterError,
    DataError,
    JobError,
    PeerError,
    RoundVoid,
    TooFewSites,
    TooFewSurvivors,
)
from cloister.wire import api

ATTEMPTS = 3  # rounds spent on one query before the run fails
NOT_METRICS = ("round", "rows", "sites", "clipped", "train_loss")

Result = TypeVar("Result")


class Stopped(CloisterError):
    """The analyst ended the run."""


@dataclass(frozen=True)
class _Opened:
    """A sum that is open, waiting for the state that is learnt from it.

    Attributes: proof: by column of the round's row, the blobs that prove the sum; they are being written meanwhile.
    """

    round: OpenRound
    query: Query
    sum_roots: list[bytes]
    proof: asyncio.Task[dict[str, str]]


class RemoteCohort:
    """The sites of one run. `sum`, `load` and `save` are for the run's own thread.

    Args: rounds: the hub's open rounds by (run, number), where messages find them.
    """

    def __init__(
        self,
        hub: Hub,
        run: Run,
        job: Job,
        rounds: dict[tuple[str, int], OpenRound],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._hub, self._run, self._job, self._rounds, self._loop = hub, run, job, rounds, loop
        self._opened: _Opened | None = None

    def _call(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # the contract's columns

    def columns(self) -> Mapping[str, str]:
        """The features, settled once for the run: what the sites that are there offer, by the job's contract.

        A site whose table does not fit is left out of the run, with its reason, while three others remain.
        Raises: DataError: names site and column; TooFewSites.
        """
        if self._run.columns is not None:
            return self._run.columns
        return self._call(self._settle_columns())

    async def _settle_columns(self) -> Mapping[str, str]:
        sites = await self._candidates(self._hub.patience.gather)
        while True:
            offers = self._hub.catalogues(self._job.data.name)
            try:
                columns = self._job.data.resolve({site: offers[site] for site in sites})
                break
            except DataError as fault:
                if fault.site not in sites or len(sites) <= MIN_SITES:
                    raise
                sites.remove(fault.site)
                self._refuse(fault)
        self._hub.store.run_tx("columns", lambda tx: tx.set_run(self._run.id, columns=columns))
        return columns

    def _refuse(self, fault: DataError) -> None:
        refusal = api.Refusal(**fault.as_json(), scope="run")

        def write(tx: Tx) -> None:
            tx.refuse_run(self._run.id, fault.site, refusal.model_dump_json())
            tx.add_event(self._run.id, {"event": "refused", **fault.as_json(), "scope": "run"})

        self._hub.store.run_tx("unfit", write)

    # who is asked

    async def _candidates(self, gather_seconds: float) -> list[str]:
        """The sites that can be asked now: of the run's roster, offering the dataset, willing, and there.

        Args: gather_seconds: how long to wait for all of them, once there are enough.
        Raises: TooFewSites: not enough within the patience, or too many refuse the run. Stopped.
        """
        hub, started, told = self._hub, time.monotonic(), None
        while not hub.signals.closing:
            able, refused, members = self._able(), self._refused(), self._members()
            review = [site for site, why in refused.items() if why["scope"] == "waiting"]  # of a steward, for days
            never = {site: why for site, why in refused.items() if site not in review}
            live = [site for site in able if hub.presence.is_live(site)]
            waited = time.monotonic() - started
            everybody = len(live) == len(members) - len(refused)
            if len(live) >= MIN_SITES and (everybody or waited >= gather_seconds):
                return live
            if len(members) - len(never) < MIN_SITES:
                raise TooFewSites(
                    f"{len(never)} of {len(members)} sites take no part in this run, it takes {MIN_SITES} that do.",
                    mend=" ".join(
                        f"{site}: {why['message']} {why['mend']}" for site, why in sorted(never.items())[:1]
                    ),
                )
            if waited >= hub.patience.cohort and not review:
                raise TooFewSites(
                    f"{len(live)} sites offer {self._job.data.name!r} and are there, it takes {MIN_SITES}.",
                    mend="Start more sites, or bind the dataset at those that run; then submit again.",
                )
            if len(live) < MIN_SITES and told != review:
                told = review
                self._event({"event": "waiting", "sites": live, "needed": MIN_SITES, "review": sorted(review)})
            limit = gather_seconds if len(live) >= MIN_SITES else hub.patience.cohort
            remaining = 1.0 if review else min(limit - waited, 1.0)
            await hub.signals.wait([f"run/{self._run.id}", "presence", "catalogue"], remaining)
        raise Stopping("the coordinator stops.")

    def _require_members(self, named: tuple[str, ...]) -> None:
        """Raises JobError: a site that the job's algorithm names is none of the federation's."""
        if unknown := sorted(set(named) - set(self._members())):
            raise JobError(
                f"the job's algorithm names {unknown[0]!r}, which is no site of this federation.",
                mend=f"The sites are: {', '.join(self._members()[:20])}.",
            )

    async def _all_of(
        self, bound: tuple[str, ...], fault: Callable[[list[str], tuple[str, ...]], CloisterError]
    ) -> list[str]:
        """Waits for all of these sites.

        Raises: fault(missing, bound): one of them refuses the run, or is not there within the patience. Stopped.
        """
        hub, started, told = self._hub, time.monotonic(), False
        while not hub.signals.closing:
            able = self._able()
            missing = [site for site in bound if site not in able or not hub.presence.is_live(site)]
            if not missing:
                return list(bound)
            if time.monotonic() - started >= hub.patience.cohort or set(missing) & self._refused().keys():
                raise fault(missing, bound)
            if not told:
                told = True
                self._event({"event": "waiting", "sites": sorted(set(bound) - set(missing)), "needed": len(bound)})
            await hub.signals.wait([f"run/{self._run.id}", "presence", "catalogue"], 1.0)
        raise Stopping("the coordinator stops.")

    def _members(self) -> list[str]:
        return [member.id for member in self._hub.members.at(self._run.roster).sites]

    def _refused(self) -> dict[str, dict[str, str]]:
        return self._hub.store.look(lambda tx: tx.run_refusals(self._run.id))

    def _able(self) -> list[str]:
        """Sites that may be asked; stops the run if its analyst wants that."""
        if self._hub.store.look(lambda tx: tx.run(self._run.id)).stopping:
            raise Stopped("the analyst stopped the run.")
        offers, refused = self._hub.catalogues(self._job.data.name), self._refused()
        return [site for site in self._members() if site in offers and site not in refused]

    # sums

    def sum(self, query: Query) -> Total:
        """Asks the sites that are there and opens the sealed sum of their answers.

        Raises: RoundVoid: three rounds in a row had too few answers. TooFewSites, Stopped, StorageFull.
        """
        name = self._hub.blobs.put(query.to_bytes(), flush=False)
        opened, words = self._call(self._sum(query, bytes.fromhex(name)))
        self._opened = opened
        return open_buckets(query, opened.round.plan.coder, words, opened.round.server.counts())

    async def _sum(self, query: Query, name: bytes) -> tuple[_Opened, Any]:
        found = self._resumed(name)
        for attempt in range(ATTEMPTS):
            round = found if found is not None and attempt == 0 else await self._open(query, name)
            try:
                await asyncio.to_thread(self._hub.blobs.flush, name.hex())  # which the sites read meanwhile
                await round.drive()
                words, roots = await asyncio.to_thread(round.total)
                # written before it is decoded, so that both do not take memory at once
                total = await asyncio.to_thread(self._hub.blobs.put, little_endian(words), flush=False)
                proof = asyncio.create_task(asyncio.to_thread(self._put_proof, round, total))
                return _Opened(round, query, roots, proof), words
            except PeerError as fault:
                self._void(round, fault)
                last = fault
                await self._pause(attempt)
        raise RoundVoid(f"{ATTEMPTS} rounds for {query.task!r} ended without a sum.", mend=str(last)) from last

    def _put_proof(self, round: OpenRound, total: str) -> dict[str, str]:
        blobs, shown = self._hub.blobs, round.shown
        blobs.flush(total)
        return {
            "total": total,
            "keylist": blobs.put(shown[Phase.KEYS]),
            "consistency": blobs.put(shown[Phase.CONSISTENT]),
        }

    async def _pause(self, attempt: int) -> None:
        """Between two rounds of a question: until it shows who is gone, and longer each time, for who returns."""
        until = time.monotonic() + self._hub.patience.again * (attempt + 1)
        while attempt + 1 < ATTEMPTS and not self._hub.signals.closing and (left := until - time.monotonic()) > 0:
            await self._hub.signals.wait(["presence"], left)

    def _resumed(self, query: bytes) -> OpenRound | None:
        """The round that a crash interrupted, if it asks the same; any other is void."""
        for (run, _), round in list(self._rounds.items()):
            if run == self._run.id:
                if round.plan.query == query:
                    return round
                self._void(round, RoundVoid("the coordinator asks something else after its restart."))
        return None

    async def _open(self, query: Query, name: bytes) -> OpenRound:
        """A new round: its plan, agreed durably, and message 0 in the mailboxes."""
        hub, run = self._hub, self._run
        last, done, bound = hub.store.look(
            lambda tx: (tx.last_round(run.id), tx.last_round(run.id, "done"), tx.bound(run.id))
        )
        number = 0 if last is None else last.number + 1
        if bound:
            sites = await self._all_of(bound, _away_after_void)
        else:
            if query.named and not query.others:
                self._require_members(query.named)
                candidates = await self._all_of(query.named, _away)
            else:
                candidates = await self._candidates(hub.patience.gather if last is None else 0.0)
            sites = asked(query, candidates, self._job.seed, query.config.get("step", number))
        check_buckets(query.buckets, len(sites))
        enough = self._enough(query, len(sites))
        plan = Plan(
            federation=hub.folder.federation,
            run=bytes.fromhex(run.id),
            round=number,
            attempt=0,
            job=bytes.fromhex(run.job),
            query=name,
            algorithm=f"{self._job.algorithm.name.lower()}.{query.task}",
            bits=self._job.bits,
            layout=query.sealed_layout,
            max_rows=query.max_rows,
            sites=tuple(sites),
            threshold=threshold(len(sites)),
            min_survivors=fewest_survivors(len(sites), query.buckets),
            graph=default_graph(len(sites)),
            buckets=query.buckets,
        )
        previous = ZERO32.hex() if done is None or done.receipt is None else done.receipt
        row = Round(run.id, number, plan.to_bytes(), previous, "open", None, None, hub.now())
        round = OpenRound(hub, run, row, enough)
        body = round.server.open()

        def write(tx: Tx) -> None:
            tx.add_round(row)
            for site in sites:
                tx.mail(site, hub.letter("open", site, run.id, number, body))
            tx.add_event(run.id, {"event": "open", "round": number, "stage": query.task, "sites": sites})

        hub.store.run_tx("open", write)
        self._rounds[run.id, number] = round  # nothing awaits in between, so every answer finds it
        return round

    def _enough(self, query: Query, asked: int) -> int:
        """How many answers a round waits for. Raises JobError: too few for the sum of so many sites."""
        enough = enough_for(self._job, query.task, asked)
        if enough < threshold(asked):
            raise JobError(
                f"{self._job.algorithm.name} waits for {enough} of the {asked} sites that are asked, and their sealed"
                f" sum takes {threshold(asked)}.",
                mend=f"Use buffer={threshold(asked)} or more, or a smaller cohort.",
            )
        return enough

    def _void(self, round: OpenRound, fault: PeerError) -> None:
        void_round(self._hub, self._run.id, round.number, round.plan, fault)
        self._rounds.pop((self._run.id, round.number), None)

    # checkpoints

    def load(self) -> State | None:
        """The run's newest checkpoint."""
        row = self._call(self._read_run())
        return None if row.state is None else State.from_bytes(self._hub.blobs.read(row.state))

    async def _read_run(self) -> Run:
        return self._hub.store.look(lambda tx: tx.run(self._run.id))

    def save(self, state: State) -> None:
        """Makes the state, the round that it was learnt from and the receipt of both durable, all or nothing."""
        opened = self._opened
        assert opened is not None, "a state is learnt from a sum"
        blobs, round = self._hub.blobs, opened.round
        name = blobs.put(state.to_bytes())
        receipt = round.server.receipt(opened.sum_roots, bytes.fromhex(name))
        evidence = {
            "receipt": open_receipt(receipt, self._hub.identity.public).digest.hex(),
            "blob": blobs.put(receipt),
            "opening": round.server.opening().to_bytes(),
        }
        self._call(self._save(opened, state, name, receipt, evidence))
        self._opened = None

    async def _save(
        self, opened: _Opened, state: State, name: str, receipt: bytes, evidence: Mapping[str, Any]
    ) -> None:
        hub, run, round = self._hub, self._run.id, opened.round
        event, proof = self._round_event(opened, state), await opened.proof

        def write(tx: Tx) -> list[bytes]:
            tx.set_run(run, state=name)
            tx.set_round(run, round.number, outcome="done", **proof, **evidence)
            tx.append_to_log(leaf_hash(receipt), evidence["blob"])
            for site in self._members():  # also those that were not there: the chain of receipts has no gaps
                # the next question, or the end of the run, is about to follow
                tx.mail(site, hub.letter("receipt", site, run, round.number, receipt), wake=False)
            tx.add_event(run, event)
            return tx.drop_rounds(run, hub.folder.keep_rounds)

        headers = hub.store.run_tx("save", write)
        self._rounds.pop((run, round.number), None)
        self._loop.run_in_executor(None, delete_parts, hub, headers)  # nobody waits for that

    def _round_event(self, opened: _Opened, state: State) -> dict[str, Any]:
        """What the analyst sees of a round: times, bytes, survivors, and the metrics that it measured."""
        round, history = opened.round, state.facts.get("history", [])
        measured: dict[str, Any] = next((row for row in reversed(history) if set(row) - set(NOT_METRICS)), {})
        metrics = {name: value for name, value in measured.items() if name not in NOT_METRICS}
        if history and "train_loss" in history[-1]:
            metrics["train_loss"] = history[-1]["train_loss"]
        return {
            "event": "round",
            "round": round.number,
            "stage": opened.query.task,
            "trained": state.facts.get("round", 0),
            "seconds": {phase: _rounded(value) for phase, value in round.seconds.items()},
            "sites": len(round.plan.sites),
            "survivors": len(round.server.u3),
            "dropped": sorted(set(round.plan.sites) - set(round.server.u3)),
            "blamed": sorted({fault.site for fault in round.server.blamed}),
            **round.traffic(),
            **metrics,
        }

    def _event(self, body: Mapping[str, Any]) -> None:
        self._hub.store.run_tx("event", lambda tx: tx.add_event(self._run.id, body))


def _away(missing: list[str], named: tuple[str, ...]) -> CloisterError:
    return TooFewSites(
        f"{', '.join(missing)}: not there, and the job's algorithm sums over {', '.join(named)}, all of them.",
        mend="Start these sites, or name others; then submit again.",
    )


def _away_after_void(missing: list[str], bound: tuple[str, ...]) -> CloisterError:
    return TooFewSurvivors(
        f"{', '.join(missing)} must answer again: a round was void after its sites had agreed to a sum"
        f" over {', '.join(bound)}, and a sum over others would differ from that by single sites.",
        mend="Start these sites, then submit the job again.",
    )


def _rounded(seconds: float) -> float:
    return math.floor(seconds * 1e4) / 1e4
