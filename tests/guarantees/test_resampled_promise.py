"""The certificate's promise on real texts, end to end: random splits of each data set (`make long-tests`).

Traces and traffic are pooled and split anew, so the calls really are drawn like the traces. The live share is measured
on a finite pool, which by itself makes a few more fits look broken than are.
"""

from pathlib import Path

import numpy as np
import pytest
from joblib import Parallel, delayed

from policies.fitting import fit_policy
from policies.policy import Policy
from policies.settings import FitConfig
from policies.types import Trace
from tests.data import dataset

pytestmark = pytest.mark.guarantee

_CONFIDENCE = 0.90
_RESAMPLES = 60
_MOST_LIVE = 8_000


def _outcome(folder: Path, pool: list[Trace], n: int, target: float, seed: int) -> tuple[float, float] | None:
    """(coverage, agreement) on calls the fit did not see; None where it was refused or handled none of them."""
    order = np.random.default_rng(seed).permutation(len(pool))
    fit_policy([pool[i] for i in order[:n]], folder, FitConfig(target, _CONFIDENCE, seed=seed, jobs=1))
    policy = Policy.load(folder)
    live = [pool[i] for i in order[n : n + _MOST_LIVE]]
    answers = [(policy.decide(trace.input).label, trace.teacher) for trace in live] if policy.certified else []
    right = [said == teacher for said, teacher in answers if said is not None]
    return (len(right) / len(live), sum(right) / len(right)) if right else None


@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("n", [600, 1_500, 4_000])
@pytest.mark.parametrize(("name", "target"), [("banking77", 0.90), ("clinc150", 0.95), ("metatool", 0.90)])
def test_resampled_traffic_keeps_the_promise(tmp_path: Path, name: str, target: float, n: int) -> None:
    """Of 60 splits of a data set, no more fall below target than the confidence allows, and some are certified."""
    traces, traffic = dataset(name)
    pool = [*traces, *traffic]
    calls = (delayed(_outcome)(tmp_path / str(seed), pool, n, target, seed) for seed in range(_RESAMPLES))
    outcomes = Parallel(n_jobs=2, max_nbytes=None)(calls)
    certified = [found for found in outcomes if found is not None]
    broken = sum(agreement < target for _, agreement in certified)
    coverage = sum(share for share, _ in certified) / _RESAMPLES
    print(f"\n{name} {target:g} n={n}: {len(certified)} certified, coverage {coverage:.3f}, {broken} broken")  # noqa: T201
    delta = 1 - _CONFIDENCE
    assert broken / _RESAMPLES <= delta + 2 * np.sqrt(delta * (1 - delta) / _RESAMPLES)
    # A gate that refuses everything keeps every promise.
    assert coverage >= (0.3 if n >= 4_000 else 0.0)
