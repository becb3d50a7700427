"""The engine of many clients at once, for small nets: a step of all of them is one batched product.

What a client costs with a small net is not arithmetic but the calls around it; a hundred clients share those calls.
Nets by name are batched in numpy, a model of one's own by `torch.func.vmap`. The same to rounding as one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cloister.job import Torch
from cloister.learn.together import answers
from cloister.round import contribute
from cloister.simulation.engine import Part, SerialEngine
from cloister.vector import FixedPoint, Query
from cloister.vector.errors import DataError, TaskError, UsageError

MOST_CLIENTS = 128
MOST_WEIGHTS = 1 << 18  # of all clients of a batch together: about what stays in a core's cache


class BatchedEngine(SerialEngine):
    """Raises: UsageError: an estimator, privacy, or an algorithm that does more at a site than train and average."""

    def check(self) -> BatchedEngine:
        if not isinstance(self.job.task, Torch) or not self.job.algorithm.trains_plainly or self.job.privacy:
            raise UsageError(
                "engine='batched' trains cl.Torch tasks, without privacy, by means alone.",
                mend="Use engine='processes'.",
            )
        return self

    def each(self, query: Query, coder: FixedPoint, sites: Sequence[str]) -> Iterator[Part]:
        if query.task not in ("train", "evaluate"):
            yield from super().each(query, coder, sites)
            return
        size = max(1, min(MOST_CLIENTS, MOST_WEIGHTS // query.tensors["model"].size))
        for at in range(0, len(sites), size):
            yield from self._together(query, coder, sites[at : at + size])

    def _together(self, query: Query, coder: FixedPoint, sites: Sequence[str]) -> Iterator[Part]:
        trainers = []
        for site in sites:
            try:
                trainer = self.trainer(site)
                trainer.ready(query)
            except (TaskError, DataError) as fault:
                yield Part((site,), None, fault)
                continue
            trainers.append(trainer)
        try:
            found = list(answers(trainers, query))
        except TaskError:  # in the job's own code, of one of them: alone, each says for itself
            yield from super().each(query, coder, [trainer.site for trainer in trainers])
            return
        for trainer, answer in zip(trainers, found, strict=True):
            try:
                if isinstance(answer, TaskError):
                    raise answer
                yield Part((trainer.site,), contribute(answer, query, coder))
            except (TaskError, DataError) as fault:
                yield Part((trainer.site,), None, fault)
