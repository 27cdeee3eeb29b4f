"""The figures of a demo day, and what counts as not having held."""

import pytest

from gateway.demo import days
from gateway.demo.costs import Usage
from gateway.demo.days import Day, Timings
from gateway.demo.driver import Call
from gateway.demo.workload import Message


def _call(label: str | None, lane: str, seconds: float = 0.1, usage: Usage | None = None) -> Call:
    error = "refused" if label is None else None
    return Call(Message("hello", "right"), seconds, label, lane, usage=usage or Usage(), error=error)


def _day(handled: int, agreed: int, failed: int = 0) -> Day:
    return Day(1, 1_000, ("connection reset",) * failed, handled, agreed, 0.3, 0.002, 0.001, 0.1, 0.2)


def test_summary_of_a_day() -> None:
    """Coverage counts handled calls, agreement is among them, a failed call counts as a call, times are medians."""
    calls = [
        _call("right", "surrogate", 0.001),
        _call("wrong", "surrogate", 0.001),
        _call("right", "teacher", 0.3, Usage(1_000_000, 0)),
        _call("right", "teacher", 0.5),
        _call(None, "", 60.0),
    ]
    day = days.summarise(1, calls, "prompt", Timings((0.3, 0.5), (0.002, 0.004, 0.003), (0.001,)))
    assert (day.calls, day.failures, day.handled, day.agreed) == (5, ("refused",), 2, 1)
    assert day.coverage == pytest.approx(0.4)
    assert day.agreement == pytest.approx(0.5)
    assert day.forwarded_seconds == pytest.approx(0.4)
    assert (day.handled_alone, day.handled_bare) == (0.003, 0.001)
    assert day.cost == pytest.approx(0.40)
    assert 0 < day.cost_without < 0.001


def test_a_day_without_handled_calls() -> None:
    """Before the first policy there is no agreement and no handled time."""
    day = days.summarise(1, [_call("right", "teacher")], "prompt")
    assert (day.coverage, day.agreement, day.handled_alone) == (0.0, None, None)


def test_nothing_to_complain_about() -> None:
    """Agreement at the target, or below it by no more than chance, holds."""
    assert days.faults([_day(0, 0), _day(600, 570)], target=0.95) == []
    assert days.faults([_day(0, 0), _day(600, 565)], target=0.95) == []


@pytest.mark.parametrize(
    ("seen", "fault"),
    [
        ([_day(600, 540)], "below the target"),
        ([_day(0, 0)], "no policy was certified"),
        ([_day(600, 590, failed=3)], "3 calls failed, the first with: connection reset"),
    ],
)
def test_what_does_not_hold(seen: list[Day], fault: str) -> None:
    """Agreement far below the target, nothing certified, and failed calls are each named."""
    (found,) = days.faults(seen, target=0.95)
    assert fault in found


@pytest.mark.parametrize(("n", "wrong", "rate", "tail"), [(10, 0, 0.05, 1.0), (1, 1, 0.05, 0.05), (3, 2, 0.5, 0.5)])
def test_binomial_tail(n: int, wrong: int, rate: float, tail: float) -> None:
    """The chance of at least so many errors is the binomial one."""
    assert days.binomial_tail(n, wrong, rate) == pytest.approx(tail)
