"""Evidence, bounds and detectors: exact against independent recomputation, at the edges, and through JSON."""

import json
from fractions import Fraction
from math import exp, inf, isfinite, log
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import binom

from policies.monitor import (
    FALLEN,
    PROVEN,
    Counts,
    Detector,
    Mixture,
    ShareDetector,
    log_evidence_against,
    log_evidence_for,
    lower_bound,
    upper_bound,
)

_TARGETS = (0.5, 0.9, 0.95, 0.99, 0.999)
_COMPARISONS = st.lists(st.tuples(st.sampled_from([1.0, 0.5, 0.2, 0.013]), st.booleans()), max_size=60)


def _counts(*rows: tuple[float, int, int]) -> Counts:
    """Counts of (weight, right, wrong)."""
    counts = Counts()
    for weight, right, wrong in rows:
        counts.add(weight, False, right)
        counts.add(weight, True, wrong)
    return counts


def _tally(comparisons: list[tuple[float, bool]]) -> Counts:
    counts = Counts()
    for weight, wrong in comparisons:
        counts.add(weight, wrong)
    return counts


def _exact_stakes(mixture: Mixture, rate: Fraction) -> list[Fraction]:
    """(q - rate) / (rate (1 - rate)), where q has so many times the odds."""
    stakes = []
    for odds in map(Fraction, mixture.odds):
        q = odds * rate / (1 - rate + odds * rate)
        stakes.append((q - rate) / (rate * (1 - rate)))
    return stakes


def _exact_wealth(mixture: Mixture, comparisons: list[tuple[float, bool]], target: float) -> Fraction:
    """The mixture's wealth, bet after bet, in exact fractions."""
    rate = 1 - Fraction(target)
    total = Fraction(0)
    for stake, prior in zip(_exact_stakes(mixture, rate), mixture.prior, strict=True):
        wealth = Fraction(prior)
        for weight, wrong in comparisons:
            wealth *= 1 + stake * Fraction(weight) * (wrong - rate)
        total += wealth
    return total


# Counts


def test_counts_say_how_many_of_which_weight() -> None:
    """n, wrong, the weighted estimate and Kish's effective number are those of the comparisons one by one."""
    counts = _counts((1.0, 90, 10), (0.2, 300, 200))
    weights = np.repeat([1.0, 1.0, 0.2, 0.2], [90, 10, 300, 200])
    wrong = np.repeat([0, 1, 0, 1], [90, 10, 300, 200])

    assert (counts.n, counts.wrong) == (600, 210)
    assert counts.agreement == pytest.approx(1 - np.average(wrong, weights=weights))
    assert counts.effective == pytest.approx(weights.sum() ** 2 / (weights**2).sum())


def test_no_comparisons_say_nothing() -> None:
    """Without comparisons there is no estimate, no evidence, and the bounds are 0 and 1."""
    counts = Counts()
    assert (counts.n, counts.wrong, counts.effective, counts.agreement) == (0, 0, 0.0, None)
    for target in _TARGETS:
        assert log_evidence_against(counts, target) == log_evidence_for(counts, target) == 0
        assert (lower_bound(counts, target), upper_bound(counts, target)) == (0, 1)
    counts.add(0.5, True, n=0)
    assert counts == Counts()


@pytest.mark.parametrize("weight", [0.0, -0.1, 1.0000001, inf, float("nan")])
def test_a_weight_outside_its_range_is_refused(weight: float) -> None:
    """Nothing takes a weight that is not in (0, 1], and what was there stays."""
    counts, detector = _counts((1.0, 3, 1)), Detector(0.95)
    with pytest.raises(ValueError, match="not in"):
        counts.add(weight, True)
    with pytest.raises(ValueError, match="not in"):
        detector.update(weight, True)
    assert counts == _counts((1.0, 3, 1))
    assert detector.to_json() == Detector(0.95).to_json()


def test_a_negative_number_of_comparisons_is_refused() -> None:
    """Comparisons cannot be taken back."""
    with pytest.raises(ValueError, match="-1"):
        Counts().add(1.0, True, n=-1)


