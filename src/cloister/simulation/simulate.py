"""`simulate`: a job over a whole federation in one process."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from cloister.algorithms import FedBuff
from cloister.job import Job
from cloister.learn import complete
from cloister.learn.memory import InFolder
from cloister.learn.models import load_back_end
from cloister.learn.result import Result
from cloister.privacy import PrivacyStatement
from cloister.round import Program, private, run
from cloister.simulation.attacks import AttackedEngine, Attackers, Backdoor, Malice, backdoor_success, malice_of
from cloister.simulation.baselines import compare
from cloister.simulation.clock import Clock
from cloister.simulation.cohort import Dropouts, Event, LocalCohort
from cloister.simulation.data import columns_of, shards_of
from cloister.simulation.engine import Engine, make_engine
from cloister.simulation.picture import partition_of
from cloister.simulation.sealing import Ideal, Masks, Seal
from cloister.simulation.store import RunFolder
from cloister.simulation.stragglers import Availability, Deadline, Pace
from cloister.vector import State, Total
from cloister.vector.errors import UsageError

Available = float | Mapping[str, float]
SEALS = ("ideal", "masks")


def simulate(
    job: Job,
    data: Any,
    sites: int | None = None,
    seed: int | None = None,
    *,
    partition: str = "skewed",
    seal: str = "ideal",
    baselines: bool = False,
    dropouts: Dropouts = 0.0,
    deadline: float | None = None,
    availability: Available | None = None,
    attack: str | None = None,
    attackers: Attackers | None = None,
    engine: str = "auto",
    processes: int | None = None,
    folder: str | Path | None = None,
    reproducible: bool = False,
    progress: Callable[[Event], None] | None = None,
) -> Result:
    """Runs a job as a federation would: the same questions, the same integers, the same model, in this process.

    Args:
      data: a folder with one file per site, a mapping of site to its data, which is read when the site is asked, or
        one table to be cut into sites: a DataFrame, a file's path, or (X, y). A contract of arrays takes (x, y) or
        (x, y, test), and .npz files.
      sites: into how many sites one table is cut (default 5).
      partition: how it is cut: "skewed" in labels and sizes, "iid", "dirichlet:0.5", "shards:2", "sizes:1",
        "by:COLUMN"; see `simulation/partition.py`.
      seed: instead of the job's own: of the cut, the test rows, the initial model and the training.
      seal: "ideal" adds the integers; "masks" runs the real sealed sum. Both give the same model, bit for bit.
      baselines: also train each site alone and all rows pooled, and compare (`result.table`).
      dropouts: the chance that a site vanishes in a round, or which sites vanish in which step.
      deadline: of a round of training, in multiples of its median site's time; slower sites drop out.
      availability: the chance that a site is there when a round of training begins, or of each site, by name; the
        round's cohort is drawn from those that are.
      attack: what malicious sites do: "sign-flip", "alie" ...; see `simulation/attacks.py`.
      attackers: which sites are malicious, or what fraction of all (default 0.2).
      engine: "serial", "processes", "batched" or "auto": processes as soon as a round takes long. They give the
        same model: bit for bit, except "batched", which rounds otherwise.
      processes: how many; one for each core if not given.
      folder: where checkpoints are kept. The same call goes on from there after an interruption, and ends with the
        same bits.
      reproducible: where the job asks for privacy, draw its noise from the seed, so that the run can be repeated to
        the bit. Noise that can be repeated hides nobody, and the result says so.
      progress: takes the events that a federation's `watch` gives.
    Raises: DataError, JobError, UsageError: the data, the job or a setting. TaskError: training fails at too many
      sites. RoundVoid: too many dropped out.
    """
    job = complete(job if seed is None else dataclasses.replace(job, seed=seed))
    tables = shards_of(job, data, sites, partition)
    columns = columns_of(job, tables)
    malice = malice_of(attack, attackers, job, list(tables))
    load_back_end(job)  # told before anything runs, and no part of a round's time
    settings: dict[str, Any] = {"sites": sites, "partition": partition, "seal": seal, "dropouts": dropouts}
    settings |= {"deadline": deadline, "availability": availability, "attack": attack, "attackers": attackers}
    store = _store(folder, job, {"data": whereabouts(data), "reproducible": reproducible, **settings})
    events: list[Event] = [] if store is None else store.events
    observe = _observer(events, progress)
    sealing = _seal(seal, job, tables, store)
    with contextlib.ExitStack() as held:
        memory = _memory(job, store, held)
        computing: Engine = make_engine(engine, job, tables, processes, memory, reproducible)
        held.callback(computing.close)
        if malice is not None:
            computing = AttackedEngine(computing, malice, job, tables, memory)
        missing = {"dropouts": dropouts, **_timing(job, tables, deadline, availability)}
        cohort = LocalCohort(job, computing, list(tables), sealing, **missing, observe=observe)
        state = _run(Program(job, columns, simulated=True), cohort, store, seal)
    comparison = None
    if baselines:
        comparison = compare(job, tables, state, lambda line: observe({"event": "baseline", "model": line}))
    observe({"event": "done"})
    statement = _statement(job, state, seal, events, reproducible)
    conditions = _conditions(job, state, columns, tables, malice)
    return Result(job, state, statement, events, sealing.receipts, comparison, conditions)


def _observer(events: list[Event], progress: Callable[[Event], None] | None) -> Callable[[Event], None]:
    def observe(event: Event) -> None:
        events.append(event)
        if progress is not None:
            progress(event)

    return observe


def _store(folder: str | Path | None, job: Job, settings: Mapping[str, Any]) -> RunFolder | None:
    return None if folder is None else RunFolder(Path(folder), job, settings, every_step=job.algorithm.stateful)


def _seal(seal: str, job: Job, tables: Collection[str], store: RunFolder | None) -> Seal:
    if seal not in SEALS:
        raise UsageError(f"seal={seal!r} is not one of {', '.join(SEALS)}.")
    if not job.algorithm.sealed and seal != "ideal":
        raise UsageError(f"{job.algorithm.name} has nothing sealed: {job.algorithm.simulated}", mend='seal="ideal".')
    if seal == "ideal":
        return Ideal()
    return Masks(job, tables, (lambda path, data: None) if store is None else store.keep)


def _timing(
    job: Job, tables: Mapping[str, Any], deadline: float | None, availability: Available | None
) -> dict[str, Any]:
    """Who is there, late, or ready first. Raises: UsageError: a deadline where nobody is waited for."""
    if not isinstance(job.algorithm, FedBuff):
        found: dict[str, Any] = {} if deadline is None else {"late": Deadline(deadline, job.seed, tables).late}
        return found | ({} if availability is None else {"there": Availability(availability, job.seed, tables).there})
    if deadline is not None or availability is not None:
        raise UsageError(
            "FedBuff has no rounds that a site could be late for, or miss.",
            mend="Leave deadline and availability out; see max_staleness.",
        )
    return {"clock": Clock(job.algorithm, list(tables), job.seed, Pace(job.seed, tables))}


def _statement(job: Job, state: State, seal: str, events: Sequence[Event], reproducible: bool) -> PrivacyStatement:
    asked = min(event["sites"] for event in events if event["event"] == "round")
    how = seal if job.algorithm.sealed else "unsealed"
    return private.statement(job, state, how, asked, reproducible=reproducible)


def _conditions(
    job: Job, state: State, columns: Mapping[str, str], tables: Mapping[str, Any], malice: Malice | None
) -> dict[str, Any]:
    """What only a simulation knows: how the rows lie, who was malicious, and whether the model falls for a mark."""
    lie = partition_of(job, tables)
    found: dict[str, Any] = {} if lie is None else {"partition": lie}
    if malice is not None:
        found |= malice.as_conditions()
        if isinstance(malice.attack, Backdoor):
            target = int(malice.attack.strength)
            found["backdoor_success"] = backdoor_success(job, state, columns, tables, target)
    return found


def _memory(job: Job, store: RunFolder | None, held: contextlib.ExitStack) -> InFolder | None:
    """Where sites keep what they remember between rounds, for all processes: in the run's folder, or for its time."""
    if not job.algorithm.stateful:
        return None
    if store is not None:
        return InFolder(store.folder / "sites")
    return InFolder(Path(held.enter_context(tempfile.TemporaryDirectory(prefix="cloister-"))), durable=False)


def _run(program: Program, cohort: LocalCohort, store: RunFolder | None, seal: str) -> State:
    """The loop, from the folder's checkpoint if there is one. Whatever ends it, the newest step is kept."""
    if store is None:
        return run(program, cohort, observe=lambda state, total: cohort.settle(state))

    def settle(state: State, total: Total) -> None:
        cohort.settle(state)
        store.settled()

    with store.locked():
        before = store.load()
        if before is not None and seal == "masks":
            raise UsageError(
                "a run with seal='masks' cannot go on: its sites' keys lived in the process that ended.",
                mend="Use seal='ideal' in a folder of its own: it gives the same model, bit for bit.",
            )
        try:
            return run(program, cohort, store, settle)
        finally:
            store.flush()


def whereabouts(data: Any) -> str | None:
    """Where the data are, for `--resume`; None if they were handed over."""
    return str(Path(data).resolve()) if isinstance(data, str | Path) else None
