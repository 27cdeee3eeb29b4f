"""The detector of a rising share outside the guard: its run length in batches, its speed, and bursts."""

from collections.abc import Callable
from math import log

import numpy as np
import pytest

from policies.monitor import ShareDetector
from tests.guarantees.live.simulation import surely_above

pytestmark = pytest.mark.guarantee

_LIMIT, _CALLS = 0.02, 200
# The number of calls outside in a batch.
Batches = Callable[[np.random.Generator], int]


def _independent(share: float) -> Batches:
    return lambda rng: int(rng.binomial(_CALLS, share))


def _bursts(share: float, size: int) -> Batches:
    """Calls come as so many equal ones."""
    return lambda rng: size * int(rng.binomial(_CALLS // size, share))


def _lengths(batches: Batches, claim: float, design_effect: float = 1.0, runs: int = 400) -> np.ndarray:
    """Batches until each detector alarms, (runs,); none is cut short."""
    lengths = []
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        detector, taken = ShareDetector(_LIMIT, design_effect), 0
        while detector.log_value < log(claim):
            detector.update(_CALLS, batches(rng))
            taken += 1
        lengths.append(taken)
    return np.array(lengths, float)


@pytest.mark.parametrize("claim", [300, 1_500])
def test_the_share_detector_runs_as_long_as_it_claims(claim: int) -> None:
    """With a share exactly at the limit the mean number of batches to a false alarm is at least what is claimed."""
    assert surely_above(_lengths(_independent(_LIMIT), claim)) >= claim


def test_bursts_need_their_design_effect() -> None:
    """Ten equal calls at a time: with a design effect of ten the claim holds, without one it fails."""
    assert surely_above(_lengths(_bursts(_LIMIT, 10), 300, design_effect=10)) >= 300
    assert _lengths(_bursts(_LIMIT, 10), 300).mean() < 100


@pytest.mark.parametrize(("share", "batches"), [(0.30, 1), (0.06, 4), (0.03, 40)])
def test_a_rising_share_is_seen(share: float, batches: int) -> None:
    """A thousand batches at half the limit, then more: seen within so many batches of 200 calls, in the median."""
    taken = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        detector = ShareDetector(_LIMIT)
        for _ in range(1_000):
            detector.update(_CALLS, int(rng.binomial(_CALLS, _LIMIT / 2)))
        assert detector.log_value < log(1_500)
        after = 0
        while detector.log_value < log(1_500):
            detector.update(_CALLS, int(rng.binomial(_CALLS, share)))
            after += 1
        taken.append(after)
    assert np.median(taken) <= batches
