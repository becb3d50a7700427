"""Whether a site's privacy ledger was put back to an older copy: the keys of receipted rounds show it (`charges`).

A round is seen when it is receipted; a site sent its keys before that, and after all that it had followed of the log
by then and after the round before it in the same run. A number is held against no other rounds: runs overlap.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence

from cloister.seal.charges import charges_after, check_charge
from cloister.seal.messages import Keys
from cloister.vector.errors import LedgerRolledBack


class Ledgers:
    """What receipted rounds showed, given in their order. Attributes: said: whether a site said a charge at all."""

    def __init__(self) -> None:
        self.said = False
        self._seen: dict[bytes, tuple[list[int], list[int]]] = {}  # by key: places, and the least number after each

    def take(
        self,
        place: int,
        keys: Sequence[Keys],
        survivors: Collection[str],
        key_of: Callable[[str], bytes],
        known: Callable[[Keys], int],
    ) -> list[LedgerRolledBack]:
        """One more round. Args: known: before which place a site had seen all when it sent its keys.

        Returns: the sites that had fallen back.
        """
        faults = []
        for said in keys:
            key = key_of(said.site)
            places, numbers = self._seen.get(key, ([], []))
            before = bisect_left(places, known(said))
            try:
                check_charge(said, key, {key: numbers[before - 1]} if before else {})
            except LedgerRolledBack as fault:
                faults.append(fault)
        for key, number in charges_after(keys, survivors, key_of).items():
            places, numbers = self._seen.setdefault(key, ([], []))
            places.append(place)
            numbers.append(max(number, numbers[-1] if numbers else 0))
            self.said = True
        return faults
