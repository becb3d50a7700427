"""What a site keeps of a job between rounds (SCAFFOLD's control variate, a personal model): named arrays.

    SiteState.load(site, step)            what the newest step before this one left
    SiteState.save(site, step, tensors)   what this step leaves

A step that is asked again (its first sum was void, or its process was killed) begins from the same as the first time,
and replaces what that left. A step whose sum was opened without this site does not count: whoever knows that (the
agent, from the receipt) calls `forget`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from cloister.vector import pack, unpack
from cloister.vector.bundle import Array

Kept = Mapping[str, Array]


class SiteState(Protocol):
    """One job's, for any number of sites; steps are those of the program (a query's config["step"])."""

    def load(self, site: str, step: int) -> Kept: ...

    def save(self, site: str, step: int, tensors: Kept) -> None: ...

    def forget(self, site: str, step: int) -> None: ...


class InMemory:
    """For a simulation in one process."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[int, Kept]] = {}

    def load(self, site: str, step: int) -> Kept:
        kept = self._kept.get(site, {})
        return kept[max(before)] if (before := [at for at in kept if at < step]) else {}

    def save(self, site: str, step: int, tensors: Kept) -> None:
        kept = self._kept.setdefault(site, {})
        needed = max((at for at in kept if at < step), default=step)
        self._kept[site] = {at: each for at, each in kept.items() if at == needed} | {step: dict(tensors)}

    def forget(self, site: str, step: int) -> None:
        self._kept.get(site, {}).pop(step, None)


class InFolder:
    """Files `<site>/<step>`, replaced whole. For a site's worker, and for simulations of many processes.

    Args: folder: of this job alone; made if absent. durable: a power cut loses nothing; else only a kill does not.
    """

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self._folder, self._durable = folder, durable
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def load(self, site: str, step: int) -> Kept:
        """Raises: MalformedMessage: a file that `save` did not write."""
        before = [at for at in self._steps(site) if at < step]
        return unpack(self._path(site, max(before)).read_bytes())[1] if before else {}

    def save(self, site: str, step: int, tensors: Kept) -> None:
        fresh = self._folder / site / "new"
        fresh.parent.mkdir(exist_ok=True, mode=0o700)
        with fresh.open("wb") as file:
            file.write(pack({}, tensors))
            file.flush()
            if self._durable:
                os.fsync(file.fileno())
        fresh.replace(self._path(site, step))
        steps = self._steps(site)
        needed = max((at for at in steps if at < step), default=step)
        for at in steps:
            if at not in (needed, step):
                self.forget(site, at)

    def forget(self, site: str, step: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._path(site, step).unlink()

    def _path(self, site: str, step: int) -> Path:
        return self._folder / site / str(step)

    def _steps(self, site: str) -> list[int]:
        try:
            return [int(step) for step in os.listdir(self._folder / site) if step.isdigit()]
        except FileNotFoundError:
            return []
