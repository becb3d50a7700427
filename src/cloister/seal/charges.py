"""Numbers of charges: how a federation notices that a site's privacy ledger was put back to an older copy.

A site says in message 1 as which charge of its ledger it will pay for this round, counted over the rounds of this
federation alone: 1 before it ever answered, 0 where no ledger is kept (a simulation). The number is under the site's
signature and in message 2, so the coordinator, every other site and whoever verifies the evidence see the same one.
Who was summed has paid, so its next number is larger by 1 at least; nobody's ever falls. It tells nothing about other
federations and nothing about epsilon: how often a site answered here is known here anyway.

Runs overlap, and a message may wait: a number is held only against what was seen before the round was opened.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from cloister.seal.messages import Keys
from cloister.vector.errors import LedgerRolledBack

Charges = Mapping[bytes, int]  # by the public key of a site: the least number that it may say next


def check_charge(said: Keys, key: bytes, least: Charges) -> None:
    """Args: said: verified, by the site with this public key. Raises: LedgerRolledBack: names the site."""
    if said.charge < least.get(key, 0):
        raise LedgerRolledBack(
            f"the privacy ledger of {said.site} would come to its charge {said.charge} here, charge {least[key] - 1}"
            " was seen before: an older copy was put in its place.",
            mend="At that site: put the newest copy back, or `cloister site budget FOLDER --lost"
            f" {least[key] - 1}`, which takes what is missing for spent.",
            site=said.site,
        )


def charges_after(
    said: Iterable[Keys], survivors: Collection[str], key_of: Callable[[str], bytes]
) -> dict[bytes, int]:
    """What a round shows. Args: survivors: of whom a masked vector was seen; () before that."""
    return {key_of(each.site): each.charge + (each.site in survivors) for each in said if each.charge}
