"""Neighbours: what the teacher said of the traces nearest to an input, as evidence for the acceptor.

Optional (`--neighbours`): it costs a product with every neighbour a decision, some 0.1 ms for 10,000 of them, and is
worth most where labels are many, unequal and noisy.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.blocks import Floats

# More traces than these are sampled: a decision reads all of them.
MOST = 10_000
# How many of them are asked.
ASKED = 10
# Columns that `Neighbours.columns` gives.
COLUMNS = 3
# Cosines this close are the same, whoever computes them.
TIE = 1e-5
_FLOOR = 1e-9


@dataclass(frozen=True)
class Neighbours:
    """`vectors` (m, d) unit rows and their teacher's `labels` (m,)."""

    vectors: Floats
    labels: NDArray[np.int64]

    def columns(self, dense: Floats, predicted: NDArray[np.int64]) -> Floats:
        """(n, 3): the share of the nearest that have the predicted label, their mean cosine, the largest cosine.

        The nearest are the ten, and all that are as near as the tenth: copies must not stand or fall by their order.
        """
        norms = np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), _FLOOR)
        cosines = np.asarray(dense / norms @ self.vectors.T, np.float32)
        asked = min(ASKED, len(self.labels))
        tenth = -np.partition(-cosines, asked - 1, axis=1)[:, asked - 1]
        near = (cosines >= tenth[:, None] - np.float32(TIE)).astype(np.float32)
        alike = near * (self.labels[None] == predicted[:, None])
        number = near.sum(axis=1)
        means = (alike.sum(axis=1) / number, (near * cosines).sum(axis=1) / number)
        return np.column_stack([*means, cosines.max(axis=1)]).astype(np.float32)


def choose_neighbours(dense: Floats, labels: NDArray[np.int64], seed: int) -> Neighbours:
    """The rows of `dense` (n, d) and their labels (n,); a random sample of them where there are too many."""
    rows = np.arange(len(labels))
    if len(rows) > MOST:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MOST, replace=False))
    norms = np.maximum(np.linalg.norm(dense[rows], axis=1, keepdims=True), _FLOOR)
    return Neighbours(np.asarray(dense[rows] / norms, np.float32), labels[rows])
