"""When an upstream is not asked what nobody waits for: while it says 429, and while it is away."""

from gateway.errors import AnswerableError, Overloaded, UpstreamTimeout, UpstreamUnavailable, UpstreamUnreachable
from gateway.relay import Outcome
from gateway.retrying import seconds_asked

# Beside all of 5xx: it could not answer now, and may later.
_PASSING = frozenset({408, 409})
# Seconds, where a 429 does not say how many; they double while it goes on.
_FIRST_THROTTLE, _LONGEST_THROTTLE = 30.0, 600.0
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0
# An upstream may ask for a pause of no time, or of one that never ends.
_LEAST, _MOST = 1.0, 86_400.0
# Until a place that others need is looked for again.
_NO_PLACE = 0.2
# Answers in a row after a 429, one call at a time, before several go at once again.
_CALM = 10
_DOUBLINGS = 10


class Pause:
    """What one upstream's last answers say of asking it again. Times are seconds of one monotonic clock.

    A pause that is over lets one call through, whose answer decides whether others follow.
    """

    def __init__(self) -> None:
        self.until = 0.0
        self.throttle = False  # it was a 429 that began the pause
        self.answers = 0  # how often it has shown that it is there
        self._throttles = self._failures = self._calm = 0

    def allows(self, asking: int, now: float) -> bool:
        """Whether another call may start beside `asking` that are under way."""
        return now >= self.until and (asking == 0 or not (self._throttles or self._failures))

    def answered(self, now: float, outcome: Outcome) -> bool:
        """Heed an answer; whether it is one of the teacher's. Else the same call may be sent again later."""
        if outcome.status == 429:
            self.throttled(now, seconds_asked(outcome.headers))
        elif outcome.status >= 500 or outcome.status in _PASSING or outcome.fallback:
            self.failed(now, seconds_asked(outcome.headers))
        else:
            self._succeeded()
            return True
        return False

    def refused(self, now: float, error: AnswerableError) -> bool:
        """Heed why no answer began; whether the same call may be sent again later."""
        match error:
            case Overloaded() | UpstreamTimeout(setting="pool_timeout"):
                self._rest(now, None, _NO_PLACE)
            case UpstreamUnavailable() | UpstreamUnreachable():
                self.failed(now, seconds_asked(list(error.headers)))
            case UpstreamTimeout():
                self.failed(now)
                return error.setting != "read_timeout"  # then it may have been worked on
            case _:
                return False
        return True

    def throttled(self, now: float, seconds: float | None = None) -> None:
        """It said 429, to whomever; `seconds` is for how long it asked to be left alone."""
        if now - self.until > _LONGEST_THROTTLE:
            self._throttles = 0  # what was before is long over
        if now >= self.until or not self._throttles:
            self._throttles = min(self._throttles + 1, _DOUBLINGS)
        self._calm = 0
        self.throttle = True
        self._rest(now, seconds, min(_FIRST_THROTTLE * 2 ** (self._throttles - 1), _LONGEST_THROTTLE))

    def failed(self, now: float, seconds: float | None = None) -> None:
        """It could not be asked, or did not answer. Calls that fail together count once."""
        if now >= self.until:
            self._failures = min(self._failures + 1, _DOUBLINGS)
            self.throttle = False
        own = min(_FIRST_WAIT * 2 ** (max(self._failures, 1) - 1), _LONGEST_WAIT)
        self._rest(now, None if seconds is None else max(seconds, own), own)

    def _succeeded(self) -> None:
        self.answers += 1
        self.throttle = False
        self._failures = 0
        self._calm += 1
        if self._calm >= _CALM:
            self._throttles = 0

    def _rest(self, now: float, asked: float | None, own: float) -> None:
        seconds = own if asked is None else min(max(asked, _LEAST), _MOST)
        self.until = max(self.until, now + seconds)
