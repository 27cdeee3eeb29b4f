"""The acceptor: how likely the surrogate agrees with the teacher on this input.

A logistic regression on what the surrogate's scores look like. It is cross-fitted: the score that judges a row comes
from an acceptor that saw neither the row's agreement nor any copy of its input.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from policies.blocks import Floats
from policies.surrogates import FOLDS, Scores, random_folds, softmax

Agreement = NDArray[np.bool_]

# Probabilities are clipped here before a log: float32 in the graph cannot tell 1 - 1e-7 from 1.
CLIP = 1e-6
# With fewer disagreements (or agreements) than this the regression has nothing to learn from: the logit gap decides.
_FEWEST_OF_A_KIND = 30
_RELIABILITY_PRIOR = 5.0


@dataclass(frozen=True)
class Acceptor:
    """`model` maps accept features (n, F) to agreement probabilities; `reliability` (K,) is a log-odds a label."""

    model: LogisticRegression
    reliability: Floats

    def accept_scores(self, scores: Scores) -> NDArray[np.float64]:
        """Probability of agreement of each row, shape (n,)."""
        table = accept_features(scores, self.reliability[scores.logits.argmax(axis=1)])
        return np.asarray(self.model.predict_proba(table)[:, 1])


def accept_features(scores: Scores, reliability: Floats) -> Floats:
    """The table the acceptor reads, (n, F), F = 10 R + 2 (fewer with two labels).

    For each of R views (the logits, each part of them where there are two, the similarities): log-odds of the three
    highest probabilities and of the predicted label's, then the predicted label's value, its gap to the best rival, the
    gap's sign, log-sum-exp, maximum and entropy. Then the log-odds of the predicted label's past agreement,
    `reliability` (n,), and the log of the length. `export` repeats this node by node.
    """
    views = scores.views
    rows, wide = np.arange(len(views)), views.shape[2]
    predicted = views[:, 0].argmax(axis=1)
    probabilities = softmax(views)
    top = -np.partition(-probabilities, range(min(3, wide)), axis=2)[:, :, : min(3, wide)]
    own_probability = probabilities[rows, :, predicted][:, :, None]
    own = views[rows, :, predicted]
    rivals = views.copy()
    rivals[rows, :, predicted] = -np.inf
    gap = own - rivals.max(axis=2)
    highest = views.max(axis=2)
    energy = highest + np.log(np.exp(views - highest[:, :, None]).sum(axis=2))
    entropy = energy - (probabilities * views).sum(axis=2)
    odds = log_odds(np.concatenate([top, own_probability], axis=2))
    columns = np.stack([own, gap, np.sign(gap), energy, highest, entropy], axis=2)
    table = np.concatenate([odds, columns], axis=2).reshape(len(views), -1)
    return np.column_stack([table, reliability, scores.lengths]).astype(np.float32)


def fit_acceptor(
    scores: Scores, agreement: Agreement, groups: NDArray[np.int64], seed: int
) -> tuple[Acceptor, NDArray[np.float64]]:
    """The acceptor of all rows, and each row's cross-fitted accept score, (n,). `groups` (n,) numbers the inputs."""
    folds = random_folds(groups, seed + 1)
    inner = random_folds(groups, seed + 2)
    # One kind for all: a threshold chosen on the scores of one kind means nothing on those of the other.
    regression = min(_fewest_of_a_kind(agreement[folds != fold]) for fold in range(FOLDS)) >= _FEWEST_OF_A_KIND
    crossed = np.zeros(len(agreement))
    for fold in range(FOLDS):
        learn, held = folds != fold, folds == fold
        acceptor = _fit(_rows(scores, learn), agreement[learn], inner[learn], regression)
        crossed[held] = acceptor.accept_scores(_rows(scores, held))
    return _fit(scores, agreement, inner, regression), crossed


def log_odds(probability: Floats) -> Floats:
    """log(p / (1 - p)), clipped."""
    clipped = np.clip(probability, CLIP, 1 - CLIP)
    return np.asarray(np.log(clipped / (1 - clipped)), np.float32)


def _fewest_of_a_kind(agreement: Agreement) -> int:
    return min(int(agreement.sum()), int((~agreement).sum()))


def _fit(scores: Scores, agreement: Agreement, inner: NDArray[np.int64], regression: bool) -> Acceptor:
    predicted = scores.logits.argmax(axis=1)
    n_labels = scores.logits.shape[1]
    reliability = _reliability(predicted, agreement, n_labels)
    # A learning row's reliability comes from other folds' rows. Leaving out just the row itself would let the
    # regression read its agreement off: the more its label's others agree, the less it did.
    own = np.zeros(len(predicted), np.float32)
    for fold in range(FOLDS):
        held = inner == fold
        own[held] = _reliability(predicted[~held], agreement[~held], n_labels)[predicted[held]]
    table = accept_features(scores, own)
    model = _regression(table, agreement) if regression else _gap_only(table.shape[1], min(3, n_labels))
    return Acceptor(model, reliability)


def _reliability(predicted: NDArray[np.int64], agreement: Agreement, n_labels: int) -> Floats:
    """Log-odds of each predicted label's agreement, (K,), drawn towards that of all rows."""
    hits = np.bincount(predicted, weights=agreement, minlength=n_labels)
    counts = np.bincount(predicted, minlength=n_labels)
    prior = _RELIABILITY_PRIOR * (agreement.mean() if len(agreement) else 0.5)
    return log_odds((hits + prior) / (counts + _RELIABILITY_PRIOR))


def _regression(table: Floats, agreement: Agreement) -> LogisticRegression:
    """A regression on standardised columns, its weights then put back on the columns as they are."""
    scaler = StandardScaler().fit(table)
    model = LogisticRegression(max_iter=500)
    with warnings.catch_warnings():
        # An acceptor short of the optimum is still a score; the gate judges it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(scaler.transform(table), agreement.astype(np.int64))
    model.coef_ = model.coef_ / scaler.scale_
    model.intercept_ = model.intercept_ - model.coef_ @ scaler.mean_
    return model


def _gap_only(n_features: int, n_top: int) -> LogisticRegression:
    """A model that ranks by the gap between the two highest logits alone."""
    model = LogisticRegression()
    model.classes_ = np.array([0, 1])
    model.coef_ = np.zeros((1, n_features))
    model.coef_[0, n_top + 2] = 1.0
    model.intercept_ = np.zeros(1)
    model.n_features_in_ = n_features
    return model


def _rows(scores: Scores, keep: Agreement) -> Scores:
    return Scores(tuple(part[keep] for part in scores.parts), scores.similarity[keep], scores.lengths[keep])
