"""How many answers open a sum, and how many colluding sites that survives (protocol.md 2.5).

An honest site signs one survivor set a round. To learn both secrets of one victim the coordinator needs t answers for
each of two stories: n - c honest signers and its c colluders must give 2(t - c) <= n - c. So a round is safe iff
t > c and 2t > n + c (Bonawitz et al. 2017, active adversary).
"""

from __future__ import annotations

from cloister.vector.errors import TooFewSites

MIN_SITES = 3  # of two sites each would subtract its own answer from the sum


def threshold(sites: int) -> int:
    """t = floor(2n/3) + 1: about a third may drop out, and about a third may collude with the coordinator.

    Every site computes it itself; what the coordinator says can only be refused. Raises: TooFewSites: under three.
    """
    if sites < MIN_SITES:
        raise TooFewSites(
            f"a sealed sum over {sites} sites would show one site's answer to the others.",
            mend=f"Let at least {MIN_SITES} sites take part.",
        )
    return 2 * sites // 3 + 1


def colluders_tolerated(sites: int, threshold: int) -> int:
    """The most sites that may work with the coordinator without learning more than the honest sites' sum."""
    return min(threshold - 1, 2 * threshold - sites - 1)


def dropouts_survived(sites: int, threshold: int) -> int:
    """The most sites that may vanish in a round whose sum still opens."""
    return sites - threshold
