"""The surrogate: one linear softmax model over sparse and dense features together.

logits = lexical @ lexical_weights + dense @ dense_weights + bias. Training both parts jointly beats training two models
and averaging them; the parts of the sum stay apart in the scores, because their disagreement tells the acceptor a lot.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from policies.blocks import Features, Floats
from policies.neighbours import Neighbours

Labels = NDArray[np.int64]

_BATCH = 256
_RATE = 1.0
_BIAS_RATE = 0.05
_FLOOR = 1e-9


@dataclass(frozen=True)
class SoftmaxModel:
    """`lexical` (size, K) or None, `dense` (d, K), `bias` (K,), `centroids` (K, d) unit rows; all float32.

    `neighbours`, where there are any, tell the acceptor more about an input; they do not change what is predicted.
    """

    lexical: Floats | None
    dense: Floats
    bias: Floats
    centroids: Floats
    neighbours: Neighbours | None = None

    def scores(self, features: Features) -> "Scores":
        """Logits of each part and cosine to each label's centroid, for every row."""
        parts = []
        if self.lexical is not None and features.lexical is not None:
            parts.append(np.asarray(features.lexical @ self.lexical))
        for block in blocks_of(features.widths):
            parts.append(features.dense[:, block] @ self.dense[block])
        parts[-1] = parts[-1] + self.bias
        scores = Scores(tuple(parts), cosines(features.dense, self.centroids), features.lengths)
        if self.neighbours is None:
            return scores
        return replace(scores, near=self.neighbours.columns(features.dense, scores.logits.argmax(axis=1)))


@dataclass(frozen=True)
class Scores:
    """`parts`: (n, K) arrays, one a block, that add up to the logits; `similarity` (n, K); `lengths` (n,).

    `near` (n, 3), where neighbours were asked, is what they say (see `Neighbours.columns`).
    """

    parts: tuple[Floats, ...]
    similarity: Floats
    lengths: Floats
    near: Floats | None = None

    @property
    def logits(self) -> Floats:
        """Sum of the parts, (n, K)."""
        total = self.parts[0]
        for part in self.parts[1:]:
            total = total + part
        return total

    @property
    def views(self) -> Floats:
        """Logits, each part where there are several, and similarities: (n, R, K)."""
        parts = self.parts if len(self.parts) > 1 else ()
        return np.stack([self.logits, *parts, self.similarity], axis=1)


def blocks_of(widths: tuple[int, ...]) -> list[slice]:
    """Columns of each dense block."""
    edges = np.cumsum([0, *widths])
    return [slice(int(low), int(high)) for low, high in pairwise(edges)]


def cosines(dense: Floats, centroids: Floats) -> Floats:
    """Cosine of each row to each unit centroid, (n, K); zeros where there is no dense block."""
    norms = np.linalg.norm(dense, axis=1, keepdims=True)
    return np.asarray(dense / np.maximum(norms, _FLOOR) @ centroids.T, np.float32)


def epochs_for(n: int) -> int:
    """Passes over n rows: few suffice where there are many rows."""
    if n <= 20_000:
        return 12
    return 6 if n <= 200_000 else 3


