"""Privacy ledgers as `verify` sees them: what falls is found, what only overlaps is not."""

from __future__ import annotations

import os

from cloister.round.ledgers import Ledgers
from cloister.seal.identity import Identity
from cloister.seal.messages import Keys

KEYS = {site: Identity.generate(os.urandom).public for site in ("kent", "oslo")}


def keys(site: str, charge: int) -> Keys:
    return Keys(bytes(32), site, bytes(32), bytes(32), bytes(32), charge=charge)


def take(ledgers: Ledgers, place: int, *said: tuple[str, int], survivors: str = "kent oslo", known: int = -1) -> str:
    """Names those that had fallen back. known: by default everything before this place."""
    listed, before = [keys(*each) for each in said], place if known < 0 else known
    faults = ledgers.take(place, listed, survivors.split(), KEYS.__getitem__, lambda keys: before)
    return " ".join(fault.site for fault in faults)


def test_numbers_that_grow_are_fine_and_smaller_ones_are_found() -> None:
    ledgers = Ledgers()
    assert not take(ledgers, 0, ("kent", 1), ("oslo", 40))
    assert not take(ledgers, 1, ("kent", 2), ("oslo", 43))
    assert take(ledgers, 2, ("kent", 2), ("oslo", 44)) == "kent", "it was summed, and says the same again"
    assert take(ledgers, 3, ("kent", 3), ("oslo", 9)) == "oslo"
    assert take(ledgers, 4, ("kent", 4), ("oslo", 40)) == "oslo", "what it says since does not make up for it"
    assert take(ledgers, 5, ("kent", 0), ("oslo", 45)) == "kent", "none at all is older still"


def test_who_was_lost_may_say_the_same_again() -> None:
    ledgers = Ledgers()
    take(ledgers, 0, ("kent", 7), survivors="oslo")
    assert not take(ledgers, 1, ("kent", 7))
    assert take(ledgers, 2, ("kent", 7)) == "kent"


def test_runs_overlap() -> None:
    """Keys that were sent before other rounds of the site, and receipted after them."""
    ledgers = Ledgers()
    for place in range(5):
        take(ledgers, place, ("kent", place + 1))
    assert not take(ledgers, 5, ("kent", 2), known=1)
    assert take(ledgers, 6, ("kent", 2), known=2) == "kent"
    assert not take(ledgers, 7, ("kent", 6))


def test_a_simulation_says_none() -> None:
    ledgers = Ledgers()
    assert not take(ledgers, 0, ("kent", 0))
    assert not take(ledgers, 1, ("kent", 0))
    assert not ledgers.said
