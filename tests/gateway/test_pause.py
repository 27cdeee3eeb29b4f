"""When an upstream is left alone by what nobody waits for, and for how long."""

import pytest

from gateway.errors import (
    AnswerableError,
    InvalidRequest,
    Overloaded,
    UpstreamTimeout,
    UpstreamUnavailable,
    UpstreamUnreachable,
)
from gateway.pause import Pause
from gateway.relay import Outcome

OK = Outcome(None, 200)


def _answer(status: int, retry_after: bytes | None = None, *, fallback: bool = False) -> Outcome:
    headers = [] if retry_after is None else [(b"retry-after", retry_after)]
    return Outcome(None, status, headers, fallback=fallback)


def test_a_429_rests_for_as_long_as_it_says() -> None:
    """Then one call goes, whose answer lets the others follow one by one."""
    pause = Pause()
    assert pause.allows(3, 100.0)
    assert not pause.answered(100.0, _answer(429, b"7"))
    assert not pause.allows(0, 106.9)
    assert pause.throttle
    assert pause.allows(0, 107.0)
    assert not pause.allows(1, 107.0)
    assert pause.answered(107.5, OK)
    assert pause.allows(0, 107.5)
    assert not pause.allows(1, 107.5)
    for _ in range(9):
        pause.answered(108.0, OK)
    assert pause.allows(3, 108.0)


def test_a_429_that_says_nothing_rests_ever_longer() -> None:
    """30 seconds, doubling to ten minutes while it goes on."""
    pause, now, waits = Pause(), 1_000.0, []
    for _ in range(7):
        pause.throttled(now)
        waits.append(pause.until - now)
        now = pause.until
    assert waits == [30.0, 60.0, 120.0, 240.0, 480.0, 600.0, 600.0]
    pause.throttled(now + 601.0)
    assert pause.until == now + 631.0


def test_429s_that_come_together_count_once() -> None:
    """Those of users, told while it rests, prolong it without doubling it."""
    pause = Pause()
    for now in (100.0, 100.1, 110.0):
        pause.throttled(now)
    assert pause.until == 140.0
    pause.throttled(111.0, 60.0)
    pause.throttled(112.0, 5.0)
    assert pause.until == 171.0


@pytest.mark.parametrize(("asked", "rests"), [(0.0, 1.0), (-5.0, 1.0), (float("inf"), 86_400.0)])
def test_a_retry_after_is_taken_within_bounds(asked: float, rests: float) -> None:
    """No upstream has itself asked without a pause, or never again."""
    pause = Pause()
    pause.throttled(10.0, asked)
    assert pause.until == 10.0 + rests


@pytest.mark.parametrize(
    "error",
    [
        UpstreamUnreachable("away"),
        UpstreamUnreachable("hung up", sent=True),
        UpstreamUnavailable("breaker", 1),
        UpstreamTimeout("connecting", "connect_timeout"),
    ],
)
def test_an_upstream_that_is_away_is_asked_ever_more_seldom(error: AnswerableError) -> None:
    """From a second up to a minute, by one call at a time."""
    pause, now, waits = Pause(), 1_000.0, []
    for _ in range(8):
        assert pause.refused(now, error)
        waits.append(pause.until - now)
        now = pause.until
        assert pause.allows(0, now)
        assert not pause.allows(1, now)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert not pause.throttle
    pause.answered(now, OK)
    assert pause.allows(3, now)


def test_calls_that_fail_together_count_once() -> None:
    """Four of them are no outage of eight seconds."""
    pause = Pause()
    for _ in range(4):
        assert not pause.answered(100.0, _answer(503))
    assert pause.until == 101.0


@pytest.mark.parametrize("status", [408, 409, 500, 502, 503, 504, 529])
def test_an_answer_that_passes_is_asked_for_again(status: int) -> None:
    """And what it says of when is kept to."""
    pause = Pause()
    assert not pause.answered(100.0, _answer(status, b"5"))
    assert pause.until == 105.0


def test_a_fallbacks_answer_is_none_of_the_teachers() -> None:
    """Its upstream is away."""
    pause = Pause()
    assert not pause.answered(100.0, _answer(200, fallback=True))
    assert not pause.allows(0, 100.5)


@pytest.mark.parametrize("status", [200, 307, 400, 401, 404])
def test_any_other_answer_is_an_answer(status: int) -> None:
    """A refusal shows that somebody is there."""
    pause = Pause()
    assert pause.answered(100.0, _answer(status))
    assert pause.allows(3, 100.0)


def test_what_may_have_been_worked_on_is_not_asked_again() -> None:
    """Nor what the upstream could never answer; only the first speaks of the upstream."""
    pause = Pause()
    assert not pause.refused(100.0, InvalidRequest("no such parameter"))
    assert pause.allows(3, 100.0)
    assert not pause.refused(100.0, UpstreamTimeout("slow", "read_timeout"))
    assert pause.until == 101.0


@pytest.mark.parametrize("error", [Overloaded("full"), UpstreamTimeout("full", "pool_timeout")])
def test_a_place_that_others_need_is_waited_for(error: AnswerableError) -> None:
    """For a fifth of a second each time, however often."""
    pause = Pause()
    for now in (100.0, 101.0, 102.0):
        assert pause.refused(now, error)
        assert pause.until == now + 0.2
    assert pause.allows(3, 103.0)