def fit_softmax(
    features: Features, labels: Labels, n_labels: int, *, penalty: float = 10.0, seed: int = 0
) -> SoftmaxModel:
    """Minimise log-loss + |weights|^2 / (2 penalty) by mini-batch AdaGrad on the rows a batch touches.

    `labels` has shape (n,), values 0..n_labels - 1. Row-wise accumulators after Duchi, Hazan and Singer, "Adaptive
    Subgradient Methods" (2011): one step size a feature instead of one a weight, which needs K times less memory.
    """
    solver = _AdaGrad(features, labels, n_labels, penalty)
    generator = np.random.default_rng(seed)
    epochs = epochs_for(len(features))
    steps = epochs * -(-len(features) // _BATCH)
    step = 0
    for _ in range(epochs):
        solver.shuffle(generator.permutation(len(features)))
        for start in range(0, len(features), _BATCH):
            solver.step(start, _RATE * (1 - step / steps))
            step += 1
    return SoftmaxModel(solver.lexical, solver.dense, solver.bias, centroids_of(features.dense, labels, n_labels))


def average(models: list[SoftmaxModel]) -> SoftmaxModel:
    """The model whose weights are the mean of the fold models': still one linear model, and a cautious one."""
    if len(models) == 1:
        return models[0]
    lexical = None
    if models[0].lexical is not None:
        lexical = np.mean([m.lexical for m in models if m.lexical is not None], axis=0)
    dense = np.mean([m.dense for m in models], axis=0)
    bias = np.mean([m.bias for m in models], axis=0)
    centroids = _unit_rows(np.mean([m.centroids for m in models], axis=0))
    # One fold's neighbours: those of all folds together would lie nearer than those that any row was judged with.
    return SoftmaxModel(lexical, dense, bias, centroids, models[0].neighbours)


def softmax(logits: Floats) -> Floats:
    """Softmax over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)


class _AdaGrad:
    """Weights and accumulators of one run of the solver."""

    def __init__(self, features: Features, labels: Labels, n_labels: int, penalty: float) -> None:
        self._features, self._labels, self._penalty = features, labels, penalty
        self._order = np.arange(len(labels))
        self._boost = 4.0 / n_labels
        self.dense = np.zeros((features.dense.shape[1], n_labels), np.float32)
        self.bias = np.zeros(n_labels, np.float32)
        self._dense_sum = np.full(len(self.dense), 1e-6, np.float32)
        self._bias_sum = np.full(n_labels, 1e-6, np.float32)
        self.lexical: Floats | None = None
        if features.lexical is not None:
            size = features.lexical.shape[1]
            self.lexical = np.zeros((size, n_labels), np.float32)
            self._mark = np.zeros(size, np.bool_)
            self._place = np.zeros(size, np.int32)
            self._lexical_sum = np.full(size, 1e-6, np.float32)
            self._occurrences = np.maximum(np.bincount(features.lexical.indices, minlength=size), 1).astype(np.float32)
        self._rows = features

    def shuffle(self, order: NDArray[np.int64]) -> None:
        """Lay the rows in a new order, so that a batch is a slice."""
        self._rows, self._order = self._features.take(order), order

    def step(self, start: int, rate: float) -> None:
        """One batch from row `start`."""
        stop = min(start + _BATCH, len(self._labels))
        dense = self._rows.dense[start:stop]
        logits = dense @ self.dense + self.bias
        lexical = None if self.lexical is None else self._touched(start, stop)
        if lexical is not None:
            logits += lexical.matrix @ lexical.weights
        residual = softmax(logits)
        residual[np.arange(stop - start), self._labels[self._order[start:stop]]] -= 1
        if lexical is not None:
            self._update_lexical(lexical, residual, rate)
        gradient = dense.T @ residual + self.dense * ((stop - start) / len(self._labels) / self._penalty)
        self._dense_sum += self._boost * np.einsum("ij,ij->i", gradient, gradient)
        self.dense -= rate * gradient / np.sqrt(self._dense_sum)[:, None]
        slope = residual.sum(axis=0)
        self._bias_sum += slope * slope
        self.bias -= _BIAS_RATE * rate * slope / np.sqrt(self._bias_sum)

    def _touched(self, start: int, stop: int) -> "_Touched":
        rows, weights = self._rows.lexical, self.lexical
        assert rows is not None  # noqa: S101 - both are set together in the constructor
        assert weights is not None  # noqa: S101
        low, high = rows.indptr[start], rows.indptr[stop]
        # What np.unique would give, without sorting.
        self._mark[rows.indices[low:high]] = True
        columns = np.flatnonzero(self._mark)
        self._mark[columns] = False
        self._place[columns] = np.arange(len(columns), dtype=np.int32)
        position = self._place[rows.indices[low:high]]
        shape = (stop - start, len(columns))
        matrix = sp.csr_matrix((rows.data[low:high], position, rows.indptr[start : stop + 1] - low), shape=shape)
        return _Touched(columns, matrix, weights[columns], np.bincount(position, minlength=len(columns)))

    def _update_lexical(self, touched: "_Touched", residual: Floats, rate: float) -> None:
        # The penalty of a row is spread over its occurrences, so that a row is only paid for when it is touched.
        shrink = touched.counts / self._occurrences[touched.columns] / self._penalty
        gradient = touched.matrix.T @ residual + touched.weights * shrink[:, None].astype(np.float32)
        self._lexical_sum[touched.columns] += self._boost * np.einsum("ij,ij->i", gradient, gradient)
        scale = rate / np.sqrt(self._lexical_sum[touched.columns])
        assert self.lexical is not None  # noqa: S101
        self.lexical[touched.columns] = touched.weights - gradient * scale[:, None].astype(np.float32)


@dataclass(frozen=True)
class _Touched:
    """The lexical features a batch touches: their columns, the batch over them, their weights and their counts."""

    columns: NDArray[np.int64]
    matrix: sp.csr_matrix
    weights: Floats
    counts: NDArray[np.int64]


def centroids_of(dense: Floats, labels: Labels, n_labels: int) -> Floats:
    """Unit mean direction of each label's rows, (K, d)."""
    members = sp.csr_matrix(
        (np.ones(len(labels), np.float32), (labels, np.arange(len(labels)))), (n_labels, len(labels))
    )
    sums = np.asarray(members @ dense)
    return _unit_rows(sums)


def _unit_rows(matrix: Floats) -> Floats:
    return np.asarray(matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), _FLOOR), np.float32)
