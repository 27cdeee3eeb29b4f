"""The acceptor's cross-fitted scores mean what the served ones mean, and its features leak nothing."""

import numpy as np
import pytest

from policies.acceptor import describe, fit_acceptor
from policies.gate import choose_threshold
from policies.surrogates import Scores


def _task(seed: int, n: int, n_labels: int, slope: float) -> tuple[Scores, np.ndarray]:
    """Scores whose gap between the two highest logits says how likely agreement is: 1 - exp(-slope gap) / 2."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, n_labels)).astype(np.float32)
    logits[np.arange(n), generator.integers(0, n_labels, n)] += generator.exponential(2.0, n).astype(np.float32) + 1
    ordered = np.sort(logits, axis=1)
    gap = ordered[:, -1] - ordered[:, -2]
    agreement = generator.random(n) < 1 - np.exp(-slope * gap) / 2
    similarity = generator.random((n, n_labels)).astype(np.float32)
    return Scores((logits,), similarity, np.zeros(n, np.float32)), agreement


@pytest.mark.parametrize("errors", range(26, 46, 4))
def test_one_kind_of_score_is_judged_and_served(errors: int) -> None:
    """Around the number of disagreements where the regression starts, serving accepts as much as was judged."""
    scores, agreement = _task(errors, 1_500, 6, 3.0)
    agreement[:] = True
    agreement[np.random.default_rng(errors).choice(1_500, errors, replace=False)] = False
    table = describe(scores)
    acceptor, crossed = fit_acceptor(table, agreement, np.arange(1_500), 6, 0)
    threshold = np.quantile(crossed, 0.4)
    assert (acceptor.accept_scores(table) >= threshold).mean() == pytest.approx(0.6, abs=0.1)


def test_a_noisy_yes_or_no_task_keeps_its_coverage() -> None:
    """With two labels the past reliability of a label must not tell a row's own agreement."""
    scores, agreement = _task(1, 4_000, 2, 1.2)
    _, crossed = fit_acceptor(describe(scores), agreement, np.arange(4_000), 2, 0)
    ordered = np.sort(scores.logits, axis=1)
    by_gap = choose_threshold((ordered[:, 1] - ordered[:, 0]).astype(np.float64), agreement, 0.95, 0.90).coverage
    assert by_gap > 0.3
    assert choose_threshold(crossed, agreement, 0.95, 0.90).coverage > by_gap - 0.05


def test_agreement_that_nothing_tells_is_not_told() -> None:
    """Where agreement is a coin's toss, cross-fitted scores do not rank it (upwards; each row's absence from what
    scores it ranks it slightly downwards)."""
    scores, _ = _task(2, 3_000, 4, 1.0)
    agreement = np.random.default_rng(3).random(3_000) < 0.8
    _, crossed = fit_acceptor(describe(scores), agreement, np.arange(3_000), 4, 0)
    assert np.corrcoef(crossed, agreement)[0, 1] < 0.06
