"""From a surrogate's views to a decision, node by node: what `acceptor.describe`, the acceptor and the guard compute.

A node costs some 0.2 us whatever it does. So the graph has few, and all that is linear is folded into constants:

    views      (R, K)
    values     (1, V)  of each view and of its softmax: the highest, the predicted label's, and the products with every
                       softmax, of which a view's entropy needs one; then what neighbours say
    logs       (1, Z)  of the probabilities among these and of what they leave; and of differences within a view, so
                       enlarged that the log says whether there is one
    hidden     (1, H)  linear in values and logs, then cut at 0; what has no bound stands there with both signs
    decision   (1, 3)  linear in these: the label, the log-odds of acceptance, the guard's value

As log p = v - energy, most accept features are linear in the two. The gap to the best rival is
max(own - second, 0) + own - highest, and its sign [own > second] - [own < highest].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.acceptor import CAUTION, CAUTION_FROM, CLIP, N_TOP, Acceptor, view_width
from policies.graph import GraphWriter
from policies.guard import SIMILARITY_SHARE, Guard

Weights = NDArray[np.float64]

# As `log_odds` clips in float32: a probability, and what it leaves.
_LEAST = float(np.float32(CLIP))
_LEAST_LEFT = float(np.float32(1) - np.float32(1 - CLIP))
# A power of two rounds nothing; values of a view that differ at all, differ by more than its inverse.
_ENLARGED = 2.0**30
# Columns of `hidden`; three a view follow. _OVER is by how much the guard's lower bound lies over its upper one.
_LABEL, _PLAIN, _MINUS_PLAIN, _CAUTION, _LOW, _MINUS_LOW, _OVER, _N_FIRST = range(8)
# Columns of `decision`.
_ODDS, _GUARD = 1, 2


@dataclass(frozen=True)
class Read:
    """What is read of R views of K labels. Names of the predicted label, (1,) int64, of the values, (1, V), and of the
    softmax of each view, (R, K)."""

    n_views: int
    n_labels: int
    predicted: str
    values: str
    probabilities: str

    @property
    def n_top(self) -> int:
        """How many of the highest values are read."""
        return min(N_TOP, self.n_labels)

    @property
    def n_values(self) -> int:
        """V: a row of the highest, the own one and the products for each view, then for the softmax of each."""
        return 2 * self.n_views * self._row

    @property
    def _row(self) -> int:
        return self.n_top + 1 + self.n_views

    def value(self, view: int, column: int) -> int:
        """Where the view's highest values (columns from 0) stand, and the predicted label's (column `n_top`)."""
        return view * self._row + column

    def probability(self, view: int, column: int) -> int:
        """Where the same of the view's softmax stand."""
        return self.value(self.n_views + view, column)

    def expected(self, view: int) -> int:
        """Where the mean value of the view under its softmax stands."""
        return self.value(view, self.n_top + 1 + view)

    @property
    def n_logs(self) -> int:
        """Z: of each view that of every probability read and of what it leaves, and two comparisons."""
        return self.n_views * self._logs_of_one

    @property
    def _logs_of_one(self) -> int:
        return 2 * (self.n_top + 1) + 2

    def log(self, view: int, column: int) -> int:
        """Where among the logs that of a probability stands; that of what it leaves is next to it."""
        return view * self._logs_of_one + 2 * column

    def comparison(self, view: int) -> int:
        """Where among the logs it stands whether own > second; whether own < highest is next to it."""
        return self.log(view, self.n_top + 1)


def read_views(writer: GraphWriter, views: str, n_views: int, n_labels: int) -> Read:
    """The nodes from the views, (R, K), to the values."""
    probabilities = writer.node("Softmax", views, axis=1)
    both = writer.node("Concat", views, probabilities, axis=0)
    top, order = writer.nodes("TopK", [both, writer.constant([min(N_TOP, n_labels)])], 2, axis=1)
    # The first of all: the best of the logits, and of several the one with the lowest index.
    predicted = writer.node("Compress", order, writer.constant(np.array([True])))
    own = writer.node("Gather", both, predicted, axis=1)
    products = writer.node("Gemm", both, probabilities, transB=1)
    values = writer.node("Flatten", writer.node("Concat", top, own, products, axis=1), axis=0)
    return Read(n_views, n_labels, predicted, values, probabilities)


