"""Buckets: a cohort cut into groups whose sums open apart, for aggregators that compare several means.

Robust aggregation needs more than one number to compare, and sealing hides all but sums; bucketing is the middle
(Karimireddy et al. 2022, "Byzantine-robust learning on heterogeneous datasets via bucketing"): f sites that lie spoil
at most f buckets. The price is that each bucket's sum is seen, of m sites instead of n.

    seed = H("partition", query digest, id of each site of U1)
    bucket i of g holds the i-th, (i + g)-th, (i + 2g)-th .. site in the order of H("place", seed, id)

The partition is public and fixed once U1 is: nobody can choose who is with whom but by trying queries or keys, and no
secret rests on it, since every bucket has `least` sites, however they fall. It follows from the query, not from the
round: a query that is asked again over the same sites is cut the same way, so that no two of its sums differ by less
than a bucket.
"""

from __future__ import annotations

from functools import lru_cache

from cloister.seal.labels import PARTITION, PLACE, h
from cloister.seal.threshold import threshold
from cloister.vector.errors import TooFewSites

MIN_BUCKET = 5  # sites: so that two that collude and one that drops out leave a sum of two others


def least(assume_colluders: int = 0) -> int:
    """The fewest sites of one bucket; three are left over when the assumed colluders subtract their own parts."""
    return max(MIN_BUCKET, assume_colluders + 3)


def check_buckets(buckets: int, sites: int, assume_colluders: int = 0) -> None:
    """Raises: TooFewSites: a bucket of so many would hold too few sites."""
    fewest = least(assume_colluders)
    if buckets > 1 and sites // buckets < fewest:
        most = sites // fewest
        raise TooFewSites(
            f"{sites} sites in {buckets} buckets are {sites // buckets} in a bucket, whose sum is seen;"
            f" it takes {fewest}.",
            mend=f"Use at most {most} buckets, or more sites." if most > 1 else "Use no buckets, or more sites.",
        )


def fewest_survivors(sites: int, buckets: int) -> int:
    """The `min_survivors` of a plan: a threshold of all, or, so that a dropout voids nothing, most of a bucket."""
    return threshold(sites) if buckets == 1 else sites // buckets // 2 + 1


@lru_cache(maxsize=16)
def partition(query: bytes, sites: tuple[str, ...], buckets: int) -> tuple[tuple[str, ...], ...]:
    """Who is summed with whom. The sizes differ by one at most.

    Args: query: its digest. sites: of the key list, ascending.
    Returns: the sites of each bucket, ascending.
    """
    if buckets == 1:
        return (sites,)
    seed = h(PARTITION, query, *(site.encode("ascii") for site in sites))
    order = sorted(sites, key=lambda site: h(PLACE, seed, site.encode("ascii")))
    return tuple(tuple(sorted(order[at::buckets])) for at in range(buckets))
