"""What a job's differential privacy makes of its questions: which sums are asked for, with how much noise.

The coordinator's program asks by these functions, and each site computes the same from the job itself before it
answers (`check`): a coordinator that asks for one block more, or for less noise, is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cloister.algorithms import evaluation
from cloister.job import AdaptiveClip, Impute, Job, OneHot, RowDP, SiteDP, Standardize, Torch
from cloister.job.privacy import MEASURED_SHARE
from cloister.privacy import PrivacyStatement
from cloister.privacy.accounting import (
    Event,
    at_least,
    epsilon,
    events_as_json,
    events_from_json,
    noise_multiplier,
)
from cloister.privacy.release import grid
from cloister.privacy.rotation import rotate_back
from cloister.seal.graph import tolerated
from cloister.seal.threshold import MIN_SITES, threshold
from cloister.vector import Layout, Query, State, Total, canonical, digest
from cloister.vector.bundle import Array
from cloister.vector.errors import ContextMismatch, JobError, LayoutError, MalformedMessage, TaskError
from cloister.vector.layout import Block, padded

FACT = "privacy"  # of a state: the terms, the clip of the next round, the events of all sums that were opened
BELOW = "below"  # of a layout with AdaptiveClip: whether the site's delta is within the clip
BELOW_NOISE = 5.0  # times the noise multiplier of the round: then the delta's own grows by 2%
SLACK = 1.0 + 1e-9  # between two machines' floating point


@dataclass(frozen=True)
class Terms:
    """How the (epsilon, delta) of a job is spent. It is the same at all sites, and public.

    Attributes:
      multiplier: of the noise, of each step (rows) or each round (sites).
      sampling: the chance with which a row is in a step. steps: of each site in a round.
      measured: the noise multiplier of an evaluation; None: there is none.
    """

    multiplier: float
    sampling: float
    steps: int
    measured: float | None

    def as_json(self) -> dict[str, Any]:
        measured = None if self.measured is None else float(self.measured).hex()
        numbers = {"multiplier": float(self.multiplier).hex(), "sampling": float(self.sampling).hex()}
        return {**numbers, "steps": self.steps, "measured": measured}

    @classmethod
    def from_json(cls, data: Any) -> Terms:
        """Raises: MalformedMessage."""
        try:
            measured = None if data["measured"] is None else float.fromhex(data["measured"])
            made = cls(
                float.fromhex(data["multiplier"]), float.fromhex(data["sampling"]), int(data["steps"]), measured
            )
            made.of_round(trained=True, measured=measured is not None)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
            raise MalformedMessage("the terms of a job's privacy do not parse") from None
        return made

    def of_round(self, *, trained: bool, measured: bool) -> list[Event]:
        """What one round releases of a protected unit."""
        events = [Event(self.multiplier, self.sampling, self.steps)] if trained else []
        return [*events, Event(self.measured)] if measured and self.measured is not None else events

    def of_job(self, job: Job) -> list[Event]:
        """What the whole job releases, at most."""
        events = [Event(self.multiplier, self.sampling, self.steps * job.algorithm.rounds)]
        return [*events, Event(self.measured, count=evaluations(job))] if self.measured is not None else events


def evaluations(job: Job) -> int:
    """How often the model is measured, at most."""
    if job.evaluate is None:
        return 0
    return 1 + sum(job.evaluates(round_) for round_ in range(job.algorithm.rounds))


def terms_of(job: Job, rows: int, sites: int) -> Terms:
    """The least noise that keeps the whole job within its (epsilon, delta).

    Args: rows: to train on, of all sites (with a unit: how many units). sites: that have them.
    Raises: JobError: no noise is enough.
    """
    privacy, count = job.privacy, evaluations(job)
    assert privacy is not None
    wanted, delta, rounds = privacy.epsilon, privacy.delta, job.algorithm.rounds
    measured = noise_multiplier(MEASURED_SHARE * wanted, delta, [(1.0, count)]) if count else None
    besides = [Event(measured, count=count)] if measured is not None else []
    if isinstance(privacy, SiteDP):
        return Terms(noise_multiplier(wanted, delta, [(1.0, rounds)], besides), 1.0, 1, measured)
    assert isinstance(job.task, Torch), "a job with RowDP has steps"
    passes = max(1, math.ceil(rows / max(sites, 1) / job.task.batch_size))  # steps of a site of mean size
    steps = job.task.steps or (job.task.epochs or 1) * passes
    noise = noise_multiplier(wanted, delta, [(1.0 / passes, rounds * steps)], besides)
    return Terms(noise, 1.0 / passes, steps, measured)


# --- what is asked


def census() -> Layout:
    """The first question: how many rows there are (part of every sum), and nothing of what they hold."""
    return Layout((Block("sites", (), bound=1.0, wide=True),))


def declared(job: Job, numeric: list[str], categories: Mapping[str, int | None]) -> dict[str, Array]:
    """The preparation, from what the job declares. Raises JobError: something would have to be measured."""
    fitted: dict[str, Array] = {}
    standardize = job.step(Standardize)
    if standardize is not None and numeric:
        means, deviations = standardize.declared(numeric)
        fitted = {"fit/mean": np.array(means), "fit/std": np.array(deviations)}
        if job.step(Impute):
            fitted["fit/impute"] = np.array(means)
    one_hot = job.step(OneHot)
    for name, known in categories.items():
        if known is None:
            raise JobError(
                f"the categories of {name!r} would be counted without noise.",
                mend=f"Declare them in the contract: columns={{{name!r}: [...]}}.",
            )
        fitted[f"fit/buckets/{name}"] = np.arange(1 if one_hot and one_hot.drop_first else 0, known)
    return fitted


def counted(job: Job, total: Total) -> int:
    """Training rows of all sites; where sites are protected, the sites. Raises TaskError: there are none."""
    if total.rows < 1:
        raise TaskError("no site has a training row.", mend="Check the contract's split and target.")
    return round(total.rows)


def asked(job: Job, state: State, query: Query) -> Query:
    """The question that a job with privacy asks in this one's place."""
    if query.task == "profile":
        return replace(query, layout=census())
    kept = state.facts.get(FACT) or {"terms": terms_of(job, state.facts["rows"], state.facts["sites"]).as_json()}
    config = {**query.config, "privacy": kept["terms"]}
    clip = kept.get("clip", first_clip(job))
    if clip is not None:
        config["clip"] = float(clip).hex()
    query = replace(query, config=config)
    return replace(query, layout=layout_of(job, query, Terms.from_json(kept["terms"])))


