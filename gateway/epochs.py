"""Whether what was drawn in a span of time has been compared: else what was compared in it is no fair sample.

Beside a live policy, calls that it forwards are compared at no cost, and calls that it answers only by an audit. Both
are drawn alike, so together they are a sample of all calls; but an audit may be lost (no budget, a 429, an outage), and
a forwarded call never is. So comparisons of a span wait until all its audits have ended, and go where many were lost.
"""

import time
from collections.abc import Sequence

from policies.types import Comparison

_SECONDS = 10
_MOST_LOST = 0.02
_LONGEST = 1_800  # seconds after which an audit that has not ended counts as lost
_MOST_HELD = 10_000
_REMEMBERED = 1_000


class Epochs:
    """The spans of one project in one process. Counted on the event loop; held and settled by one thread."""

    def __init__(self) -> None:
        self._drawn: dict[int, int] = {}
        self._answered: dict[int, int] = {}
        self._lost: dict[int, int] = {}
        self._held: dict[int, list[Comparison]] = {}
        self._void: dict[int, None] = {}

    def drew(self, ts: float) -> None:
        """A handled call of that moment is to be compared."""
        self._add(self._drawn, ts)

    def answered(self, ts: float) -> None:
        """The teacher has answered it."""
        self._add(self._answered, ts)

    def lost(self, ts: float) -> None:
        """It never will."""
        self._add(self._lost, ts)

    def missed(self, ts: float) -> None:
        """A handled call that might have been drawn was not even put into the draw."""
        self.drew(ts)
        self.lost(ts)

    def hold(self, comparisons: Sequence[Comparison]) -> None:
        """Keep comparisons until their span is settled."""
        for comparison in comparisons:
            self._held.setdefault(_epoch(comparison.ts), []).append(comparison)

    def settled(self, now: float | None = None) -> list[Comparison]:
        """Comparisons of spans that are over, whose audits have all ended and hardly any of them been lost."""
        now = time.time() if now is None else now
        found: list[Comparison] = []
        for epoch in sorted(self._held):
            age = now - (epoch + 1) * _SECONDS
            # A clock that was set back leaves spans in the future, which are over as well.
            if 0 <= age < _LONGEST and not self._ended(epoch):
                continue
            if -_SECONDS <= age < 0:
                continue
            held = self._held.pop(epoch)
            if epoch not in self._void and self._ended(epoch) and not self._broken(epoch):
                found += held
            else:
                self._void[epoch] = None
        self._forget()
        return found

    def _ended(self, epoch: int) -> bool:
        return self._answered.get(epoch, 0) + self._lost.get(epoch, 0) >= self._drawn.get(epoch, 0)

    def _broken(self, epoch: int) -> bool:
        return self._lost.get(epoch, 0) > _MOST_LOST * self._drawn.get(epoch, 0)

    def _forget(self) -> None:
        for counts in (self._drawn, self._answered, self._lost):
            while len(counts) > _REMEMBERED:
                counts.pop(next(iter(counts)), None)
        while len(self._void) > _REMEMBERED:
            del self._void[next(iter(self._void))]
        while sum(map(len, self._held.values())) > _MOST_HELD:
            epoch = min(self._held)
            del self._held[epoch]
            self._void[epoch] = None

    def _add(self, counts: dict[int, int], ts: float) -> None:
        epoch = _epoch(ts)
        counts[epoch] = counts.get(epoch, 0) + 1


def _epoch(ts: float) -> int:
    return int(ts // _SECONDS)
