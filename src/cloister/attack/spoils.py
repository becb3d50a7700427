"""What a cheater got: the most that can be made of its record of a question's rounds, measured against the truth.

Two measures, for each site that sent a masked vector:

- **crowd**: the fewest sites whose sum can be computed from everything received. Every vector is an equation in the
  sites' contributions and the masks on them; the masks whose seeds the cheater has, or can rebuild from shares, are
  known; linear algebra says which combinations of the rest hold no unknown mask. So it finds a victim unmasked by
  both of its secrets, a sum over too few, and two sums that differ by one site.
- **correlation** of the best estimate of the site's contribution (what it sent, less all known masks) with its true
  contribution, computed again from its own table. It must be noise, within `noise_bound`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice

import numpy as np
import numpy.typing as npt
import scipy.linalg

from cloister.attack.record import Record, Secret, View
from cloister.seal import derive, shamir
from cloister.seal.masks import apply_masks, reduce, unpack
from cloister.seal.messages import Keys, Unmask
from cloister.vector import digest
from cloister.vector.layout import Words

FALSE_ALARM = 1e-9  # of one measurement of pure noise
SUBSETS = 256  # of shares tried for one secret: some may be garbage
Truth = Callable[[View], Words]  # the contribution that the site of this view really made


@dataclass(frozen=True)
class Spoils:
    """What the cheater got of one site.

    Attributes: site. crowd: the smallest openable sum that holds it, in sites; 0: none under the round's own minimum.
      correlation: of the best estimate with the truth, in magnitude. bound: that noise stays under. words: compared.
      removed: how many of the `masks` on its vector the cheater could take off.
    """

    site: str
    crowd: int
    correlation: float
    bound: float
    words: int
    removed: int
    masks: int

    @property
    def leaked(self) -> bool:
        return self.crowd > 0 or self.correlation > self.bound


def noise_bound(words: int) -> float:
    """What the correlation of any fixed vector with `words` uniform words stays under, but for a chance of 2e-9.

    For a fixed centred x and independent u uniform on an interval around 0 with variance 1, sum(x u) / |x| is
    sub-Gaussian with variance proxy 1 (a uniform variable is strictly sub-Gaussian), so it exceeds z in magnitude
    with a chance of 2 exp(-z^2 / 2) at most. The length of u that it is divided by is short of sqrt(d) by more than
    a factor sqrt(1 - e) with a chance of exp(-2 d e^2 / 9) at most (Hoeffding; u^2 lies in [0, 3]); centring u takes
    z^2 / d off as well. No limit theorem is used, and nothing about x.
    Returns: infinity where so few words can show nothing.
    """
    z = math.sqrt(2 * math.log(2 / FALSE_ALARM))
    shortfall = math.sqrt(9 * math.log(1 / FALSE_ALARM) / (2 * words)) + z * z / words
    return z / math.sqrt(words * (1 - shortfall)) if shortfall < 1 else math.inf


def correlation(estimate: Words, truth: Words, bits: int) -> float:
    """Pearson's, of the two as signed integers, in magnitude; 0 where one of them does not vary."""
    a, b = _signed(estimate, bits), _signed(truth, bits)
    a, b = a - a.mean(), b - b.mean()
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return abs(float(a @ b)) / length if length > 0 else 0.0


def _signed(words: Words, bits: int) -> npt.NDArray[np.float64]:
    values = words.astype(np.float64)
    return np.where(values >= 2.0 ** (bits - 1), values - 2.0**bits, values)


def spoils(records: Sequence[Record], truth: Truth) -> list[Spoils]:
    """Of each site that sent a vector in these rounds, which asked one question: the worst that can be made of it."""
    equations = [equation for record in records for equation in _Knowledge(record).equations(truth)]
    worst: dict[str, Spoils] = {}
    for equation in equations:
        site, bits = equation.view.site, equation.view.plan.bits
        crowd, estimate, true = _smallest_sum(equation, equations, truth)
        found = Spoils(
            site,
            crowd,
            correlation(estimate, true, bits),
            noise_bound(len(true)),
            len(true),
            equation.masks - len(equation.unknown),
            equation.masks,
        )
        if site not in worst or (found.leaked, found.correlation) > (worst[site].leaked, worst[site].correlation):
            worst[site] = found
    return [worst[site] for site in sorted(worst)]


@dataclass(frozen=True)
class _Equation:
    """What one site sent, less the known masks: its contribution plus `unknown` masks, by name, with their signs."""

    view: View
    words: Words = field(repr=False)
    unknown: dict[tuple[object, ...], int]
    masks: int
    said: bytes  # digest of the site's true contribution

    @property
    def contribution(self) -> tuple[object, ...]:
        """Names what is behind the masks: the same words of an answer, however the question was put."""
        return self.view.site, self.said


