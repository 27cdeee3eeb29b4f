"""Threads for what would hold up the event loop: encoders, long texts, batches. A few for each policy.

Nothing waits that need not: an idle thread starts on a call at once, and what comes while all are busy is taken by the
first that is free, as many together as the encoder takes in about the time of one. Nothing waits long: a call whose
wait, by what calls took so far, would be over the limit is turned away at once; one that is given up while it waits
(its client has left, its time is over) costs nothing any more.

A policy's threads are its own, and the operating system shares the cores out between threads: a project whose encoder
is slow, or hangs, delays no other project's calls.
"""

import asyncio
import contextlib
import math
import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Any, Generic, TypeVar

from gateway.errors import ScorersBusy
from gateway.metrics import Metrics
from gateway.settings import ServerSettings
from policies.policy import Policy
from policies.types import LocalDecision

T = TypeVar("T")

# Threads that wait for an endpoint's answer, for each policy: they take no core.
_ENDPOINT_THREADS = 4
# Weight of the newest measurement of the time that scoring takes.
_NEWEST = 0.2
# A call is turned away where it is expected to wait more than this part of what it may wait: one that is taken in and
# then dropped has waited in vain.
_MARGIN = 0.5
# The event loop goes first where there are fewer cores than threads. No more than that: a thread that hardly ever runs
# could keep the interpreter's lock from the event loop.
_NICENESS = 5
# What is still in a model when the gateway stops may end: leaving the process under it could abort it.
_FAREWELL_SECONDS = 1.0

Asked = tuple[str, float | None]


