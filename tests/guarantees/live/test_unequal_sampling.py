"""Calls that are sampled at unequal rates: with weights every promise stands, without them none does."""

from math import log

import numpy as np
import pytest

from policies.monitor import FALLEN, PROVEN, Mixture, lower_bound
from tests.guarantees.live.simulation import (
    LOOKS_BETTER,
    LOOKS_WORSE,
    NEVER,
    Detectors,
    Flags,
    Floats,
    Part,
    Traffic,
    at_most,
    counts_of,
    evidence,
    run_lengths,
    sometimes,
    surely_above,
)

pytestmark = pytest.mark.guarantee

_TARGET, _ALPHA, _CLAIM = 0.95, 0.05, 20_000
_RUNS, _AUDITS = 600, 5_000


def _crossed(mixture: Mixture, traffic: Traffic, weighted: bool) -> float:
    """In what share of deployments the evidence crosses within 5,000 audits."""
    weights, wrong = traffic.compare(np.random.default_rng(1), (_RUNS, _AUDITS))
    paths = evidence(mixture, weights if weighted else np.ones_like(weights), wrong, _TARGET)
    return float(np.mean((paths >= log(1 / _ALPHA)).any(axis=1)))


@pytest.mark.parametrize("traffic", [LOOKS_WORSE, LOOKS_BETTER], ids=["worse", "better"])
@pytest.mark.parametrize("mixture", [FALLEN, PROVEN], ids=["demotion", "promotion"])
def test_weighted_evidence_keeps_its_error_probability(mixture: Mixture, traffic: Traffic) -> None:
    """All calls together are exactly on target, a part is sampled at five times the rate: at most 5 % cross."""
    assert traffic.agreement == pytest.approx(_TARGET)
    assert _crossed(mixture, traffic, weighted=True) <= at_most(_ALPHA, _RUNS)


@pytest.mark.parametrize(
    ("mixture", "traffic"), [(FALLEN, LOOKS_WORSE), (PROVEN, LOOKS_BETTER)], ids=["demotion", "promotion"]
)
def test_unweighted_evidence_fails_the_same_test(mixture: Mixture, traffic: Traffic) -> None:
    """Counting every comparison as one demotes, or promotes, nearly always."""
    assert _crossed(mixture, traffic, weighted=False) > 0.9


def test_an_unweighted_detector_fails_the_test_of_run_lengths() -> None:
    """It alarms after a few hundred audits where it claims 20,000; weighted ones are in `test_change.py`."""
    assert run_lengths(FALLEN, LOOKS_WORSE, _CLAIM, runs=300, seed=1, weighted=False).mean() < _CLAIM / 10
    assert surely_above(run_lengths(FALLEN, LOOKS_BETTER, _CLAIM, runs=1_200, seed=1)) >= _CLAIM


@pytest.mark.parametrize("traffic", [LOOKS_WORSE, LOOKS_BETTER], ids=["worse", "better"])
def test_weighted_bounds_hold_the_truth_at_all_moments_together(traffic: Traffic) -> None:
    """At its worst moment of 5,000 the lower bound is below the truth as often as its confidence says."""
    rng = np.random.default_rng(2)
    weights, wrong = traffic.compare(rng, (_RUNS, _AUDITS))
    missed = set()
    for run, step in sometimes(rng, evidence(PROVEN, weights, wrong, traffic.agreement), looks=5):
        counts = counts_of(weights[run, : step + 1], wrong[run, : step + 1])
        if lower_bound(counts, 0.95) > traffic.agreement:
            missed.add(run)
    assert len(missed) / _RUNS <= at_most(0.05, _RUNS)


def _worth_until_acted_on(before: Traffic, after: Traffic, runs: int = 500, most: int = 4_000) -> Floats:
    """What the audits after a drop, 1,000 into a deployment, were worth until either monitor demoted, (runs,).

    The weights of audits add up to the number of audits that the least sampling rate alone would have made of the same
    calls: in these the drop is to be seen as soon as if all were sampled at that rate.
    """
    rng = np.random.default_rng(3)
    healthy, fallen = before.compare(rng, (runs, 1_000)), after.compare(rng, (runs, most))
    weights, wrong = (np.concatenate(pair, axis=1) for pair in zip(healthy, fallen, strict=True))
    alarms = evidence(FALLEN, weights, wrong, _TARGET) >= log(1 / _ALPHA)
    detectors = Detectors(FALLEN, _TARGET, runs)
    for step in range(wrong.shape[1]):
        alarms[:, step] |= detectors.update(weights[:, step], wrong[:, step]) >= _CLAIM
    early = alarms[:, :1_000].any(axis=1)
    assert early.mean() <= 0.03
    after_drop = alarms[~early, 1_000:]
    worth = np.cumsum(weights[~early, 1_000:], axis=1)
    found = worth[np.arange(len(worth)), after_drop.argmax(axis=1)]
    return np.where(after_drop.any(axis=1), found, float(NEVER))


@pytest.mark.parametrize(("drop_to", "median"), [(0.90, 350), (0.85, 150)])
@pytest.mark.parametrize("where", ["sampled more", "sampled less", "both"])
def test_a_drop_is_acted_on_as_soon_as_with_equal_sampling(drop_to: float, median: int, where: str) -> None:
    """From 0.97, wherever the wrong answers come from: the median is within that for all at the least rate."""
    lost = 0.97 - drop_to
    more, less = {"sampled more": (lost / 0.3, 0.0), "sampled less": (0.0, lost / 0.7), "both": (lost, lost)}[where]
    before = Traffic((Part(0.3, 0.03, 5.0), Part(0.7, 0.03)))
    after = Traffic((Part(0.3, 0.03 + more, 5.0), Part(0.7, 0.03 + less)))
    assert after.agreement == pytest.approx(drop_to)
    assert np.median(_worth_until_acted_on(before, after)) <= median


def _suspicious_deployments(mixture: Mixture, runs: int, calls: int) -> tuple[Flags, Floats]:
    """Deployments whose sampling follows their evidence, call by call.

    A third of the calls is always compared; the rest one in five, but all of it while the evidence stands above 2, so
    that weights and rates hang on the past. Returns whether the evidence ever crossed, and how many were compared.
    """
    rng = np.random.default_rng(4)
    odds, prior = np.array(mixture.odds), np.array(mixture.prior)
    rate = 1 - _TARGET
    stakes = (odds - 1) / (1 + rate * (odds - 1))
    wealth = np.tile(prior, (runs, 1))
    crossed, compared = np.zeros(runs, bool), np.zeros(runs)
    for _ in range(calls):
        first = rng.random(runs) < 1 / 3
        wrong = rng.random(runs) < np.where(first, 0.09, 0.03)
        least = np.where(wealth.sum(axis=1) > 2, 1.0, 0.2)
        chance = np.where(first, 1.0, least)
        taken = rng.random(runs) < chance
        exposed = taken * (least / chance) * (wrong - rate)
        wealth *= 1 + exposed[:, None] * stakes
        crossed |= wealth.sum(axis=1) >= 1 / _ALPHA
        compared += taken
    return crossed, compared


@pytest.mark.parametrize("mixture", [FALLEN, PROVEN], ids=["demotion", "promotion"])
def test_sampling_may_follow_suspicion(mixture: Mixture) -> None:
    """Rates that rise and fall with the evidence itself, at agreement exactly on target: still at most 5 % cross."""
    crossed, compared = _suspicious_deployments(mixture, _RUNS, calls=12_000)
    assert compared.mean() >= _AUDITS
    assert crossed.mean() <= at_most(_ALPHA, _RUNS)
