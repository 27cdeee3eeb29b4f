"""A surrogate of randomised trees on the dense blocks.

The probability of a label is the mean over all trees of its share in the leaf that a row falls into, so fold models
merge by putting their trees together. Logits are the logarithms of these, floored and centred.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier

from policies.blocks import Features, Floats
from policies.surrogates import Labels, Scores, centroids_of, cosines

Nodes = NDArray[np.int64]

# Trees a model, and so five times as many in service: more gain little, and the graph grows with them.
_TREES = 50
_FEWEST_IN_LEAF = 3
# Leaves hold more rows where there are many, which bounds the size of the graph.
_MOST_LEAVES = 4_000
# No tree of the forest saying a label is not proof against it.
FLOOR = 1e-3


@dataclass(frozen=True)
class Forest:
    """The nodes of all trees in one numbering, m of them. A leaf points to itself.

    `roots` (trees,); `feature`, `left`, `right` (m,); `threshold` (m,) float32: a row goes left where its feature is at
    most that; `shares` (m, K) sparse, of each label in a leaf.
    """

    roots: Nodes
    feature: Nodes
    threshold: Floats
    left: Nodes
    right: Nodes
    shares: sp.csr_matrix

    def probabilities(self, dense: Floats) -> Floats:
        """Mean share of each label over the trees, (n, K), for rows (n, d)."""
        n, n_trees = len(dense), len(self.roots)
        leaves = np.column_stack([self._leaf(dense, root) for root in self.roots])
        weights = np.full(n * n_trees, 1 / n_trees, np.float32)
        chosen = sp.csr_matrix(
            (weights, leaves.ravel(), np.arange(0, n * n_trees + 1, n_trees)), (n, len(self.feature))
        )
        return np.asarray((chosen @ self.shares).toarray(), np.float32)

    def _leaf(self, dense: Floats, root: np.int64) -> Nodes:
        """The leaf of the tree at `root` that each row falls into, (n,)."""
        place = np.full(len(dense), root)
        moving = np.arange(len(dense))
        while len(moving):
            node = place[moving]
            low = dense[moving, self.feature[node]] <= self.threshold[node]
            place[moving] = np.where(low, self.left[node], self.right[node])
            moving = moving[place[moving] != node]
        return place


@dataclass(frozen=True)
class ForestModel:
    """`forest` and `centroids` (K, d), unit rows."""

    forest: Forest
    centroids: Floats

    def scores(self, features: Features) -> Scores:
        """Logits, and cosine to each label's centroid, for every row.

        The logits are centred: of logarithms of probabilities the log-sum-exp, which the guard reads, is always zero.
        Centred, it says how far the labels that are likely stand above the rest.
        """
        logits = np.log(np.maximum(self.forest.probabilities(features.dense), np.float32(FLOOR)))
        logits -= logits.mean(axis=1, keepdims=True)
        return Scores((logits,), cosines(features.dense, self.centroids), features.lengths)


def fit_forest(features: Features, labels: Labels, n_labels: int, seed: int) -> ForestModel:
    """Extremely randomised trees (Geurts, Ernst and Wehenkel, 2006; scikit-learn's); `labels` are 0..n_labels - 1."""
    smallest = max(_FEWEST_IN_LEAF, len(labels) // _MOST_LEAVES)
    model = ExtraTreesClassifier(_TREES, min_samples_leaf=smallest, random_state=seed)
    model.fit(features.dense, labels)
    forest = _joined([_forest_of(tree.tree_, model.classes_, n_labels) for tree in model.estimators_])
    return ForestModel(forest, centroids_of(features.dense, labels, n_labels))


def merge_forests(models: Sequence[ForestModel], centroids: Floats) -> ForestModel:
    """One forest of all trees: its probabilities are the mean of the models', which have equally many trees."""
    return ForestModel(_joined([model.forest for model in models]), centroids)


def _forest_of(tree: object, classes: Labels, n_labels: int) -> Forest:
    """One of scikit-learn's trees. `classes` are the labels that its columns stand for."""
    left, right, feature = (np.asarray(getattr(tree, name)) for name in ("children_left", "children_right", "feature"))
    leaves = np.flatnonzero(left < 0)
    itself = np.arange(len(left))
    values = np.asarray(getattr(tree, "value"))[leaves, 0]  # noqa: B009 - a compiled class without types
    row, column = np.nonzero(values)
    shares = (values / values.sum(axis=1, keepdims=True))[row, column].astype(np.float32)
    return Forest(
        roots=np.zeros(1, np.int64),
        feature=np.where(left < 0, 0, feature),
        threshold=np.where(left < 0, np.float32(0), _rounded_down(np.asarray(getattr(tree, "threshold")))),  # noqa: B009
        left=np.where(left < 0, itself, left),
        right=np.where(left < 0, itself, right),
        shares=sp.csr_matrix((shares, (leaves[row], classes[column])), (len(left), n_labels)),
    )


def _joined(forests: Sequence[Forest]) -> Forest:
    starts = np.cumsum([0, *(len(forest.feature) for forest in forests)])[:-1]
    numbered = list(zip(forests, starts, strict=True))
    return Forest(
        roots=np.concatenate([forest.roots + start for forest, start in numbered]),
        feature=np.concatenate([forest.feature for forest in forests]),
        threshold=np.concatenate([forest.threshold for forest in forests]),
        left=np.concatenate([forest.left + start for forest, start in numbered]),
        right=np.concatenate([forest.right + start for forest, start in numbered]),
        shares=sp.vstack([forest.shares for forest in forests], format="csr"),
    )


def _rounded_down(threshold: NDArray[np.float64]) -> Floats:
    """As float32, never upwards: a float32 is at most the threshold exactly where it is at most this."""
    near = threshold.astype(np.float32)
    return np.where(near > threshold, np.nextafter(near, np.float32(-np.inf)), near)
