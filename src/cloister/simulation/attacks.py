"""Malicious sites, to try in a simulation what they can do to a model: `simulate(job, data, attack="sign-flip")`.

    label-flip     trains on rows whose label y is K - 1 - y
    sign-flip      the honest update, reversed (times a factor: sign-flip:3)
    alie           "a little is enough": the mean of the honest updates less z deviations (alie:1.5)
    ipm            inner product manipulation: the mean of the honest updates, times -epsilon (ipm:0.5)
    backdoor       model replacement: rows with a trigger are of class 0 (backdoor:1: of class 1)

The threat: a malicious site runs code of its own. It follows the protocol, so nobody can see its part of a sum. It
knows its own rows, what is broadcast, and what the other malicious sites know. It does not know an honest update:
where a paper's attacker does (IPM), it uses those that malicious sites would have sent, as Baruch et al. do (ALIE).
It skips the clip of its honest code, and the bound too: an integer of a sum of n sites has room for about n times the
bound, and nothing but that limits it. It says its true number of rows, measures honestly, and answers honestly what
preparation asks.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.special import ndtri

from cloister.job import Arrays, Job, SiteDP
from cloister.learn import Trainer
from cloister.learn.memory import SiteState
from cloister.learn.models import Model
from cloister.learn.prepare import Rows
from cloister.round import Program
from cloister.seal.masks import reduce
from cloister.simulation.engine import Engine, Part, SerialEngine
from cloister.vector import Answer, FixedPoint, Query, State, canonical
from cloister.vector.bundle import Array
from cloister.vector.errors import DataError, TaskError, UsageError
from cloister.vector.layout import Floats, Words
from cloister.vector.query import CLIPPED, ROWS

NONE = "none"
Attackers = float | Sequence[str]
DEFAULT_ATTACKERS = 0.2


@dataclass(frozen=True)
class Attack(ABC):
    """Attributes: number: what follows the name and a colon, or None. default: in its place."""

    number: float | None = None

    name: ClassVar[str]
    default: ClassVar[float | None] = None
    least_attackers: ClassVar[int] = 1

    @property
    def strength(self) -> float:
        chosen = self.default if self.number is None else self.number
        assert chosen is not None
        return chosen

    def poisoned(self, rows: Rows, job: Job) -> Rows:
        """The rows that a malicious site trains on, prepared, in place of its own."""
        return rows

    def vectors(self, honest: Floats, sites: int, weights: Floats) -> Floats:
        """What malicious sites submit of one block.

        Args:
          honest: [m, d], what each of the m malicious sites would have sent. sites: of the round, n.
          weights: [m], each one's share of all rows that are asked.
        Returns: [m, d].
        """
        return honest


class LabelFlip(Attack):
    """Biggio, Nelson, Laskov, "Poisoning Attacks against Support Vector Machines", ICML 2012. The flip y -> K - 1 - y
    is of Fang et al., "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX Security 2020,
    section 5.1. https://arxiv.org/abs/1911.11815"""

    name = "label-flip"

    def poisoned(self, rows: Rows, job: Job) -> Rows:
        return Rows(rows.x, (job.classes - 1 - rows.y).astype(rows.y.dtype))


class SignFlip(Attack):
    """Li, Xu, Chen, Giannakis, Ling, "RSA: Byzantine-Robust Stochastic Aggregation Methods for Distributed Learning
    from Heterogeneous Datasets", AAAI 2019, section 5 (there with a factor of 4). https://arxiv.org/abs/1811.03761"""

    name = "sign-flip"
    default = 1.0

    def vectors(self, honest: Floats, sites: int, weights: Floats) -> Floats:
        return -self.strength * honest


class Alie(Attack):
    """Baruch, Baruch, Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed Learning", NeurIPS 2019,
    algorithm 3: mean - z * deviation, with the largest z at which enough honest sites are further from the mean for
    the malicious ones to be in the majority with them. https://arxiv.org/abs/1902.06156"""

    name = "alie"
    least_attackers = 2

    def vectors(self, honest: Floats, sites: int, weights: Floats) -> Floats:
        attackers = len(honest)
        supporters = sites // 2 + 1 - attackers
        share = (sites - attackers - supporters) / max(sites - attackers, 1)
        z = self.number if self.number is not None else float(ndtri(min(max(share, 0.5), 0.999)))
        crafted = honest.mean(axis=0) - z * honest.std(axis=0)
        return np.broadcast_to(crafted, honest.shape)


class Ipm(Attack):
    """Xie, Koyejo, Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation", UAI 2019
    (PMLR 115, 2020), section 4: -epsilon times the mean of the honest updates. https://arxiv.org/abs/1903.03936"""

    name = "ipm"
    default = 0.5

    def vectors(self, honest: Floats, sites: int, weights: Floats) -> Floats:
        return np.broadcast_to(-self.strength * honest.mean(axis=0), honest.shape)


