"""What sites keep between rounds: both stores, questions that are asked again, rounds that do not count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cloister.learn.memory import InFolder, InMemory, SiteState


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> SiteState:
    return InMemory() if request.param == "memory" else InFolder(tmp_path / "kept")


def kept(store: SiteState, step: int, site: str = "a") -> float | None:
    found = store.load(site, step)
    return float(found["c"][0]) if found else None


def save(store: SiteState, step: int, value: float, site: str = "a") -> None:
    store.save(site, step, {"c": np.full(2, value, np.float32)})


def test_a_step_starts_from_what_the_newest_before_it_left(store: SiteState) -> None:
    assert kept(store, 3) is None
    save(store, 3, 1.0)
    save(store, 7, 2.0)
    assert (kept(store, 3), kept(store, 7), kept(store, 8)) == (None, 1.0, 2.0)
    assert kept(store, 8, "b") is None


def test_a_step_that_is_asked_again_starts_from_the_same_and_replaces_what_it_left(store: SiteState) -> None:
    save(store, 3, 1.0)
    for value in (2.0, 3.0, 4.0):
        assert kept(store, 4) == 1.0
        save(store, 4, value)
    assert kept(store, 5) == 4.0


def test_a_step_that_does_not_count_is_forgotten(store: SiteState) -> None:
    save(store, 3, 1.0)
    save(store, 4, 2.0)
    store.forget("a", 4)
    assert kept(store, 5) == 1.0
    store.forget("a", 4)  # twice is as once


def test_sites_whose_names_begin_alike_stay_apart_and_no_more_than_two_steps_are_kept(tmp_path: Path) -> None:
    store = InFolder(tmp_path)
    for step in range(6):
        save(store, step, float(step), "site")
        save(store, step, -1.0, "site.1")
    assert kept(store, 9, "site") == 5.0
    assert sorted(path.name for path in (tmp_path / "site.1").iterdir()) == ["4", "5"]
