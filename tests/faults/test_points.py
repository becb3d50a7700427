"""SIGKILL at every durable write of a site and of the coordinator, by name: the federation goes on, and nobody lies.

Each point is told to one process of a real federation, which dies there and is started again with the next. Whatever
happened: the sums that opened are, word for word, those of the survivors' answers, the model follows from them, no
site answered twice, and no journal has less than before.

`make test` dies at some of the points, `make faults` at all of them.
"""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.coordinator import invite
from cloister.coordinator.store import Store
from cloister.seal.labels import fields
from cloister.seal.roster import Roster
from cloister.site.journal import Journal
from cloister.site.settings import write_private
from cloister.vector import crash

from .points import (
    ALONE,
    BEGIN,
    COMMAND,
    DEATHS,
    END,
    REFUSAL,
    RESTART,
    ROUND,
    SOURCE,
    START,
    VOID,
    points,
    wishes,
)
from .world import SITES, Promises, World, kept, make_job, promises, write_table

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
)


def chosen(side: str, *how: str) -> list[str]:
    wanted = [wish for each in how for wish in wishes(side, each)]
    return wanted if ALL else [wish for wish in wanted if wish in SOME]


def test_every_point_is_died_at() -> None:
    assert points() == set(DEATHS), "say in points.py how a new point is come by"
    assert set(SOME) <= {wish for side in ("site", "coordinator") for wish in wishes(side, ROUND)}


def test_no_write_goes_past_the_points() -> None:
    """Every function of a site or the coordinator that writes a file or commits has a point, or a reason."""
    assert set(past_the_points()) == {
        "coordinator/folder.py:_write_certificate",  # `init`: the settings come last, and with them the folder is one
        "coordinator/folder.py:init_coordinator",
        "coordinator/folder.py:write_key",
        "coordinator/serve.py:_locked",  # a lock
        "coordinator/store.py:Store.__init__",  # migrations, each a transaction
        "site/reader.py:main",  # what a database answered, for one worker
        "site/worker.py:_private_pipe",  # a pipe
    }


def past_the_points() -> Iterator[str]:
    for path in (path for room in ("site", "coordinator") for path in (SOURCE / room).rglob("*.py")):
        for name, function in functions(ast.parse(path.read_text())):
            calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
            if any(map(writes, calls)) and not any(called(call) == "durable" for call in calls):
                yield f"{path.relative_to(SOURCE)}:{name}"


def functions(node: ast.AST, within: str = "") -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield within + child.name, child
        yield from functions(child, f"{within}{child.name}." if isinstance(child, ast.ClassDef) else within)


def called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def writes(call: ast.Call) -> bool:
    constants = [str(each.value) for each in call.args if isinstance(each, ast.Constant)]
    opens = called(call) in ("open", "fdopen") and any(
        re.fullmatch("[rwax+b]*[wax+][b+]*", each) for each in constants
    )
    commits = called(call) == "execute" and "COMMIT" in constants
    return opens or commits or called(call) in ("write_bytes", "write_text", "replace_file", "commit")


def test_a_wish_that_is_no_point_is_refused() -> None:
    for wish in ("coordinator.tx.save", "coordinator.tx.save:while", "coordinator.tx.save:before:0"):
        with pytest.raises(crash.UsageError):
            crash.arm(wish)
    crash.arm("")
    with crash.durable("coordinator.tx.save"):
        pass


def test_whatever_a_site_has_less_of_is_said() -> None:
    had = Promises({"slot": b"said"}, {"rounds": 3}, 7, ["one", "two"])
    assert not list(kept({"bern": had}, {"bern": had._replace(entries=8, charges=["one", "two", "three"])}))
    for less in (
        had._replace(slots={}),
        had._replace(counters={"rounds": 2}),
        had._replace(entries=6),
        had._replace(charges=["one"]),
        had._replace(charges=["one", "other", "two"]),
    ):
        assert len(list(kept({"bern": had}, {"bern": less}))) == 1


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


everywhere = pytest.mark.skipif(not ALL, reason="`make faults` dies everywhere")


@everywhere
@pytest.mark.processes
def test_sites_die_when_a_run_is_announced(world: World) -> None:
    """A site that dies before it has taken up the announcement gets it again; one that dies after, has it."""
    deaths = {
        "bern": ["site.slot.notice:before", "site.log.prepared:before"],
        "cork": ["site.slot.notice:after", "site.log.prepared:after"],
        "oslo": ["site.log.announced:before"],
        "pisa": ["site.log.announced:after"],
    }
    assert {f"{wish}:1" for each in deaths.values() for wish in each} == set(wishes("site", BEGIN))
    for site in SITES:
        if world.lives(site):
            world.kill(site)
        world.site(site, deaths[site][0])
    world.submit(make_job())
    for site, wanted in deaths.items():
        for at, wish in enumerate(wanted):
            if at:
                world.site(site, wish)
            world.dies(site, wish)
        world.site(site)
    world.opens(1, by=len(SITES))
    world.stop()
    world.check()


