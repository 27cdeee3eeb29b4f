"""The solver finds what scikit-learn finds, out-of-fold scores are honest, and fold models average into one."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from policies.blocks import Features
from policies.candidates import merge_models
from policies.measuring import Measurement, Task, measure
from policies.reading import StageInput, StageReader
from policies.surrogates import Labels, average, fit_softmax


def _blobs(n: int, seed: int = 0) -> tuple[Features, Labels]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 5, n)
    centres = np.random.default_rng(99).normal(size=(5, 20))
    dense = centres[labels] + 1.5 * generator.normal(size=(n, 20))
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    return Features(None, dense.astype(np.float32), (20,), np.zeros(n, np.float32)), labels


def _measured(features: Features, labels: Labels) -> Measurement:
    rows = np.arange(len(features))
    task = Task(
        stages=(StageInput(StageReader(vector_size=20), features, encoded=True),),
        truth=labels,
        n_labels=5,
        groups=rows,
        order=rows,
        readable=np.ones(len(rows), np.bool_),
        candidate="joint",
        guard_budget=0.01,
        seed=0,
        jobs=1,
    )
    found = measure(task, "iid", rows, lambda _: None)
    assert found is not None
    return found


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
    stage = _measured(features, labels).stages[0]
    fresh, truth = _blobs(4_000, seed=2)
    held = (stage.predicted == labels).mean()
    live = (merge_models(stage.heads[0].models).scores(fresh).logits.argmax(axis=1) == truth).mean()
    assert held == pytest.approx(live, abs=0.03)


def test_rows_marked_unknown_are_scored_but_not_learned() -> None:
    """Label -1 never reaches the solver, and the row still has scores."""
    features, labels = _blobs(600)
    labels[:50] = -1
    measurement = _measured(features, labels)
    table = measurement.stages[0].heads[0].table
    assert (measurement.rows == np.arange(600)).all()
    assert np.isfinite(table.columns).all()
    assert np.abs(table.columns[:50]).sum() > 0
    assert (table.predicted[:50] >= 0).all()


def test_the_average_says_the_mean_of_the_models() -> None:
    """Logits of the averaged model are the mean logits, row by row."""
    features, labels = _blobs(600)
    models = [fit_softmax(features.take(np.arange(i, 600, 2)), labels[i::2], 5, seed=i) for i in range(2)]
    fresh, _ = _blobs(100, seed=1)
    mean = np.mean([model.scores(fresh).logits for model in models], axis=0)
    np.testing.assert_allclose(average(models).scores(fresh).logits, mean, atol=1e-4)