@dataclass(slots=True, eq=False)
class _Job(Generic[T]):
    """One hand-over: `work` is done alone, what has none is `asked` together with others."""

    answered: "asyncio.Future[T]"
    work: Callable[[], T] | None = None
    asked: tuple[Policy, Asked] | None = None
    patient: bool = False
    since: float = field(default_factory=perf_counter)
    begun: bool = False

    @property
    def given_up(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.answered.done()


@dataclass(slots=True)
class _Busy:
    """What a thread is doing: since when, and how long that should take (seconds)."""

    since: float
    expected: float

    def left(self, now: float) -> float:
        """Seconds until it is done, as far as one can tell: what is late may be late by as much again."""
        return abs(self.since + self.expected - now)


@dataclass(frozen=True, slots=True)
class _Done:
    """What a thread has done in one go: jobs with a result each, which may be an error."""

    jobs: list[_Job[Any]]
    results: list[Any]
    began: float
    seconds: float


class Scorer:
    """The threads of one policy. All methods are the event loop's; threads hand back through it.

    Holds nothing of the policy itself, so that it goes where the policy goes.
    """

    def __init__(self, threads: int, at_once: int, settings: ServerSettings, metrics: Metrics) -> None:
        self._threads, self._at_once, self._metrics = threads, at_once, metrics
        self._longest_wait, self._longest = settings.scoring_wait, settings.scoring_timeout
        # Its lock is never held while Python runs: a thread that has lost its core holds up nobody.
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._workers: list[threading.Thread] = []
        self._busy: dict[int, _Busy] = {}
        self._unit_seconds = 0.0
        self.pending = 0

    async def decide(
        self, policy: Policy, text: str, agreement: float | None, *, patient: bool = False
    ) -> LocalDecision:
        """What the policy says of a text that needs its encoder; taken together with others that wait.

        `patient` and what it raises: as `run`.
        """
        return await self._answer(_Job(_future(), asked=(policy, (text, agreement)), patient=patient))

    async def run(self, work: Callable[[], T], *, patient: bool = False) -> T:
        """What `work` returns, or raises. A `patient` caller waits as long as it takes.

        Raises ScorersBusy where it would wait too long, or has.
        """
        return await self._answer(_Job(_future(), work, patient=patient))

    def close(self) -> None:
        """Let the threads end when they have done what they are at."""
        for _ in self._workers:
            self._jobs.put(None)

    def join(self, deadline: float) -> None:
        """Wait until the threads have ended, or `perf_counter` reads `deadline`."""
        for worker in self._workers:
            worker.join(max(0.0, deadline - perf_counter()))

    async def _answer(self, job: _Job[T]) -> T:
        if not job.patient and self.expected_wait() > _MARGIN * self._longest_wait:
            raise ScorersBusy
        self.pending += 1
        hired = len(self._workers)
        # One that hangs has a thread, and nobody who waits for it.
        if hired < self._threads and (self.pending > hired or len(self._busy) == hired):
            self._hire()
        self._jobs.put(job)
        timer = None if job.patient else job.answered.get_loop().call_later(self._longest_wait, self._overdue, job)
        try:
            return await job.answered
        finally:
            self.pending -= 1
            if timer is not None:
                timer.cancel()

    def expected_wait(self) -> float:
        """Seconds until a thread would begin with a call that came now."""
        if len(self._busy) < self._threads and self.pending < self._threads:
            return 0.0
        now = perf_counter()
        first = min((busy.left(now) for busy in list(self._busy.values())), default=0.0)
        waiting = max(0, math.ceil(self.pending / self._at_once) - self._threads)
        return first + waiting * self._unit_seconds / self._threads

    def _overdue(self, job: _Job[Any]) -> None:
        """A call has waited for as long as it may: what has begun may come to its end, within its time."""
        if job.given_up:
            return
        if job.begun and (left := job.since + self._longest - perf_counter()) > 0:
            job.answered.get_loop().call_later(left, self._overdue, job)
            return
        job.answered.set_exception(ScorersBusy())

    def _hire(self) -> None:
        # Daemons: what hangs in an encoder must not keep the process.
        worker = threading.Thread(target=self._work, args=(len(self._workers),), name="scorer", daemon=True)
        self._workers.append(worker)
        worker.start()

    # What follows runs on the threads -------------------------------------------------------------------------------

    def _work(self, number: int) -> None:
        _step_back()
        while self._take(number):
            pass

    def _take(self, number: int) -> bool:
        """Wait for jobs and do them; False when it is time to leave."""
        jobs = [self._jobs.get()]
        while len(jobs) < self._at_once:
            try:
                jobs.append(self._jobs.get_nowait())
            except Empty:
                break
        wanted = [job for job in jobs if job is not None and not job.given_up]
        together = [job for job in wanted if job.work is None]
        alone = [[job] for job in wanted if job.work is not None]
        for part in [together, *alone] if together else alone:
            self._busy[number] = _Busy(perf_counter(), self._unit_seconds)
            self._do(part)
        self._busy.pop(number, None)
        leave = jobs.count(None)
        for _ in range(leave - 1):  # they were for the other threads
            self._jobs.put(None)
        return not leave

    def _do(self, jobs: list[_Job[Any]]) -> None:
        began = perf_counter()
        for job in jobs:
            job.begun = True
        results = _results(jobs)
        loop, done = jobs[0].answered.get_loop(), _Done(jobs, results, began, perf_counter() - began)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(self._deliver, done)

    # And this on the loop again -------------------------------------------------------------------------------------

    def _deliver(self, done: _Done) -> None:
        seconds = min(done.seconds, self._longest)
        self._unit_seconds += (_NEWEST if self._unit_seconds else 1.0) * (seconds - self._unit_seconds)
        self._metrics.scoring_batch.observe(len(done.jobs))
        for job, result in zip(done.jobs, done.results, strict=True):
            self._metrics.scoring_wait_seconds.observe(done.began - job.since)
            if job.given_up:
                continue
            if isinstance(result, Exception):
                job.answered.set_exception(result)
            else:
                job.answered.set_result(result)


class Scorers:
    """A scorer for each policy that needs one, for as long as the policy is in use."""

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._of: weakref.WeakKeyDictionary[Policy, Scorer] = weakref.WeakKeyDictionary()
        metrics.scoring_pending.set_function(lambda: sum(scorer.pending for scorer in self._all()))

    def of(self, policy: Policy) -> Scorer:
        """The threads of a policy."""
        found = self._of.get(policy)
        if found is None:
            threads = _ENDPOINT_THREADS if policy.at_once > 1 else self._settings.scoring_threads
            found = self._of[policy] = Scorer(threads, policy.at_once, self._settings, self._metrics)
            weakref.finalize(policy, found.close).atexit = False
        return found

    def close(self) -> None:
        """Let all threads end; those that hang are left behind."""
        deadline = perf_counter() + _FAREWELL_SECONDS
        for scorer in self._all():
            scorer.close()
        for scorer in self._all():
            scorer.join(deadline)

    def _all(self) -> Sequence[Scorer]:
        return list(self._of.values())


def _future() -> "asyncio.Future[Any]":
    return asyncio.get_running_loop().create_future()


def _results(jobs: Sequence[_Job[Any]]) -> list[Any]:
    """What each job gives: its result, or its error."""
    try:
        return _together(jobs)
    except Exception as error:  # noqa: BLE001 - the border of local scoring: who asked is told, and defers
        # An endpoint that is away fails them all; else one text may be at fault, and the others need not suffer.
        if len(jobs) == 1 or isinstance(error, ConnectionError):
            return [error] * len(jobs)
    return [result for job in jobs for result in _results([job])]


def _together(jobs: Sequence[_Job[Any]]) -> list[Any]:
    if jobs[0].work is not None:
        return [job.work() for job in jobs if job.work is not None]
    given = [job.asked for job in jobs if job.asked is not None]
    policy = given[0][0]
    return list(policy.decide_encoded([asked for _, asked in given]))


def _step_back() -> None:
    """Let the event loop's thread go before this one. Only Linux has niceness by thread."""
    if sys.platform == "linux":  # where 0 is the calling thread
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS)