def judge(
    writer: GraphWriter, read: Read, acceptor: Acceptor, guard: Guard, near: Sequence[str] = (), tokens: str = ""
) -> str:
    """The nodes from the values to the decision, (1, 3).

    `near` are what neighbours say, (1, 1) each; `tokens` is the number of tokens, (1,) int64, where there are any.
    """
    values = writer.node("Concat", read.values, *near, axis=1) if near else read.values
    logs = _logs(writer, read, values, len(near))
    n_values = read.n_values + len(near)
    forms = _forms(read, acceptor, guard, len(near))
    past = writer.node("Gather", _constant(writer, _by_label(read, acceptor, guard)), read.predicted)
    linear = writer.node("Gemm", values, _constant(writer, forms[:n_values]), past)
    hidden = writer.node("Gemm", logs, _constant(writer, forms[n_values:]), linear)
    # Not Relu: what is no number must stay none. onnxruntime makes it part of the product before.
    cut = writer.node("LeakyRelu", hidden, alpha=0.0)
    lengths = _by_length(acceptor, bool(tokens))
    length = _constant(writer, lengths)
    if tokens:
        length = writer.node("Gather", length, writer.node("Min", tokens, writer.constant([len(lengths) - 1])))
    return writer.node("Gemm", cut, _constant(writer, _outputs(read, acceptor)), length)


def _logs(writer: GraphWriter, read: Read, values: str, n_near: int) -> str:
    """The nodes from the values to the logs, (1, Z)."""
    weights = np.zeros((read.n_values + n_near, read.n_logs))
    start, least = np.zeros(read.n_logs), np.full(read.n_logs, _LEAST)
    own = read.n_top
    for view in range(read.n_views):
        for column in range(own + 1):
            log = read.log(view, column)
            weights[read.probability(view, column), log : log + 2] = 1, -1
            start[log + 1], least[log + 1] = 1, _LEAST_LEFT
        above = read.comparison(view)
        weights[[read.value(view, own), read.value(view, 1)], above] = _ENLARGED, -_ENLARGED
        weights[[read.value(view, 0), read.value(view, own)], above + 1] = _ENLARGED, -_ENLARGED
    enlarged = writer.node("Gemm", values, _constant(writer, weights), _constant(writer, start))
    return writer.node("Log", writer.node("Max", enlarged, _constant(writer, least[None])))


def _forms(read: Read, acceptor: Acceptor, guard: Guard, n_near: int) -> Weights:
    """What the hidden values are linear in: values, what neighbours say and logs, (V + Z, H)."""
    n_values = read.n_values + n_near
    forms = np.zeros((n_values + read.n_logs, _N_FIRST + 3 * read.n_views))
    features = np.concatenate([_features(read, view, n_values) for view in range(read.n_views)])
    told = np.eye(len(forms))[read.n_values : n_values]
    forms[:, _PLAIN] = acceptor.weights[:-2] @ np.concatenate([features, told])
    energy = _energy(read, 0, n_values)
    forms[:, _CAUTION] = -CAUTION / acceptor.energy_std * energy
    forms[:, _LOW] = energy / guard.energy_std
    forms[read.value(read.n_views - 1, 0), _LOW] += SIMILARITY_SHARE / guard.similarity_std
    forms[:, _OVER] = forms[:, _LOW] + energy / guard.energy_std
    for view in range(read.n_views):
        forms[[read.value(view, read.n_top), read.value(view, 1)], _ahead(view)] = 1, -1
        above = n_values + read.comparison(view)
        forms[[above, above + 1], _compared(view)] = -1
    forms[:, [_MINUS_PLAIN, _MINUS_LOW]] = -forms[:, [_PLAIN, _LOW]]
    return forms