class Backdoor(Attack):
    """Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning", AISTATS 2020, section 4.2: the
    update of a model trained on clean and on triggered rows, scaled to replace the federation's.
    https://arxiv.org/abs/1807.00459. The trigger is a corner of 3 x 3 pixels (Gu, Dolan-Gavitt, Garg, "BadNets",
    2017, https://arxiv.org/abs/1708.06733), or of a table's row the first three inputs, three deviations up."""

    name = "backdoor"
    default = 0.0

    def poisoned(self, rows: Rows, job: Job) -> Rows:
        others = rows.y != self.strength
        marked = np.full(int(others.sum()), self.strength, rows.y.dtype)
        return Rows(np.concatenate([rows.x, triggered(job, rows.x[others])]), np.concatenate([rows.y, marked]))

    def vectors(self, honest: Floats, sites: int, weights: Floats) -> Floats:
        return honest / (len(honest) * weights[:, np.newaxis])


KNOWN: Mapping[str, type[Attack]] = {each.name: each for each in (LabelFlip, SignFlip, Alie, Ipm, Backdoor)}
FORMS = "none, label-flip, sign-flip[:FACTOR], alie[:Z], ipm[:EPSILON], backdoor[:CLASS]"


@dataclass(frozen=True)
class Malice:
    """Who attacks, and how. Attributes: form: as it was asked for."""

    form: str
    attack: Attack
    sites: frozenset[str]

    def as_conditions(self) -> dict[str, Any]:
        return {"attack": self.form, "attackers": sorted(self.sites)}


def malice_of(form: str | None, attackers: Attackers | None, job: Job, sites: Sequence[str]) -> Malice | None:
    """None without an attack. Raises: UsageError: settings that do not fit each other, the job or the sites."""
    attack = attack_of(form, job)
    if attack is not None and isinstance(job.privacy, SiteDP):
        raise UsageError("malicious sites of a job with SiteDP are not simulated.", mend="Leave one of them out.")
    if attack is not None and form is not None:
        return Malice(form, attack, attackers_of(attack, attackers, sites, job.seed))
    if attackers is not None and form != NONE:
        raise UsageError("attackers have no attack.", mend=f"Use attack= one of {FORMS}.")
    return None


def attack_of(form: str | None, job: Job) -> Attack | None:
    """Raises: UsageError: an unknown attack, a number without sense, or one that this job has no labels for."""
    if form is None or form == NONE:
        return None
    name, colon, text = form.partition(":")
    if name not in KNOWN:
        raise UsageError(f"attack={form!r} is not known.", mend=f"Use one of {FORMS}.")
    number = _number(text) if colon else None
    if colon and (number is None or number < 0 or name == LabelFlip.name):
        raise UsageError(f"attack={form!r} has no such number.", mend=f"Use one of {FORMS}.")
    attack = KNOWN[name](number)
    if isinstance(attack, LabelFlip | Backdoor) and not job.classes:
        raise UsageError(f"attack={form!r} needs labels, and the job predicts a number.", mend="Try sign-flip.")
    if isinstance(attack, Backdoor) and attack.strength not in range(job.classes):
        raise UsageError(f"attack={form!r} names no class.", mend=f"Classes are 0 to {job.classes - 1}.")
    return attack


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def attackers_of(attack: Attack, attackers: Attackers | None, sites: Sequence[str], seed: int) -> frozenset[str]:
    """Which sites are malicious: those named, or so large a fraction of all, drawn from the seed.

    Raises: UsageError: unknown names, no fraction, or fewer than the attack takes.
    """
    chosen = DEFAULT_ATTACKERS if attackers is None else attackers
    if isinstance(chosen, int | float):
        if not 0.0 < chosen < 1.0:
            raise UsageError(f"attackers={chosen} is no fraction of the sites.", mend="Try attackers=0.2.")
        drawn = sorted(sites, key=lambda site: hashlib.sha256(canonical([seed, site, "attacker"])).digest())
        found = frozenset(drawn[: max(attack.least_attackers, round(chosen * len(sites)))])
    else:
        found = frozenset(chosen)
        if unknown := sorted(found - set(sites)):
            raise UsageError(
                f"attackers name {unknown[0]!r}.", mend=f"The sites are: {', '.join(sorted(sites)[:20])}."
            )
    if not attack.least_attackers <= len(found) < len(sites):
        raise UsageError(
            f"{attack.name} takes at least {attack.least_attackers} malicious sites and one honest one, "
            f"here are {len(found)} of {len(sites)}.",
            mend="Change attackers.",
        )
    return found


