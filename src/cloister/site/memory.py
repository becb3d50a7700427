"""What a site keeps of a run between rounds (SCAFFOLD's control variate, a personal model), and which of it counts.

    memory/RUN/SITE/STEP    written by the worker (`learn.memory.InFolder`); outlives worker and agent
    memory/RUN.json         written by the agent: the step that trained last, its question, and whether it counts

A step counts once a receipt of its question names this site among those summed. What any other step left is taken
back before the next one trains. All of it is deleted when the run is done.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister.seal.receipt import Receipt
from cloister.site.settings import write_private


@dataclass(frozen=True)
class RunMemory:
    """Args: folder: of this run alone; the worker's. site: its id."""

    folder: Path
    site: str

    def asked(self, step: int, query: bytes) -> None:
        """A step is about to train. Args: query: digest of its question."""
        last = self._read()
        here = self.folder / self.site
        linked = self.folder.is_symlink() or here.is_symlink()  # by training code, to something that is not its own
        if last is not None and not last["counts"] and last["step"] != step and not linked:
            (here / str(int(last["step"]))).unlink(missing_ok=True)
        self._write(step, query.hex(), counts=False)

    def receipted(self, receipt: Receipt) -> None:
        """A sum was opened. Call before the receipt is kept: after a kill it is told again only if it was not."""
        last = self._read()
        if last is not None and last["query"] == receipt.plan.query.hex() and self.site in receipt.u3:
            self._write(last["step"], last["query"], counts=True)

    def forget(self) -> None:
        """The run is done."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._note.unlink(missing_ok=True)

    @property
    def _note(self) -> Path:
        return self.folder.with_name(self.folder.name + ".json")

    def _read(self) -> dict[str, Any] | None:
        return json.loads(self._note.read_bytes()) if self._note.exists() else None

    def _write(self, step: int, query: str, *, counts: bool) -> None:
        write_private(self._note, json.dumps({"step": step, "query": query, "counts": counts}).encode("ascii"))
