"""When an upstream is left alone: after too many failures in a row, until one call has shown that it is back."""

import time
from collections.abc import Callable

# When a probe went in; None for a call of ordinary times.
Ticket = float | None


class Breaker:
    """Counts failures in a row. Not thread-safe: one event loop asks.

    Closed, every call may go. After `failures` in a row it opens for `seconds`; then one call, the probe, may go, and
    its end decides. A probe that has not ended after another `seconds` does not keep the next one waiting. With
    `failures` 0 it never opens.
    """

    def __init__(self, failures: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = failures
        self._seconds = seconds
        self._clock = clock
        self._seen = 0
        self._opened_at: float | None = None
        self._probe_at: Ticket = None

    @property
    def open(self) -> bool:
        """Whether it has opened and no call has shown since that the upstream is back."""
        return self._opened_at is not None

    def wait(self) -> float:
        """Seconds until a call may go; 0.0: now."""
        if self._opened_at is None:
            return 0.0
        since = self._opened_at if self._probe_at is None else self._probe_at
        return max(0.0, since + self._seconds - self._clock())

    def enter(self) -> Ticket:
        """Send a call, `wait` allowing it. Hand the ticket in at its end."""
        if self._opened_at is None:
            return None
        self._probe_at = self._clock()
        return self._probe_at

    def succeeded(self) -> None:
        """A call was answered: whichever it was, the upstream is there."""
        self._seen = 0
        self._opened_at = self._probe_at = None

    def failed(self, ticket: Ticket) -> None:
        """A call was not answered. One that went out before it opened says nothing new."""
        if self._opened_at is not None:
            if ticket is not None:
                self._opened_at, self._probe_at = self._clock(), None
            return
        self._seen += 1
        if self._limit and self._seen >= self._limit:
            self._opened_at = self._clock()

    def left(self, ticket: Ticket) -> None:
        """A call ended without a verdict: its client went away. Where it was the probe, the next call is."""
        if ticket is not None and ticket == self._probe_at:
            # As before the probe: open, its time being over.
            self._probe_at = None