def _features(read: Read, view: int, n_values: int) -> Weights:
    """A view's accept features as forms, (width, V + Z): of its gap and the sign only what is linear."""
    rows = np.eye(n_values + read.n_logs)
    logs = n_values + np.array([read.log(view, column) for column in range(read.n_top + 1)])
    own, highest = rows[read.value(view, read.n_top)], rows[read.value(view, 0)]
    energy = _energy(read, view, n_values)
    entropy = energy - rows[read.expected(view)]
    return np.stack([*(rows[logs] - rows[logs + 1]), own, own - highest, 0 * own, energy, highest, entropy])


def _energy(read: Read, view: int, n_values: int) -> Weights:
    """Log-sum-exp as a form: the highest value less the log of its probability."""
    form = np.zeros(n_values + read.n_logs)
    form[read.value(view, 0)], form[n_values + read.log(view, 0)] = 1, -1
    return form


def _by_label(read: Read, acceptor: Acceptor, guard: Guard) -> Weights:
    """What the hidden values hold beside that, for each predicted label, (K, H)."""
    found = np.zeros((read.n_labels, _N_FIRST + 3 * read.n_views))
    energy, similarity = guard.energy_mean / guard.energy_std, guard.similarity_mean / guard.similarity_std
    found[:, _LABEL] = np.arange(read.n_labels)
    found[:, _PLAIN] = acceptor.bias + acceptor.weights[-1] * acceptor.reliability
    found[:, _CAUTION] = CAUTION * (acceptor.energy_mean / acceptor.energy_std - CAUTION_FROM)
    found[:, _LOW] = -energy - SIMILARITY_SHARE * similarity
    found[:, _OVER] = found[:, _LOW] - (guard.threshold + guard.highest + energy)
    for view in range(read.n_views):
        # Less the log: 1 where that is of nothing, and below 0 where there is a difference.
        found[:, _compared(view)] = 1 + np.log(_LEAST)
    found[:, [_MINUS_PLAIN, _MINUS_LOW]] = -found[:, [_PLAIN, _LOW]]
    return found


def _by_length(acceptor: Acceptor, tokens: bool) -> Weights:
    """The length's share of the decision: a row a number of tokens, the last for all that are longer."""
    most = int(np.ceil(np.expm1(acceptor.longest))) if tokens else 0
    lengths = np.log1p(np.arange(most + 1)).astype(np.float32)
    found = np.zeros((most + 1, 3))
    found[:, _ODDS] = acceptor.weights[-2] * np.clip(lengths, acceptor.shortest, acceptor.longest)
    return found


def _outputs(read: Read, acceptor: Acceptor) -> Weights:
    """The decision's weights on the hidden values, (H, 3)."""
    found = np.zeros((_N_FIRST + 3 * read.n_views, 3))
    found[_LABEL, 0] = found[_PLAIN, _ODDS] = found[_LOW, _GUARD] = 1
    found[[_MINUS_PLAIN, _CAUTION], _ODDS] = found[[_MINUS_LOW, _OVER], _GUARD] = -1
    gap = read.n_top + 2
    for view in range(read.n_views):
        of_gap, of_sign = acceptor.weights[view * view_width(read.n_labels) + gap :][:2]
        found[_ahead(view), _ODDS] = of_gap
        found[_compared(view), _ODDS] = -of_sign, of_sign
    return found


def _ahead(view: int) -> int:
    """The hidden column of max(own - second, 0)."""
    return _N_FIRST + 3 * view


def _compared(view: int) -> list[int]:
    """The hidden columns that are 1 where own is not above second, and where it is not below the highest."""
    return [_ahead(view) + 1, _ahead(view) + 2]


def _constant(writer: GraphWriter, values: Weights) -> str:
    return writer.constant(values.astype(np.float32))
