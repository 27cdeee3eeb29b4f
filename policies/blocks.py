"""Feature blocks of a whole trace set: what the surrogate is trained on.

`Features` holds up to one sparse block (lexical) and one dense block (static vectors, or embeddings the user gave).
Nothing here looks at a label, so the same blocks serve every fold.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from policies.features import BIGRAM_BUCKETS, raw_features
from policies.static_table import StaticTable

Floats = NDArray[np.float32]

# Below this many traces a token seen once still says something; above it is mostly noise.
_MIN_DF_FROM = 2_000
_NORM_FLOOR = 1e-9


@dataclass(frozen=True)
class Vocabulary:
    """The lexical features kept: `rows[f]` is the row of raw feature f, or `size` (a row of zeros) where f was dropped.

    Raw features are the token ids, then the bigram buckets: shape (vocabulary + BIGRAM_BUCKETS,). `idf` has shape
    (size,), smoothed as in scikit-learn's TfidfTransformer.
    """

    rows: NDArray[np.int32]
    idf: Floats

    @property
    def size(self) -> int:
        """Number of features kept."""
        return len(self.idf)


@dataclass(frozen=True)
class Scaling:
    """Shift and scale of given embeddings, each of shape (d,): unit variance a dimension, mean norm about one."""

    shift: Floats
    scale: Floats


@dataclass(frozen=True)
class Features:
    """`lexical` (n, size) or None; `dense` (n, d) float32; `lengths` (n,) is log(1 + tokens), zeros for embeddings."""

    lexical: sp.csr_matrix | None
    dense: Floats
    lengths: Floats

    def __len__(self) -> int:
        return len(self.dense)

    def take(self, index: NDArray[np.int64]) -> "Features":
        """The rows of `index`."""
        lexical = None if self.lexical is None else self.lexical[index]
        return Features(lexical, self.dense[index], self.lengths[index])


def fit_vocabulary(ids: Sequence[list[int]], vocabulary_size: int) -> Vocabulary:
    """Keep the unigrams and bigrams seen in at least two texts (in one, below 2,000 texts)."""
    counts = np.zeros(vocabulary_size + BIGRAM_BUCKETS, np.int64)
    for row in ids:
        counts[np.unique(raw_features(row, vocabulary_size))] += 1
    min_df = 2 if len(ids) >= _MIN_DF_FROM else 1
    kept = np.flatnonzero(counts >= min_df)
    rows = np.full(len(counts), len(kept), np.int32)
    rows[kept] = np.arange(len(kept))
    idf = np.log((1 + len(ids)) / (1 + counts[kept])) + 1
    return Vocabulary(rows, idf.astype(np.float32))


def text_features(ids: Sequence[list[int]], table: StaticTable, vocabulary: Vocabulary | None) -> Features:
    """Both text blocks of tokenised texts; no lexical block where `vocabulary` is None."""
    lexical = None if vocabulary is None else _tfidf(ids, vocabulary, len(table.vectors))
    dense = np.stack([table.vectors[np.array(row, np.int64)].astype(np.float32).sum(axis=0) for row in ids])
    dense /= np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), _NORM_FLOOR)
    lengths = np.log1p(np.array([len(row) for row in ids], np.float32))
    return Features(lexical, dense, lengths)


def fit_scaling(embeddings: Floats) -> Scaling:
    """Scaling of the user's embeddings, shape (n, d)."""
    spread = np.maximum(embeddings.std(axis=0), 1e-6)
    scale = 1.0 / (spread * np.sqrt(embeddings.shape[1]))
    return Scaling(embeddings.mean(axis=0).astype(np.float32), scale.astype(np.float32))


def given_features(embeddings: Floats, scaling: Scaling) -> Features:
    """The one dense block of the user's embeddings, shape (n, d)."""
    dense = ((embeddings - scaling.shift) * scaling.scale).astype(np.float32)
    return Features(None, dense, np.zeros(len(dense), np.float32))


def identity(**parts: object) -> dict[str, object]:
    """What names these features in the manifest; JSON-safe."""
    return json.loads(json.dumps(parts))  # type: ignore[no-any-return]


def _tfidf(ids: Sequence[list[int]], vocabulary: Vocabulary, vocabulary_size: int) -> sp.csr_matrix:
    # Each occurrence counts once and the norm runs over occurrences: that is what the graph can do without sorting.
    found = [vocabulary.rows[raw_features(row, vocabulary_size)] for row in ids]
    columns = [row[row < vocabulary.size] for row in found]
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in columns])])
    indices = np.concatenate(columns) if columns else np.zeros(0, np.int32)
    owner = np.repeat(np.arange(len(ids)), np.diff(indptr))
    values = vocabulary.idf[indices]
    norms = np.sqrt(np.bincount(owner, weights=values * values, minlength=len(ids)))
    values = (values / np.maximum(norms[owner], _NORM_FLOOR)).astype(np.float32)
    matrix = sp.csr_matrix((values, indices, indptr), shape=(len(ids), vocabulary.size), dtype=np.float32)
    matrix.sum_duplicates()
    return matrix
