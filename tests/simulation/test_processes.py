"""The engine of many processes, where it forks."""

from __future__ import annotations

import os
import signal

import pytest

from cloister.simulation.processes import ProcessEngine, Shared


class NoSites:
    """A worker that is never asked anything needs no data."""


def test_ctrl_c_in_the_middle_of_a_fork_is_not_lost():
    press = [True]

    def pressed() -> None:  # where Python itself would swallow it
        if press:
            press.clear()
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    os.register_at_fork(before=pressed)
    engine = ProcessEngine(NoSites(), 1)
    try:
        with pytest.raises(KeyboardInterrupt):
            engine._start(0, Shared(1, 1, 1))
        assert not press
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
        press.clear()


def test_who_has_no_ticket_left_takes_another_s():
    shared = Shared(3, 1, 1)
    shared.deal(1, [(0, 5), (5, 7), (7, 8)])
    shared.deal(2, [(8, 9)])
    assert [shared.take(at) for at in (1, 0, 2, 2, 1)] == [(0, 5), (5, 7), (8, 9), (7, 8), None]
    shared.close()


def test_tickets_follow_rows_the_large_sites_alone_the_small_ones_together():
    class Sized:
        def rows(self, site: str) -> int:
            return int(site)

    class Engine:
        data = Sized()

    sites = [str(rows) for rows in (1000, 400, *[10] * 60)]
    tickets = ProcessEngine(Engine(), 2)._tickets(sites, 1)
    assert [start for start, _ in tickets] == [0, *(stop for _, stop in tickets[:-1])]
    assert tickets[-1][1] == len(sites)
    sizes = [stop - start for start, stop in tickets]
    assert sizes[:2] == [1, 1]
    assert max(sizes) > 10
    assert sizes[-1] == 1
    even = ProcessEngine(NoSites(), 2)
    even._serial.data = {}
    assert even._tickets(["a"] * 8, 1)[-1] == (7, 8)
    assert even._tickets(["a"] * 8, 32) == [(0, 8)], "trained together, as many as can be"
    many = [stop - start for start, stop in even._tickets(["a"] * 400, 32)]
    assert (many[0], many[-2]) == (100, 32)


def test_homes_stay_and_are_evened_out_where_that_pays():
    engine = ProcessEngine(NoSites(), 2)
    engine._serial.data = {}
    sites = [f"client-{at}" for at in range(50)]
    mine, theirs = engine._homes(sites, even=False)
    assert len(mine) != len(theirs)
    assert engine._homes(sites[::2], even=False)[0] == [site for site in mine if site in sites[::2]]
    evened = engine._homes(sites, even=True)
    assert [len(home) for home in evened] == [25, 25]
    assert sorted(evened[0] + evened[1]) == sorted(sites)
    assert set(evened[0]) >= set(mine) or set(evened[1]) >= set(theirs)