def layout_of(job: Job, query: Query, terms: Terms) -> Layout:
    """The blocks that a job with privacy may ask for in this query: of a round of training, or of an evaluation."""
    config, trains = query.config, query.task == "train"
    blocks = _trained(job, query, terms) if trains else ()
    if not trains or config.get("evaluate"):
        blocks = (*blocks, *_measured(job, terms))
    return Layout(blocks)


def _trained(job: Job, query: Query, terms: Terms) -> tuple[Block, ...]:
    blocks = tuple(job.algorithm.blocks(State({}, {"model": query.tensors["model"]})))  # type: ignore[attr-defined]
    privacy = job.privacy
    if isinstance(privacy, RowDP):
        return blocks  # the steps are noisy already
    assert isinstance(privacy, SiteDP)
    (delta,) = blocks
    clip = float.fromhex(query.config["clip"])
    size = math.prod(padded(delta.size))
    multiplier = terms.multiplier
    told: tuple[Block, ...] = ()
    if isinstance(privacy.clip, AdaptiveClip):
        told = (_below(privacy, terms),)
        # two releases that together cost what one of `multiplier` does: their inverse variances add up (theorem 1)
        multiplier *= (1.0 - BELOW_NOISE**-2) ** -0.5
    noise = grid(clip, size, multiplier, shared=True, **_whose(privacy), rotation=_seed(job, query))
    return (replace(delta, clip=clip, bound=max(delta.bound, clip), weighted=False, noise=noise), *told)


