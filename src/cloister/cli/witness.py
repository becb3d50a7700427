"""What a coordinator saw of each site, beside what the site really said: only who holds the tables can tell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloister.coordinator.kept import masked_vectors
from cloister.job import Job
from cloister.learn import Trainer, read_table
from cloister.round import contribute
from cloister.seal.masks import unpack

SHOWN_WORDS = 3


def what_the_coordinator_saw(folder: Path, run: str, job: Job, tables: Mapping[str, Path]) -> list[dict[str, Any]]:
    """For each site of the run's last opened round, the first words that the coordinator holds and the true ones.

    The true ones are computed again from the site's own table: training is deterministic, so they are the same.

    Args: folder: the coordinator's. tables: site id -> its CSV.
    Returns: for each site "masked" and "true" words, "equal_words" (how many of all words agree by chance), "words",
      and "said": what the true ones say.
    """
    plan, query, vectors = masked_vectors(folder, run)
    seen = []
    for site, packed in sorted(vectors.items()):
        answer = Trainer(job, read_table(tables[site]), site).answer(query)
        true = contribute(answer, query, plan.coder)
        masked = unpack(packed, plan.words, plan.bits)
        said = {name: float(value) for name, value in answer.values.items() if value.size == 1}
        seen.append(
            {
                "site": site,
                "masked": [int(word) for word in masked[:SHOWN_WORDS]],
                "true": [int(word) for word in true[:SHOWN_WORDS]],
                "words": plan.words,
                "equal_words": int((masked == true).sum()),
                "said": {**said, "rows": float(answer.rows)},
            }
        )
    return seen
