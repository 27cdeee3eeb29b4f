"""The gate keeps its promise where the truth is known, and says no where it should."""

import numpy as np
import pytest

from policies.gate import (
    Late,
    beats_majority,
    choose_threshold,
    choose_thresholds,
    fewest_inputs,
    first_testable,
    lower_bound,
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


def _weighted_rows(n: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, agreement falling with the score, and weights 1 or 10."""
    generator = np.random.default_rng(seed)
    scores, agreement = _draw(generator, n, 0.2, 1.0)
    return scores, agreement, np.where(generator.random(n) < 0.3, 10.0, 1.0)


@pytest.mark.parametrize("weight", [1.0, 0.02, 1e9])
def test_equal_weights_change_nothing(weight: float) -> None:
    """Weights in any unit, all the same, give the very numbers of unweighted rows."""
    scores, agreement, _ = _weighted_rows(2_000)
    weights = np.full(2_000, weight)
    plain = choose_threshold(scores, agreement, 0.95, 0.90)
    assert choose_threshold(scores, agreement, 0.95, 0.90, weights=weights) == plain
    assert (
        choose_thresholds(scores, agreement, np.zeros(2_000, np.int64), [], 0.95, 0.90, weights=weights).pool == plain
    )


def test_weighted_choices_do_not_depend_on_the_unit_of_the_weights() -> None:
    """A thousandfold of all weights is the same evidence."""
    scores, agreement, weights = _weighted_rows(2_000)
    found = choose_threshold(scores, agreement, 0.90, 0.90, weights=weights)
    scaled = choose_threshold(scores, agreement, 0.90, 0.90, weights=weights * 1_024)
    assert found.threshold is not None
    assert scaled == found


def test_weighted_coverage_and_agreement_are_weighted_shares() -> None:
    """They are shares of the weight, and the bound stands between the target and the agreement."""
    scores, agreement, weights = _weighted_rows(4_000)
    choice = choose_threshold(scores, agreement, 0.90, 0.90, weights=weights)
    assert choice.threshold is not None
    assert choice.agreement is not None
    assert choice.lower is not None
    handled = scores >= choice.threshold
    assert choice.n_handled == handled.sum()
    assert choice.coverage == pytest.approx(weights[handled].sum() / weights.sum())
    assert choice.agreement == pytest.approx((weights * agreement)[handled].sum() / weights[handled].sum())
    assert 0.90 <= choice.lower < choice.agreement


def test_nearly_equal_weights_cost_little_coverage() -> None:
    """Betting instead of counting on 4,000 rows loses less than two points where agreement falls off steeply."""
    generator = np.random.default_rng(3)
    scores = generator.random(4_000)
    agreement = generator.random(4_000) < 1 - 0.9 * (1 - scores) ** 5
    weights = np.linspace(1, 1.001, 4_000)
    counted = choose_threshold(scores, agreement, 0.95, 0.90)
    bet = choose_threshold(scores, agreement, 0.95, 0.90, weights=weights)
    assert counted.coverage - 0.02 <= bet.coverage <= counted.coverage


def test_heavy_rows_that_disagree_stop_the_weighted_gate() -> None:
    """Disagreement on the rows that stand for most calls is not outvoted by many light rows."""
    generator = np.random.default_rng(4)
    scores, heavy = generator.random(4_000), np.arange(4_000) % 10 == 0
    agreement = ~heavy | (generator.random(4_000) < 0.8)
    weights = np.where(heavy, 20.0, 1.0)
    assert choose_threshold(scores, agreement, 0.95, 0.90).threshold is not None
    assert choose_threshold(scores, agreement, 0.95, 0.90, weights=weights).threshold is None


def test_one_huge_weight_refuses() -> None:
    """One row that stands for more than all others leaves nothing proved, unless it is never accepted anyway."""
    scores, weights = np.linspace(0, 1, 1_000), np.ones(1_000)
    weights[500] = 1e12
    assert choose_threshold(scores, np.ones(1_000, bool), 0.95, 0.90, weights=weights).threshold is None
    scores[500] = -np.inf
    choice = choose_threshold(scores, np.ones(1_000, bool), 0.95, 0.90, weights=weights)
    assert choice.n_handled == 999
    assert choice.coverage == pytest.approx(999 / 1e12)


def test_copies_of_weighted_rows_are_not_evidence() -> None:
    """Forty agreeing inputs, fifty times each, prove nothing with weights either."""
    scores, weights = np.tile(np.linspace(0.5, 1, 40), 50), np.tile(np.linspace(1, 2, 40), 50)
    groups = np.tile(np.arange(40), 50)
    agreement = np.ones(2_000, bool)
    assert choose_threshold(scores, agreement, 0.95, 0.90, groups, weights).threshold is None
    assert choose_threshold(scores, agreement, 0.95, 0.90, weights=weights).threshold is not None


@pytest.mark.parametrize("weights", [None, np.array([3.0])])
def test_a_single_row_proves_nothing(weights: np.ndarray | None) -> None:
    """One row, or none that may be accepted, is refused without fuss."""
    one = choose_threshold(np.array([0.5]), np.array([True]), 0.95, 0.90, weights=weights)
    closed = choose_threshold(np.array([-np.inf]), np.array([True]), 0.95, 0.90, weights=weights)
    assert (one.threshold, one.n_handled, closed.threshold) == (None, 0, None)


def test_no_open_row_with_weights_is_refused() -> None:
    """Rows that are all deferred leave nothing to weigh."""
    choice = choose_threshold(np.full(3, -np.inf), np.ones(3, bool), 0.95, 0.90, weights=np.array([1.0, 2.0, 3.0]))
    assert choice.threshold is None


def test_a_failed_threshold_leaves_nothing_for_the_next() -> None:
    """After a bad stretch only a later start passes again, however good the rows behind it look."""
    agreement = np.ones(10_000, bool)
    agreement[2_000:2_400] = False
    agreement[4_900:] = np.arange(5_100) % 20 > 0
    choice = choose_threshold(np.linspace(1, 0, 10_000), agreement, 0.95, 0.90)
    assert choice.coverage < 0.25


def test_a_bad_top_does_not_stop_the_later_starts() -> None:
    """3 % of bad rows at the top end the early walk, not the late one."""
    agreement = np.ones(4_000, bool)
    agreement[:120] = np.arange(120) % 2 > 0
    assert choose_threshold(np.linspace(1, 0, 4_000), agreement, 0.95, 0.90).coverage == 1.0


def _three_labels(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, agreement and answers: label 0 is mostly right, 1 always, 2 half of the time."""
    generator = np.random.default_rng(5)
    answered = generator.integers(0, 3, n)
    rate = np.array([0.98, 1.0, 0.5])[answered]
    return generator.random(n), generator.random(n) < rate, answered


@pytest.mark.parametrize("weighted", [False, True])
def test_protected_labels_are_handled_only_if_certified_on_their_own(weighted: bool) -> None:
    """A perfect protected label passes, a bad one is deferred, and the pool holds neither."""
    scores, agreement, answered = _three_labels(6_000)
    weights = np.where(np.arange(6_000) % 2, 2.0, 1.0) if weighted else None
    found = choose_thresholds(scores, agreement, answered, [1, 2], 0.95, 0.90, weights=weights)
    assert set(found.protected) == {1, 2}
    assert found.certified
    assert found.protected[2].threshold is None
    assert found.protected[1].threshold is not None
    assert found.pool.threshold is not None
    share = np.ones(6_000) if weights is None else weights
    assert found.protected[1].coverage == pytest.approx(share[answered == 1].sum() / share.sum())
    handled = ((answered == 0) & (scores >= found.pool.threshold)) | (answered == 1)
    total = found.total
    assert total.n_handled == handled.sum()
    assert total.coverage == pytest.approx(share[handled].sum() / share.sum())
    assert total.agreement == pytest.approx(np.average(agreement[handled], weights=share[handled]))
    assert total.threshold == found.pool.threshold
    assert total.lower == min(found.pool.lower or 0, found.protected[1].lower or 0)


def test_the_pool_may_be_refused_while_a_protected_label_is_certified() -> None:
    """Then nothing unprotected is handled, and the union is still certified."""
    scores, agreement, answered = _three_labels(6_000)
    found = choose_thresholds(scores, agreement & (answered != 0), answered, [1], 0.95, 0.90)
    assert found.pool.threshold is None
    assert found.certified
    assert found.total.threshold is None
    assert found.total.n_handled == (answered == 1).sum()


def test_nothing_certified_is_nothing_in_total() -> None:
    """Neither the pool nor a label that is never said, or always wrong, handles anything."""
    scores, _, answered = _three_labels(600)
    found = choose_thresholds(scores, np.zeros(600, bool), answered, [1, 7], 0.95, 0.90)
    assert not found.certified
    assert found.total == found.pool == found.protected[7]
    assert found.total.agreement is None


def test_without_protected_labels_it_is_one_threshold() -> None:
    """The same choice, to the last digit, as for all rows at once."""
    scores, agreement, answered = _three_labels(3_000)
    groups = np.arange(3_000) // 2
    scores = scores[groups]
    found = choose_thresholds(scores, agreement, answered, [], 0.60, 0.90, groups)
    assert found.pool == found.total == choose_threshold(scores, agreement, 0.60, 0.90, groups)
    assert found.certified
    assert found.protected == {}


def test_every_protected_label_costs_a_share_of_the_error() -> None:
    """A pool that passes alone is tested more strictly once there are labels to protect."""
    scores, agreement = np.linspace(0, 1, 100), np.ones(100, bool)
    answered = np.zeros(100, np.int64)
    agreement[0] = False
    assert choose_thresholds(scores, agreement, answered, [], 0.95, 0.90).certified
    assert not choose_thresholds(scores, agreement, answered, [1, 2, 3, 4, 5, 6, 7, 8, 9], 0.95, 0.90).certified


def test_weighted_rows_may_turn_the_most_frequent_label() -> None:
    """The label that stands for most calls is the one to beat, not the one recorded most often."""
    labels = np.array([0] * 900 + [1] * 100)
    weights = np.where(labels == 1, 50.0, 1.0)
    handled = np.ones(1_000, bool)
    assert beats_majority(labels, labels, handled, 0.1)
    assert not beats_majority(labels, np.ones(1_000, np.int64), handled, 0.1, weights)
    assert beats_majority(labels, labels, handled, 0.1, weights)
    assert not beats_majority(labels, labels, np.zeros(1_000, bool), 0.1, weights)
    assert beats_majority(labels, labels, handled, 0.1, np.full(1_000, 7.0))


def test_a_heavy_loss_is_not_outvoted_by_light_wins() -> None:
    """Forty light wins against twenty losses of ten times the weight do not beat the majority."""
    labels = np.array([0] * 140 + [1] * 40)
    predicted = labels.copy()
    predicted[:20] = 1
    weights = np.ones(180)
    weights[:20] = 10.0
    handled = np.ones(180, bool)
    assert beats_majority(labels, predicted, handled, 0.1)
    assert not beats_majority(labels, predicted, handled, 0.1, weights)


@pytest.mark.parametrize("repeats", [1, 3])
def test_answers_that_change_on_the_way_are_counted_as_they_stand(repeats: int) -> None:
    """A cascade's early stage may speak first below some threshold: agreement is that of the answer given there."""
    generator = np.random.default_rng(3)
    n = 2_000
    scores = generator.random(n)
    agreement = generator.random(n) < 0.97
    changes = generator.random(n) < 0.05
    late_scores = np.where(changes, scores * generator.random(n), -np.inf)
    late = Late(np.repeat(late_scores, repeats), np.repeat(generator.random(n) < 0.5, repeats))
    rows = np.repeat(scores, repeats), np.repeat(agreement, repeats)
    groups = np.repeat(np.arange(n), repeats)
    choice = choose_threshold(*rows, 0.95, 0.90, groups, late=late)
    assert choice.threshold is not None
    handled = rows[0] >= choice.threshold
    given = np.where(late.scores >= choice.threshold, late.agreement, rows[1])
    assert choice.n_handled == handled.sum()
    assert choice.agreement == pytest.approx(given[handled].mean())
    assert lower_bound(int(handled.sum()) // repeats, int((~given[handled]).sum()) // repeats, 0.90) >= 0.95
    assert choice.coverage < choose_threshold(*rows, 0.95, 0.90, groups).coverage


def test_answers_that_change_for_the_better_help() -> None:
    """The later answer may be the right one, and then counts as right from there on."""
    scores = np.linspace(1, 0, 1_000)
    agreement = np.arange(1_000) % 12 > 0
    late = Late(np.where(agreement, -np.inf, scores - 0.001), np.ones(1_000, bool))
    assert choose_threshold(scores, agreement, 0.95, 0.90).threshold is None
    assert choose_threshold(scores, agreement, 0.95, 0.90, late=late).coverage > 0.99
