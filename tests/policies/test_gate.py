"""The gate keeps its promise where the truth is known, and says no where it should."""

import numpy as np
import pytest

from policies.gate import (
    beats_majority,
    choose_threshold,
    fewest_inputs,
    first_testable,
    lower_bound,
    traces_still_needed,
)


def _draw(generator: np.random.Generator, n: int, slope: float, top: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores uniform in 0..1; a row of score s agrees with probability top - slope * (1 - s)."""
    scores = generator.random(n)
    return scores, generator.random(n) < top - slope * (1 - scores)


def _true_agreement(threshold: float, slope: float, top: float) -> float:
    return top - slope * (1 - threshold) / 2


@pytest.mark.parametrize(("slope", "top"), [(0.0, 0.945), (0.12, 1.0), (0.3, 0.99)])
def test_violations_stay_within_delta(slope: float, top: float) -> None:
    """Over 300 draws of 1,000 rows the chosen threshold is below target in at most delta of them."""
    generator = np.random.default_rng(7)
    violations = 0
    for _ in range(300):
        scores, agreement = _draw(generator, 1_000, slope, top)
        threshold = choose_threshold(scores, agreement, 0.95, 0.90).threshold
        violations += threshold is not None and _true_agreement(threshold, slope, top) < 0.95
    assert violations / 300 <= 0.10 + 2 * np.sqrt(0.1 * 0.9 / 300)


def test_a_point_estimate_would_break_the_same_promise() -> None:
    """The test above has power: choosing by the observed agreement alone violates far more often than delta."""
    generator = np.random.default_rng(7)
    violations = 0
    for _ in range(200):
        scores, agreement = _draw(generator, 1_000, 0.0, 0.945)
        order = np.argsort(-scores)
        observed = np.cumsum(agreement[order]) / np.arange(1, 1_001)
        violations += bool((observed[50:] >= 0.95).any())
    assert violations / 200 > 0.3


def test_everything_is_accepted_where_everything_agrees() -> None:
    """With no disagreement at all the gate reaches full coverage."""
    scores = np.random.default_rng(0).random(500)
    choice = choose_threshold(scores, np.ones(500, bool), 0.95, 0.90)
    assert choice.coverage == 1.0
    assert choice.agreement == 1.0
    assert choice.lower is not None
    assert choice.lower > 0.99


def test_nothing_is_accepted_on_random_agreement() -> None:
    """Agreement far below target is refused."""
    generator = np.random.default_rng(1)
    choice = choose_threshold(generator.random(2_000), generator.random(2_000) < 0.5, 0.60, 0.90)
    assert choice.threshold is None
    assert choice.coverage == 0.0


def test_rows_that_are_always_deferred_are_never_accepted() -> None:
    """Rows at -inf count for the coverage's denominator and nothing else."""
    scores = np.full(1_000, -np.inf)
    scores[:600] = np.random.default_rng(2).random(600)
    choice = choose_threshold(scores, np.ones(1_000, bool), 0.95, 0.90)
    assert choice.coverage == pytest.approx(0.6)
    assert choice.threshold is not None
    assert np.isfinite(choice.threshold)


def test_tied_scores_are_accepted_together_or_not_at_all() -> None:
    """A large group of tied rows with bad agreement does not slip in behind its good head."""
    scores = np.concatenate([np.linspace(1.0, 0.9, 400), np.full(600, 0.5)])
    agreement = np.concatenate([np.ones(400, bool), np.zeros(600, bool)])
    choice = choose_threshold(scores, agreement, 0.95, 0.90)
    assert choice.threshold is not None
    assert choice.threshold > 0.5
    assert (scores >= choice.threshold).sum() == choice.n_handled


def test_one_single_score_for_all_rows_is_judged_as_one_group() -> None:
    """A score without any information still certifies everything or nothing, by the exact test."""
    good = choose_threshold(np.zeros(1_000), np.arange(1_000) % 50 > 0, 0.95, 0.90)
    bad = choose_threshold(np.zeros(1_000), np.arange(1_000) % 20 > 0, 0.95, 0.90)
    assert (good.coverage, bad.coverage) == (1.0, 0.0)


def test_the_smallest_testable_samples_are_the_known_ones() -> None:
    """First testable n with two disagreements allowed, at delta 0.1, is 105, 176 and 531."""
    assert [first_testable(target, 0.1) for target in (0.95, 0.97, 0.99)] == [105, 176, 531]
    assert first_testable(0.95, 0.1, allowed=0) == 45


def test_the_lower_bound_is_clopper_and_pearson() -> None:
    """No disagreement in 45 rows bounds agreement at 0.95 with confidence 0.90; all wrong bounds it at 0."""
    assert lower_bound(45, 0, 0.90) == pytest.approx(0.1 ** (1 / 45))
    assert lower_bound(10, 10, 0.90) == 0.0


def test_the_majority_label_alone_never_passes() -> None:
    """A surrogate that only says the most frequent label is turned away; one that earns its keep is not."""
    labels = np.array([0] * 900 + [1] * 100)
    handled = np.ones(1_000, bool)
    assert not beats_majority(labels, np.zeros(1_000, np.int64), handled, 0.1)
    better = labels.copy()
    better[900:910] = 0
    assert beats_majority(labels, better, handled, 0.1)
    assert not beats_majority(np.full(10, -1), np.zeros(10, np.int64), np.ones(10, bool), 0.1)


def test_it_says_how_many_more_traces_would_help() -> None:
    """A surrogate well above target on too few rows needs more traces; one below target is beyond help."""
    scores = np.linspace(0, 1, 60)
    needed = traces_still_needed(60, scores, np.ones(60, bool), 0.97, 0.90)
    assert needed is not None
    assert 50 <= needed <= 2_000
    assert traces_still_needed(60, scores, np.zeros(60, bool), 0.97, 0.90) is None


def test_copies_of_rows_are_not_evidence() -> None:
    """Forty agreeing inputs, fifty times each, prove nothing; with as many different inputs they would."""
    scores, agreement = np.tile(np.linspace(0.5, 1, 40), 50), np.ones(2_000, bool)
    groups = np.tile(np.arange(40), 50)
    assert choose_threshold(scores, agreement, 0.95, 0.90, groups).threshold is None
    assert choose_threshold(scores, agreement, 0.95, 0.90).threshold is not None


def test_frequent_inputs_that_disagree_count_as_often_as_they_come() -> None:
    """One input in a thousand is wrong, but it is a fifth of all calls: no threshold that lets it through passes."""
    scores = np.concatenate([np.linspace(0.5, 1, 1_000), np.full(249, 0.5)])
    agreement = np.concatenate([[False], np.ones(999, bool), np.zeros(249, bool)])
    groups = np.concatenate([np.arange(1_000), np.zeros(249, np.int64)])
    choice = choose_threshold(scores, agreement, 0.95, 0.90, groups)
    assert choice.threshold is not None
    assert choice.threshold > 0.5
    assert choice.agreement == 1.0


def test_a_few_tied_rows_at_the_top_do_not_stop_the_walk() -> None:
    """Ties can pull a step below the smallest sample that can pass; that step is left out, not failed."""
    scores = np.array([1.0] * 5 + [0.9] * 995)
    assert choose_threshold(scores, np.ones(1_000, bool), 0.95, 0.90).coverage == 1.0


def test_the_fewest_inputs_are_those_of_the_shorter_walk() -> None:
    """With fewer, nothing can pass; with as many, all agreeing, something does."""
    fewest = fewest_inputs(0.95, 0.90)
    for n, passes in ((fewest - 1, False), (fewest, True)):
        found = choose_threshold(np.linspace(0, 1, n), np.ones(n, bool), 0.95, 0.90).threshold
        assert (found is not None) == passes
