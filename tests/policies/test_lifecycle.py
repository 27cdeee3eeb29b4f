"""Offers, promotions, rollbacks and pauses: what moves, and what must not."""

import json
from collections.abc import Callable

import pytest

from policies import lifecycle
from policies.errors import LifecycleError, UnknownPolicy
from policies.lifecycle import Offer
from policies.rules import Rules
from policies.states import ProjectState, State
from policies.types import Move


def _offer(version: str, *, certified: bool = True) -> Offer:
    return Offer(version, certified, 0.95, 0.9, (0.95, 0.97), 10, 0.01, None if certified else "too few traces")


def _project(promotion: str = "shadow", *, watched: bool = True) -> ProjectState:
    return ProjectState(rules=Rules(promotion, watched=watched))


def _steps(moves: list[Move]) -> list[tuple[str | None, str | None, str]]:
    return [(move.version, move.old, move.new) for move in moves]


def _live(project: ProjectState, *versions: str) -> ProjectState:
    for version in versions:
        lifecycle.offer(project, _offer(version), 0.0)
        lifecycle.promote(project, version, "ann", 0.0)
    return project


def test_a_certified_policy_is_a_candidate_and_goes_to_shadow() -> None:
    """Offered again, by another process, it moves nothing."""
    project = _project()
    moves = lifecycle.offer(project, _offer("v1"), 1.0)
    assert _steps(moves) == [("v1", "observing", "candidate"), ("v1", "candidate", "shadow")]
    assert lifecycle.offer(project, _offer("v1"), 2.0) == []
    assert (project.state, project.live) == (State.SHADOW, None)


@pytest.mark.parametrize(("promotion", "watched"), [("immediate", True), ("shadow", False), ("manual", False)])
def test_who_need_not_wait_answers_at_once(promotion: str, watched: bool) -> None:
    """By the settings, or because there is nobody to be compared with."""
    project = _project(promotion, watched=watched)
    lifecycle.offer(project, _offer("v1"), 1.0)
    assert (project.state, project.live) == (State.LIVE, "v1")
    assert (project.policies["v1"].openness > 0) is watched


def test_a_refused_policy_changes_nothing_and_cannot_be_promoted() -> None:
    """The one that is live goes on answering; the refusal says why."""
    project = _live(_project(), "v1")
    assert _steps(lifecycle.offer(project, _offer("v2", certified=False), 2.0)) == [("v2", "observing", "refused")]
    before = json.dumps(project.to_json())
    for version in ("v2", None):
        with pytest.raises(LifecycleError, match=r"v2 was refused by the gate .* too few traces"):
            lifecycle.promote(project, version, "ann", 3.0)
    assert json.dumps(project.to_json()) == before
    assert project.live == "v1"


def test_a_new_candidate_takes_the_place_of_the_one_in_shadow_and_not_of_the_live_one() -> None:
    """Which goes on until the new one has proved itself."""
    project = _live(_project(), "v1")
    lifecycle.offer(project, _offer("v2"), 2.0)
    lifecycle.offer(project, _offer("v3"), 3.0)
    states = {version: policy.state for version, policy in project.policies.items()}
    assert states == {"v1": State.LIVE, "v2": State.RETIRED, "v3": State.SHADOW}


def test_what_goes_live_retires_what_came_before_it_and_was_still_waiting() -> None:
    """Or an older policy would take a newer one's place when it has proved itself at last."""
    project = _live(_project(), "v1")
    lifecycle.offer(project, _offer("v2"), 2.0)
    lifecycle.go_to_shadow(project, project.policies["v1"], "prompt", "gateway", 3.0, {})
    assert project.policies["v1"].state is State.RETIRED
    lifecycle.promote(project, "v2", "ann", 4.0)
    assert [policy.version for policy in project.policies.values() if policy.state is State.SHADOW] == []
    lifecycle.rollback(project, None, "ann", 5.0)
    assert project.live == "v1"


def test_a_rollback_goes_back_one_by_one_and_never_to_what_was_rolled_back_from() -> None:
    """Until there is nothing left to go to, which is an error that changes nothing."""
    project = _live(_project(), "v1", "v2", "v3")
    lifecycle.rollback(project, None, "ann", 4.0)
    assert project.live == "v2"
    lifecycle.rollback(project, None, "ann", 5.0)
    assert project.live == "v1"
    with pytest.raises(LifecycleError, match="nothing to roll back to"):
        lifecycle.rollback(project, None, "ann", 6.0)
    assert project.live == "v1"


def test_after_a_demotion_a_rollback_goes_to_the_one_before() -> None:
    """The demoted one does not come back by itself; a person may name it."""
    project = _live(_project(), "v1", "v2")
    lifecycle.demote(project, project.policies["v2"], "drift", 3.0, {})
    assert (project.state, project.live) == (State.DEMOTED, None)
    lifecycle.rollback(project, None, "ann", 4.0)
    assert project.live == "v1"
    lifecycle.promote(project, "v2", "ann", 5.0)
    assert project.live == "v2"


def test_what_goes_live_starts_its_evidence_anew() -> None:
    """A policy's second life is not judged by its first."""
    project = _live(_project(), "v1")
    watch = project.policies["v1"].watch
    assert watch is not None
    watch.counts.add(1.0, wrong=True, n=50)
    _live(project, "v2")
    lifecycle.rollback(project, None, "ann", 3.0)
    assert project.policies["v1"].watch is not None
    assert project.policies["v1"].watch.counts.n == 0


@pytest.mark.parametrize(
    "act",
    [
        lambda project: lifecycle.promote(project, "v9", "ann", 1.0),
        lambda project: lifecycle.rollback(project, "v9", "ann", 1.0),
        lambda project: lifecycle.rollback(project, "v1", "ann", 1.0),
        lambda project: lifecycle.promote(project, "v1", "ann", 1.0),
        lambda project: lifecycle.promote(project, None, "ann", 1.0),
        lambda project: lifecycle.resume(project, "ann", 1.0),
    ],
)
def test_what_cannot_be_done_changes_nothing(act: Callable[[ProjectState], object]) -> None:
    """An unknown version, the live one again, nothing that waits, a project that is not paused."""
    project = _live(_project(), "v1")
    before = json.dumps(project.to_json())
    with pytest.raises(LifecycleError):
        act(project)
    assert json.dumps(project.to_json()) == before


def test_an_unknown_version_is_told_from_one_that_may_not() -> None:
    """So that an API can say 404 to the one and 409 to the other."""
    with pytest.raises(UnknownPolicy, match="known: v1"):
        lifecycle.promote(_live(_project(), "v1"), "v9", "ann", 1.0)


def test_a_pause_keeps_all_states() -> None:
    """It ends as it began."""
    project = _live(_project(), "v1")
    lifecycle.pause(project, "ann", 2.0)
    with pytest.raises(LifecycleError, match="paused already"):
        lifecycle.pause(project, "bob", 3.0)
    lifecycle.resume(project, "ann", 4.0)
    assert (project.state, project.live, project.paused) == (State.LIVE, "v1", False)


def test_forty_policies_are_remembered_and_never_forgotten_where_a_rollback_would_go() -> None:
    """The document does not grow for ever."""
    project = _live(_project(), *(f"v{i}" for i in range(60)))
    assert len(project.policies) <= 41
    assert all(version in project.policies for version in project.past)
    again = ProjectState.from_json(json.loads(json.dumps(project.to_json())))
    assert again.to_json() == project.to_json()
