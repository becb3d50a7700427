"""SIGKILL at every durable write of a site and of the coordinator, by name: the federation goes on, and nobody lies.

Each point is told to one process of a real federation, which dies there and is started again with the next. Whatever
happened: the sums that opened are, word for word, those of the survivors' answers, the model follows from them, no
site answered twice, and no journal has less than before.

`make test` dies at some of the points, `make faults` at all of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cloister.vector import crash

from .points import DEATHS, ROUND, START, points, wishes
from .world import SITES, World, kept, make_job, promises

ALL = os.environ.get("FAULTS") == "all"
SOME = (  # where the order of two writes matters most
    "site.slot.open:before:1",
    "site.slot.survivors:after:1",
    "site.slot.survivors:after:3",
    "site.slot.unmask:before:1",
    "site.slot.unmask:after:1",
    "site.receipt:before:1",
    "coordinator.tx.open:before:1",
    "coordinator.tx.message:before:1",
    "coordinator.tx.close:before:3",
    "coordinator.tx.close:after:3",
    "coordinator.blob:before:3",
    "coordinator.tx.save:before:1",
    "coordinator.tx.save:after:1",
    "coordinator.delete:before:1",
    "coordinator.tx.poll:before:1",
)


def chosen(side: str, *how: str) -> list[str]:
    wanted = [wish for each in how for wish in wishes(side, each)]
    return wanted if ALL else [wish for wish in wanted if wish in SOME]


def test_every_point_is_died_at() -> None:
    assert not points() - set(DEATHS), "say in points.py how a new point is come by"
    assert set(SOME) <= {wish for side in ("site", "coordinator") for wish in wishes(side, ROUND)}


def test_a_wish_that_is_no_point_is_refused() -> None:
    for wish in ("coordinator.tx.save", "coordinator.tx.save:while", "coordinator.tx.save:before:0"):
        with pytest.raises(crash.UsageError):
            crash.arm(wish)
    crash.arm("")
    with crash.durable("coordinator.tx.save"):
        pass


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("faults"))
    yield made
    made.close()


@pytest.fixture
def running(world: World) -> Iterator[World]:
    """All sites there; a run with some rounds behind it, which is looked at in the end."""
    for site in SITES:
        if not world.lives(site):
            world.site(site)
    world.submit(make_job())
    world.opens(4, by=len(SITES))
    before = promises(world)
    yield world
    world.opens(1, by=len(SITES))
    world.stop()
    assert world.row().status == "stopped"
    assert not list(kept(before, promises(world)))
    assert world.check().facts["round"] > 0


def march(
    world: World,
    name: str,
    crashes: list[str],
    nudge: Callable[[], Any] = lambda: None,
    then: Callable[[], Any] | None = None,
) -> None:
    """A process dies at one point after the other. Args: nudge: makes it pass them. then: instead of a last start."""
    start: Callable[..., None] = world.serve if name == "coordinator" else lambda crash="": world.site(name, crash)
    if crashes:
        world.kill(name)
    for wish in crashes:
        start(crash=wish)
        nudge()
        world.dies(name, wish)
    if crashes:
        (then or start)()


@pytest.mark.processes
def test_a_site_dies_at_every_write_of_a_round(running: World) -> None:
    march(running, "pisa", chosen("site", ROUND, START))


@pytest.mark.processes
def test_the_coordinator_dies_at_every_write_of_a_round(running: World) -> None:
    march(running, "coordinator", chosen("coordinator", ROUND))


@pytest.mark.processes
def test_a_run_survives_a_site_that_dies_after_it_agreed(world: World) -> None:
    """Three sites agree on a sum and one dies: only they may be asked again, though a fourth is there by then."""
    three = ("bern", "cork", "oslo")
    for site in three:
        if not world.lives(site):
            world.site(site)
    if world.lives("pisa"):
        world.kill("pisa")
    world.submit(make_job())
    world.opens(4, by=3)
    march(world, "oslo", ["site.slot.unmask:before"], then=lambda: None)
    world.wait_for(lambda: bool(world.rounds("void")), "a void round")
    bound = world.store.look(lambda tx: tx.bound(world.run))
    assert bound == three
    world.site("pisa")
    world.kill("coordinator")
    world.serve()  # it remembers whom it needs
    world.wait_for(lambda: "waiting" in world.happened(), "the wait for oslo")
    opened = len(world.rounds("done"))
    world.site("oslo")
    world.opens(1, by=4)
    assert world.survivors(world.rounds("done")[opened]) == three
    assert {row.survivors for row in world.rounds("void")} <= {None, json.dumps(three)}
    world.stop()
    world.check()
