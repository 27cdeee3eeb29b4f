"""What is served of a judged policy: of the frontier, only what its graphs can keep."""

from dataclasses import replace
from typing import Any

import pytest

from policies.artifact import FrontierEntry
from policies.judging import Judged, judge
from policies.learning import learn, silent
from policies.measuring import early_threshold
from policies.serving import frontier_entries
from policies.settings import FitConfig
from tests.traces_maker import make_traces


@pytest.fixture(scope="module")
def judged() -> Judged:
    """A certified policy, ruled by random folds."""
    config = FitConfig(0.8, frontier_targets=())
    return judge(learn(make_traces(500), config, "static", None, silent), config)


def _row(**changes: Any) -> dict[str, Any]:
    return {"target": 0.9, "certified": True, "ruling": "iid", "threshold": 0.7, "protected": {}} | changes


def test_each_stage_gets_its_threshold(judged: Judged) -> None:
    """By the rule of the cascade: an early stage must be surer."""
    (entry,) = frontier_entries(replace(judged, frontier=[_row()]), 2)
    assert entry == FrontierEntry(0.9, [early_threshold(0.7), 0.7], {})


@pytest.mark.parametrize("change", [{"certified": False}, {"ruling": "newest"}, {"threshold": 1 - 1e-9}])
def test_what_cannot_be_kept_is_left_out(judged: Judged, change: dict[str, Any]) -> None:
    """Refused rows, thresholds on another measurement's scale, and those that float32 cannot tell from 1."""
    assert frontier_entries(replace(judged, frontier=[_row(**change)]), 1) == []


def test_a_protected_label_may_be_all_that_is_left(judged: Judged) -> None:
    """Its threshold stands on its own, and an early stage too near 1 takes the whole pool with it."""
    row = _row(threshold=1 - 4e-5, protected={"refund": 0.8, "loan": 1 - 1e-9, "balance": None})
    (entry,) = frontier_entries(replace(judged, frontier=[row]), 2)
    assert entry == FrontierEntry(0.9, [None, None], {"refund": 0.8, "loan": None, "balance": None})
