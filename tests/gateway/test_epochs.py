"""Comparisons beside a live policy count where the audits of their time have come back."""

import pytest

from gateway.epochs import Epochs
from policies.types import Comparison

NOW = 1_000.0


def _comparison(ts: float) -> Comparison:
    return Comparison(f"{ts}", "p", "v", "shadow", ts, "a", "a", False, 0.1, 0.1)


def _epochs(drawn: int, answered: int, lost: int) -> Epochs:
    epochs = Epochs()
    for count, times in ((epochs.drew, drawn), (epochs.answered, answered), (epochs.lost, lost)):
        for _ in range(times):
            count(NOW)
    epochs.hold([_comparison(NOW), _comparison(NOW + 1)])
    return epochs


@pytest.mark.parametrize(
    ("drawn", "answered", "lost", "counts"),
    [
        (0, 0, 0, True),
        (10, 10, 0, True),
        (200, 196, 4, True),
        (200, 195, 5, False),
        (10, 9, 1, False),
        (3, 0, 3, False),
    ],
)
def test_a_span_counts_as_a_whole_or_not_at_all(drawn: int, answered: int, lost: int, counts: bool) -> None:
    """Up to one audit in fifty may be lost."""
    assert len(_epochs(drawn, answered, lost).settled(NOW + 60)) == (2 if counts else 0)


def test_a_span_waits_until_it_is_over_and_its_audits_have_ended() -> None:
    """An audit may take minutes; one that never ends is lost."""
    epochs = _epochs(10, 9, 0)
    assert epochs.settled(NOW + 5) == []
    assert epochs.settled(NOW + 600) == []
    epochs.answered(NOW)
    assert len(epochs.settled(NOW + 601)) == 2
    assert _epochs(10, 9, 0).settled(NOW + 3_600) == []


def test_what_comes_late_to_a_span_that_was_dropped_is_dropped_too() -> None:
    """An answer may be read after its span was settled."""
    epochs = _epochs(10, 8, 2)
    assert epochs.settled(NOW + 60) == []
    epochs.hold([_comparison(NOW + 2)])
    assert epochs.settled(NOW + 61) == []


def test_a_call_that_was_not_even_drawn_for_want_of_budget_is_lost() -> None:
    """Then forwarded calls alone would be a sample of what the live policy finds hard."""
    epochs = _epochs(10, 10, 0)
    epochs.missed(NOW)
    assert epochs.settled(NOW + 60) == []


def test_a_clock_that_is_set_back_keeps_nothing_for_ever() -> None:
    """Spans in the future are over."""
    assert len(_epochs(10, 10, 0).settled(NOW - 86_400)) == 2


def test_what_is_held_is_bounded() -> None:
    """The oldest spans go first."""
    epochs = Epochs()
    epochs.drew(NOW + 10_000)
    for i in range(12_000):
        epochs.hold([_comparison(NOW + 10_000 + i / 10_000)])
    assert epochs.settled(NOW + 10_015) == []
    epochs.answered(NOW + 10_000)
    assert epochs.settled(NOW + 10_020) == []
