"""Folds: who is held out together. A row is scored by a model that has seen none of its group."""

from itertools import pairwise

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from policies.blocks import Floats

Groups = NDArray[np.int64]

FOLDS = 5
# Cosine of two mean word vectors above which two texts count as the same thing said twice.
NEAR = 0.85
# Above this they are said in nearly the same words, and are right or wrong together.
SAME = 0.95
_CUTOFFS = (0.90, 0.95, 0.99)
_MOST_OF_ALL = 0.05
# Up to this many inputs every pair is compared; above it, those that share a coarse cell.
_ALL_PAIRS = 25_000
_CELL_ROWS = 512
_CELLS_A_ROW = 2
_BLOCK = 2_048
_MOST_IN_CELL = 4_096
_REFINEMENTS = 4


def random_folds(groups: Groups, seed: int, folds: int = FOLDS) -> NDArray[np.int64]:
    """Fold of each row: a random permutation of the groups modulo `folds`, so that equal inputs share a fold.

    `groups` (n,) numbers the inputs. An input that is also in another fold would be scored by a model that has seen it.
    Not stratified: stratified folds hold a label's own count fixed while its rivals lose rows, which makes out-of-fold
    agreement optimistic where labels are small.
    """
    numbers, member = np.unique(groups, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(numbers)) % folds)[member]


def balanced_folds(groups: Groups, seed: int, folds: int = FOLDS) -> NDArray[np.int64]:
    """As `random_folds`, for groups of very different sizes: each goes to the fold that has the fewest rows yet."""
    numbers, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(numbers))
    # The large ones first, ties in random order: what comes last is small and evens the folds out.
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold_of = np.zeros(len(numbers), np.int64)
    rows = np.zeros(folds, np.int64)
    for group in order:
        fold_of[group] = rows.argmin()
        rows[fold_of[group]] += sizes[group]
    return fold_of[member]


def near_duplicates(vectors: Floats, groups: Groups) -> tuple[Groups, Groups]:
    """Groups of near-duplicates, and of inputs in nearly the same words: (n,) each.

    Inputs are joined, directly or through others (single linkage), at cosine `NEAR` for the first and `SAME` for the
    second. `vectors` (n, d) are unit rows, `groups` (n,) numbers equal inputs. A chain that comes to hold more than a
    twentieth of the inputs is no longer one thing said many times: it is cut at higher cosines. Above some 25,000
    different inputs only those are compared that share one of the two nearest of about n / 500 k-means cells: a pair on
    either side of a border may be missed, and the work grows as n^1.5 instead of n^2.
    """
    _, first, member = np.unique(groups, return_index=True, return_inverse=True)
    rows = np.asarray(vectors[first], np.float32)
    cells = [np.arange(len(rows))] if len(rows) <= _ALL_PAIRS else _cells(rows)
    pairs = [_pairs(rows, cell) for cell in cells]
    low, high, cosine = (np.concatenate([pair[i] for pair in pairs]) for i in range(3))
    same = _linked(low[cosine > SAME], high[cosine > SAME], len(rows))
    near = _linked(low, high, len(rows))
    for cutoff in _CUTOFFS:
        crowded = np.bincount(near) > max(_MOST_OF_ALL * len(rows), 2)
        kept = ~crowded[near[low]] | (cosine > cutoff)
        low, high, cosine = low[kept], high[kept], cosine[kept]
        near = _linked(low, high, len(rows))
    return near[member], same[member]


def _linked(low: Groups, high: Groups, n: int) -> Groups:
    graph = sp.csr_matrix((np.ones(len(low), np.bool_), (low, high)), shape=(n, n))
    return np.asarray(sp.csgraph.connected_components(graph, directed=False)[1], np.int64)


def _pairs(rows: Floats, index: Groups) -> tuple[Groups, Groups, Floats]:
    """Pairs of `index` whose cosine is above `NEAR`, and the cosine."""
    low, high, cosine = [], [], []
    for start in range(0, len(index), _BLOCK):
        block = index[start : start + _BLOCK]
        near = rows[block] @ rows[index[start:]].T
        i, j = np.nonzero(np.triu(near > NEAR, 1))
        low.append(block[i])
        high.append(index[start:][j])
        cosine.append(near[i, j])
    return np.concatenate(low), np.concatenate(high), np.concatenate(cosine)


def _cells(rows: Floats) -> list[Groups]:
    """Overlapping cells that cover the rows: each row is in the cells of its nearest centres."""
    generator = np.random.default_rng(0)
    n_cells = len(rows) // _CELL_ROWS
    centres = rows[generator.choice(len(rows), n_cells, replace=False)]
    sample = rows[generator.choice(len(rows), min(len(rows), 32 * n_cells), replace=False)]
    for _ in range(_REFINEMENTS):
        owner = _nearest(sample, centres, 1)[:, 0]
        members = sp.csr_matrix(
            (np.ones(len(sample), np.float32), (owner, np.arange(len(sample)))), (n_cells, len(sample))
        )
        sums = np.asarray(members @ sample)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(norms > 0, sums / np.maximum(norms, 1e-9), centres).astype(np.float32)
    owners = _nearest(rows, centres, _CELLS_A_ROW)
    order = np.argsort(owners, axis=None, kind="stable")
    edges = np.searchsorted(owners.ravel()[order], np.arange(n_cells + 1))
    cells = [order[low:high] // _CELLS_A_ROW for low, high in pairwise(edges)]
    # A crowded cell is cut into pieces of neighbours: comparing all its pairs would be quadratic after all.
    return [part for cell in cells for part in _cut(rows, cell)]


def _cut(rows: Floats, cell: Groups) -> list[Groups]:
    if len(cell) <= _MOST_IN_CELL:
        return [cell] if len(cell) > 1 else []
    along = rows[cell] @ (rows[cell[0]] - rows[cell].mean(axis=0))
    half = np.argsort(along, kind="stable")
    middle = len(half) // 2
    return [*_cut(rows, cell[half[:middle]]), *_cut(rows, cell[half[middle:]])]


def _nearest(rows: Floats, centres: Floats, k: int) -> Groups:
    found = np.empty((len(rows), k), np.int64)
    for start in range(0, len(rows), _BLOCK):
        cosine = rows[start : start + _BLOCK] @ centres.T
        found[start : start + _BLOCK] = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
    return found