def _whose(privacy: SiteDP) -> dict[str, Any]:
    return {"colluders": privacy.colluders, "central": privacy.central}


def _below(privacy: SiteDP, terms: Terms) -> Block:
    """Whether a site's delta is within the clip, as +-1/2: one site changes the sum by 1/2."""
    noise = grid(0.5, 1, BELOW_NOISE * terms.multiplier, shared=True, **_whose(privacy))
    return Block(BELOW, (1,), bound=0.5, clip=0.5, wide=True, noise=noise)


def _measured(job: Job, terms: Terms) -> tuple[Block, ...]:
    assert terms.measured is not None, "a job that measures has noise for it"
    shared = isinstance(job.privacy, SiteDP)
    whose = _whose(job.privacy) if isinstance(job.privacy, SiteDP) else {}
    norm, size = evaluation.noisy_norm(job.kind), evaluation.noisy_size(job.kind)
    noise = grid(norm, size, terms.measured, shared=shared, **whose)
    noisy = evaluation.noisy_block(job.kind, noise)
    rows = Block("test/rows", (), bound=evaluation.MOST_ROWS, wide=True)
    return (noisy,) if shared else (rows, noisy)


def _seed(job: Job, query: Query) -> str:
    return digest(canonical([job.digest.hex(), query.config["step"], "rotation"])).hex()


def first_clip(job: Job) -> float | None:
    """The clip of the first round, where sites share the noise."""
    if not isinstance(job.privacy, SiteDP):
        return None
    clip = job.privacy.clip
    return clip.initial if isinstance(clip, AdaptiveClip) else clip


# --- what it opens to


def opened(job: Job, query: Query, total: Total) -> Total:
    """The total as algorithms know it: turned back, and as if every site had the same weight."""
    if not isinstance(job.privacy, SiteDP) or query.task != "train":
        return total
    sums = dict(total.sums)
    size = query.tensors["model"].size
    turned = rotate_back(total.sums["delta"], _seed(job, query), size)
    sums["delta"] = turned / total.max_rows  # `Total.mean` divides by what the survivors' weights add up to
    return replace(total, sums=sums)


def metrics(job: Job, total: Total) -> dict[str, float | None]:
    if isinstance(job.privacy, SiteDP):
        return evaluation.noisy_metrics(total.sums, job.kind, total.sites)
    rows = float(total.sums["test/rows"])
    return {"test_rows": rows, **evaluation.noisy_metrics(total.sums, job.kind, rows)}


def spent(job: Job, query: Query, total: Total, after: State) -> State:
    """The state with what this sum cost, and with what the next one is asked for."""
    if query.task == "profile":
        terms = terms_of(job, after.facts["rows"], after.facts["sites"])
        return after.with_({FACT: {"terms": terms.as_json(), "clip": first_clip(job), "events": []}})
    kept, trains = after.facts[FACT], query.task == "train"
    terms = Terms.from_json(kept["terms"])
    events = terms.of_round(trained=trains, measured=not trains or bool(query.config.get("evaluate")))
    clip = kept["clip"]
    if trains and isinstance(job.privacy, SiteDP) and isinstance(job.privacy.clip, AdaptiveClip):
        clip = _adapted(job.privacy.clip, clip, float(total.sums[BELOW][0]) / total.sites + 0.5)
    written = events_as_json([*events_from_json(kept["events"]), *events])
    return after.with_({FACT: {**kept, "clip": clip, "events": written}})


def _adapted(rule: AdaptiveClip, clip: float, below: float) -> float:
    """The next clip. Args: below: share of the sites that were not clipped, with noise.

    In digits that every machine comes to, and within the range of what a sum carries.
    """
    moved = clip * math.exp(-rule.lr * (min(max(below, 0.0), 1.0) - rule.quantile))
    return min(max(float(f"{moved:.6g}"), 2.0**-20), 2.0**20)


