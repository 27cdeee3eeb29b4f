"""What stands beside a certificate: ceilings, effective samples, labels one by one, how many more traces."""

import numpy as np
import pytest

from policies.diagnostics import effective_sample, label_bounds, teacher_ceiling, traces_still_needed
from policies.gate import lower_bound


def test_it_says_how_many_more_traces_would_help() -> None:
    """A surrogate well above target on too few rows needs more traces; one below target is beyond help."""
    scores = np.linspace(0, 1, 60)
    needed = traces_still_needed(60, scores, np.ones(60, bool), 0.97, 0.90)
    assert needed is not None
    assert 50 <= needed <= 2_000
    assert traces_still_needed(60, scores, np.zeros(60, bool), 0.97, 0.90) is None


def test_the_ceiling_of_a_teacher_that_errs_one_time_in_ten() -> None:
    """Two answers agree in 0.82 of the pairs, so the ceiling is 0.9; one frequent input changes little."""
    generator = np.random.default_rng(6)
    groups = np.concatenate([np.repeat(np.arange(3_000), 2), np.full(1_000, 3_000)])
    labels = (generator.random(7_000) < 0.1).astype(np.int64)
    labels[6_000:] = np.arange(1_000) % 2
    ceiling = teacher_ceiling(groups, labels)
    assert ceiling is not None
    assert ceiling.pairs == 3_001
    assert ceiling.agreeing == pytest.approx(0.82, abs=0.02)
    assert ceiling.highest == pytest.approx(0.90, abs=0.015)
    weighted = teacher_ceiling(groups, labels, np.full(7_000, 4.0))
    assert weighted is not None
    assert weighted.agreeing == pytest.approx(ceiling.agreeing)


def test_the_ceiling_where_the_teacher_never_or_always_contradicts_itself() -> None:
    """1 with a perfect teacher, at most sqrt(a) with a wild one, nothing below twenty repeated inputs."""
    groups = np.repeat(np.arange(20), 2)
    steady = teacher_ceiling(groups, np.repeat(np.arange(20), 2))
    wild = teacher_ceiling(groups, np.arange(40))
    unknown = teacher_ceiling(groups, np.full(40, -1))
    assert steady is not None
    assert (steady.pairs, steady.agreeing, steady.highest) == (20, 1.0, 1.0)
    assert wild is not None
    assert (wild.agreeing, wild.highest) == (0.0, 0.0)
    assert wild == unknown
    assert teacher_ceiling(groups[2:], np.zeros(38, np.int64)) is None
    assert teacher_ceiling(np.zeros(0, np.int64), np.zeros(0, np.int64)) is None


def test_weights_decide_which_repeats_speak_for_the_teacher() -> None:
    """Inputs that stand for many calls count more than those that stand for few."""
    groups = np.repeat(np.arange(40), 2)
    labels = np.zeros(80, np.int64)
    labels[:40:2] = 1
    weights = np.where(np.arange(80) < 40, 1.0, 9.0)
    plain, weighted = teacher_ceiling(groups, labels), teacher_ceiling(groups, labels, weights)
    assert plain is not None
    assert weighted is not None
    assert plain.agreeing == pytest.approx(0.5)
    assert weighted.agreeing == pytest.approx(0.9)


def test_the_effective_sample_shrinks_where_alike_rows_agree_alike() -> None:
    """Groups that agree as one count once; groups whose rows agree at random, or of one row each, cost nothing."""
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(500), 4)
    as_one = np.repeat(generator.random(500) < 0.8, 4)
    assert effective_sample(groups, as_one) == pytest.approx(500, rel=0.02)
    assert effective_sample(groups, generator.random(2_000) < 0.8) > 1_700
    assert effective_sample(np.arange(100), generator.random(100) < 0.8) == 100
    assert effective_sample(groups, np.ones(2_000, bool)) == 2_000
    assert effective_sample(np.zeros(0, np.int64), np.zeros(0, bool)) == 0


def test_label_bounds_are_clopper_and_pearson_label_by_label() -> None:
    """Handled share by the teacher's label, agreement by the surrogate's; nan where it says nothing."""
    truth = np.array([0] * 100 + [1] * 50 + [-1] * 10)
    predicted = truth.copy()
    predicted[:5] = 1
    predicted[150:] = 0
    handled = np.ones(160, bool)
    handled[100:120] = False
    found = label_bounds(truth, predicted, handled, 3, 0.90)
    assert found.handled_share == pytest.approx([1.0, 0.6, np.nan], nan_ok=True)
    assert found.answered.tolist() == [105, 35, 0]
    assert found.agreement == pytest.approx([95 / 105, 30 / 35, np.nan], nan_ok=True)
    assert found.lower == pytest.approx([lower_bound(105, 10, 0.9), lower_bound(35, 5, 0.9), np.nan], nan_ok=True)
    equal = label_bounds(truth, predicted, handled, 3, 0.90, np.full(160, 2.5))
    assert equal.lower == pytest.approx(found.lower, nan_ok=True)
    assert equal.handled_share == pytest.approx(found.handled_share, nan_ok=True)


def test_label_bounds_of_a_label_that_is_always_wrong_are_zero() -> None:
    """No agreement at all bounds it at 0, with weights and without."""
    truth, predicted = np.zeros(5, np.int64), np.ones(5, np.int64)
    for weights in (None, np.arange(1.0, 6.0)):
        found = label_bounds(truth, predicted, np.ones(5, bool), 2, 0.90, weights)
        assert found.lower[1] == 0.0
        assert np.isnan(found.lower[0])


def test_weighted_label_bounds_are_weighted_and_below_the_agreement() -> None:
    """Shares are of the weight, and each bound is a bound on the weighted agreement."""
    generator = np.random.default_rng(8)
    truth = generator.integers(0, 2, 2_000)
    predicted = np.where(generator.random(2_000) < 0.1, 1 - truth, truth)
    weights = np.where(truth == predicted, 1.0, 5.0)
    handled = generator.random(2_000) < 0.8
    found = label_bounds(truth, predicted, handled, 3, 0.90, weights)
    for label in (0, 1):
        mine = handled & (predicted == label)
        assert found.agreement[label] == pytest.approx(np.average(truth[mine] == label, weights=weights[mine]))
        assert found.agreement[label] - 0.12 < found.lower[label] < found.agreement[label]
        own = truth == label
        assert found.handled_share[label] == pytest.approx(np.average(handled[own], weights=weights[own]))
    assert np.isnan(found.lower[2])
    nothing = label_bounds(truth, predicted, np.zeros(2_000, bool), 3, 0.90, weights)
    assert np.isnan(nothing.lower).all()
    assert nothing.handled_share[:2].tolist() == [0.0, 0.0]
