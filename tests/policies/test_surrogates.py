"""The solver finds what scikit-learn finds, and out-of-fold scores are honest."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from policies.blocks import Features
from policies.surrogates import average, cross_validate, fit_softmax, random_folds


def _blobs(n: int, seed: int = 0) -> tuple[Features, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 5, n)
    centres = np.random.default_rng(99).normal(size=(5, 20))
    dense = centres[labels] + 1.5 * generator.normal(size=(n, 20))
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    return Features(None, dense.astype(np.float32), np.zeros(n, np.float32)), labels


def test_agreement_matches_scikit_learn_on_dense_data() -> None:
    """Within a point of logistic regression with the same penalty on fresh rows."""
    features, labels = _blobs(2_000)
    fresh, truth = _blobs(2_000, seed=1)
    ours = (fit_softmax(features, labels, 5).scores(fresh).logits.argmax(axis=1) == truth).mean()
    reference = LogisticRegression(C=10.0, max_iter=1_000).fit(features.dense, labels).score(fresh.dense, truth)
    assert ours == pytest.approx(reference, abs=0.01)


def test_out_of_fold_agreement_is_that_of_fresh_rows() -> None:
    """Scores of rows by models that did not see them measure what new rows will give."""
    features, labels = _blobs(1_500)
    scores, models = cross_validate(features, labels, 5, random_folds(np.arange(1_500), 0), lambda _: None)
    fresh, truth = _blobs(4_000, seed=2)
    held = (scores.logits.argmax(axis=1) == labels).mean()
    live = (average(models).scores(fresh).logits.argmax(axis=1) == truth).mean()
    assert held == pytest.approx(live, abs=0.03)


def test_rows_marked_unknown_are_scored_but_not_learned() -> None:
    """Label -1 never reaches the solver, and the row still has scores."""
    features, labels = _blobs(600)
    labels[:50] = -1
    scores, _ = cross_validate(features, labels, 5, random_folds(np.arange(600), 0), lambda _: None)
    assert np.isfinite(scores.logits).all()
    assert np.abs(scores.logits[:50]).sum() > 0


def test_folds_are_random_and_even() -> None:
    """Sizes differ by at most one, the seed decides, and labels play no part."""
    rows = np.arange(1_003)
    folds = random_folds(rows, 5)
    assert np.ptp(np.bincount(folds)) <= 1
    assert (folds == random_folds(rows, 5)).all()
    assert (folds != random_folds(rows, 6)).any()


def test_equal_inputs_share_a_fold() -> None:
    """Copies of an input never stand on both sides."""
    groups = np.random.default_rng(0).integers(0, 50, 500)
    folds = random_folds(groups, 1)
    assert all(len(set(folds[groups == group])) == 1 for group in range(50))
