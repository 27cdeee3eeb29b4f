"""The certificate's promise for answers of several fields, with known truth (`make long-tests`)."""

from pathlib import Path

import numpy as np
import pytest

from policies.evaluation import evaluate
from policies.policy import Policy
from policies.settings import FitConfig
from tests.fields_maker import fit_fields, heads_of, make_objects

pytestmark = pytest.mark.guarantee

_DELTA = 0.10
_FITS = 60


@pytest.mark.parametrize(
    ("sizes", "n", "target", "mode"),
    [
        ({"intent": 4, "urgency": 3}, 400, 0.91, "strict"),
        ({"intent": 4, "urgency": 3}, 400, 0.91, "refit"),
        # More objects than 600 traces can show: many of those that live calls bring were never seen.
        ({"intent": 16, "urgency": 12}, 600, 0.80, "strict"),
        ({"intent": 16, "urgency": 12}, 600, 0.80, "refit"),
    ],
)
def test_whole_objects_agree_as_often_as_promised(
    tmp_path: Path, sizes: dict[str, int], n: int, target: float, mode: str
) -> None:
    """Of 60 fits, at most about one in ten falls below target on 4,000 calls of the same kind."""
    calls = make_objects(4_000, sizes, seed=10_000)
    violations = certified = 0
    for seed in range(_FITS):
        config = FitConfig(target, mode=mode, seed=seed, frontier_targets=())
        fit_fields(make_objects(n, sizes, seed=seed), heads_of(sizes), config, tmp_path / str(seed))
        result = evaluate(Policy.load(tmp_path / str(seed)), calls)
        certified += result.n_handled > 0
        violations += result.teacher_agreement is not None and result.teacher_agreement < target
    assert certified >= _FITS / 2
    assert violations / _FITS <= _DELTA + 2 * float(np.sqrt(_DELTA * (1 - _DELTA) / _FITS))