def statement(job: Job, state: State, seal: str, cohort: int, *, reproducible: bool = False) -> PrivacyStatement:
    """What may be claimed of a finished job.

    Args: seal: see `PrivacyStatement`. cohort: the fewest sites that a sum was opened for.
      reproducible: the noise was drawn from the job's seed.
    """
    fewest = threshold(cohort) if cohort >= MIN_SITES else 0
    colluders = max(tolerated(cohort, fewest), 0) if fewest else 0
    privacy, kept = job.privacy, state.facts.get(FACT)
    if privacy is None or kept is None:
        return PrivacyStatement("none", "none", None, None, seal, colluders)
    rows = isinstance(privacy, RowDP)
    mechanism = "Row-level differential privacy (DP-SGD)" if rows else "Site-level differential privacy"
    mechanism += "" if rows else " (discrete Gaussian)"
    unit = (privacy.unit or "row") if isinstance(privacy, RowDP) else "site"
    conditions = _conditions(job, cohort, colluders, reproducible)
    events, delta = events_from_json(kept["events"]), privacy.delta
    cost = None if reproducible else epsilon(events, delta)
    written = tuple(events_as_json(events))
    return PrivacyStatement(
        mechanism, unit, cost, delta, seal, colluders, privacy.epsilon, written, tuple(conditions)
    )


def _conditions(job: Job, cohort: int, colluders: int, reproducible: bool) -> list[str]:
    """What must hold besides, in sentences."""
    if reproducible:
        return ["the noise was drawn from the job's seed, so that the run can be repeated: it hides nobody."]
    found = ["Neighbours differ in what one of them holds; how many there are is public."]
    privacy = job.privacy
    if isinstance(privacy, RowDP) and job.ships_code:
        found.append("The job's code, which every steward approved, treats each row by itself.")
    if isinstance(privacy, SiteDP):
        bad = colluders if privacy.colluders is None else privacy.colluders
        honest = max(threshold(cohort) - bad, 1) if cohort >= MIN_SITES else 1
        central = "Whoever opens the sums adds the noise, and is trusted with the sums: a simulation, no federation."
        shares = f"At least {honest} of the sites in each sum add their share of the noise."
        found.append(central if privacy.central else shares)
    return found


# --- what a site checks


def ahead(job: Job, query: Query) -> tuple[Event, ...]:
    """What the whole job will cost, told by its first training query: better refused now than half-way; else none."""
    if job.privacy is None or query.task != "train" or query.config.get("round") != 1:
        return ()
    return tuple(Terms.from_json(query.config["privacy"]).of_job(job))


def check(job: Job, query: Query) -> list[Event]:
    """A site's own look at a query of a job with privacy, before anything is computed for it.

    Returns: what answering it costs. Raises: ContextMismatch: it asks for more, or with less noise, than the job
    says.
    """
    assert job.privacy is not None
    if isinstance(job.privacy, SiteDP) and job.privacy.central:
        raise ContextMismatch("central noise is for simulations: here each site adds its own.")
    if query.task == "profile" and query.layout == census():
        return []
    if query.task not in ("train", "evaluate"):
        raise ContextMismatch(f"a job with privacy was asked for {query.task!r}, which has no noise.")
    try:
        terms = Terms.from_json(query.config["privacy"])
        allowed, release = layout_of(job, query, terms), terms.of_job(job)
    except (KeyError, TypeError, ValueError, OverflowError, JobError, LayoutError, MalformedMessage):
        raise ContextMismatch("the query does not say how the job's privacy is kept.") from None
    if query.layout != allowed:
        raise ContextMismatch("the query asks for other sums, or for less noise, than the job's privacy allows.")
    most = job.privacy.epsilon * SLACK
    if (cost := at_least(release, job.privacy.delta)) <= most:
        cost = epsilon(release, job.privacy.delta)
    if cost > most:
        raise ContextMismatch(
            f"the noise is too small: the job would cost epsilon {cost:.3g} at least, it says"
            f" {job.privacy.epsilon:g}.",
            mend="The coordinator announces less noise than the job asks for: do not trust it.",
        )
    trains = query.task == "train"
    return terms.of_round(trained=trains, measured=not trains or bool(query.config.get("evaluate")))
