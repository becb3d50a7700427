"""Plain SGD over few rows of many inputs, without moving the first layer's weights at every step.

All that SGD adds to the first layer's weights is a combination of the rows: W = W0 - lr * sum of e_i x_i^T, with e_i
the sum of row i's errors so far (the perceptron's dual form: Aizerman et al. 1964). So what leaves that layer for a
row x is W0 x - lr * sum of (x . x_i) e_i: it takes the rows' products with each other, once, instead of reading and
writing all of the weights at every step. The same as step by step, to rounding.

What is left of a step is small, and what it costs are the calls. So clients of as many rows take their steps
together, each with weights of its own. No client's numbers depend on which others are there, to the last bit.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from cloister.algorithms import Trained
from cloister.learn.batches import Pass
from cloister.learn.perceptron import Floats, Layers, Perceptron, cut
from cloister.learn.prepare import Rows

READ_AS_ROWS = 10  # what one more step over the weights costs is about that of so many more rows in it: measured
MOST_AT_ONCE = 32  # clients: what a step's calls cost is shared by them ...
MOST_NUMBERS = 1 << 21  # ... float32, which should stay in the cache


def pays(rows: int, weight: tuple[int, ...], seen: int, steps: int) -> bool:
    """Whether this takes less time than moving the weights at every step.

    Args: weight: outputs and inputs of the first layer. seen: rows of all steps together.
    """
    outputs, inputs = weight
    step_by_step = 2 * (seen + READ_AS_ROWS * (steps - 1)) * inputs * outputs
    return 2 * rows * inputs * outputs + rows * rows * inputs + seen * rows * outputs < step_by_step


def most_together(rows: int, sides: Sequence[tuple[int, ...]]) -> int:
    """How many clients of so many rows should be trained together. Args: sides: shapes of the model's tensors."""
    others = sum(math.prod(shape) for shape in sides[1:])
    each = others + rows * (rows + 2 * sides[0][0])  # numbers that are kept of a client until its delta is written
    return max(1, min(MOST_AT_ONCE, MOST_NUMBERS // each))


def alike(clients: Sequence[Rows], few: Callable[[int], int]) -> Iterator[tuple[bool, list[int]]]:
    """Places of clients that are trained together, and whether by `FewRows`. Args: few: as `NetModel.few`."""
    by_rows, others = defaultdict[int, list[int]](list), list[int]()
    for at, rows in enumerate(clients):
        by_rows[len(rows)].append(at)
    for rows_each, places in by_rows.items():
        size = few(rows_each)
        if not size:
            others += places
            continue
        for at in range(0, len(places), size):
            yield True, places[at : at + size]
    if others:
        yield False, others


class FewRows:
    """Local training of clients that have as many rows each, all steps of it but the first weights' move.

    Args:
      flat: float32[d], where all start. sides: shapes of its tensors.
      net_of: the net over layers of [clients, ...].
      clients: of each, its rows, and the targets, float32[rows, outputs].
      work: of each, its passes over its rows: they differ in their order alone.
    """

    def __init__(
        self,
        flat: Floats,
        sides: Sequence[tuple[int, ...]],
        net_of: Callable[[Layers], Perceptron],
        clients: Sequence[tuple[Rows, Floats]],
        work: Sequence[Sequence[Pass]],
        lr: float,
    ) -> None:
        self._shape, self._first, self._x = sides[0], math.prod(sides[0]), [rows.x for rows, _ in clients]
        self._others = np.tile(flat[self._first :], (len(clients), 1))  # all but the first weight, of each client
        bias, above = self._others[:, : sides[1][0]], cut(self._others[:, sides[1][0] :], sides[2:])
        self._bias, self._lr = bias, np.float32(lr)
        self._layers = [(self._others[:, :0], bias), *above]
        self._net = net_of(self._layers)
        self._errors, self._loss = self._train(flat[: self._first].reshape(self._shape), clients, work)
        self._errors *= -self._lr
        self._others -= flat[self._first :]
        self._steps = sum(len(batches) for _, batches in work[0])

    def of(self, client: int) -> Trained:
        """One client's; its delta is written out only now, so that it is in the cache for whoever asks."""
        delta = np.empty(self._first + self._others.shape[1], np.float32)
        np.matmul(self._errors[client].T, self._x[client], out=delta[: self._first].reshape(self._shape))
        delta[self._first :] = self._others[client]
        return Trained(delta, float(self._loss[client]), self._steps)

    def _train(
        self, weight: Floats, clients: Sequence[tuple[Rows, Floats]], work: Sequence[Sequence[Pass]]
    ) -> tuple[Floats, npt.NDArray[np.float64]]:
        """The sums of all rows' errors, float32[clients, rows, outputs of the first layer], and the mean losses."""
        count, rows = len(clients), len(clients[0][0])
        before = np.empty((count, rows, len(weight)), np.float32)
        for at, (each, _) in enumerate(clients):
            np.matmul(each.x, weight.T, out=before[at])
        products = np.stack([_products(each) for each, _ in clients])
        products *= -self._lr
        y, errors = np.stack([y for _, y in clients]), np.zeros_like(before)
        client, total, seen, known = np.arange(count)[:, None], np.zeros(count), 0, 0
        place = np.broadcast_to(np.arange(rows), (count, rows))  # where each row lies now
        for passes in zip(*work, strict=True):
            order = np.stack([order for order, _ in passes])
            to = np.take_along_axis(place, order, axis=1)
            before, errors, y = before[client, to], errors[client, to], y[client, to]
            products = products[client[:, :, None], to[:, :, None], to[:, None, :]]
            place = np.argsort(order, axis=1)
            for start, stop in passes[0][1]:
                known = max(known, start)  # of the first pass: rows after it have no errors yet
                batch = slice(start, stop)
                leaving = np.matmul(products[:, batch, :known], errors[:, :known])
                leaving += before[:, batch]
                error, loss = self._step(leaving, y[:, batch])
                errors[:, batch] += error
                total += loss * np.float64(stop - start)
                seen += stop - start
            known = rows
        return errors[client, place], total / seen

    def _step(self, leaving: Floats, y: Floats) -> tuple[Floats, Floats | np.float32]:
        leaving += self._bias[:, None, :]
        share = np.float32(1 / y.shape[1])
        error, loss = self._net.propagate_from(leaving, y, self._layers, step=float(self._lr), share=share)
        self._bias -= self._lr * error.sum(-2)
        return error, loss


def _products(rows: Rows) -> Floats:
    """Of each two rows; kept for the next round where that takes no more memory than the rows themselves."""
    if len(rows) <= rows.x.shape[1]:
        return rows.products
    products: Floats = np.matmul(rows.x, rows.x.T)
    return products
