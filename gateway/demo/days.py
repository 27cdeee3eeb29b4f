"""A day's figures, from the calls the application made. A leaf but for `driver`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from gateway.demo import costs
from gateway.demo.driver import Call

# Chance that agreement this low, or lower, comes about where the target holds; below it the demo says that it does not.
ALARM = 0.001


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of single calls, taken where no call waits for another: a busy client would measure its own queue.

    `forwarded` calls with a few in flight; `alone` and `bare` handled calls one by one, through the client and over a
    bare socket.
    """

    forwarded: tuple[float, ...] = ()
    alone: tuple[float, ...] = ()
    bare: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Day:
    """What the application saw on one day. Times are the medians of `Timings`, None where there was no such call.

    `cost` is what the teacher billed; `cost_without` what it would have billed for every call.
    """

    number: int
    calls: int
    failures: tuple[str, ...]
    handled: int
    agreed: int
    forwarded_seconds: float | None
    handled_alone: float | None
    handled_bare: float | None
    cost: float
    cost_without: float

    @property
    def coverage(self) -> float:
        """Share of calls handled."""
        return self.handled / self.calls if self.calls else 0.0

    @property
    def agreement(self) -> float | None:
        """Share of handled calls answered as the teacher would have."""
        return self.agreed / self.handled if self.handled else None


def summarise(number: int, calls: Sequence[Call], system_prompt: str, timings: Timings | None = None) -> Day:
    """The figures of one day."""
    handled = [call for call in calls if call.handled]
    timings = timings or Timings()
    return Day(
        number=number,
        calls=len(calls),
        failures=tuple(call.error for call in calls if call.error is not None),
        handled=len(handled),
        agreed=sum(call.agrees for call in handled),
        forwarded_seconds=_median(timings.forwarded),
        handled_alone=_median(timings.alone),
        handled_bare=_median(timings.bare),
        cost=sum(costs.dollars(call.usage) for call in calls),
        cost_without=sum(
            costs.dollars(costs.estimate([system_prompt, call.message.text], call.message.label)) for call in calls
        ),
    )


def faults(days: Sequence[Day], target: float) -> list[str]:
    """What did not hold over the days, a sentence each; empty where everything did."""
    found = []
    failures = [failure for day in days for failure in day.failures]
    if failures:
        found.append(f"{len(failures)} calls failed, the first with: {failures[0]}")
    handled, agreed = sum(day.handled for day in days), sum(day.agreed for day in days)
    if not handled:
        found.append("no policy was certified, so no call was handled: more calls a day or a lower target would help")
    elif binomial_tail(handled, handled - agreed, 1 - target) < ALARM:
        found.append(f"agreement on handled calls was {agreed / handled:.3f}, below the target of {target:g}")
    return found


def binomial_tail(n: int, wrong: int, rate: float) -> float:
    """P(X >= `wrong`) for X binomial over `n` trials at `rate` (0 < rate < 1), summed term by term."""
    log_rate, log_other = math.log(rate), math.log1p(-rate)
    whole = math.lgamma(n + 1)
    terms = (
        math.exp(whole - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * log_rate + (n - k) * log_other)
        for k in range(wrong, n + 1)
    )
    return min(1.0, sum(terms))


def _median(seconds: Sequence[float]) -> float | None:
    return median(seconds) if seconds else None
