"""A surrogate with one hidden layer on the dense blocks.

logits = relu(dense @ hidden + hidden_bias) @ out + bias. The mean of several such models' logits is again one such
model, as wide as all of them together, so fold models merge without loss.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from policies.blocks import Features, Floats
from policies.linear_candidates import spread
from policies.surrogates import Labels, Scores, centroids_of, cosines

_WIDTH = 256
# Chosen on traces alone, as in `linear_candidates`.
_PENALTY = 1e-2
_EPOCHS = 30
# Few rows need small batches: an epoch has at least this many steps, as far as the smallest batch allows.
_STEPS = 32
_BATCHES = (32, 256)
_RATE = 1e-3


@dataclass(frozen=True)
class MlpModel:
    """`hidden` (d, H), `hidden_bias` (H,), `out` (H, K), `bias` (K,), `centroids` (K, d) unit rows; all float32."""

    hidden: Floats
    hidden_bias: Floats
    out: Floats
    bias: Floats
    centroids: Floats

    def scores(self, features: Features) -> Scores:
        """Logits, and cosine to each label's centroid, for every row."""
        active = np.maximum(features.dense @ self.hidden + self.hidden_bias, 0.0)
        return Scores((active @ self.out + self.bias,), cosines(features.dense, self.centroids), features.lengths)


def fit_mlp(features: Features, labels: Labels, n_labels: int, seed: int) -> MlpModel:
    """Minimise log-loss by Adam (scikit-learn's MLPClassifier); `labels` (n,) are 0..n_labels - 1."""
    present = np.unique(labels)
    size = features.dense.shape[1]
    # Rows of about unit norm are small for Adam's steps: it sees them as of unit variance, the weights take it back.
    scale = np.float32(np.sqrt(size))
    hidden, hidden_bias = np.zeros((size, 1), np.float32), np.zeros(1, np.float32)
    out, bias = np.zeros((1, 1), np.float32), np.zeros(1, np.float32)
    if len(present) > 1:
        model = MLPClassifier(
            (_WIDTH,),
            alpha=_PENALTY,
            batch_size=min(max(len(labels) // _STEPS, _BATCHES[0]), _BATCHES[1], len(labels)),
            learning_rate_init=_RATE,
            max_iter=_EPOCHS,
            random_state=seed,
        )
        with warnings.catch_warnings():
            # The number of epochs is fixed; the gate judges what they came to.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(features.dense * scale, labels)
        (hidden, out), (hidden_bias, bias) = model.coefs_, model.intercepts_
    # What all logits share does not change a probability, but it would drift into the energy that the guard reads.
    if len(present) > 2:
        out, bias = out - out.mean(axis=1, keepdims=True), bias - bias.mean()
    out, bias = spread(out, bias, present, n_labels, len(labels))
    centroids = centroids_of(features.dense, labels, n_labels)
    return MlpModel((hidden * scale).astype(np.float32), hidden_bias.astype(np.float32), out, bias, centroids)


def merge_mlps(models: Sequence[MlpModel], centroids: Floats) -> MlpModel:
    """One wide model whose logits are the mean of the models' logits."""
    return MlpModel(
        np.hstack([model.hidden for model in models]),
        np.concatenate([model.hidden_bias for model in models]),
        np.vstack([model.out for model in models]) / np.float32(len(models)),
        np.mean([model.bias for model in models], axis=0),
        centroids,
    )
