"""The detector's mean run length is what it claims, and a drop is acted on in time."""

from math import log

import numpy as np
import pytest

from policies.monitor import FALLEN, Counts, Detector, log_evidence_against
from tests.guarantees.live.simulation import (
    LOOKS_WORSE,
    NEVER,
    Detectors,
    Flags,
    Floats,
    Traffic,
    at_most,
    run_lengths,
    surely_above,
)

pytestmark = pytest.mark.guarantee

_TARGET, _ALPHA, _CLAIM = 0.95, 0.05, 20_000


def _until_alarm(traffic: Traffic, claim: float, seed: int) -> int:
    """How many comparisons the product's detector takes to an alarm; none is cut short."""
    rng = np.random.default_rng(seed)
    detector, needed, taken = Detector(_TARGET), log(claim), 0
    while True:
        weights, wrong = traffic.compare(rng, (1_000,))
        for weight, flag in zip(weights.tolist(), wrong.tolist(), strict=True):
            detector.update(weight, flag)
            taken += 1
            if detector.log_value >= needed:
                return taken


@pytest.mark.parametrize("traffic", [Traffic.even(_TARGET), LOOKS_WORSE], ids=["even", "unequal"])
@pytest.mark.parametrize("claim", [500, 2_000])
def test_the_detector_runs_as_long_as_it_claims(traffic: Traffic, claim: int) -> None:
    """Agreement on target, the product's own detector, 500 deployments each run to its false alarm."""
    lengths = np.array([_until_alarm(traffic, claim, seed) for seed in range(500)], float)
    assert surely_above(lengths) >= claim
    # Nor is the claim far too modest, which would cost speed.
    assert lengths.mean() <= 2 * claim
    assert np.mean(lengths <= claim / 20) <= at_most(0.05, len(lengths))


@pytest.mark.parametrize("traffic", [Traffic.even(_TARGET), LOOKS_WORSE], ids=["even", "unequal"])
def test_the_default_detector_runs_as_long_as_it_claims(traffic: Traffic) -> None:
    """20,000 audits between false alarms, in 1,200 deployments on arrays; 400,000 stand for whatever is longer."""
    lengths = run_lengths(FALLEN, traffic, _CLAIM, runs=1_200, seed=1, most=20 * _CLAIM)
    assert surely_above(lengths) >= _CLAIM
    assert np.mean(lengths <= 1_000) <= at_most(1_000 / _CLAIM, len(lengths))


def test_a_healthy_policy_is_left_alone_for_longer() -> None:
    """At 0.97 with a target of 0.95 hardly any deployment has a false alarm within 20,000 audits."""
    lengths = run_lengths(FALLEN, Traffic.even(0.97), _CLAIM, runs=300, seed=2, most=_CLAIM)
    assert np.mean(lengths < _CLAIM) <= 0.02


def test_a_detector_that_forgets_its_prior_fails_the_same_test() -> None:
    """Broken: the highest of the alternatives alarms, each at the full claim. Its runs are shorter than it says."""

    class Careless(Detectors):
        def update(self, weights: Floats, wrong: Flags) -> Floats:
            super().update(weights, wrong)
            return np.asarray(self._values.max(axis=1))

    lengths = run_lengths(FALLEN, Traffic.even(_TARGET), 2_000, runs=500, seed=3, detectors=Careless)
    assert surely_above(-lengths) > -2_000


@pytest.mark.parametrize("traffic", [Traffic.even(0.9), LOOKS_WORSE], ids=["even", "unequal"])
def test_the_simulation_and_the_product_detect_alike(traffic: Traffic) -> None:
    """The statistics on arrays are those of `Detector` after each comparison."""
    weights, wrong = traffic.compare(np.random.default_rng(4), (20, 1_500))
    detectors, ours = Detectors(FALLEN, _TARGET, 20), [Detector(_TARGET) for _ in range(20)]
    for step in range(wrong.shape[1]):
        values = detectors.update(weights[:, step], wrong[:, step])
        for run, detector in enumerate(ours):
            detector.update(float(weights[run, step]), bool(wrong[run, step]))
            assert detector.log_value == pytest.approx(max(0.0, log(values[run])), rel=1e-9, abs=1e-9)


def _acted_on(healthy: int, drop_to: float, seed: int, most: int = 4_000) -> int | None:
    """Audits after a drop from 0.97 until evidence or detector demotes; None where one did before the drop."""
    rng = np.random.default_rng(seed)
    before, after = Traffic.even(0.97), Traffic.even(drop_to)
    wrong = np.concatenate([before.compare(rng, (healthy,))[1], after.compare(rng, (most,))[1]])
    counts, detector = Counts(), Detector(_TARGET)
    for audit, flag in enumerate(wrong.tolist(), start=1):
        counts.add(1.0, flag)
        detector.update(1.0, flag)
        # Evidence grows with a wrong answer only; elsewhere a look would be the same no.
        if flag and (detector.log_value >= log(_CLAIM) or log_evidence_against(counts, _TARGET) >= log(1 / _ALPHA)):
            return audit - healthy if audit > healthy else None
    return NEVER


@pytest.mark.parametrize(
    ("healthy", "drop_to", "median"),
    [(1_000, 0.90, 350), (1_000, 0.85, 150), (0, 0.90, 200), (0, 0.85, 75), (3_000, 0.90, 350), (3_000, 0.85, 150)],
)
def test_a_drop_is_acted_on_in_time(healthy: int, drop_to: float, median: int) -> None:
    """After healthy audits at 0.97 the median deployment is demoted within so many audits, by the product's classes."""
    looks = [_acted_on(healthy, drop_to, seed) for seed in range(500)]
    caught = [look for look in looks if look is not None]
    assert len(caught) >= 0.97 * len(looks)
    assert np.median(caught) <= median
    assert np.quantile(caught, 0.9) <= 2.5 * median


def test_evidence_alone_acts_late() -> None:
    """Why there are two monitors: after 1,000 healthy audits evidence alone takes more than twice as long."""
    rng = np.random.default_rng(6)
    needed = []
    for _ in range(200):
        counts = Counts()
        healthy = int(np.sum(Traffic.even(0.97).compare(rng, (1_000,))[1]))
        counts.add(1.0, True, healthy)
        counts.add(1.0, False, 1_000 - healthy)
        for audit, flag in enumerate(Traffic.even(0.90).compare(rng, (4_000,))[1].tolist(), start=1):
            counts.add(1.0, flag)
            if flag and log_evidence_against(counts, _TARGET) >= log(1 / _ALPHA):
                needed.append(audit)
                break
    assert np.median(needed) > 700
