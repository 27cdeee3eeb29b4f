"""Labels that are withheld for an answer that nobody has given before."""

import pytest

from policies import lifecycle
from policies.evidence import Report
from policies.lifecycle import Offer
from policies.rules import Rules
from policies.states import PolicyState, ProjectState, Withheld
from policies.types import Comparison, Move
from policies.verdicts import take

LABELS = [f"label-{i}" for i in range(40)]


def _earlier(*_: object) -> list[Comparison]:
    return []


@pytest.fixture
def project() -> ProjectState:
    """A policy of forty labels in shadow."""
    found = ProjectState()
    lifecycle.offer(found, Offer("v1", True, 0.9, 0.9, (0.9,), len(LABELS), 0.01), 0.0)
    return found


def _live(project: ProjectState) -> PolicyState:
    lifecycle.promote(project, "v1", "test", 0.0)
    return project.policies["v1"]


def _report(guesses: list[str], said: str = "new") -> Report:
    return Report(unseen=[("v1", said, f"text-{i}", guess) for i, guess in enumerate(guesses)])


def _take(project: ProjectState, report: Report) -> list[Move]:
    return take(project, report, [], _earlier, Rules(), 0.0)


def test_the_label_that_a_new_answer_takes_its_texts_from_is_withheld(project: ProjectState) -> None:
    """Five texts are enough, of which it would have had two."""
    policy = _live(project)
    assert not _take(project, _report(["label-1"] * 4))
    _take(project, _report(["label-1"] * 5))
    assert list(policy.withheld) == ["label-1"]


def test_what_a_surrogate_says_of_strange_texts_here_and_there_withholds_little(project: ProjectState) -> None:
    """Sixty texts spread over all labels: none has a tenth of them, so none is to blame."""
    policy = _live(project)
    _take(project, _report((LABELS + LABELS)[:60]))
    assert not policy.withheld


def test_an_answer_that_came_in_shadow_is_not_new(project: ProjectState) -> None:
    """It was counted there, on every call: what was proved was proved with it."""
    policy = project.policies["v1"]
    _take(project, _report(["label-1"] * 20))
    assert policy.foreign == {"new": 20}
    assert PolicyState.from_json(policy.to_json()).foreign == policy.foreign
    _live(project)
    _take(project, _report(["label-1"] * 20))
    assert not policy.withheld
    _take(project, _report(["label-1"] * 20, said="newer"))
    assert list(policy.withheld) == ["label-1"]


def test_a_label_that_has_returned_is_not_withheld_for_the_same_texts_again(project: ProjectState) -> None:
    """New ones are another matter."""
    policy = _live(project)
    _take(project, _report(["label-1"] * 6))
    policy.withheld["label-1"].trial.add(1.0, False, 200)
    assert [move.cause for move in _take(project, Report())] == ["label returned"]
    assert not _take(project, Report())
    assert not policy.withheld
    _take(project, _report(["label-1"] * 6))
    assert list(policy.withheld) == ["label-1"]


def test_too_many_labels_at_once_are_the_policys_own_fault(project: ProjectState) -> None:
    """More than a third of them: it goes back to shadow."""
    policy = _live(project)
    policy.withheld = {label: Withheld("drift", 0.0) for label in LABELS[:13]}
    moves = _take(project, _report(["label-20"] * 6))
    assert [(move.new, move.cause) for move in moves] == [("shadow", "new label")]
