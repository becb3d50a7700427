"""Engines: who computes the sites' answers, and where.

An engine yields answers in any order as they come; the sum is of integers, so no order and no number of processes can
change it. `SerialEngine` is one thread of this process; pools, batches and clusters belong beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import pandas as pd

from cloister.job import Job
from cloister.learn import Trainer
from cloister.vector import Answer, Query
from cloister.vector.errors import DataError, TaskError

Outcome = Answer | TaskError | DataError


class Engine(Protocol):
    def answers(self, query: Query, sites: Sequence[str]) -> Iterator[tuple[str, Outcome]]:
        """Each site's answer, or why it has none; one pair for each of `sites`."""
        ...


class SerialEngine:
    """One site after the other. A site's trainer (its prepared table) is made at its first question, and kept."""

    def __init__(self, job: Job, tables: Mapping[str, pd.DataFrame]) -> None:
        self._job, self._tables = job, tables
        self._trainers: dict[str, Trainer] = {}

    @classmethod
    def of(cls, job: Job, trainers: Mapping[str, Trainer]) -> SerialEngine:
        """An engine whose trainers are made already."""
        engine = cls(job, {})
        engine._trainers.update(trainers)
        return engine

    def answers(self, query: Query, sites: Sequence[str]) -> Iterator[tuple[str, Outcome]]:
        for site in sites:
            try:
                if site not in self._trainers:
                    self._trainers[site] = Trainer(self._job, self._tables[site], site)
                yield site, self._trainers[site].answer(query)
            except (TaskError, DataError) as fault:
                yield site, fault
