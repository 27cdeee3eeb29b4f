"""The acceptor: how likely the surrogate agrees with the teacher on this input.

A logistic regression on what the surrogate's scores look like. It is cross-fitted: the score that judges a row comes
from an acceptor that saw neither the row's agreement nor any copy of its input.
"""

import warnings
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from policies.blocks import Floats
from policies.folds import FOLDS, balanced_folds
from policies.surrogates import Scores, softmax

Agreement = NDArray[np.bool_]

# Probabilities are clipped here before a log: float32 in the graph cannot tell 1 - 1e-7 from 1.
CLIP = 1e-6
# A regression learned from the traces knows nothing of what is unlike them: it trusts far-off inputs as it trusts near
# ones. So an energy more than one standard deviation below the traces' mean lowers the log-odds by this much a
# deviation. On CLINC150 it halves what is answered of out-of-scope calls and costs no measurable coverage.
CAUTION = 0.5
CAUTION_FROM = 1.0
# With fewer disagreements (or agreements) than this the regression has nothing to learn from: the logit gap decides.
_FEWEST_OF_A_KIND = 30
_RELIABILITY_PRIOR = 5.0
# Some fifty weights learn no more from a million rows than from these.
_MOST_ROWS = 30_000
_USUAL_LENGTHS = (0.01, 0.99)
N_TOP = 3
_TAIL = 7


@dataclass(frozen=True)
class Table:
    """What the acceptor and the guard read of n rows.

    `columns` (n, F - 1) are the accept features but for the reliability, `predicted` (n,) the surrogate's labels,
    `width` the number of columns a view, `extra` that of what neighbours say.
    """

    columns: Floats
    predicted: NDArray[np.int64]
    width: int
    extra: int = 0

    def __len__(self) -> int:
        return len(self.predicted)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> "Table":
        """Some of the rows."""
        return replace(self, columns=self.columns[rows], predicted=self.predicted[rows])

    @property
    def energy(self) -> Floats:
        """Log-sum-exp of the logits, (n,)."""
        return self.columns[:, energy_column(self.width)]

    @property
    def similarity(self) -> Floats:
        """Largest cosine to a label's centroid, (n,)."""
        return self.columns[:, similarity_column(self.columns.shape[1] + 1, self.extra)]


def energy_column(width: int) -> int:
    """Where the energy of the logits stands in the accept features; `width` is the number of columns a view."""
    return width - 3


def similarity_column(n_features: int, extra: int) -> int:
    """Where the largest similarity stands in the accept features: the last view's maximum."""
    return n_features - extra - 4


def view_width(n_labels: int) -> int:
    """Columns a view."""
    return min(N_TOP, n_labels) + _TAIL


def gap_column(n_labels: int) -> int:
    """Where the logits' gap stands in the accept features."""
    return min(N_TOP, n_labels) + 2


def describe(scores: Scores) -> Table:
    """The table of scored rows. F = 10 R + 2 (fewer with two labels, 3 more with neighbours).

    For each of R views (the logits, each part of them where there are several, the similarities): log-odds of the three
    highest probabilities and of the predicted label's, then the predicted label's value, its gap to the best rival, the
    gap's sign, log-sum-exp, maximum and entropy. Then what neighbours say, where they are asked, the log of the length,
    and, not in the table, the log-odds of the predicted label's past agreement. `export` repeats this node by node.
    """
    views = scores.views
    rows, wide = np.arange(len(views)), views.shape[2]
    predicted = views[:, 0].argmax(axis=1)
    probabilities = softmax(views)
    n_top = min(N_TOP, wide)
    top = -np.partition(-probabilities, range(n_top), axis=2)[:, :, :n_top]
    own_probability = probabilities[rows, :, predicted][:, :, None]
    own = views[rows, :, predicted]
    highest = views.max(axis=2)
    energy = highest + np.log(np.exp(views - highest[:, :, None]).sum(axis=2))
    entropy = energy - (probabilities * views).sum(axis=2)
    rivals = views.copy()
    rivals[rows, :, predicted] = -np.inf
    gap = own - rivals.max(axis=2)
    odds = log_odds(np.concatenate([top, own_probability], axis=2))
    columns = np.stack([own, gap, np.sign(gap), energy, highest, entropy], axis=2)
    table = np.concatenate([odds, columns], axis=2)
    table = table.reshape(len(views), table.shape[1] * table.shape[2])
    near = np.zeros((len(views), 0), np.float32) if scores.near is None else scores.near
    columns = np.column_stack([table, near, scores.lengths]).astype(np.float32)
    return Table(columns, predicted, view_width(wide), near.shape[1])