@everywhere
@pytest.mark.processes
def test_the_coordinator_dies_at_a_run_s_begin_and_end(world: World) -> None:
    for site in SITES:
        if not world.lives(site):
            world.site(site)
    for how, action in ((BEGIN, lambda: world.submit(make_job())), (END, world.stop)):
        crashes = sorted(wishes("coordinator", how), key=lambda wish: "submit" not in wish and "stop" not in wish)
        asking = threading.Thread(target=action)
        world.kill("coordinator")
        world.serve(crashes[0])
        asking.start()
        world.dies("coordinator", crashes[0])
        for wish in crashes[1:]:
            world.serve(wish)
            world.dies("coordinator", wish)
        world.serve()
        asking.join()
        if how == BEGIN:
            world.opens(2, by=len(SITES))
    assert world.row().status == "stopped"
    world.check()


@everywhere
@pytest.mark.processes
def test_dying_over_a_refusal(running: World) -> None:
    running.policy("pisa", min_survivors=4)
    march(running, "pisa", wishes("site", REFUSAL))
    march(running, "coordinator", wishes("coordinator", REFUSAL))
    running.policy("pisa", min_survivors=3)


@everywhere
@pytest.mark.processes
def test_dying_over_a_void_round(running: World) -> None:
    def two_are_lost() -> None:
        for site in ("cork", "oslo"):
            if running.lives(site):
                running.kill(site)
            running.site(site, "site.slot.open:after")

    for name, side in (("pisa", "site"), ("coordinator", "coordinator")):
        for wish in wishes(side, VOID):
            march(running, name, [wish], two_are_lost)
            for site in ("cork", "oslo"):
                if running.lives(site):
                    running.kill(site)
                running.site(site)
            running.opens(1, by=len(SITES))


@everywhere
@pytest.mark.processes
def test_the_coordinator_dies_when_a_site_starts(running: World) -> None:
    def again() -> None:
        running.kill("pisa")
        running.site("pisa")

    march(running, "coordinator", wishes("coordinator", RESTART), again)


@everywhere
@pytest.mark.processes
def test_a_member_joins_over_all_that(world: World) -> None:
    """Invited, enrolled and admitted, each killed before and after it is durable, and tried again."""
    deaths = {wish for wish in wishes("coordinator", COMMAND) if "enroll" not in wish}
    folder, root = ("--folder", str(world.coordinator)), ("--root", str(world.root))
    for wish in sorted(wish for wish in deaths if "invite" in wish):
        world.start("invite", "coordinator", "invite", "roma", *folder, crash=wish)
        world.dies("invite", wish)
    (invitation,) = invite(world.coordinator, ["roma"])
    write_table(world.folder / "roma.csv", 9)
    joined: list[int] = []
    joining = threading.Thread(target=lambda: joined.append(world.join(invitation)))
    march(world, "coordinator", ["coordinator.tx.enroll:before", "coordinator.tx.enroll:after"], _once(joining.start))
    joining.join()
    assert joined == [0]
    for wish in ("coordinator.tx.admit:before", "coordinator.tx.admit:after"):
        world.start("admit", "coordinator", "admit", "--yes", *folder, *root, crash=wish)
        world.dies("admit", wish)
    newest = max(
        Roster.from_bytes(fields(signed)[0]).version for signed in world.store.look(lambda tx: tx.rosters_after(0))
    )
    assert newest == 3  # the second attempt was the one that counted


@everywhere
@pytest.mark.processes
def test_a_site_dies_at_every_file_of_joining(world: World) -> None:
    """Key, pins, roster, policy, settings: whatever is there already is gone on from, with the same key."""
    (invitation,) = invite(world.coordinator, ["siena"])
    write_table(world.folder / "siena.csv", 8)
    keys = set()
    for wish in ("before:1", "after:1", *("before:1", "after:1", "before:2", "after:2") * 2, "before:3"):
        status = world.join(invitation, crash=f"site.file:{wish}")
        assert os.WTERMSIG(status) == signal.SIGKILL, wish
        key = world.home("siena").root / "identity.key"
        keys |= {key.read_bytes()} if key.exists() else set()
    assert world.join(invitation) == 0
    assert len(keys) == 1


def _once(act: Callable[[], Any]) -> Callable[[], None]:
    todo = [act]
    return lambda: todo.pop()() if todo else None


@pytest.mark.parametrize("wish", [*wishes("site", ALONE), *wishes("coordinator", ALONE)])
def test_what_is_written_is_there_or_not(wish: str, tmp_path: Path) -> None:
    """The journal or the database in a process of its own, which dies at the point."""
    name, when, _ = wish.split(":")
    kind = name.rpartition(".")[2]
    side = name.partition(".")[0]
    (tmp_path / "file").write_bytes(b"old")
    pid = os.fork()
    if pid == 0:
        crash.arm(wish)
        if side == "coordinator":
            Store(tmp_path / "db").run_tx(kind, lambda tx: tx.add_roster(1, b"signed"))
        elif name == "site.file":
            write_private(tmp_path / "file", b"new")
        elif ".slot." in name:
            Journal(tmp_path / "db").once(f"{'00' * 16}/{kind}", b"said")
        else:
            Journal(tmp_path / "db").log(kind)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    if side == "coordinator":
        there = Store(tmp_path / "db").look(lambda tx: tx.roster(1)) is not None
    elif name == "site.file":
        there = (tmp_path / "file").read_bytes() == b"new"
        assert there or (tmp_path / "file").read_bytes() == b"old"
    elif ".slot." in name:
        there = Journal(tmp_path / "db").held(f"{'00' * 16}/{kind}") is not None
    else:
        there = bool(list(Journal(tmp_path / "db").entries(kind)))
    assert there == (when == "after")
