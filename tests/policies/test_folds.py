"""Rows that are alike stay together, folds are random and even, and near-duplicates are found without every pair."""

import numpy as np
import pytest

from policies import folds as module
from policies.folds import balanced_folds, near_duplicates, random_folds


def _unit(matrix: np.ndarray) -> np.ndarray:
    return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True), np.float32)


def _clusters(n_clusters: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows in tight clusters far from each other, in random order, and each row's cluster."""
    generator = np.random.default_rng(seed)
    centres = _unit(generator.normal(size=(n_clusters, 64)))
    member = generator.permutation(np.repeat(np.arange(n_clusters), size))
    return _unit(centres[member] + 0.02 * generator.normal(size=(len(member), 64))), member


def _same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = np.unique(np.stack([a, b]), axis=1).shape[1]
    return bool(pairs == len(np.unique(a)) == len(np.unique(b)))


def test_folds_are_random_and_even() -> None:
    """Sizes differ by at most one, the seed decides, and labels play no part."""
    rows = np.arange(1_003)
    folds = random_folds(rows, 5)
    assert np.ptp(np.bincount(folds)) <= 1
    assert (folds == random_folds(rows, 5)).all()
    assert (folds != random_folds(rows, 6)).any()


@pytest.mark.parametrize("make", [random_folds, balanced_folds])
def test_equal_inputs_share_a_fold(make: object) -> None:
    """Copies of an input never stand on both sides."""
    groups = np.random.default_rng(0).integers(0, 50, 500)
    folds = make(groups, 1)  # type: ignore[operator]
    assert all(len(set(folds[groups == group])) == 1 for group in range(50))


def test_groups_of_unequal_size_still_give_even_folds() -> None:
    """A few large groups beside many small ones: no fold gets two of the large."""
    groups = np.concatenate([np.repeat(np.arange(5), 200), np.arange(5, 1_005)])
    sizes = np.bincount(balanced_folds(groups, 0))
    assert np.ptp(sizes) <= 1
    assert (balanced_folds(groups, 0) != balanced_folds(groups, 1)).any()


def test_near_duplicates_are_grouped_and_strangers_are_not() -> None:
    """Rows of a tight cluster form one group; rows of different clusters never share one."""
    vectors, member = _clusters(60, 5)
    assert _same_partition(near_duplicates(vectors, np.arange(len(vectors)))[0], member)


def test_equal_inputs_are_near_duplicates_of_each_other() -> None:
    """Also where their vectors say nothing: the groups of equal inputs are never torn apart."""
    vectors = np.zeros((6, 8), np.float32)
    assert [found.tolist() for found in near_duplicates(vectors, np.array([0, 0, 1, 1, 2, 3]))] == [
        [0, 0, 1, 1, 2, 3]
    ] * 2


def test_many_rows_are_compared_cell_by_cell_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortcut for large files finds the same groups on clusters, a crowded cell included."""
    vectors, member = _clusters(400, 10, seed=1)
    vectors[:900] = _unit(vectors[0] + 0.01 * np.random.default_rng(2).normal(size=(900, 64)))
    member[:900] = member[0]
    everything = near_duplicates(vectors, np.arange(len(vectors)))[0]
    monkeypatch.setattr(module, "_ALL_PAIRS", 1_000)
    monkeypatch.setattr(module, "_CELL_ROWS", 100)
    monkeypatch.setattr(module, "_MOST_IN_CELL", 300)
    by_cells = near_duplicates(vectors, np.arange(len(vectors)))[0]
    found = np.unique(np.stack([everything, by_cells]), axis=1).shape[1]
    # A crowded cell is cut, so that its one group may fall into a few; nothing else may differ.
    assert found <= len(np.unique(everything)) + 12
    assert len(np.unique(by_cells)) >= len(np.unique(everything))