@given(_COMPARISONS)
@settings(deadline=None)
def test_counts_survive_json(comparisons: list[tuple[float, bool]]) -> None:
    """What is stored is what is read, to the bit."""
    counts = _tally(comparisons)
    assert Counts.from_json(json.loads(json.dumps(counts.to_json()))) == counts


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        "no",
        {"1.0": [3, 1]},
        [1.0, 3, 1],
        [[1.0, 3]],
        [[1.0, 3, 1, 0]],
        [[0.0, 3, 1]],
        [[1.5, 3, 1]],
        [[float("nan"), 3, 1]],
        [[inf, 3, 1]],
        [[10**400, 3, 1]],
        [["1.0", 3, 1]],
        [[True, 3, 1]],
        [[1.0, 3.0, 1]],
        [[1.0, True, 1]],
        [[1.0, 0, 0]],
        [[1.0, 3, -1]],
        [[1.0, 3, 4]],
        [[1.0, 10**400, 4]],
        [[1.0, 3, 1], [1, 3, 1]],
    ],
    ids=str,
)
def test_nonsense_is_not_read_as_counts(value: Any) -> None:
    """A stored value that `to_json` cannot have given raises ValueError."""
    with pytest.raises(ValueError, match=r"numbers|counts|weight"):
        Counts.from_json(value)


# Evidence


@pytest.mark.parametrize("target", _TARGETS)
@pytest.mark.parametrize(("right", "wrong"), [(0, 1), (1, 0), (17, 3), (940, 60), (3_000, 0), (0, 200)])
def test_without_weights_evidence_is_a_mixture_of_likelihood_ratios(target: float, right: int, wrong: int) -> None:
    """With all weights 1 both kinds of evidence are those of scipy's binomial probabilities."""
    counts = _counts((1.0, right, wrong))
    rate = 1 - target
    for mixture, evidence in ((FALLEN, log_evidence_against), (PROVEN, log_evidence_for)):
        odds = np.array(mixture.odds) * rate / (1 - rate)
        ratios = binom.logpmf(wrong, right + wrong, odds / (1 + odds)) - binom.logpmf(wrong, right + wrong, rate)
        expected = logsumexp(ratios, b=mixture.prior)
        assert evidence(counts, target) == pytest.approx(expected, rel=1e-8, abs=1e-8)


@given(_COMPARISONS, st.sampled_from(_TARGETS))
@settings(deadline=None)
def test_evidence_is_what_betting_one_by_one_gives(comparisons: list[tuple[float, bool]], target: float) -> None:
    """Weighted or not, in whatever order: the wealth of the bets, recomputed in exact fractions."""
    counts = _tally(comparisons)
    for mixture, evidence in ((FALLEN, log_evidence_against), (PROVEN, log_evidence_for)):
        wealth = _exact_wealth(mixture, comparisons, target)
        assert exp(evidence(counts, target)) == pytest.approx(float(wealth), rel=1e-9)


@pytest.mark.parametrize("target", _TARGETS)
@pytest.mark.parametrize("weight", [1.0, 0.2, 0.001])
@pytest.mark.parametrize("mixture", [FALLEN, PROVEN], ids=["fallen", "proven"])
def test_no_bet_is_expected_to_gain_on_target(mixture: Mixture, weight: float, target: float) -> None:
    """Stakes keep wealth positive, agree with their definition, point one way, and are fair on target."""
    rate = 1 - target
    stakes = mixture.stakes(rate)
    expected = [float(stake) for stake in _exact_stakes(mixture, Fraction(rate))]
    wrong, right = 1 + stakes * weight * (1 - rate), 1 - stakes * weight * rate

    assert sum(mixture.prior) == pytest.approx(1)
    assert stakes == pytest.approx(expected)
    assert (wrong > 0).all()
    assert (right > 0).all()
    assert rate * wrong + (1 - rate) * right == pytest.approx(np.ones(len(stakes)))
    assert len(set(np.sign(stakes))) == 1


@pytest.mark.parametrize("target", _TARGETS)
def test_a_million_comparisons_do_not_overflow(target: float) -> None:
    """All right, all wrong and mixed: finite evidence with the right sign."""
    million = 10**6
    right, wrong = _counts((1.0, million, 0)), _counts((1.0, 0, million))
    mixed = _counts((1.0, million, million), (0.3, million, 0))
    for counts in (right, wrong, mixed):
        assert isfinite(log_evidence_against(counts, target))
        assert isfinite(log_evidence_for(counts, target))
    assert log_evidence_against(right, target) < 0 < log_evidence_for(right, target)
    assert log_evidence_for(wrong, target) < 0 < log_evidence_against(wrong, target)
    assert lower_bound(right, 0.95) > 0.99999
    assert lower_bound(wrong, 0.95) == 0
    assert upper_bound(wrong, 0.95) < 0.00001
    assert upper_bound(right, 0.95) == 1


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_a_target_outside_its_range_is_refused(share: float) -> None:
    """Targets, confidences and limits lie between 0 and 1."""
    counts = _counts((1.0, 3, 1))
    for look in (log_evidence_against, log_evidence_for, lower_bound, upper_bound):
        with pytest.raises(ValueError, match="between 0 and 1"):
            look(counts, share)
    for detector in (Detector, ShareDetector):
        with pytest.raises(ValueError, match="between 0 and 1"):
            detector(share)


