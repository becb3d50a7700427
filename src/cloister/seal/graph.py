"""Who holds shares of whose secrets, and who masks with whom: everybody, or above 128 sites a random sparse graph.

Bell et al. 2020 (ePrint 2020/704, section 4, malicious variant). After the key list is fixed each site itself draws k
*chosen* neighbours, uniformly, with its own randomness: the coordinator has no part in it and cannot bias it. The
site shares its two secrets with its chosen ones only (any t of the k recover them) and masks with its chosen ones and
with those that chose it. So a round costs O(k) masks and shares a site, not O(n). In the complete graph everybody
chooses everybody, itself included.

What is agreed by all sites stays global: message 4 names every site's chosen ones, the digest h2 that each site signs
its vector for covers them, and the consistency signatures are a threshold T of the whole cohort, 2T > n + c. So all
honest survivors masked along one graph, and release shares for one survivor set.

(k, t) follow from the number of sites and two assumed fractions, by exact hypergeometric tails. Every site computes
them itself; they are never read from the coordinator. Of the n sites of the key list at most c are corrupt, fixed
before the draw; c follows from the whole cohort, since a coordinator may keep honest sites out of the list.

  secrecy       except with 2**-40: no site has so many corrupt ones among its k that both its secrets could be
                had even if each honest one answered either story, 2t > k + corrupt neighbours (with one survivor set
                for all, corrupt < t would do); and except with 2**-40 one sum opens at most, and it is over more
                than half of the n sites (below).
  correctness   except with 2**-30: when dropout * n sites chosen without knowledge of the graph vanish, every
                site keeps t of its k.

Why no smaller sum opens, whomever the coordinator *says* dropped out, after it has seen the graph: to open a sum over
a set S of honest survivors, the own masks of all members must come off, and no mask may be left between S and another
honest survivor, since these never come off. A member's own mask takes shares of t of its chosen ones; those of them
that are honest answer only as survivors, and share a mask with it, so they lie in S: every member of S has t chosen
ones in S or corrupt. For a fixed S of s sites that has the chance tail(n - 1, c + s - 1, k, t)**s at most, whatever
dropped out, as every member draws by itself. Summed over all sets of up to n / 2 sites (`cut_bits`) it must stay
under 2**-40: then every S that opens is larger. Two different ones would fall into disjoint sets that open as well,
of which only one can be larger. So at most one sum opens.

A lying coordinator can still leave a site out of that sum, by saying that all its honest neighbours dropped out: its
own mask then stays on for good, and nothing of it is seen.

In messages 3 and 4 the chosen are a bitmap over the sites of the key list: bit i % 8 of byte i // 8 is site number i.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from typing import NamedTuple

import numpy as np

from cloister.seal.identity import Randomness
from cloister.seal.threshold import colluders_tolerated
from cloister.vector.errors import MalformedMessage, PlanRefused, ThresholdTooLow

SECRECY_BITS, CORRECTNESS_BITS = 40, 30
PER_MILLE = 1000
LEAST_CORRUPT = 50  # per mille: a plan that assumes fewer corrupt sites than 5% is refused
NAME = re.compile(r"sparse-(\d{1,3})-(\d{1,3})")


COMPLETE = "complete"
MAX_COMPLETE = 128  # sites up to which the complete graph is the default: it deals n**2 shares


class Degree(NamedTuple):
    """chosen: k, the sites that each site chooses. threshold: t, how many of them recover its secrets."""

    chosen: int
    threshold: int


@dataclass(frozen=True)
class Sparse:
    """What a sparse graph is built to withstand; a plan names it as "sparse-CORRUPT-DROPOUT".

    Attributes: corrupt: sites that may work with the coordinator. dropout: sites that may vanish. Both per mille.
    Raises: PlanRefused: fractions that no graph withstands.
    """

    corrupt: int
    dropout: int

    def __post_init__(self) -> None:
        if not 0 < self.corrupt < PER_MILLE or not 0 < self.dropout < PER_MILLE:
            raise PlanRefused(f"a graph for {self.corrupt} per mille corrupt and {self.dropout} dropping out")

    @property
    def name(self) -> str:
        return f"sparse-{self.corrupt}-{self.dropout}"

    @classmethod
    def from_name(cls, name: str) -> Sparse:
        """Raises: PlanRefused: not what `name` writes."""
        found = NAME.fullmatch(name)
        sparse = cls(int(found[1]), int(found[2])) if found else None
        if sparse is None or sparse.name != name:
            raise PlanRefused(f"{name[:40]!r} names no graph.")
        return sparse

    def corrupt_of(self, sites: int) -> int:
        """How many of `sites` may be corrupt: rounded up."""
        return -(-sites * self.corrupt // PER_MILLE)

    def degree(self, sites: int, cohort: int) -> Degree:
        """(k, t) for this many sites in the key list of this large a cohort.

        Raises: PlanRefused: only the complete graph would do.
        """
        return _degree(sites, self.corrupt_of(cohort), -(-sites * self.dropout // PER_MILLE))

    def check(self, sites: int, assume_colluders: int) -> None:
        """A site's own check of the graph that a plan names. Raises: ThresholdTooLow: it assumes too few corrupt."""
        if self.corrupt < LEAST_CORRUPT or self.corrupt_of(sites) < assume_colluders:
            raise ThresholdTooLow(
                f"the plan's graph withstands {self.corrupt_of(sites)} corrupt sites of {sites}, this site requires"
                f" {max(assume_colluders, -(-sites * LEAST_CORRUPT // PER_MILLE))}."
            )