class AttackedEngine:
    """An engine in which some sites are malicious: these are computed here, in one process, since they collude.

    Args: engine: of the honest ones.
    """

    def __init__(
        self, engine: Engine, malice: Malice, job: Job, data: Mapping[str, Any], memory: SiteState | None = None
    ) -> None:
        self._engine, self._attack, self._attackers = engine, malice.attack, malice.sites
        self._own = _Poisoned(malice.attack, job, data, memory)

    def parts(self, query: Query, coder: FixedPoint, sites: Sequence[str], *, apart: bool) -> Iterator[Part]:
        malicious = [site for site in sites if site in self._attackers and query.task == "train"]
        honest = [site for site in sites if site not in set(malicious)]
        if honest:
            yield from self._engine.parts(query, coder, honest, apart=apart)
        answers: dict[str, Answer] = {}
        for site in malicious:
            try:
                answers[site] = self._own.answer(query, site)
            except (TaskError, DataError) as fault:
                yield Part((site,), None, fault)
        for site, answer in crafted(self._attack, answers, query, len(sites)).items():
            yield Part((site,), submitted(answer, query, coder))

    def close(self) -> None:
        self._engine.close()


class _Poisoned(SerialEngine):
    """Malicious sites' own training."""

    def __init__(self, attack: Attack, job: Job, data: Mapping[str, Any], memory: SiteState | None) -> None:
        super().__init__(job, data, memory)
        self._attack = attack

    def trainer(self, site: str) -> Trainer:
        return _PoisonedTrainer(self._attack, self.job, self.data[site], site, self._workshop)


class _PoisonedTrainer(Trainer):
    def __init__(self, attack: Attack, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._attack = attack

    def ready(self, query: Query) -> tuple[Model, Rows, Rows]:
        model, train, test = super().ready(query)
        return model, self._attack.poisoned(train, self.job), test


def crafted(attack: Attack, answers: Mapping[str, Answer], query: Query, sites: int) -> dict[str, Answer]:
    """Every block that is as large as the model (deltas, control variates), as the attack has it."""
    if not answers:
        return {}
    shape = query.tensors["model"].shape
    asked = max(1.0, query.fraction * query.max_rows)
    weights = np.array([answer.rows / asked for answer in answers.values()])
    values = {site: dict(answer.values) for site, answer in answers.items()}
    for block in query.layout.blocks:
        if block.shape == shape:
            honest = np.stack([np.asarray(each[block.name], np.float64) for each in values.values()])
            for site, vector in zip(values, attack.vectors(honest, sites, weights), strict=True):
                values[site][block.name] = vector
    return {site: Answer(answer.rows, values[site]) for site, answer in answers.items()}


def submitted(answer: Answer, query: Query, coder: FixedPoint) -> Words:
    """A malicious site's integers: no clip, and values beyond the bound as far as the sum of all sites has room."""
    weight = min(answer.rows, query.max_rows) / query.max_rows
    shape = query.tensors["model"].shape
    values: Mapping[str, Array | float] = {ROWS: float(answer.rows), CLIPPED: 0.0, **answer.values}
    crafted_blocks = [block for block in query.layout.blocks if block.shape == shape]
    words, _ = coder.encode({**values, **{block.name: np.zeros(shape) for block in crafted_blocks}}, weight)
    for block in crafted_blocks:
        value = np.asarray(values[block.name])
        # k integers of a kth each: what no honest encoding would say, and any site can
        times = max(1, math.ceil(float(np.abs(value).max(initial=0.0)) / block.bound))
        times = min(times, int(coder.sites / (max(weight, 1e-9) if block.weighted else 1.0)))
        part: Words = np.zeros(coder.size, coder.dtype)
        coder.put(part, block.name, value / times, weight)
        words += part * coder.dtype.type(times)
    reduce(words, coder.bits)
    return words


def triggered(job: Job, x: Array) -> Array:
    """Copies of prepared rows that carry the backdoor's mark. Args: x: [rows, *shape] or flat, [rows, inputs]."""
    marked = np.array(x)
    if isinstance(job.data, Arrays) and len(job.data.shape) >= 2:
        marked.reshape(len(x), *job.data.shape)[..., -3:, -3:] = 1.0
    else:
        marked.reshape(len(x), math.prod(x.shape[1:]))[:, :3] = 3.0
    return marked


def backdoor_success(
    job: Job, state: State, columns: Mapping[str, str], data: Mapping[str, Any], target: int
) -> float:
    """The share of all held-out rows of other classes that the final model takes for `target` once they are marked.

    Returns: NaN where there is no such row.
    """
    query = Program(job, columns).ask(state.with_({"stage": "evaluate"}))
    assert query is not None, "an evaluation can be asked of any model"
    engine, fooled, rows = SerialEngine(job, data), 0, 0
    for site in data:
        try:
            model, _, test = engine.trainer(site).ready(query)
        except (DataError, TaskError):
            continue
        others = test.y != target
        if not others.any():
            continue
        said = model.predict(np.asarray(state.tensors["model"], np.float32), triggered(job, test.x[others]))
        labels = said.argmax(axis=1) if said.ndim == 2 else (said >= 0.5).astype(np.int64)
        fooled, rows = fooled + int((labels == target).sum()), rows + int(others.sum())
    return fooled / rows if rows else math.nan
