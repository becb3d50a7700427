"""The graph above 128 sites: each site masks and shares with about 2k others, so a round costs O(k) a site, not O(n).

Bell et al. 2020 (ePrint 2020/704, section 4, malicious variant). After the key list is fixed each site itself draws k
*chosen* neighbours, uniformly, with its own randomness: the coordinator has no part in it and cannot bias it. The
site shares its two secrets with its chosen ones only (any t of the k recover them) and masks with its chosen ones and
with those that chose it, whom it knows by the ciphertexts of message 4. Survivors are still agreed on by all: the
consistency signatures stay global, at 64 bytes each.

(k, t) follow from the number of sites and two assumed fractions, by exact hypergeometric tails. Every site computes
them itself; they are never read from the coordinator. With c corrupt of n sites, c <= corrupt * n:

  secrecy       except with 2**-40: no site has so many corrupt ones among its k that both its secrets could be
                had, 2t > k + corrupt neighbours; and no honest set S is cut off (below).
  correctness   except with 2**-30: when dropout * n sites chosen without knowledge of the graph vanish, every
                site keeps t of its k.

Why nobody is cut off, whomever the coordinator *says* dropped out, after it has seen the graph: it learns the sum
over a set S only if all masks between S and the other honest survivors are off. None of these comes off for a pair of
survivors. To take a member's own mask off it needs t of that member's chosen ones, all survivors, and each honest one
of them shares a mask with it, so lies in S: every member of S has t chosen neighbours in S or corrupt. For a fixed S
of s sites that has the chance tail(n - 1, c + s - 1, k, t)**s, whatever dropped out; summed over all S up to half of
the honest sites (one side of a cut is no larger) it must stay under 2**-40.

In messages 3 and 4 the chosen are a bitmap over the sites of the key list: bit i % 8 of byte i // 8 is site number i.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from typing import NamedTuple

import numpy as np

from cloister.seal.identity import Randomness
from cloister.vector.errors import MalformedMessage, PlanRefused, ThresholdTooLow

SECRECY_BITS, CORRECTNESS_BITS = 40, 30
PER_MILLE = 1000
LEAST_CORRUPT = 50  # per mille: a plan that assumes fewer corrupt sites than 5% is refused
NAME = re.compile(r"sparse-(\d{1,3})-(\d{1,3})")


class Degree(NamedTuple):
    """chosen: k, the neighbours that each site draws. threshold: t, how many of them recover its secrets."""

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

    def degree(self, sites: int) -> Degree:
        """(k, t) for this many sites in the key list. Raises: PlanRefused: only the complete graph would do."""
        return _degree(sites, self.corrupt_of(sites), -(-sites * self.dropout // PER_MILLE))

    def check(self, sites: int, assume_colluders: int) -> None:
        """A site's own check of the graph that a plan names. Raises: ThresholdTooLow: it assumes too few corrupt."""
        if self.corrupt < LEAST_CORRUPT or self.corrupt_of(sites) < assume_colluders:
            raise ThresholdTooLow(
                f"the plan's graph withstands {self.corrupt_of(sites)} corrupt sites of {sites}, this site requires"
                f" {max(assume_colluders, -(-sites * LEAST_CORRUPT // PER_MILLE))}."
            )


@lru_cache(maxsize=64)
def _degree(sites: int, corrupt: int, dropout: int) -> Degree:
    for k in range(2, sites - 1, 2):
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
    """log2 of (a bound on) the chance that some set of honest sites can be cut off; see the module's proof.

    In floating point, which carries some ten digits here: the bound lies far below what is required.
    """
    k, t = degree
    factorials = np.concatenate([[0.0], np.cumsum(np.log2(np.arange(1, sites + 1)))])

    def choose(n: np.ndarray, m: np.ndarray) -> np.ndarray:
        inside = (m >= 0) & (m <= n)
        n, m = np.where(inside, n, 0), np.where(inside, m, 0)
        return np.where(inside, factorials[n] - factorials[m] - factorials[n - m], -np.inf)

    honest = np.array(sites - corrupt)
    size = np.arange(1, int(honest) // 2 + 1)
    inside = (size - 1 + corrupt)[:, None]  # of S or corrupt, and not the member itself
    drawn = np.arange(t, k + 1)[None, :]
    terms = choose(inside, drawn) + choose(sites - 1 - inside, k - drawn)
    member = np.logaddexp2.reduce(terms, axis=1) - choose(np.array(sites - 1), np.array(k))
    return float(np.logaddexp2.reduce(choose(honest, size) + size * member))


def draw(site: str, sites: Sequence[str], k: int, randomness: Randomness) -> tuple[str, ...]:
    """The k neighbours that `site` chooses from the others, uniformly among all such sets; ascending.

    Args: sites: of the key list, itself included. randomness: the site's own.
    """
    others = sorted(other for other in sites if other != site)
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


def marked(bitmap: bytes, sites: Sequence[str]) -> tuple[str, ...]:
    """Undoes `mark`, in the order of `sites`. Raises: MalformedMessage: another length, or a bit beyond the last."""
    bits = int.from_bytes(bitmap, "little")
    if len(bitmap) != -(-len(sites) // 8) or bits >> len(sites):
        raise MalformedMessage(f"a bitmap of {len(bitmap)} bytes over {len(sites)} sites")
    return tuple(site for place, site in enumerate(sites) if bits >> place & 1)


def choosers(site: str, chosen: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """Who chose `site`, ascending; these share their secrets with it. Args: chosen: by site, of those that shared."""
    return tuple(sorted(other for other, theirs in chosen.items() if site in theirs))


def partners(chosen: Collection[str], choosers: Collection[str], sharers: Collection[str]) -> tuple[str, ...]:
    """With whom a site shares a mask, ascending: those it chose and those that chose it, as far as they are in U2."""
    return tuple(sorted((set(chosen) | set(choosers)) & set(sharers)))