# Bounds


@given(_COMPARISONS, st.sampled_from([0.9, 0.95, 0.99]))
@settings(deadline=None)
def test_bounds_are_where_evidence_reaches_its_level(comparisons: list[tuple[float, bool]], confidence: float) -> None:
    """A target is proven where it is below the lower bound, refuted above the upper; bounds do not cross."""
    counts = _tally(comparisons)
    lower, upper = lower_bound(counts, confidence), upper_bound(counts, confidence)
    needed, step = log(1 / (1 - confidence)), 1e-6

    assert 0 <= lower <= upper <= 1
    for target in np.linspace(0.003, 0.997, 60):
        if abs(target - lower) > step:
            assert (log_evidence_for(counts, target) >= needed) == (target < lower)
        if abs(target - upper) > step:
            assert (log_evidence_against(counts, target) >= needed) == (target > upper)


def test_bounds_tighten_around_the_estimate() -> None:
    """More of the same brings both bounds nearer, at a million comparisons to a thousandth."""
    widths = []
    for n in (100, 1_000, 10_000, 100_000, 1_000_000):
        counts = _counts((1.0, 97 * n // 100, 3 * n // 100))
        lower, upper = lower_bound(counts, 0.95), upper_bound(counts, 0.95)
        assert lower < 0.97 < upper
        widths.append(upper - lower)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.0015


def test_weights_count_what_was_sampled_less_for_more() -> None:
    """A part sampled five times as often, and always wrong, weighs a fifth in estimate and bounds."""
    counts = _counts((1.0, 2_000, 0), (0.2, 0, 500))
    assert counts.agreement == pytest.approx(1 - 100 / 2_100)
    assert lower_bound(counts, 0.95) < 1 - 100 / 2_100 < upper_bound(counts, 0.95)
    assert lower_bound(counts, 0.95) > 0.93
    assert log_evidence_against(counts, 0.95) < 0 < log_evidence_against(_counts((1.0, 2_000, 500)), 0.95)


# Detectors


@given(_COMPARISONS, st.sampled_from(_TARGETS))
@settings(deadline=None)
def test_the_detector_is_the_sum_of_bettors_who_start_at_every_comparison(
    comparisons: list[tuple[float, bool]], target: float
) -> None:
    """Its statistic is the wealth of one bettor a comparison, each recomputed from its start in exact fractions."""
    detector = Detector(target)
    for weight, wrong in comparisons:
        detector.update(weight, wrong)
    total = sum(_exact_wealth(FALLEN, comparisons[start:], target) for start in range(len(comparisons)))
    assert exp(detector.log_value) == pytest.approx(max(1.0, float(total)), rel=1e-9)


def test_the_detector_never_overflows() -> None:
    """However long everything is wrong it stays finite, and comes down again when all is right."""
    detector = Detector(0.95)
    for _ in range(5_000):
        detector.update(1.0, True)
    high = detector.log_value
    assert 500 < high < inf
    for _ in range(50_000):
        detector.update(1.0, False)
    assert detector.log_value < high / 2


@given(_COMPARISONS, _COMPARISONS)
@settings(deadline=None)
def test_a_detector_goes_on_after_json_as_if_nothing_had_been(
    before: list[tuple[float, bool]], after: list[tuple[float, bool]]
) -> None:
    """Its state survives JSON to the bit."""
    detector = Detector(0.93)
    for weight, wrong in before:
        detector.update(weight, wrong)
    stored = Detector.from_json(json.loads(json.dumps(detector.to_json())))
    for weight, wrong in after:
        detector.update(weight, wrong)
        stored.update(weight, wrong)
    assert stored.to_json() == detector.to_json()
    assert stored.log_value == detector.log_value


@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0, 1)), max_size=12), st.sampled_from([0.01, 0.05, 0.3]))
@settings(deadline=None)
def test_the_share_detector_takes_one_step_a_batch(batches: list[tuple[int, float]], limit: float) -> None:
    """R <- (R + 1) times the batch's likelihood ratio, in exact fractions; batches of nothing do not count."""
    detector = ShareDetector(limit)
    rate = Fraction(limit)
    values = [Fraction(0)] * len(FALLEN.odds)
    for n, share in batches:
        k = round(n * share)
        detector.update(n, k)
        if n:
            for i, odds in enumerate(map(Fraction, FALLEN.odds)):
                q = odds * rate / (1 - rate + odds * rate)
                values[i] = (values[i] + 1) * (q / rate) ** k * ((1 - q) / (1 - rate)) ** (n - k)
    total = sum(Fraction(prior) * value for prior, value in zip(FALLEN.prior, values, strict=True))
    assert detector.log_value == pytest.approx(max(0.0, log(total) if total else 0.0), rel=1e-7, abs=1e-7)

    stored = ShareDetector.from_json(json.loads(json.dumps(detector.to_json())))
    assert stored.to_json() == detector.to_json()


