"""The betting test is valid and powerful enough, and its bounds agree with it."""

import numpy as np
import pytest

from policies.betting import Bets, WeightedEvidence, WeightedSample
from policies.gate import lower_bound

_BETS = Bets(0.05, 0.10)


def _rows(
    generator: np.random.Generator, n: int, heavy_rate: float, light_rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """One row in five has weight 1, the others 0.1; they disagree at the given rates."""
    heavy = generator.random(n) < 0.2
    wrong = generator.random(n) < np.where(heavy, heavy_rate, light_rate)
    return np.where(heavy, 1.0, 0.1), wrong


@pytest.mark.parametrize(("heavy_rate", "light_rate"), [(0.05, 0.05), (0.07, 0.0), (0.03, 0.10)])
def test_a_true_null_is_rejected_in_at_most_its_level(heavy_rate: float, light_rate: float) -> None:
    """At a weighted error rate of 0.05, whichever rows it comes from, p is below 0.1 in at most one draw of ten."""
    generator = np.random.default_rng(0)
    p = [_BETS.p_value(*_rows(generator, 1_000, heavy_rate, light_rate), 0.05) for _ in range(1_000)]
    assert np.mean(np.array(p) <= 0.10) <= 0.10


def test_a_point_estimate_would_reject_it_half_of_the_time() -> None:
    """The test above has power: the weighted average alone is below 0.05 in about half of such draws."""
    generator = np.random.default_rng(0)
    draws = [_rows(generator, 1_000, 0.05, 0.05) for _ in range(200)]
    assert np.mean([np.average(wrong, weights=weights) < 0.05 for weights, wrong in draws]) > 0.4


def test_a_clearly_lower_rate_is_rejected() -> None:
    """Half the error rate is told from it on 2,000 rows nearly always."""
    generator = np.random.default_rng(1)
    p = [_BETS.p_value(*_rows(generator, 2_000, 0.02, 0.02), 0.05) for _ in range(100)]
    assert np.mean(np.array(p) <= 0.10) > 0.9


def test_the_bound_and_the_test_agree() -> None:
    """The lower bound exceeds a target exactly where the test rejects it, and covers the truth."""
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(600):
        weights, wrong = _rows(generator, 500, 0.04, 0.08)
        bound = _BETS.lower_bound(weights, wrong, 0.10)
        for error_rate in (0.03, 0.06, 0.09):
            if abs(1 - bound - error_rate) > 1e-9:
                assert (_BETS.p_value(weights, wrong, error_rate) <= 0.10) == (bound > 1 - error_rate)
        covered += bound <= 1 - (0.2 * 0.04 + 0.08 * 0.08) / (0.2 + 0.08)
    assert covered / 600 >= 0.90


def test_rows_of_the_largest_weight_alone_are_counted_exactly() -> None:
    """The p-value is binomial and the bound Clopper and Pearson's."""
    weights, wrong = np.ones(45), np.zeros(45, bool)
    assert _BETS.p_value(weights, wrong, 0.05) == pytest.approx(0.95**45)
    assert _BETS.lower_bound(weights, wrong, 0.10) == pytest.approx(lower_bound(45, 0, 0.90))


def test_no_rows_prove_nothing() -> None:
    """Without rows p is 1 and the bound 0; with nothing but disagreement the bound is 0."""
    none = np.zeros(0)
    assert _BETS.p_value(none, np.zeros(0, bool), 0.05) == 1.0
    assert _BETS.lower_bound(none, np.zeros(0, bool), 0.10) == 0.0
    assert _BETS.lower_bound(np.array([0.5, 1.0]), np.ones(2, bool), 0.10) == 0.0
    assert not _BETS.can_pass(none, 0, 0.10)


def test_stakes_see_only_the_past_and_never_risk_everything() -> None:
    """Changing a row's weight leaves the stakes up to that row alone; all stay below 1."""
    weights = np.linspace(0.5, 1, 1_000)
    changed = weights.copy()
    changed[60] = 0.001
    stakes, others = _BETS.stakes(weights), _BETS.stakes(changed)
    assert stakes[:61] == pytest.approx(others[:61])
    assert stakes[61] != others[61]
    assert 0 < stakes.min() <= stakes.max() < 1


@pytest.mark.parametrize("allowed", [0, 2])
def test_the_first_testable_sample_can_pass_and_looks_at_no_label(allowed: int) -> None:
    """At that size, agreement everywhere passes; labels do not move it; too few rows never pass."""
    weights = np.random.default_rng(3).choice([0.5, 1.0], 1_000)
    place = np.arange(1_000)
    right, wrong = (
        WeightedEvidence(_BETS, [WeightedSample.of(place, weights, np.full(1_000, v))]) for v in (False, True)
    )
    m = right.first_testable(0.05, allowed)
    assert m == wrong.first_testable(0.05, allowed)
    assert 45 < m < 500
    assert next(iter(right.p_values(np.array([m])))) <= 0.05
    few = WeightedEvidence(_BETS, [WeightedSample.of(place[:10], weights[:10], np.zeros(10, bool))])
    assert few.first_testable(0.05, allowed) == 11
