"""The evidence keeps its error probability though it is looked at after every audit; careless monitors do not."""

from collections.abc import Callable
from math import log

import numpy as np
import pytest
from scipy.stats import binom

from policies.monitor import (
    FALLEN,
    PROVEN,
    Counts,
    log_evidence_against,
    log_evidence_for,
    lower_bound,
    upper_bound,
)
from tests.guarantees.live.simulation import (
    LOOKS_BETTER,
    LOOKS_WORSE,
    Flags,
    Traffic,
    at_most,
    counts_of,
    evidence,
    first_look,
    looked_up,
    sometimes,
)

pytestmark = pytest.mark.guarantee

_ALPHA = 0.05
_RUNS, _AUDITS = 600, 5_000
_TARGETS = (0.90, 0.95, 0.99)

# From wrongness (runs, audits) and a target to whether it would demote after each audit.
Monitor = Callable[[Flags, float], Flags]


def ours(wrong: Flags, target: float) -> Flags:
    """The product's evidence against the target, called after every audit."""
    return looked_up(log_evidence_against, wrong, target) >= log(1 / _ALPHA)


def running_estimate(wrong: Flags, target: float) -> Flags:
    """Broken: the agreement so far is below target (after a first hundred audits)."""
    n = np.arange(1, wrong.shape[1] + 1)
    return (np.cumsum(wrong, axis=1) / n > 1 - target) & (n > 100)


def repeated_binomial(wrong: Flags, target: float) -> Flags:
    """Broken: an exact test for one look, at all of them (after a first hundred audits)."""
    n = np.arange(1, wrong.shape[1] + 1)
    critical = binom.ppf(1 - _ALPHA, n, 1 - target)
    return np.asarray((np.cumsum(wrong, axis=1) > critical) & (n > 100))


def _wrong(agreement: float, seed: int, runs: int = _RUNS, audits: int = _AUDITS) -> Flags:
    return Traffic.even(agreement).compare(np.random.default_rng(seed), (runs, audits))[1]


def _demoted(monitor: Monitor, target: float, agreement: float) -> float:
    """In what share of deployments the monitor demotes within 5,000 audits."""
    return float(np.mean(monitor(_wrong(agreement, seed=1), target).any(axis=1)))


@pytest.mark.parametrize("target", _TARGETS)
def test_on_target_the_evidence_demotes_no_more_often_than_it_says(target: float) -> None:
    """Agreement exactly on target, 600 deployments, a look after each of 5,000 audits: at most 5 % are demoted."""
    assert _demoted(ours, target, agreement=target) <= at_most(_ALPHA, _RUNS)


def test_above_target_the_evidence_demotes_hardly_ever() -> None:
    """At 0.97 with a target of 0.95 it loses from the start."""
    assert _demoted(ours, 0.95, agreement=0.97) <= 0.02


def test_below_target_the_evidence_demotes() -> None:
    """At 0.92 with a target of 0.95 nearly every deployment is demoted, so silence above means something."""
    assert _demoted(ours, 0.95, agreement=0.92) >= 0.99


@pytest.mark.parametrize("monitor", [running_estimate, repeated_binomial])
@pytest.mark.parametrize("target", _TARGETS)
def test_a_broken_monitor_fails_the_same_test(monitor: Monitor, target: float) -> None:
    """What ignores that it looks at every audit demotes far more often than one in twenty."""
    assert _demoted(monitor, target, agreement=target) > 3 * at_most(_ALPHA, _RUNS)


@pytest.mark.parametrize("target", _TARGETS)
@pytest.mark.parametrize("below", [0.0, 0.005], ids=["on target", "below"])
def test_what_is_not_above_target_is_promoted_no_more_often_than_said(target: float, below: float) -> None:
    """Agreement on target or just below, a look after each of 5,000 shadow calls: at most 5 % are promoted."""
    wrong = _wrong(target - below, seed=2)
    promoted = (looked_up(log_evidence_for, wrong, target) >= log(1 / _ALPHA)).any(axis=1)
    assert np.mean(promoted) <= at_most(_ALPHA, _RUNS)


@pytest.mark.parametrize(("agreement", "median"), [(0.97, 685), (0.98, 279), (0.99, 129), (0.995, 85)])
def test_promotion_takes_no_more_calls_than_a_good_test_needs(agreement: float, median: int) -> None:
    """Median shadow calls that prove 0.95, at an error probability of 5 %."""
    wrong = _wrong(agreement, seed=3, audits=4 * median, runs=2_000)
    looks = first_look(looked_up(log_evidence_for, wrong, 0.95) >= log(1 / _ALPHA))
    # Wrong answers come whole, so medians move in steps of some thirty calls.
    assert np.median(looks) <= max(1.03 * median, median + 2)


def test_without_errors_promotion_needs_little_more_than_anything_can() -> None:
    """No test at all can prove 0.95 from fewer than 59 calls that all agree; this takes some twenty more."""
    counts = Counts()
    while log_evidence_for(counts, 0.95) < log(1 / _ALPHA):
        counts.add(1.0, False)
    assert 59 <= counts.n <= 82


@pytest.mark.parametrize("agreement", [0.5, 0.80, 0.95, 0.97, 0.995])
@pytest.mark.parametrize("confidence", [0.90, 0.95])
def test_bounds_hold_the_truth_at_all_moments_together(agreement: float, confidence: float) -> None:
    """At its worst moment of 5,000, and at random ones: each bound is on its side as often as its confidence says."""
    rng = np.random.default_rng(4)
    weights, wrong = Traffic.even(agreement).compare(rng, (_RUNS, _AUDITS))
    for bound, side, mixture in ((lower_bound, 1, PROVEN), (upper_bound, -1, FALLEN)):
        missed = set()
        # A bound misses the truth where evidence against the truth is high: the highest moment decides.
        for run, step in sometimes(rng, evidence(mixture, weights, wrong, agreement), looks=5):
            counts = counts_of(weights[run, : step + 1], wrong[run, : step + 1])
            if side * (bound(counts, confidence) - agreement) > 0:
                missed.add(run)
        assert len(missed) / _RUNS <= at_most(1 - confidence, _RUNS)


def test_a_fixed_bound_looked_at_always_fails_the_same_test() -> None:
    """Clopper and Pearson's bound, valid for one look, loses the truth in more than twice as many deployments."""
    agreement, confidence = 0.95, 0.95
    total = np.cumsum(_wrong(agreement, seed=4), axis=1)
    n = np.arange(1, _AUDITS + 1)
    # The bound is above the truth just where so few wrong answers are that improbable.
    missed = (binom.cdf(total, n, 1 - agreement) < 1 - confidence).any(axis=1)
    assert np.mean(missed) > 2 * at_most(1 - confidence, _RUNS)


@pytest.mark.parametrize("traffic", [Traffic.even(0.94), LOOKS_WORSE, LOOKS_BETTER], ids=["even", "worse", "better"])
@pytest.mark.parametrize("target", _TARGETS)
def test_the_simulation_and_the_product_bet_alike(traffic: Traffic, target: float) -> None:
    """The evidence on arrays, with which weighted deployments are simulated, is that of `Counts` at any moment."""
    rng = np.random.default_rng(5)
    weights, wrong = traffic.compare(rng, (40, 2_000))
    for look, mixture in ((log_evidence_against, FALLEN), (log_evidence_for, PROVEN)):
        paths = evidence(mixture, weights, wrong, target)
        for run, step in sometimes(rng, paths, looks=10):
            counts = counts_of(weights[run, : step + 1], wrong[run, : step + 1])
            assert look(counts, target) == pytest.approx(paths[run, step], rel=1e-6, abs=1e-6)