@dataclass(frozen=True)
class Acceptor:
    """Log-odds of agreement: `weights` (F,) on the accept features, `bias`, and the caution about low energies.

    `reliability` (K,) is the log-odds of past agreement a label, the last accept feature. `shortest` and `longest`
    bound the feature before it, the log of the length: nobody knows how surely a text of a length never seen is right.
    """

    weights: NDArray[np.float64]
    bias: float
    reliability: Floats
    energy_mean: float
    energy_std: float
    shortest: float
    longest: float

    def log_odds(self, table: Table) -> NDArray[np.float64]:
        """Of each row, (n,)."""
        own = self.reliability[table.predicted].astype(np.float64)
        z = (table.energy.astype(np.float64) - self.energy_mean) / self.energy_std
        length = np.clip(table.columns[:, -1].astype(np.float64), self.shortest, self.longest)
        plain = table.columns[:, :-1].astype(np.float64) @ self.weights[:-2] + length * self.weights[-2]
        plain = plain + own * self.weights[-1] + self.bias
        return np.asarray(plain + CAUTION * np.minimum(z + CAUTION_FROM, 0.0))

    def accept_scores(self, table: Table) -> NDArray[np.float64]:
        """Probability of agreement of each row, (n,), lowered where the energy is unlike the traces'."""
        return np.asarray(1 / (1 + np.exp(-self.log_odds(table))))


def fit_acceptor(
    table: Table, agreement: Agreement, groups: NDArray[np.int64], n_labels: int, seed: int
) -> tuple[Acceptor, NDArray[np.float64]]:
    """The acceptor of all rows, and each row's cross-fitted accept score, (n,). `groups` (n,) numbers the inputs."""
    if len(np.unique(groups)) < FOLDS:
        # All one thing: rows are all there is to tell apart.
        groups = np.arange(len(groups))
    folds = balanced_folds(groups, seed + 1)
    inner = balanced_folds(groups, seed + 2)
    # One kind for all: a threshold chosen on the scores of one kind means nothing on those of the other.
    regression = min(_fewest_of_a_kind(agreement[folds != fold]) for fold in range(FOLDS)) >= _FEWEST_OF_A_KIND

    def fit(rows: NDArray[np.int64]) -> Acceptor:
        return _fit(table.take(rows), agreement[rows], inner[rows], n_labels, regression)

    crossed = np.zeros(len(agreement))
    for fold in range(FOLDS):
        held = np.flatnonzero(folds == fold)
        crossed[held] = fit(np.flatnonzero(folds != fold)).accept_scores(table.take(held))
    return fit(np.arange(len(agreement))), crossed


def log_odds(probability: Floats) -> Floats:
    """log(p / (1 - p)), clipped."""
    clipped = np.clip(probability, CLIP, 1 - CLIP)
    return np.asarray(np.log(clipped / (1 - clipped)), np.float32)


def _fewest_of_a_kind(agreement: Agreement) -> int:
    return min(int(agreement.sum()), int((~agreement).sum()))


def _fit(table: Table, agreement: Agreement, inner: NDArray[np.int64], n_labels: int, regression: bool) -> Acceptor:
    reliability = _reliability(table.predicted, agreement, n_labels)
    if regression:
        weights, bias = _regression(table, agreement, inner, n_labels)
    else:
        weights, bias = np.zeros(table.columns.shape[1] + 1), 0.0
        weights[gap_column(n_labels)] = 1.0
    energy = table.energy.astype(np.float64)
    lengths = np.quantile(table.columns[:, -1], _USUAL_LENGTHS)
    return Acceptor(
        weights=weights,
        bias=bias,
        reliability=reliability,
        energy_mean=float(energy.mean()),
        energy_std=float(max(energy.std(), 1e-6)),
        shortest=float(lengths[0]),
        longest=float(lengths[1]),
    )


def _regression(
    table: Table, agreement: Agreement, inner: NDArray[np.int64], n_labels: int
) -> tuple[NDArray[np.float64], float]:
    """Weights and bias of a regression on standardised columns, put back on the columns as they are."""
    # A learning row's reliability comes from other folds' rows. Leaving out just the row itself would let the
    # regression read its agreement off: the more its label's others agree, the less it did.
    own = np.zeros(len(table), np.float32)
    for fold in range(FOLDS):
        held = inner == fold
        own[held] = _reliability(table.predicted[~held], agreement[~held], n_labels)[table.predicted[held]]
    rows = np.linspace(0, len(table) - 1, min(len(table), _MOST_ROWS)).astype(np.int64)
    if _fewest_of_a_kind(agreement[rows]) < _FEWEST_OF_A_KIND:
        rows = np.arange(len(table))
    features = np.column_stack([table.columns[rows], own[rows]]).astype(np.float64)
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(max_iter=500)
    with warnings.catch_warnings():
        # An acceptor short of the optimum is still a score; the gate judges it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(scaler.transform(features), agreement[rows].astype(np.int64))
    weights = model.coef_[0] / scaler.scale_
    return weights, float(model.intercept_[0] - weights @ scaler.mean_)


def _reliability(predicted: NDArray[np.int64], agreement: Agreement, n_labels: int) -> Floats:
    """Log-odds of agreement of each predicted label, drawn towards the overall share where rows are few, (K,)."""
    overall = float(agreement.mean()) if len(agreement) else 0.5
    count = np.bincount(predicted, minlength=n_labels)
    agreed = np.bincount(predicted, weights=agreement, minlength=n_labels)
    share = (agreed + _RELIABILITY_PRIOR * overall) / (count + _RELIABILITY_PRIOR)
    return log_odds(share)