DEFAULT = Sparse(corrupt=100, dropout=100)


def default_graph(sites: int) -> str:
    """The graph's name in the plan of a cohort of this size."""
    return COMPLETE if sites <= MAX_COMPLETE else DEFAULT.name


def tolerated(sites: int, threshold: int) -> int:
    """The most sites that may work with the coordinator on the default graph. Args: threshold: the plan's."""
    most = colluders_tolerated(sites, threshold)
    return most if sites <= MAX_COMPLETE else min(most, DEFAULT.corrupt_of(sites))


def check_graph(name: str, sites: int, assume_colluders: int) -> None:
    """A site's own check. Raises: PlanRefused: no graph. ThresholdTooLow: it withstands too few corrupt sites."""
    if name != COMPLETE:
        Sparse.from_name(name).check(sites, assume_colluders)


def degree(name: str, sites: int, cohort: int, threshold: int) -> Degree:
    """(k, t) of the plan's graph over a key list of `sites`; where no sparse one would do, the complete one's.

    Args: threshold: the plan's: t of the complete graph.
    """
    if name != COMPLETE:
        with suppress(PlanRefused):
            return Sparse.from_name(name).degree(sites, cohort)
    return Degree(sites, threshold)


@lru_cache(maxsize=64)
def _degree(sites: int, corrupt: int, dropout: int) -> Degree:
    for k in range(2, sites - 1, 2):  # always some are left out, so k == sites means the complete graph
        t = _least_threshold(sites, corrupt, k)
        if t <= k and _keeps(sites, dropout, k, t) and cut_bits(sites, corrupt, Degree(k, t)) <= -SECRECY_BITS:
            return Degree(k, t)
    raise PlanRefused(
        f"no graph of {sites} sites withstands {corrupt} corrupt and {dropout} that drop out.",
        mend="Fewer sites on the complete graph, or smaller fractions.",
    )


def tail(population: int, marked: int, drawn: int, least: int) -> tuple[int, int]:
    """P[at least `least` of `drawn` are marked], drawing without replacement: an exact (numerator, denominator)."""
    first = max(least, 0, drawn - (population - marked))
    last = min(marked, drawn)
    term = comb(marked, first) * comb(population - marked, drawn - first) if first <= last else 0
    ways = 0
    for i in range(first, last + 1):
        ways += term
        term = term * (marked - i) * (drawn - i) // ((i + 1) * (population - marked - drawn + i + 1))
    return ways, comb(population, drawn)


def _within(chance: tuple[int, int], times: int, bits: int) -> bool:
    """Whether `times` events of this chance happen at all with at most 2**-bits."""
    return chance[0] * times << bits <= chance[1]


def _least_threshold(sites: int, corrupt: int, k: int) -> int:
    """The smallest t with 2t > k + corrupt neighbours of every site, except with 2**-SECRECY_BITS; k + 1: none."""
    t = k // 2 + 1
    while t <= k and not _within(tail(sites - 1, corrupt, k, 2 * t - k), sites, SECRECY_BITS):
        t += 1
    return t


def _keeps(sites: int, dropout: int, k: int, t: int) -> bool:
    """Whether every site keeps t of its k chosen ones, except with 2**-CORRECTNESS_BITS."""
    return _within(tail(sites - 1, dropout, k, k - t + 1), sites, CORRECTNESS_BITS)


