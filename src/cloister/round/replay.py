"""The model chain: every query and every state of a run, computed again from the job and the opened sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from cloister.job import Job
from cloister.round.checks import ReceiptedRound
from cloister.round.program import Program
from cloister.seal import audit, merkle
from cloister.vector import State, digest, open_buckets
from cloister.vector.errors import BadModel, BadSum, CloisterError

Made = TypeVar("Made")
SAME = "Before you accuse anybody, verify with the same versions, on the same kind of processor: roundings differ."


def make_program(job: Job, final: State) -> Program:
    """The job's program over the columns that the final state names; a wrong name shows in the first digest."""
    columns = final.facts.get("columns")
    if not isinstance(columns, dict) or not all(kind in ("number", "category") for kind in columns.values()):
        raise BadModel("the final state does not name the columns.")
    return Program(job, columns, simulated=final.facts.get("simulated") is True)


def replayed(compute: Callable[[], Made]) -> Made:
    """What the run computed. Raises: BadModel: it cannot have, since that fails."""
    try:
        return compute()
    except CloisterError:
        raise
    except Exception as fault:  # bytes of a liar reach the algorithm here; whatever they break is a finding
        raise BadModel(f"the step cannot be recomputed: {type(fault).__name__}") from None


def check_total(each: ReceiptedRound, total: bytes) -> None:
    """Raises: BadSum."""
    plan = each.receipt.plan
    size = plan.words * plan.coder.dtype.itemsize
    roots = tuple(merkle.root_of(total[at * size : (at + 1) * size]) for at in range(plan.buckets))
    if len(total) != size * plan.buckets or roots != each.receipt.sum_roots:
        raise BadSum("the opened sum is not the one that the receipt names")


def next_state(program: Program, state: State, each: ReceiptedRound, total: bytes, job: Job) -> State:
    """Recomputes one step: the query of the plan, and from the sum the state of the receipt.

    Raises: BadModel, and what the algorithm raises for such a sum.
    """
    receipt, plan = each.receipt, each.receipt.plan
    query = replayed(lambda: program.ask(state))
    if query is None:
        raise BadModel("a receipt after the end of the job")
    if (plan.job, plan.query) != (job.digest, digest(query.to_bytes())):
        raise BadModel("the sites were asked something else than this job asks at this point")
    told = (plan.layout, plan.max_rows, plan.bits, plan.buckets)
    if told != (query.sealed_layout, query.max_rows, job.bits, query.buckets):
        raise BadModel("the plan's layout, rows, bits or buckets are not those of the job's query")
    if not query.admits(plan.sites):
        raise BadModel("the sites that were asked are not those that the job names")
    words = np.frombuffer(total, plan.coder.dtype.newbyteorder("<")).astype(plan.coder.dtype)
    parts, counts = words.reshape(plan.buckets, plan.words), [len(summed) for summed in audit.summed(receipt)]
    after = replayed(lambda: program.learn(state, open_buckets(query, plan.coder, parts, counts)))
    if digest(after.to_bytes()) != receipt.state:
        raise BadModel("the state that the receipt names is not the one that follows from the sum.", mend=SAME)
    return after
