"""Feature blocks of a whole trace set: what the surrogate is trained on.

`Features` holds up to one sparse block (lexical) and dense blocks side by side (static vectors, an encoder's vectors,
or embeddings the user gave). Nothing here looks at a label, so the same blocks serve every fold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from policies.features import BIGRAM_BUCKETS, Tokens, raw_features_of
from policies.static_table import StaticTable

Floats = NDArray[np.float32]

# Below this many traces a token seen once still says something; above it is mostly noise.
_MIN_DF_FROM = 2_000
# A feature that was not kept adds this share of the largest squared idf to a text's norm: words never
# seen before make the surrogate less sure. Where features seen once are kept, an out-of-fold row's own ones stand for
# words that no trace has: they add all of theirs, and live texts' new words must add as much.
_UNSEEN_SHARE = 0.5
_NORM_FLOOR = 1e-9
_ROWS_AT_ONCE = 4_096


@dataclass(frozen=True)
class Vocabulary:
    """The lexical features kept: `rows[f]` is the row of raw feature f, or `size` (a row of zeros) where f was dropped.

    Raw features are the token ids, then the bigram buckets: shape (vocabulary + BIGRAM_BUCKETS,). `idf` has shape
    (size,), smoothed as in scikit-learn's TfidfTransformer. `unseen` is what a dropped feature adds to the squared
    norm.
    """

    rows: NDArray[np.int32]
    idf: Floats
    unseen: float

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
    """`lexical` (n, size) or None; `dense` (n, sum of `widths`) float32, one block a width, side by side.

    `lengths` (n,) is log(1 + tokens), zeros for embeddings.
    """

    lexical: sp.csr_matrix | None
    dense: Floats
    widths: tuple[int, ...]
    lengths: Floats

    def __len__(self) -> int:
        return len(self.dense)

    def take(self, index: NDArray[np.int64] | slice) -> "Features":
        """The rows of `index`."""
        lexical = None if self.lexical is None else self.lexical[index]
        return Features(lexical, self.dense[index], self.widths, self.lengths[index])

    def beside(self, vectors: Floats) -> "Features":
        """These features and one more dense block, (n, d)."""
        return Features(self.lexical, np.hstack([self.dense, vectors]), (*self.widths, vectors.shape[1]), self.lengths)


def fit_vocabulary(tokens: Tokens, vocabulary_size: int) -> Vocabulary:
    """Keep the unigrams and bigrams seen in at least two texts (in one, below 2,000 texts)."""
    n = len(tokens)
    size = vocabulary_size + BIGRAM_BUCKETS
    counts = np.bincount(_distinct(tokens, vocabulary_size).indices, minlength=size)
    rare_dropped = n >= _MIN_DF_FROM
    kept = np.flatnonzero(counts >= (2 if rare_dropped else 1))
    rows = np.full(size, len(kept), np.int32)
    rows[kept] = np.arange(len(kept))
    idf = np.log((1 + n) / (1 + counts[kept])) + 1
    once = np.log((1 + n) / 2) + 1
    unseen = _UNSEEN_SHARE * (np.log(1 + n) + 1) ** 2 if rare_dropped else once**2
    return Vocabulary(rows, idf.astype(np.float32), float(unseen))


def text_features(tokens: Tokens, table: StaticTable, vocabulary: Vocabulary | None, static: bool = True) -> Features:
    """Blocks of tokenised texts: lexical unless `vocabulary` is None, static word vectors if `static`."""
    lexical = None if vocabulary is None else _tfidf(tokens, vocabulary, len(table.vectors))
    dense = _static(tokens, table.vectors) if static else np.zeros((len(tokens), 0), np.float32)
    lengths = np.log1p(tokens.counts).astype(np.float32)
    return Features(lexical, dense, (dense.shape[1],) if static else (), lengths)


def fit_scaling(embeddings: Floats) -> Scaling:
    """Scaling of the user's embeddings, shape (n, d)."""
    spread = embeddings.std(axis=0)
    # A dimension that never varies says nothing; scaled up, a later change of it would drown all others.
    varies = spread > 1e-6 * max(float(spread.max()), 1e-30)
    scale = np.where(varies, 1.0 / (np.where(varies, spread, 1.0) * np.sqrt(embeddings.shape[1])), 0.0)
    return Scaling(embeddings.mean(axis=0).astype(np.float32), scale.astype(np.float32))


def given_features(embeddings: Floats, scaling: Scaling) -> Features:
    """The one dense block of the user's embeddings, shape (n, d)."""
    dense = ((embeddings - scaling.shift) * scaling.scale).astype(np.float32)
    return Features(None, dense, (dense.shape[1],), np.zeros(len(dense), np.float32))


def chunks(n: int) -> Sequence[slice]:
    """Slices of a few thousand rows that cover n rows: what is computed a row at a time need not fit whole."""
    return [slice(start, min(start + _ROWS_AT_ONCE, n)) for start in range(0, max(n, 1), _ROWS_AT_ONCE)]


def _static(tokens: Tokens, vectors: NDArray[np.float16]) -> Floats:
    """L2-normalised sum of the word vectors of each text; zeros for a text without tokens."""
    ones = np.ones(len(tokens.ids), np.float32)
    counts = sp.csr_matrix((ones, tokens.ids, tokens.starts), shape=(len(tokens), len(vectors)))
    dense = np.asarray(counts @ vectors.astype(np.float32))
    return np.asarray(dense / np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), _NORM_FLOOR), np.float32)


def _tfidf(tokens: Tokens, vocabulary: Vocabulary, vocabulary_size: int) -> sp.csr_matrix:
    n = len(tokens)
    found = _distinct(tokens, vocabulary_size)
    owner = np.repeat(np.arange(n), np.diff(found.indptr))
    columns = vocabulary.rows[found.indices]
    squares = np.append(vocabulary.idf * vocabulary.idf, np.float32(vocabulary.unseen))
    norms = np.sqrt(np.bincount(owner, weights=squares[columns], minlength=n))
    known = columns < vocabulary.size
    columns, owner = columns[known], owner[known]
    values = (vocabulary.idf[columns] / np.maximum(norms[owner], _NORM_FLOOR)).astype(np.float32)
    return sp.csr_matrix((values, (owner, columns)), shape=(n, vocabulary.size), dtype=np.float32)


def _distinct(tokens: Tokens, vocabulary_size: int) -> sp.csr_matrix:
    """Which raw features each text holds, (n, vocabulary + BIGRAM_BUCKETS): an entry a (text, feature) pair."""
    raw, owner = raw_features_of(tokens, vocabulary_size)
    shape = (len(tokens), vocabulary_size + BIGRAM_BUCKETS)
    return sp.csr_matrix((np.ones(len(raw), np.bool_), (owner, raw)), shape=shape)