def cut_bits(sites: int, corrupt: int, degree: Degree) -> float:
    """log2 of (a bound on) the chance that a sum over half of the sites or fewer can open; see the module's proof.

    Sets that hold corrupt sites are counted as well, so it holds for every number of corrupt ones up to `corrupt`. In
    floating point, which carries some ten digits here: the bound lies far below what is required.
    """
    k, t = degree
    factorials = np.concatenate([[0.0], np.cumsum(np.log2(np.arange(1, sites + 1)))])

    def choose(n: np.ndarray, m: np.ndarray) -> np.ndarray:
        inside = (m >= 0) & (m <= n)
        n, m = np.where(inside, n, 0), np.where(inside, m, 0)
        return np.where(inside, factorials[n] - factorials[m] - factorials[n - m], -np.inf)

    size = np.arange(1, sites // 2 + 1)
    inside = np.minimum(size - 1 + corrupt, sites - 1)[:, None]  # of S or corrupt, and not the member itself
    drawn = np.arange(t, k + 1)[None, :]
    terms = choose(inside, drawn) + choose(sites - 1 - inside, k - drawn)
    member = np.logaddexp2.reduce(terms, axis=1) - choose(np.array(sites - 1), np.array(k))
    return float(np.logaddexp2.reduce(choose(np.array(sites), size) + size * member))


def draw(site: str, sites: Sequence[str], k: int, randomness: Randomness) -> tuple[str, ...]:
    """The k sites that `site` chooses from the others, uniformly among all such sets; ascending. Of n it chooses all.

    Args: sites: of the key list, itself included. randomness: the site's own.
    """
    if k == len(sites):
        return tuple(sites)
    others = [other for other in sites if other != site]
    for i in range(k):  # Fisher and Yates, k steps of it
        j = i + _below(len(others) - i, randomness)
        others[i], others[j] = others[j], others[i]
    return tuple(sorted(others[:k]))


def _below(limit: int, randomness: Randomness) -> int:
    """Uniform in [0, limit), for limits under 2**32: by rejection, so that no number is likelier."""
    usable = (1 << 64) // limit * limit
    while (value := int.from_bytes(randomness(8), "big")) >= usable:
        pass
    return value % limit


def mark(chosen: Collection[str], sites: Sequence[str]) -> bytes:
    """Some of the key list's sites as a bitmap over them."""
    bits = sum(1 << place for place, site in enumerate(sites) if site in chosen)
    return bits.to_bytes(-(-len(sites) // 8), "little")


def check_choice(bitmap: bytes, site: str, sites: Sequence[str], k: int) -> int:
    """The bits of a choice as one number, where it is one that `site` may draw.

    Raises: MalformedMessage: another length or number of sites, or the site itself among some of the others.
    """
    bits = int.from_bytes(bitmap, "little")
    own = bits >> sites.index(site) & 1
    if len(bitmap) != -(-len(sites) // 8) or bits >> len(sites) or bits.bit_count() != k or own != (k == len(sites)):
        raise MalformedMessage(f"a choice of {bits.bit_count()} of {len(sites)} sites, not of {k} others", site=site)
    return bits


class Graph:
    """One round's, once it is known who chose whom. All lists are ascending.

    Args: sites: of the key list. buckets: of the same: within a bucket of several, everybody masks with everybody, as
      the sums open apart. degree: of the graph. chosen: by sharer (U2), its bitmap.
    Raises: MalformedMessage: a bitmap that its site may not draw.
    """

    def __init__(
        self, sites: Sequence[str], buckets: Sequence[Sequence[str]], degree: Degree, chosen: Mapping[str, bytes]
    ) -> None:
        self.degree, self._sites = degree, sites
        self._place = {site: place for place, site in enumerate(sites)}
        self._bits = {site: check_choice(chosen[site], site, sites, degree.chosen) for site in sorted(chosen)}
        self._bucket = {site: bucket for bucket in buckets for site in bucket} if len(buckets) > 1 else {}

    def holders(self, owner: str) -> tuple[str, ...]:
        """Who holds shares of its secrets: the first has the point 1."""
        bits = self._bits[owner]
        return tuple(site for place, site in enumerate(self._sites) if bits >> place & 1)

    def owners(self, holder: str) -> tuple[str, ...]:
        """Whose shares it holds: those of U2 that chose it."""
        place = self._place[holder]
        return tuple(owner for owner, bits in self._bits.items() if bits >> place & 1)

    def partners(self, site: str) -> tuple[str, ...]:
        """With whom of U2 it shares a mask: those it chose and those that chose it; in buckets, all of its own."""
        if self._bucket:
            return tuple(other for other in self._bucket[site] if other in self._bits and other != site)
        around = set(self.holders(site)) | set(self.owners(site))
        return tuple(other for other in self._bits if other in around and other != site)