class _Knowledge:
    """Every secret that the record of a round gives away."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._views = {site: view for site in record.payloads if (view := record.view(site)) is not None}
        self._keys = {site: message for site, message in record.heard if isinstance(message, Keys)}
        self._secrets = dict(self._rebuilt())

    def _shares(self) -> dict[Secret, dict[int, int]]:
        """All shares at hand, by secret and point: those released in messages 9, whichever story they answered."""
        found: dict[Secret, dict[int, int]] = defaultdict(dict)
        for secret, known in self._record.shares.items():
            found[secret].update(known)
        for site, message in self._record.heard:
            view = self._views.get(site)
            if not isinstance(message, Unmask) or view is None:
                continue
            survivors = self._record.stories(site).get(message.u3, ())
            for owner, share in zip(view.u2, message.shares, strict=False):
                point = sorted(view.keys).index(site) + 1
                kind = "beta" if owner in survivors else "sigma"
                found[owner, kind][point] = int.from_bytes(share, "little") % shamir.P
        return found

    def _rebuilt(self) -> Iterator[tuple[Secret, int]]:
        for (owner, kind), shares in self._shares().items():
            view, keys = self._views.get(owner), self._keys[owner]
            needed = view.plan.threshold if view is not None else self._record.plan.threshold
            for points in islice(combinations(sorted(shares), needed), SUBSETS):
                secret = shamir.interpolate(shamir.weights(points), [shares[point] for point in points])
                if _fits(kind, secret, keys):
                    yield (owner, kind), secret
                    break

    def equations(self, truth: Truth) -> Iterator[_Equation]:
        for site, view in self._views.items():
            words = unpack(self._record.payloads[site], view.plan.words, view.plan.bits)
            known, unknown = [], {}
            for name, sign, seed in self._masks(view):
                if seed is None:
                    unknown[name] = sign
                else:
                    known.append((seed, -sign))
            apply_masks(words, known)
            reduce(words, view.plan.bits)
            yield _Equation(view, words, unknown, len(known) + len(unknown), digest(truth(view).tobytes()))

    def _masks(self, view: View) -> Iterator[tuple[tuple[object, ...], int, bytes | None]]:
        """(name, sign, seed if known) of each mask on a site's vector."""
        site, context, h1 = view.site, view.masked.context, view.masked.upload.h1
        beta = self._secrets.get((site, "beta"))
        yield (context, site), 1, None if beta is None else derive.self_seed(beta, context, site)
        for other in derive.neighbours(site, view.u2):
            name = (context, h1, *sorted((site, other)), *sorted(view.keys[one].mask for one in (site, other)))
            seed = self._record.pairs.get((site, other))
            for holder, peer in ((site, other), (other, site)):
                sigma = self._secrets.get((holder, "sigma"))
                if seed is None and sigma is not None:
                    private = derive.mask_private_key(sigma, self._keys[holder].context)
                    shared = derive.exchange(private, view.keys[peer].mask, peer)
                    seed = derive.pair_seed(shared, context, h1, site, other)
            yield name, derive.pair_sign(site, other), seed


def _fits(kind: str, secret: int, keys: Keys) -> bool:
    """Whether this is the secret that the site committed to in its message 1."""
    if kind == "beta":
        return derive.commitment(keys.context, keys.site, secret) == keys.commitment
    return derive.mask_private_key(secret, keys.context).public_key().public_bytes_raw() == keys.mask


def _smallest_sum(one: _Equation, equations: Sequence[_Equation], truth: Truth) -> tuple[int, Words, Words]:
    """(sites, what it opens to, its truth) of the smallest openable sum with this contribution in it.

    Sums over as many sites as the round's plan allows are what everybody is told, and are no leak; where none smaller
    opens: 0 sites, and the best estimate of the contribution alone.
    """
    alike = [other for other in equations if len(other.words) == len(one.words)]
    behind = {other.contribution: other.view for other in alike}
    others = sorted((name for name in behind if name != one.contribution), key=str)
    for size in range(min(one.view.record.plan.min_survivors, len(behind) + 1) - 1):
        for company in combinations(others, size):
            names = {one.contribution, *company}
            if (found := _opened(names, alike)) is not None:
                true = truth(one.view).copy()
                for name in company:
                    true += truth(behind[name])
                reduce(true, one.view.plan.bits)
                return size + 1, found, true
    return 0, one.words, truth(one.view)


def _opened(names: Iterable[tuple[object, ...]], equations: Sequence[_Equation]) -> Words | None:
    """The sum of exactly these contributions, if some integer combination of the equations is free of masks."""
    wanted = set(names)
    columns = sorted({column for each in equations for column in (each.contribution, *each.unknown)}, key=str)
    place = {column: at for at, column in enumerate(columns)}
    matrix, target = np.zeros((len(columns), len(equations))), np.zeros(len(columns))
    for at, each in enumerate(equations):
        matrix[place[each.contribution], at] = 1.0
        for column, sign in each.unknown.items():
            matrix[place[column], at] = sign
    for name in wanted:
        target[place[name]] = 1.0
    weights = np.rint(_basic_solution(matrix, target))
    if not np.allclose(matrix @ weights, target):
        return None
    total = np.zeros_like(equations[0].words)
    for weight, each in zip(weights.astype(np.int64), equations, strict=True):
        total += each.words * total.dtype.type(int(weight) % (1 << (8 * total.itemsize)))
    reduce(total, equations[0].view.plan.bits)
    return total


def _basic_solution(matrix: npt.NDArray[np.float64], target: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The least squares solution that uses as few columns as the rank.

    The one of smallest norm would not do: where a sum was opened twice, it takes half of each, and no integers.
    """
    q, r, order = scipy.linalg.qr(matrix, mode="economic", pivoting=True)
    rank = int(np.sum(np.abs(np.diag(r)) > 1e-9))
    solution = np.zeros(matrix.shape[1])
    solution[order[:rank]] = scipy.linalg.solve_triangular(r[:rank, :rank], (q.T @ target)[:rank])
    return solution
