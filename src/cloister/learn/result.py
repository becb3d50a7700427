"""What a job gives back: the model, its history, what it cost, what it claims about privacy, and a folder of it.

The same object comes from a simulation and from a federation: both end in a final `State` and a list of events.

    result = cl.simulate(job, "hospitals/")
    result.model, result.history, result.table, result.privacy
    result.save("results/")
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from safetensors.numpy import save as save_tensors

from cloister import learn
from cloister.job import Job
from cloister.learn.comparison import HIGHER_IS_BETTER, Comparison
from cloister.learn.partition import Partition
from cloister.privacy import PrivacyStatement
from cloister.vector import State, digest, unflatten
from cloister.vector.bundle import Array
from cloister.vector.errors import StorageFull, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURED = ("train_loss", "loss", "accuracy", "site_accuracy", "auc", "rmse", "mae")
COST = ("seconds", "bytes_up", "bytes_down")
TIMED = ("clock", "staleness")  # of an asynchronous simulation


@dataclass(frozen=True)
class Result:
    """A finished job.

    Attributes:
      job: what was computed.
      state: the program's final state: the flat model, the fitted preparation, the history.
      privacy: what may be claimed.
      events: as `simulate` and a federation's `watch` give them; those of training rounds add seconds and bytes.
      receipts: signed records of the rounds, in order; none where nothing was sealed.
      comparison: local-only, federated and pooled on the same test rows, where somebody could compute it.
      conditions: of a simulation: "partition" (how the rows lie, where that is cheap to tell); "attack", "attackers",
        "backdoor_success" (the share of marked rows), where there was one.
    """

    job: Job
    state: State
    privacy: PrivacyStatement
    events: Sequence[Mapping[str, Any]] = ()
    receipts: Sequence[bytes] = ()
    comparison: Comparison | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)
    _built: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def model(self) -> Any:
        """The fitted model: the user's torch.nn.Module, or a scikit-learn estimator. Built once."""
        if not self._built:
            self._built.append(learn.build_model(self.job, self.state))
        return self._built[0]

    @property
    def tensors(self) -> dict[str, Array]:
        """The model's tensors by name, float32."""
        shapes = {name: tuple(shape) for name, shape in self.state.facts["shapes"]}
        return unflatten(np.asarray(self.state.tensors["model"], np.float32), shapes)

    @property
    def model_bytes(self) -> bytes:
        """What model.safetensors holds; equal models give equal bytes."""
        tensors = {name: np.ascontiguousarray(value) for name, value in sorted(self.tensors.items())}
        return save_tensors(tensors, {"cloister.job": self.job.digest.hex()})

    @property
    def job_text(self) -> bytes:
        """What job.json holds: the job's manifest, for reading."""
        return (json.dumps(self.job.manifest(), indent=2, sort_keys=True) + "\n").encode()

    @property
    def history(self) -> pd.DataFrame:
        """One row a round; round 0 is the model before training.

        Columns: round, sites (that were summed), rows, clipped (coordinates cut to their bound), then what was
        measured (train_loss; loss, accuracy, site_accuracy (plain mean over sites), auc or rmse, mae; on test rows),
        and seconds, bytes_up, bytes_down (all sites together) where the events tell; of an asynchronous simulation
        the virtual clock and the mean staleness of what was summed, in versions.
        """
        rows = [dict(row) for row in self.state.facts.get("history", ())]
        for row in rows:
            event = self.trained.get(row["round"], {})
            row.update({name: added(event[name]) for name in COST if event.get(name)})
            row.update({name: event[name] for name in TIMED if name in event})
        table = pd.DataFrame(rows)
        known = [name for name in ("round", "sites", "rows", "clipped", *MEASURED, *COST, *TIMED) if name in table]
        table = table[[*known, *(name for name in table if name not in known)]]
        return table.astype({name: np.float64 for name in table if name in (*MEASURED, *COST)})

    @property
    def trained(self) -> dict[int, Mapping[str, Any]]:
        """The event of each round of training, by its number from 1 on.

        Of a round of several questions (FLTrust) it is the last one's, with the seconds and bytes of all.
        """
        rounds = (event for event in self.events if event.get("event") == "round" and event.get("stage") == "train")
        found: dict[int, Mapping[str, Any]] = {}
        before: list[Mapping[str, Any]] = []  # questions of a round that has another
        for event in rounds:
            if event["trained"] <= max(found, default=0):
                before.append(event)
                continue
            costs = {name: _together([each[name] for each in (*before, event)]) for name in COST if name in event}
            found[event["trained"]], before = {**event, **costs}, []
        return found

    @property
    def final(self) -> dict[str, float | None]:
        """Metrics of the final model, as the federation measured them by sealed sums; empty without evaluation."""
        history = self.state.facts.get("history", ())
        return {name: history[-1][name] for name in HIGHER_IS_BETTER if history and name in history[-1]}

    @property
    def table(self) -> pd.DataFrame:
        """Metrics in columns; rows local-only, federated, pooled, or federated alone without a comparison."""
        if self.comparison is not None:
            return self.comparison.table()
        return pd.DataFrame.from_dict({"federated": self.final}, orient="index", dtype=np.float64)

    def predict(self, features: pd.DataFrame | Array) -> Array:
        """Probabilities (or values) for each row of a raw table (or x) that fulfils the job's contract."""
        return learn.predict(self.job, self.state, features)

    def plot(self, *metrics: str) -> Figure:
        """Learning curves. Args: metrics: columns of `history`; by default all that were measured."""
        from cloister.learn.figures import learning_curves

        return learning_curves(self, metrics)

    def report(self) -> str:
        """The page that report.html holds: one self-contained file."""
        from cloister.learn.report import render

        return render(self)

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        history = self.history
        return {
            "job": self.job.digest.hex(),
            "name": self.job.data.name,
            "model_sha256": digest(self.model_bytes).hex(),
            "metrics": self.final,
            "comparison": None if self.comparison is None else self.comparison.as_json(),
            "privacy": self.privacy.as_json(),
            "receipts": len(self.receipts),
            "conditions": {
                name: value.as_json() if isinstance(value, Partition) else value
                for name, value in self.conditions.items()
            },
            "history": json.loads(history.to_json(orient="records", double_precision=15)),
        }

    def save(self, folder: str | Path) -> Path:
        """Writes model.safetensors, state.bundle, job.json, job.bundle, history.csv, report.html and receipts/.

        Returns: the folder, made if it is not there. Files of these names in it are replaced.
        Raises: StorageFull: the disk is full. UsageError: no folder can be written there.
        """
        path = Path(folder)
        try:
            self._write(path)
        except OSError as fault:
            if fault.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull(
                    f"the disk is full: {path} is incomplete.", mend="Free some space, save again."
                ) from None
            raise UsageError(f"{path} cannot be written: {fault.strerror}.", mend="Choose another folder.") from None
        return path

    def _write(self, path: Path) -> None:
        (path / "receipts").mkdir(parents=True, exist_ok=True)
        (path / "model.safetensors").write_bytes(self.model_bytes)
        (path / "state.bundle").write_bytes(self.state.to_bytes())
        (path / "job.bundle").write_bytes(self.job.to_bytes())
        (path / "job.json").write_bytes(self.job_text)
        self.history.to_csv(path / "history.csv", index=False)
        for stale in (path / "receipts").glob("*.receipt"):
            stale.unlink()
        for number, receipt in enumerate(self.receipts):
            (path / "receipts" / f"{number:05d}.receipt").write_bytes(receipt)
        (path / "report.html").write_text(self.report(), "utf-8")


def _together(amounts: Sequence[Any]) -> Any:
    """Costs of several questions: totals, or each by phase or site."""
    if not all(isinstance(each, Mapping) for each in amounts):
        return sum(map(added, amounts))
    return {name: sum(each.get(name, 0.0) for each in amounts) for each in amounts for name in each}


def added(amount: Any) -> float:
    """A total, or the sum of its parts (seconds by phase, bytes by site)."""
    return float(sum(amount.values())) if isinstance(amount, Mapping) else float(amount)
