"""Does a job keep the privacy that it claims? Attacks on its own training, on data at hand, before it is submitted.

Three of them, each with what a defender may conclude:
  canaries    gradients of a direction of their own that are in the steps or not, by a coin; who sees every noisy
              sum guesses which. More right than epsilon allows is a bug (Steinke, Nasr, Jagielski, NeurIPS 2023,
              https://arxiv.org/abs/2305.08846), the sharper bound takes noise to be Gaussian (Nasr et al., USENIX
              Security 2023, https://arxiv.org/abs/2302.07956).
  membership  who has the final model guesses from a row's loss whether it was trained on: an AUC.
  inversion   one row read off a gradient, of the row alone, of the sum over sites, and with the job's noise.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, binom, norm

from cloister.algorithms import Terms as Drift
from cloister.job import Job, RowDP
from cloister.learn import Trainer
from cloister.learn.models import complete
from cloister.learn.prepare import Rows
from cloister.learn.private import NoisySteps
from cloister.privacy.accounting import Event, epsilon
from cloister.privacy.noise import Stream
from cloister.round import Program, private
from cloister.simulation.data import columns_of, shards_of
from cloister.simulation.simulate import simulate
from cloister.vector import Query
from cloister.vector.errors import UsageError

Floats = npt.NDArray[np.float64]
MOST_CANARIES = 1000
CONFIDENCE = 0.05  # the chance that a bound is above the truth


@dataclass(frozen=True)
class Audit:
    """Attributes:
    claimed: epsilon of the training's steps, at delta. lower: no smaller epsilon explains the right guesses.
    lower_gaussian: the same, taking the noise to be Gaussian.
    canaries: how many. guessed, right: of those that were guessed on.
    membership_auc: 0.5 is a coin. inversion: how alike (correlation) the row read off a gradient is to the true one.
    """

    claimed: float
    delta: float
    lower: float
    lower_gaussian: float
    canaries: int
    guessed: int
    right: int
    membership_auc: float | None
    inversion: Mapping[str, float]
    pictures: Mapping[str, Floats]

    @property
    def broken(self) -> bool:
        """Whether a lower bound is above the claim."""
        return max(self.lower, self.lower_gaussian) > self.claimed

    def as_json(self) -> dict[str, Any]:
        told = dataclasses.asdict(self)
        del told["pictures"]
        return {**told, "inversion": dict(self.inversion), "broken": self.broken}


def audit(
    job: Job,
    data: Any,
    sites: int | None = None,
    *,
    canaries: int = MOST_CANARIES,
    say: Callable[[str], None] = lambda line: None,
) -> Audit:
    """Args: job: with `RowDP`. data, sites: as for `simulate`. canaries: how many.

    Raises: UsageError: a job without privacy of rows.
    """
    privacy = job.privacy
    if not isinstance(privacy, RowDP):
        raise UsageError("the audit is of jobs with privacy=cl.RowDP(...).", mend="Add it to the job.")
    job = complete(job)
    say("the job itself, for its final model")
    result = simulate(job, data, sites)
    tables = shards_of(job, data, sites, "skewed")
    before = result.state.with_({"stage": "train", "round": 0, "step": 1})
    query = Program(job, columns_of(job, tables)).ask(before)
    assert query is not None, "a round of training can be asked"
    terms = private.Terms.from_json(result.state.facts[private.FACT]["terms"])
    trainers = [Trainer(job, tables[site], site) for site in tables]
    flat = np.ascontiguousarray(query.tensors["model"], np.float32)
    say("canaries in its steps")
    scores, inside = plant(job, query, flat.size, canaries)
    guessed, right = best_guesses(scores, inside)
    claim = epsilon([Event(terms.multiplier, terms.sampling, terms.steps * job.algorithm.rounds)], privacy.delta)
    say("membership and inversion")
    likeness, pictures = _inversion(job, query, flat, trainers)
    return Audit(
        claimed=claim,
        delta=privacy.delta,
        lower=lower_bound(guessed, right, len(scores), privacy.delta),
        lower_gaussian=gaussian_bound(scores, inside, privacy.delta),
        canaries=len(scores),
        guessed=guessed,
        right=right,
        membership_auc=_membership(query, flat, trainers),
        inversion=likeness,
        pictures=pictures,
    )


class _Watched(NoisySteps):
    """The job's own noisy steps on a site without rows, with canaries, every noisy sum of which is seen.

    A canary is a gradient as long as the clip along an axis of its own: what differential privacy has to withstand.
    """

    def __init__(self, inside: npt.NDArray[np.bool_], **settings: Any) -> None:
        super().__init__(**settings)
        self.seen, self._inside = np.zeros(settings["size"]), inside
        self._count = max(self._count, 1)

    def watch(self) -> None:
        coins = self._stream.coins(self._sampling, self._inside.size) & self._inside
        total = np.zeros(self.seen.size)
        total[: coins.size][coins] = self.clip
        self.seen += self.gradient(total) * (self._sampling * self._count)


def plant(job: Job, query: Query, size: int, canaries: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """All the job's noisy steps. Returns: a score for each canary, and whether it was inside."""
    assert isinstance(job.privacy, RowDP)
    terms = private.Terms.from_json(query.config["privacy"])
    stream, empty = Stream(os.urandom), Rows(np.zeros((0, 1), np.float32), np.zeros(0))
    inside = stream.coins(0.5, canaries)
    watched = _Watched(
        inside,
        clip=job.privacy.clip,
        multiplier=terms.multiplier,
        sampling=terms.sampling,
        steps=terms.steps,
        rows=empty,
        size=max(size, canaries),
        stream=stream,
    )
    for _ in range(terms.steps * job.algorithm.rounds):
        watched.watch()
    return watched.seen[:canaries], inside


