"""LocalCohort: a whole federation in one process, behind the same port as the real one."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cloister.job import Job, SiteDP
from cloister.round import asked
from cloister.round.contribute import central_noise
from cloister.seal.masks import reduce
from cloister.seal.threshold import MIN_SITES, threshold
from cloister.simulation.clock import Clock
from cloister.simulation.engine import Engine
from cloister.simulation.sealing import Seal, Sum, buckets_of
from cloister.simulation.stragglers import everybody, nobody
from cloister.vector import FixedPoint, Query, State, Total, canonical, open_buckets
from cloister.vector.errors import BoundError, DataError, RoundVoid, TaskError, UsageError

Dropouts = float | Mapping[int, Collection[str]]
Event = dict[str, Any]
Late = Callable[[Sequence[str], int, int], Collection[str]]
There = Callable[[Sequence[str], int], Sequence[str]]
Buckets = Sequence[Sequence[str]]
COARSEST = 2.0**-6  # of one mean site's delta: what a step of training changes is of this order, or below
TRIES = 3  # draws of who drops out, before a round is given up: as often as a coordinator opens it again


class LocalCohort:
    """Answers queries with the job's own training code, seals as the federation does, opens the sum.

    Args:
      job: whose bits and seed count.
      engine: computes the answers.
      sites: names of all sites.
      seal: how answers are summed.
      dropouts: how likely a site is to vanish in each round after it has shared its keys, or exactly which sites
        vanish in which step of the program (0 is its first question).
      late: which sites of a round of training are too slow: sites, step, attempt -> names; see `stragglers.py`.
      there: which sites can be asked to train: sites, step -> names.
      clock: of an asynchronous run: which sites are ready, and from which version of the model they trained.
      required: fewest survivors whose sum opens, for a cohort of this size.
      observe: takes an event for each opened round and each site that had no answer.
    Raises: UsageError: dropouts that make no sense.
    """

    def __init__(
        self,
        job: Job,
        engine: Engine,
        sites: Sequence[str],
        seal: Seal,
        *,
        dropouts: Dropouts = 0.0,
        late: Late = nobody,
        there: There = everybody,
        clock: Clock | None = None,
        required: Callable[[int], int] = threshold,
        observe: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self._job, self._engine, self._sites, self._seal = job, engine, sorted(sites), seal
        self._dropouts, self._required, self._observe = _checked(dropouts, sites), required, observe
        self._late, self._there, self._clock = late, there, clock
        self._open: tuple[Sum, Event] | None = None

    def sum(self, query: Query) -> Total:
        """The total over the sites that answered.

        Raises: RoundVoid: too many dropped out. TaskError: too many could not compute an answer; names the first.
        """
        began = time.perf_counter()
        step = int(query.config["step"])
        sites, told, timing = self._asked(query, step)
        buckets = buckets_of(query, sites)
        present = self._present(sites, buckets, step, query)
        coder = FixedPoint(query.sealed_layout, len(sites), self._job.bits)
        self._fine_enough(query, coder)
        round_ = self._seal.round(query, sites, coder)
        faults: dict[str, TaskError | DataError] = {}
        survivors: list[str] = []
        sealing = time.perf_counter() - began
        for part in self._engine.parts(told, coder, present, apart=self._seal.apart or len(buckets) > 1):
            if part.words is None:
                assert part.fault is not None, "a part without words says why"
                faults[part.sites[0]] = self._refused(part.fault, part.sites[0], query)
                continue
            started = time.perf_counter()
            round_.add(part.sites, part.words)
            sealing += time.perf_counter() - started
            survivors += part.sites
        self._require(survivors, sites, buckets, faults, query)
        started = time.perf_counter()
        words = round_.open()
        if isinstance(self._job.privacy, SiteDP) and self._job.privacy.central:
            words[0] += central_noise(query, coder, os.urandom)
            reduce(words, coder.bits)
        sealing += time.perf_counter() - started
        seconds = {"training": time.perf_counter() - began - sealing, "sealing": sealing}
        event = {
            "event": "round",
            "round": step,
            "stage": query.task,
            "sites": len(sites),
            "survivors": len(survivors),
            "dropped": sorted(set(sites) - set(survivors)),
            "seconds": {name: round(value, 6) for name, value in seconds.items()},
            **timing,
        }
        self._open = (round_, event)
        counts = [len(set(bucket) & set(survivors)) for bucket in buckets]
        return open_buckets(query, coder, words, counts)

    def settle(self, state: State) -> None:
        """Ends the round whose total has become `state`: the receipt, and the event with the newest metrics."""
        assert self._open is not None, "settle follows a sum"
        round_, event = self._open
        self._open = None
        round_.settle(state)
        traffic = round_.traffic()
        measured = {name: value for row in state.facts.get("history", ()) for name, value in row.items()}
        measured = {
            name: measured[name] for name in ("train_loss", "loss", "accuracy", "auc", "rmse") if name in measured
        }
        self._observe({**event, "trained": state.facts["round"], **traffic, **measured})

    def _asked(self, query: Query, step: int) -> tuple[list[str], Query, dict[str, float]]:
        """The sites of a round, the question as they get it, and what a virtual clock says about it."""
        if query.task != "train" or (self._job.algorithm.sealed and self._clock is None):
            self._known(query.named)
            drawn = query.task == "train" and (query.others or not query.named)  # named sites are waited for
            pool = self._there(self._sites, step) if drawn else self._sites
            return asked(query, pool, self._job.seed, step), query, {}
        if self._clock is None:
            return [self._turn(query.config["round"] - 1)], query, {}
        ready = self._clock.arrivals(query.config["round"] - 1)
        old = {site: stale for site, stale in ready.staleness.items() if stale}
        stale = replace(query, config={**query.config, "staleness": old})
        timing = {"clock": round(ready.time, 3), "staleness": sum(old.values()) / len(ready.staleness)}
        return sorted(ready.staleness), stale, timing

    def _turn(self, done: int) -> str:
        """Whose turn it is after so many turns."""
        cycle, at = divmod(done, len(self._sites))
        return sorted(self._sites, key=lambda site: self._chance(site, cycle, 0, "turn"))[at]

    def _known(self, named: Sequence[str]) -> None:
        """Raises UsageError: a site that is none."""
        if named and (unknown := sorted(set(named) - set(self._sites))):
            raise UsageError(
                f"the job's algorithm names {unknown[0]!r}.", mend=f"The sites are: {', '.join(self._sites[:20])}."
            )

    def _fine_enough(self, query: Query, coder: FixedPoint) -> None:
        """Raises BoundError: of many sites, each is so small a part of all rows that its change rounds to nothing."""
        if query.task != "train":
            return
        for block in query.layout.blocks:
            step = coder.step(block.name) * len(self._sites)  # a site of mean size has weight 1 / sites
            if block.weighted and not block.wide and step > COARSEST:
                raise BoundError(
                    f"{self._job.bits} bits carry the {block.name} of one of {len(self._sites):,} sites in steps of "
                    f"{step:.2g}: nothing would be learned.",
                    mend="Use cl.Job(..., bits=64), or a smaller bound in the algorithm.",
                )

    def _present(self, sites: Sequence[str], buckets: Buckets, step: int, query: Query) -> list[str]:
        """The sites of the cohort that do not vanish."""
        for attempt in range(TRIES):
            gone = set(self._gone(sites, step, attempt))
            if query.task == "train":
                gone |= set(self._late(sites, step, attempt))
            present = [site for site in sites if site not in gone]
            short = self._short(query, present, sites, buckets)
            if not short:
                return present
        raise RoundVoid(
            f"{_name(query)}: {short}. Nothing was opened.",
            mend="Fewer dropouts, a later deadline, or more sites.",
        )

    def _short(self, query: Query, survivors: Collection[str], sites: Sequence[str], buckets: Buckets) -> str:
        """Why so few survivors open nothing; empty where they are enough."""
        unsealed = query.task == "train" and not self._job.algorithm.sealed
        needed = 1 if unsealed else self._required(len(sites))
        if len(survivors) < needed:
            return f"{len(survivors)} of {len(sites)} sites answered, the sum takes {needed}"
        fewest = min(len(set(bucket) & set(survivors)) for bucket in buckets)
        if len(buckets) > 1 and fewest < MIN_SITES:
            return f"{fewest} sites of a bucket answered, its sum takes {MIN_SITES}"
        return ""

    def _gone(self, sites: Sequence[str], step: int, attempt: int) -> Collection[str]:
        if isinstance(self._dropouts, Mapping):
            return self._dropouts.get(step, ())
        if not self._dropouts:
            return ()
        return {site for site in sites if self._chance(site, step, attempt) < self._dropouts}

    def _chance(self, site: str, step: int, attempt: int, what: str = "dropout") -> float:
        """A uniform number in [0, 1) that depends on nothing but its arguments and the job's seed."""
        drawn = hashlib.sha256(canonical([self._job.seed, site, step, attempt, what])).digest()
        return float(np.frombuffer(drawn[:8], ">u8")[0] >> np.uint64(11)) * 2.0**-53

    def _refused(self, fault: TaskError | DataError, site: str, query: Query) -> TaskError | DataError:
        fault.site = fault.site or site
        self._observe({"event": "refused", "round": query.config["step"], **fault.as_json()})
        return fault

    def _require(
        self,
        survivors: Collection[str],
        sites: Sequence[str],
        buckets: Buckets,
        faults: Mapping[str, TaskError | DataError],
        query: Query,
    ) -> None:
        short = self._short(query, survivors, sites, buckets)
        if not short:
            return
        site, first = next(iter(faults.items()))
        raise type(first)(
            f"{_name(query)}: {short}; first to fail: {first.message}",
            mend=first.mend,
            site=site,
        )


def _name(query: Query) -> str:
    """A query, for people."""
    return f"round {query.config['round']}" if query.task == "train" else query.task


def _checked(dropouts: Dropouts, sites: Collection[str]) -> Dropouts:
    if isinstance(dropouts, Mapping):
        unknown = sorted({site for gone in dropouts.values() for site in gone} - set(sites))
        if unknown:
            raise UsageError(
                f"dropouts name {unknown[0]!r}.", mend=f"The sites are: {', '.join(sorted(sites)[:20])}."
            )
        return dropouts
    if not isinstance(dropouts, int | float) or not 0.0 <= dropouts < 1.0:
        raise UsageError(f"dropouts={dropouts!r} is not a probability below 1.", mend="Try dropouts=0.1.")
    return dropouts
