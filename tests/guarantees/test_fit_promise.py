"""The certificate's promise, end to end: many seeded fits, each judged on fresh calls (`make long-tests`)."""

from pathlib import Path

import numpy as np
import pytest

from policies.evaluation import evaluate
from policies.fitting import fit_policy
from policies.policy import Policy
from policies.settings import FitConfig
from tests.traces_maker import make_open_traces, make_traces

pytestmark = pytest.mark.guarantee

_DELTA = 0.10


def _allowed(fits: int) -> float:
    """The violation rate that a promise kept exactly would exceed in about one run of forty."""
    return _DELTA + 2 * float(np.sqrt(_DELTA * (1 - _DELTA) / fits))


@pytest.mark.parametrize("mode", ["strict", "refit"])
def test_synthetic_traffic_keeps_the_promise(tmp_path: Path, mode: str) -> None:
    """Of 60 fits on 600 traces, at most about one in ten falls below target on 4,000 calls of the same kind."""
    calls = make_traces(4_000, seed=10_000, noise=0.03, blur=0.15)
    violations = certified = 0
    for seed in range(60):
        folder = tmp_path / str(seed)
        config = FitConfig(0.90, mode=mode, seed=seed)
        fit_policy(make_traces(600, seed=seed, noise=0.03, blur=0.15), folder, config)
        result = evaluate(Policy.load(folder), calls)
        certified += result.n_handled > 0
        violations += result.teacher_agreement is not None and result.teacher_agreement < 0.90
    assert certified >= 30
    assert violations / 60 <= _allowed(60)


@pytest.mark.parametrize(
    ("n", "features", "target"), [(500, "lexical", 0.80), (1_500, "lexical", 0.86), (1_500, "lexical,static", 0.88)]
)
def test_words_that_no_trace_has_do_not_make_it_surer(tmp_path: Path, n: int, features: str, target: float) -> None:
    """Names and numbers that are new in every text: what was measured on traces is what live calls get."""
    calls = make_open_traces(3_000, seed=10_000)
    violations = certified = 0
    for seed in range(40):
        folder = tmp_path / str(seed)
        fit_policy(make_open_traces(n, seed=seed), folder, FitConfig(target, features=features, seed=seed))
        result = evaluate(Policy.load(folder), calls)
        certified += result.n_handled > 0
        violations += result.teacher_agreement is not None and result.teacher_agreement < target
    assert certified >= 20
    assert violations / 40 <= _allowed(40)
