"""The agreements that a policy can be held to: each stricter one answers a part of what a looser one does."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.fitting import fit_policy
from policies.ladder import Ladder, Limits
from policies.policy import Policy
from policies.settings import FitConfig
from policies.types import Reason
from tests.traces_maker import make_traces

_SCORES = st.one_of(st.floats(0, 1), st.just(float("inf")))
_LIMITS = st.builds(lambda pool, own: Limits((pool,), {0: own}), _SCORES, _SCORES)


@given(
    target=st.floats(0.5, 0.9),
    limits=_LIMITS,
    rows=st.lists(st.tuples(st.floats(0.5, 1), _LIMITS), max_size=8, unique_by=lambda row: row[0]),
    calls=st.lists(st.tuples(st.sampled_from([0, 1]), st.floats(0, 1)), min_size=1, max_size=30),
)
def test_a_stricter_rung_answers_a_subset(
    target: float, limits: Limits, rows: list[tuple[float, Limits]], calls: list[tuple[int, float]]
) -> None:
    """Of one stage, whatever thresholds the rows of a frontier were certified at, labels with their own included."""
    ladder = Ladder(target, limits, sorted(rows, key=lambda row: row[0]))
    answered = []
    for rung in ladder.rungs:
        found = ladder.at(rung)
        assert found is not None
        answered.append({call for call in calls if call[1] >= found.at(0, call[0])})
    assert ladder.rungs[0] == target
    assert ladder.at(target) is limits
    assert list(ladder.rungs) == sorted(set(ladder.rungs))
    assert all(stricter <= looser for looser, stricter in pairwise(answered))
    kept = [ladder.at(rung) for rung in ladder.rungs]
    assert all(one != next_ for one, next_ in pairwise(kept))
    # What lies between two rungs is answered as one of them is.
    assert all(ladder.at(agreement) in [*kept, None] for agreement, _ in rows)


def test_a_rung_of_the_same_thresholds_is_none_of_its_own() -> None:
    """Nor is a row below the target, and one that would answer more than a looser one is left out altogether."""
    at = [Limits((threshold,), {}) for threshold in (0.5, 0.5, 0.7, 0.6, 0.7, 0.8)]
    ladder = Ladder(0.9, at[0], list(zip((0.8, 0.91, 0.92, 0.93, 0.94, 0.95), at, strict=True)))
    assert ladder.rungs == (0.9, 0.92, 0.95)
    assert ladder.at(0.91) == at[0]
    assert ladder.at(0.93) == at[4]


@pytest.mark.parametrize("protect", [(), ("refund",)])
def test_a_policys_rungs_are_what_it_can_be_asked_for(tmp_path: Path, protect: tuple[str, ...]) -> None:
    """The first is the certificate's own target; each handles less than the one before, and nothing else."""
    fit_policy(make_traces(2_000, blur=0.1), tmp_path, FitConfig(0.85, protect=protect))
    policy = Policy.load(tmp_path)
    rungs, texts = policy.rungs, [trace.input for trace in make_traces(600, seed=4, blur=0.2)]
    assert rungs[0] == 0.85
    assert len(rungs) > 2
    assert set(rungs[1:]) <= {row.target for row in policy.manifest.frontier if row.target > 0.85}
    assert [policy.decide(text, rungs[0]) for text in texts] == policy.decide_many(texts)
    before = set(texts)
    for rung in rungs:
        handled = {text for text in texts if policy.decide(text, rung).handled}
        assert handled < before
        before = handled
    assert policy.decide(texts[0], rungs[-1] + 1e-9).reason in (Reason.MIN_AGREEMENT, Reason.UNCERTAIN, None)


def test_a_refused_policy_has_no_rungs(refused_folder: Path) -> None:
    """It can be held to nothing."""
    assert Policy.load(refused_folder).rungs == ()