def test_a_design_effect_makes_bursts_of_equal_calls_one_call() -> None:
    """Every call five times over, with a design effect of five, is every call once."""
    single, bursts = ShareDetector(0.05), ShareDetector(0.05, design_effect=5)
    for n, k in ((40, 2), (30, 6), (50, 12)):
        single.update(n, k)
        bursts.update(5 * n, 5 * k)
    assert bursts.log_value == pytest.approx(single.log_value)
    assert single.log_value > 1
    assert ShareDetector.from_json(bursts.to_json()).log_value == bursts.log_value


def test_the_share_detector_never_overflows() -> None:
    """Large batches, all outside or all inside, leave it finite."""
    detector = ShareDetector(0.02)
    for _ in range(1_000):
        detector.update(100_000, 100_000)
    assert 1e6 < detector.log_value < inf
    detector = ShareDetector(0.02)
    for _ in range(1_000):
        detector.update(100_000, 0)
    assert detector.log_value == 0


@pytest.mark.parametrize(("n", "k"), [(-1, 0), (3, 4), (3, -1)])
def test_a_batch_that_cannot_be_is_refused(n: int, k: int) -> None:
    """More calls outside than there were, or fewer than none, raise ValueError."""
    with pytest.raises(ValueError, match="outside"):
        ShareDetector(0.05).update(n, k)


@pytest.mark.parametrize("effect", [0.5, 0.0, float("nan"), inf])
def test_a_design_effect_below_one_is_refused(effect: float) -> None:
    """Calls never say more than their number."""
    with pytest.raises(ValueError, match="design effect"):
        ShareDetector(0.05, design_effect=effect)


_STATE: dict[str, Any] = Detector(0.95).to_json() | ShareDetector(0.05).to_json()


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        _STATE | {"target": "0.95", "limit": "0.05"},
        _STATE | {"target": 1.0, "limit": 1.0},
        _STATE | {"target": 10**400, "limit": 10**400},
        _STATE | {"by_odds": None},
        _STATE | {"by_odds": {"2.0": 1.0}},
        _STATE | {"by_odds": _STATE["by_odds"][:-1]},
        _STATE | {"by_odds": [[odds * 1.5, 0.0] for odds, _ in _STATE["by_odds"]]},
        _STATE | {"by_odds": [[odds, -1.0] for odds, _ in _STATE["by_odds"]]},
        _STATE | {"by_odds": [[odds, float("nan")] for odds, _ in _STATE["by_odds"]]},
        _STATE | {"by_odds": [[odds, inf] for odds, _ in _STATE["by_odds"]]},
        _STATE | {"by_odds": [[odds, None] for odds, _ in _STATE["by_odds"]]},
    ],
    ids=str,
)
def test_nonsense_is_not_read_as_a_detector(value: Any) -> None:
    """A state that `to_json` cannot have given, or of another table of alternatives, raises ValueError."""
    for detector in (Detector, ShareDetector):
        with pytest.raises(ValueError, match=r"number|between|alternatives|range"):
            detector.from_json(value)


def test_looks_are_cheap() -> None:
    """An update takes microseconds and a look far less than a millisecond, on the best of several tries."""

    def best(times: int, call: Any) -> float:
        rounds = []
        for _ in range(7):
            start = perf_counter()
            for _ in range(times):
                call()
            rounds.append((perf_counter() - start) / times)
        return min(rounds)

    counts = _counts((1.0, 5_000, 100), (0.2, 900, 60), (0.05, 400, 30))
    detector, shares = Detector(0.95), ShareDetector(0.02)
    assert best(500, lambda: detector.update(0.2, False)) < 20e-6
    assert best(500, lambda: shares.update(100, 1)) < 40e-6
    for look in (log_evidence_against, log_evidence_for, lower_bound, upper_bound):
        assert best(20, lambda look=look: look(counts, 0.95)) < 1e-3
