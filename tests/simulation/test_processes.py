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
