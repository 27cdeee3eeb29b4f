"""Linear candidates beside the joint model: logistic regression and stochastic gradient descent, both scikit-learn's.

Both read the lexical block and the dense blocks side by side and give a `SoftmaxModel`, so that averaging, scoring and
export are those of the joint model.
"""

import warnings

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, SGDClassifier

from policies.blocks import Features, Floats
from policies.surrogates import Labels, SoftmaxModel, centroids_of

# Chosen on traces alone, from few values each: one random fold of banking77 and of metatool held out.
_PENALTY = 10.0
_MOST_ITERATIONS = 100
_TOLERANCE = 1e-4
_SGD_ALPHA = 1e-5
_SGD_EPOCHS = 20
_SGD_TOLERANCE = 1e-3


def fit_logreg(features: Features, labels: Labels, n_labels: int, seed: int) -> SoftmaxModel:
    """Multinomial logistic regression by L-BFGS: log-loss + |weights|^2 / (2 * 10), the bias free."""
    model = LogisticRegression(C=_PENALTY, max_iter=_MOST_ITERATIONS, tol=_TOLERANCE, random_state=seed)
    return _fit_linear(model, features, labels, n_labels)


def fit_sgd(features: Features, labels: Labels, n_labels: int, seed: int) -> SoftmaxModel:
    """One logistic regression a label against all others, by stochastic gradient descent.

    Modified Huber, at its best penalty, was within the noise of one fold of log-loss; log-loss keeps scores log-odds.
    """
    model = SGDClassifier(
        loss="log_loss", alpha=_SGD_ALPHA, max_iter=_SGD_EPOCHS, tol=_SGD_TOLERANCE, random_state=seed
    )
    return _fit_linear(model, features, labels, n_labels)


def spread(
    weights: Floats, bias: Floats, present: NDArray[np.int64], n_labels: int, n_rows: int
) -> tuple[Floats, Floats]:
    """Weights (d, K) and bias (K,) of all labels from those of the labels that the rows hold.

    scikit-learn gives one column for two labels: the second's logit less the first's. A label that no row holds gets no
    weights, and the mean bias less log(n_rows): nothing speaks for it, and it was seen less than once.
    """
    if len(present) == 2 and weights.shape[1] == 1:
        weights, bias = np.hstack([-weights / 2, weights / 2]), np.array([-bias[0] / 2, bias[0] / 2])
    all_weights = np.zeros((len(weights), n_labels), np.float32)
    all_weights[:, present] = weights
    all_bias = np.full(n_labels, float(bias.mean()) - np.log(n_rows), np.float32)
    all_bias[present] = bias
    return all_weights, all_bias


def _fit_linear(
    model: LogisticRegression | SGDClassifier, features: Features, labels: Labels, n_labels: int
) -> SoftmaxModel:
    present = np.unique(labels)
    rows = _side_by_side(features)
    weights, bias = np.zeros((rows.shape[1], 1), np.float32), np.zeros(1, np.float32)
    # A fold may hold one label only, which scikit-learn refuses; then the answer is always that label.
    if len(present) > 1:
        with warnings.catch_warnings():
            # A surrogate short of the optimum is still a surrogate; the gate judges it.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(rows, labels)
        weights, bias = model.coef_.T, model.intercept_
    weights, bias = spread(weights, bias, present, n_labels, len(labels))
    size = 0 if features.lexical is None else features.lexical.shape[1]
    lexical = None if features.lexical is None else weights[:size]
    return SoftmaxModel(lexical, weights[size:], bias, centroids_of(features.dense, labels, n_labels))


def _side_by_side(features: Features) -> sp.csr_matrix | Floats:
    """[lexical | dense], (n, size + d); dense where there is no lexical block."""
    if features.lexical is None:
        return features.dense
    return sp.hstack([features.lexical, sp.csr_matrix(features.dense)], format="csr")