def best_guesses(scores: Floats, inside: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Guesses on the third with the highest scores (in) and lowest (out), half each. Returns: guesses, right ones."""
    count = len(scores) // 6
    order = np.argsort(scores)
    return 2 * count, int(inside[order[-count:]].sum() + (~inside[order[:count]]).sum())


def lower_bound(guessed: int, right: int, canaries: int, delta: float) -> float:
    """The largest epsilon under which so many right guesses have a chance of CONFIDENCE at most; 0 if there is none.

    Steinke, Nasr, Jagielski 2023, theorem 3.1: each guess is right with e**epsilon / (1 + e**epsilon) at most; delta
    adds 2 * canaries * delta times the largest mean chance of a few right guesses less.
    """
    low, high = 0.0, 50.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        chance = 1.0 / (1.0 + math.exp(-middle))
        near = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guessed, chance)) / np.arange(1, right + 1)
        likely = binom.sf(right - 1, guessed, chance) + 2.0 * canaries * delta * near.max(initial=0.0)
        low, high = (middle, high) if likely <= CONFIDENCE else (low, middle)
    return low


def gaussian_bound(scores: Floats, inside: npt.NDArray[np.bool_], delta: float) -> float:
    """Epsilon at delta of the least Gaussian mechanism that tells in from out as well as the best threshold does."""
    threshold = (scores[inside].mean() + scores[~inside].mean()) / 2
    missed, false = int((scores[inside] <= threshold).sum()), int((scores[~inside] > threshold).sum())
    ins, outs = int(inside.sum()), int((~inside).sum())
    # Clopper-Pearson, half of the error for each side
    most_missed = float(beta.ppf(1.0 - CONFIDENCE / 2, missed + 1, ins - missed))
    most_false = float(beta.ppf(1.0 - CONFIDENCE / 2, false + 1, outs - false))
    separation = float(norm.isf(most_false) - norm.ppf(most_missed))
    return epsilon([Event(1.0 / separation)], delta) if separation > 1e-3 else 0.0


def _membership(query: Query, flat: npt.NDArray[np.float32], trainers: list[Trainer]) -> float | None:
    """Chance that a trained row has a smaller loss than a held-out one, under the final model."""
    inner, outer = [], []
    for trainer in trainers:
        model, train, test = trainer.ready(query)
        inner.append(model.assess(flat, train).losses)
        outer.append(model.assess(flat, test).losses)
    members, others = np.concatenate(inner), np.concatenate(outer)
    if not (members.size and others.size):
        return None
    order = np.argsort(np.concatenate([members, others]), kind="stable")
    ranks = np.empty(len(order))
    ranks[order] = np.arange(1, len(order) + 1)
    below = ranks[: members.size].sum() - members.size * (members.size + 1) / 2
    return float(1.0 - below / (members.size * others.size))


def _inversion(
    job: Job, query: Query, flat: npt.NDArray[np.float32], trainers: list[Trainer]
) -> tuple[dict[str, float], dict[str, Floats]]:
    """Reads a row off the first layer's gradient: weights' over bias', x = (dL/dW_i) / (dL/db_i).

    Of one row alone this is exact. A sum over sites shows a mean of rows; with noise it shows noise.
    Returns: how alike what is read is to the row, and both as vectors; empty where the first layer is not dense.
    """
    assert isinstance(job.privacy, RowDP)
    shapes = [tuple(shape) for _, shape in query.config["shapes"]]
    if len(shapes) < 2 or len(shapes[0]) != 2 or shapes[1] != shapes[0][:1]:
        return {}, {}
    width, inputs = shapes[0]
    model, rows, _ = trainers[0].ready(query)
    one = Rows(rows.x[:1], rows.y[:1])
    alone = np.asarray(model.train(flat, one, 0, 1, Drift(epochs=1)).delta, np.float64)
    summed = np.zeros(flat.size)
    for trainer in trainers:
        model, rows, _ = trainer.ready(query)
        summed += len(rows) * model.train(flat, Rows(rows.x, rows.y), 0, 1, Drift(epochs=1)).delta
    terms = private.Terms.from_json(query.config["privacy"])
    noisy = NoisySteps(job.privacy.clip, terms.multiplier, 1.0, 1, one, flat.size, Stream(os.urandom))
    seen: dict[str, Floats] = {
        "the row's own update": alone,
        "the sealed sum over sites": summed,
        "the row's own step with this job's noise": noisy.gradient(
            alone * (noisy.clip / float(np.linalg.norm(alone)))
        ).astype(np.float64),
    }
    pictures = {"the row": one.x[0].reshape(-1).astype(np.float64)}
    for name, gradient in seen.items():
        weights = gradient[: width * inputs].reshape(width, inputs)
        biases = gradient[width * inputs : width * inputs + width]
        best = int(np.argmax(np.abs(biases)))
        pictures[name] = np.asarray(weights[best] / (biases[best] or 1e-12), np.float64)
    return {name: _alike(pictures[name], pictures["the row"]) for name in seen}, pictures


def _alike(found: Floats, true: Floats) -> float:
    if found.std() == 0 or true.std() == 0:
        return 0.0
    return float(np.corrcoef(found, true)[0, 1])
