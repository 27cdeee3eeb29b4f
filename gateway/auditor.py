"""Handled calls that the teacher is asked as well, in the background: what would it have said?

Nobody waits for an audit, so it yields to whoever waits: it takes no place that another call needs, is sent once and to
no fallback, and leaves an upstream alone that says 429, to whomever. What waits here is bounded; what does not fit, or
finds no teacher in time, is dropped and counted. Nothing is invented: without an answer there is no comparison.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.audit import Answered, Audit, OnAnswer, Result
from gateway.budget import Budget, Price
from gateway.draw import Seen
from gateway.encoding import JSON
from gateway.epochs import Epochs
from gateway.errors import AnswerableError, UpstreamBroken, UpstreamTimeout
from gateway.limits import Places
from gateway.metrics import Metrics
from gateway.pause import Pause
from gateway.question import question
from gateway.reading import read_object
from gateway.relay import COPY_LIMIT, Outcome, read_outcome
from gateway.settings import Settings
from gateway.upstream import Upstream, UpstreamCall
from policies.types import Answer

logger = logging.getLogger(__name__)

_MOST_WAITING = 1_000
_MOST_BYTES = 16_777_216
_TASKS = 4
_SEEN = 10_000
# Seconds after which a task looks again: whether a user's call has left room, whether an audit has expired.
_LOOK = 0.1
_SWEEP = 1.0
# As many answers of 5xx to one audit, with others answered in between, are this audit's own fault.
_STRIKES = 3
_ASKING = [(b"content-type", JSON), (b"accept", JSON)]


@dataclass(slots=True)
class _Waiting:
    audit: Audit
    strikes: int = 0
    seen: int = 0  # how often the upstream had answered when it last failed this audit


class _End(NamedTuple):
    """How an audit ended. `result` None: whoever compares counts it. `usd` None: the teacher was not asked."""

    result: Result | None
    usd: float | None = None


@dataclass(slots=True)
class _Line:
    """The audits that wait for one upstream."""

    upstream: Upstream
    queue: deque[_Waiting] = field(default_factory=deque)
    pause: Pause = field(default_factory=Pause)
    asking: int = 0
    swept_at: float = 0.0


class Auditor:
    """Asks the teachers. Owned by one event loop, but for `budgets`, to which any thread may grant calls."""

    def __init__(
        self,
        settings: Settings,
        upstreams: Mapping[str, Upstream],
        places: Places,
        metrics: Metrics,
        on_answer: OnAnswer,
        epochs: Mapping[str, Epochs],
    ) -> None:
        self._settings = {name: p.audit for name, p in settings.projects.items() if p.audit.rate > 0}
        self._prices = {name: Price(a.price_input or 0.0, a.price_output or 0.0) for name, a in self._settings.items()}
        self.budgets: Mapping[str, Budget] = {name: Budget() for name in self._settings}
        self._lines = {name: _Line(upstream) for name, upstream in upstreams.items()}
        self._turns = deque(self._lines.values())
        self._places = places
        self._metrics = metrics
        self._on_answer = on_answer
        self._epochs = epochs
        self._seen = Seen(_SEEN)
        self._pending = self._bytes = 0
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = False
        metrics.audit_queue.set_function(lambda: self._pending)

    @property
    def pending(self) -> int:
        """Audits that wait, or are with the teacher."""
        return self._pending

    def offer(self, audit: Audit) -> None:
        """Take an audit on, where there is room and budget; one whose id has been offered is the same one."""
        line, settings = self._lines.get(audit.upstream), self._settings.get(audit.project)
        if settings is None or not self._seen.add(audit.id):
            return
        self._epochs[audit.project].drew(audit.ts)
        full = self._pending >= _MOST_WAITING or self._bytes + len(audit.body) > _MOST_BYTES
        if line is None or full or self._stopped or not self.budgets[audit.project].reserve():
            self._metrics.audits.labels(audit.project, Result.DROPPED).inc()
            self._epochs[audit.project].lost(audit.ts)
            return
        self._pending += 1
        self._bytes += len(audit.body)
        line.queue.append(_Waiting(audit))
        self._changed.set()

    def throttled(self, upstream: str, retry_after: float | None = None) -> None:
        """An upstream has said 429 to a user's call, and perhaps for how many seconds."""
        line = self._lines.get(upstream)
        if line is not None:
            line.pause.throttled(time.monotonic(), retry_after)

    async def start(self) -> None:
        """Begin to ask; without a project to audit there is nothing to begin."""
        self._stopped = False
        self._tasks = [asyncio.create_task(self._work()) for _ in range(_TASKS if self._settings else 0)]

    async def stop(self) -> None:
        """Ask no more. What waits is dropped, and what is being asked is broken off."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        for line in self._lines.values():
            while line.queue:
                self._end(line.queue.popleft().audit, _End(Result.DROPPED))

    async def _work(self) -> None:
        while True:
            self._changed.clear()
            found = self._next(time.monotonic())
            if found is not None:
                await self._ask(*found)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._until_next(time.monotonic())):
                    await self._changed.wait()

    def _next(self, now: float) -> tuple[_Line, _Waiting] | None:
        """The audit to ask now; the upstreams take turns."""
        for line in self._turns:
            self._sweep(line, now)
        if not self._places.has_room_aside():
            return None
        for _ in self._lines:
            line = self._turns[0]
            self._turns.rotate(-1)
            if line.queue and line.pause.allows(line.asking, now):
                return line, line.queue.popleft()
        return None

    def _until_next(self, now: float) -> float | None:
        """Seconds until there may be one; None: not before something changes."""
        waits = [line.pause.until - now for line in self._lines.values() if line.queue]
        return min((max(_LOOK, min(wait, _SWEEP)) for wait in waits), default=None)

    def _sweep(self, line: _Line, now: float) -> None:
        """Give up what has waited for too long."""
        if not line.queue or now < line.swept_at + _SWEEP:
            return
        line.swept_at = now
        kept: deque[_Waiting] = deque()
        for waiting in line.queue:
            audit = waiting.audit
            if now - audit.made_at < self._settings[audit.project].expires:
                kept.append(waiting)
            else:
                self._end(audit, _End(Result.THROTTLED if line.pause.throttle else Result.EXPIRED))
        line.queue = kept

    async def _ask(self, line: _Line, waiting: _Waiting) -> None:
        """Ask for one audit; what is none's answer yet waits on."""
        end: _End | None = _End(Result.DROPPED, 0.0)  # where it is broken off: the teacher may have been asked
        line.asking += 1
        try:
            end = await self._asked(line, waiting)
        except Exception as error:  # noqa: BLE001 - the border of a background task
            self._failed(error)
            end = _End(Result.FAILED, 0.0)
        finally:
            line.asking -= 1
            if end is None:
                line.queue.append(waiting)
            else:
                self._end(waiting.audit, end)
            self._changed.set()

    async def _asked(self, line: _Line, waiting: _Waiting) -> _End | None:
        """How it ended; None: it has not, and is to be asked again."""
        audit, pause = waiting.audit, line.pause
        settings, price = self._settings[audit.project], self._prices[audit.project]
        body = question(audit.surface, audit.body, audit.model)
        if body is None:
            return _End(Result.DROPPED)
        call = UpstreamCall("POST", audit.surface, audit.query, [*_ASKING, *audit.headers], body, aside=True)
        try:
            async with asyncio.timeout(settings.timeout), self._places.aside():
                outcome = await _outcome(line.upstream, call)
        except (TimeoutError, UpstreamBroken):
            pause.failed(time.monotonic())
            # It may have been worked on, so it is not asked again, and counts as paid for.
            return _End(Result.FAILED, price.of(None, len(body), 0))
        except AnswerableError as error:
            if pause.refused(time.monotonic(), error):
                return None
            worked_on = isinstance(error, UpstreamTimeout)
            return _End(Result.FAILED, price.of(None, len(body), 0) if worked_on else 0.0)
        return self._answered(line, waiting, outcome, len(body))

    def _answered(self, line: _Line, waiting: _Waiting, outcome: Outcome, sent: int) -> _End | None:
        """As `_asked`, of an audit that an answer has come to."""
        if not line.pause.answered(time.monotonic(), outcome):
            return _End(Result.FAILED, 0.0) if _at_fault(waiting, line.pause, outcome) else None
        if outcome.status != 200:
            return _End(Result.FAILED, 0.0)
        audit, copy = waiting.audit, bytes(outcome.copy or b"")
        told = read_object(outcome.headers, copy) or {}
        received = COPY_LIMIT if outcome.overlong else len(copy)
        usd = self._prices[audit.project].of(told.get("usage"), sent, received)
        answer, teacher = read_outcome(audit.surface, outcome)
        return _End(self._hand_on(audit, answer, Answered(outcome.headers, copy, usd, teacher)), usd)

    def _hand_on(self, audit: Audit, answer: Answer | None, answered: Answered) -> Result | None:
        """Tell what the teacher said."""
        try:
            self._on_answer(audit, answer, answered)
        except Exception as error:  # noqa: BLE001 - the border of a background task: the call has been paid for
            self._failed(error)
            return Result.FAILED
        return Result.UNREAD if answer is None else None

    def _failed(self, error: Exception) -> None:
        self._metrics.internal_errors.labels("audit").inc()
        logger.error("an audit failed (%s)", type(error).__name__)

    def _end(self, audit: Audit, end: _End) -> None:
        """Forget an audit, and count what became of it."""
        self._pending -= 1
        self._bytes -= len(audit.body)
        budget = self.budgets[audit.project]
        if end.usd is None:
            budget.release()
        else:
            budget.spend(end.usd)
            self._metrics.audit_usd.labels(audit.project).inc(end.usd)
        if end.result is None:
            self._epochs[audit.project].answered(audit.ts)
        else:
            self._epochs[audit.project].lost(audit.ts)
            self._metrics.audits.labels(audit.project, end.result).inc()


def _at_fault(waiting: _Waiting, pause: Pause, outcome: Outcome) -> bool:
    """Whether it is this audit that the upstream cannot answer: others have been answered each time in between."""
    if outcome.status >= 500 and waiting.seen != pause.answers:
        waiting.strikes += 1
    waiting.seen = pause.answers
    return waiting.strikes >= _STRIKES


async def _outcome(upstream: Upstream, call: UpstreamCall) -> Outcome:
    """The whole answer to `call`. Raises AnswerableError where none begins, UpstreamBroken where it breaks off."""
    outcome = Outcome(bytearray())
    answer = await upstream.send(call)
    try:
        outcome.began(answer)
        while not outcome.overlong and (chunk := await answer.read()):
            outcome.keep(chunk)
    finally:
        await answer.close()
    return outcome
