"""The breaker's states, on a clock the test turns."""

import pytest

from gateway.breaker import Breaker


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> _Clock:
    """Starts at 100 seconds."""
    return _Clock()


def _opened(clock: _Clock) -> Breaker:
    breaker = Breaker(2, 10.0, clock)
    for _ in range(2):
        breaker.failed(breaker.enter())
    return breaker


def test_it_opens_after_failures_in_a_row(clock: _Clock) -> None:
    """An answer in between starts the count again."""
    breaker = Breaker(2, 10.0, clock)
    breaker.failed(breaker.enter())
    breaker.succeeded()
    breaker.failed(breaker.enter())
    assert (breaker.open, breaker.wait()) == (False, 0.0)
    breaker.failed(breaker.enter())
    assert (breaker.open, breaker.wait()) == (True, 10.0)
    clock.now += 4
    assert breaker.wait() == 6.0


def test_one_probe_goes_when_the_time_is_over(clock: _Clock) -> None:
    """The others wait for its end, and its success closes."""
    breaker = _opened(clock)
    clock.now += 10
    assert breaker.wait() == 0.0
    breaker.enter()
    assert breaker.wait() == 10.0
    breaker.succeeded()
    assert (breaker.open, breaker.wait()) == (False, 0.0)


def test_a_failed_probe_opens_it_again(clock: _Clock) -> None:
    """For the whole time."""
    breaker = _opened(clock)
    clock.now += 10
    probe = breaker.enter()
    clock.now += 3
    breaker.failed(probe)
    assert breaker.wait() == 10.0


def test_a_probe_whose_client_left_makes_room_for_the_next(clock: _Clock) -> None:
    """It has shown nothing."""
    breaker = _opened(clock)
    clock.now += 10
    breaker.left(breaker.enter())
    assert (breaker.open, breaker.wait()) == (True, 0.0)


def test_a_probe_that_does_not_end_keeps_nobody_waiting_for_ever(clock: _Clock) -> None:
    """Another may go after the same time again; the first one's leaving is then no news."""
    breaker = _opened(clock)
    clock.now += 10
    first = breaker.enter()
    clock.now += 10
    assert breaker.wait() == 0.0
    breaker.enter()
    breaker.left(first)
    assert breaker.wait() == 10.0


def test_calls_from_before_it_opened_decide_only_by_success(clock: _Clock) -> None:
    """Their failures were counted on; an answer is an answer."""
    breaker = Breaker(1, 10.0, clock)
    early, other = breaker.enter(), breaker.enter()
    breaker.failed(early)
    clock.now += 5
    breaker.failed(other)
    assert breaker.wait() == 5.0
    breaker.succeeded()
    assert not breaker.open


def test_zero_failures_turn_it_off(clock: _Clock) -> None:
    """It never opens."""
    breaker = Breaker(0, 10.0, clock)
    for _ in range(100):
        breaker.failed(breaker.enter())
    assert not breaker.open
