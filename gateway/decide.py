"""(project, input) -> Decision: who answers this call, and why."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from time import perf_counter
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from gateway.metrics import Metrics
from gateway.registry import Serving
from policies.types import LocalDecision, Reason

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Inputs that may be with the encoder at a time; the teacher takes what comes on top.
_MOST_ENCODING = 16
_ENCODING_THREADS = 4
# Later than this the teacher itself would be as quick.
_LONGEST_SECONDS = 1.0
# Reasons that come after scoring: only then does a score mean anything.
_SCORED = frozenset({None, Reason.UNCERTAIN, Reason.NOVEL})


class Lane(StrEnum):
    """Who answers."""

    SURROGATE = "surrogate"
    MINI = "mini"
    TEACHER = "teacher"
    NONE = "none"  # nobody: the call was to stay here, and was deferred


class Decision(NamedTuple):
    """What happens to one call. `label` is the surrogate's where the call is handled, else None.

    `accept_score` is None where nothing was scored, `stage` is -1 where nothing was answered. `guess` is what the
    surrogate would have said, whether it may or not. A tool that the surrogate picked, but whose arguments an LLM
    writes, is handled by another lane.
    """

    lane: Lane
    label: str | None = None
    accept_score: float | None = None
    reason: Reason | None = None
    policy_version: str | None = None
    stage: int = -1
    guess: str | None = None

    @property
    def word(self) -> str:
        """`handled` or `deferred`."""
        return "deferred" if self.label is None else "handled"

    def put_off(self, reason: Reason) -> "Decision":
        """The same, deferred for a reason that has nothing to do with its score."""
        return self._replace(lane=Lane.TEACHER, label=None, reason=reason, stage=-1)

    def completed_by(self, lane: Lane) -> "Decision":
        """The same label, with arguments that another lane writes."""
        return self._replace(lane=lane, reason=Reason.ARGUMENTS)


class Decider:
    """Decides on inputs, on the event loop where that takes microseconds, in a thread where an encoder is needed."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        # Threads of their own: an encoder that hangs must not hold up what else leaves the event loop.
        self._threads = ThreadPoolExecutor(_ENCODING_THREADS, "encoder")
        self._encoding = 0

    async def decide(self, serving: Serving, text: str, agreement: float | None = None) -> Decision:
        """Decide on one text; `agreement`: how much of it is asked for, where that is more than was fitted for.

        Never raises: a fault in scoring is a reason to defer, logged and counted.

        What the encoder cannot take, or has not answered within a second, is deferred as busy.
        """
        started = perf_counter()
        try:
            policy = serving.policy
            if policy is None or not policy.slow:
                return self.decide_here(serving, text, agreement)
            local = policy.decide_quickly(text, agreement)
            if local is None:
                local = await self._slowly(lambda: policy.decide(text, agreement))
                if local is None:
                    return deferred(serving, Reason.BUSY)
        except Exception as error:  # noqa: BLE001 - the border of local scoring: any fault ends in a forward
            return self._failed(serving, error)
        self._metrics.decision_seconds.observe(perf_counter() - started)
        return of_local(local, serving)

    def decide_here(
        self, serving: Serving, value: str | NDArray[np.float32], agreement: float | None = None
    ) -> Decision:
        """As `decide`, on the calling thread whatever it takes; also for an embedding."""
        policy = serving.policy
        if policy is None:
            return deferred(serving, serving.reason)
        started = perf_counter()
        try:
            local = policy.decide(value, agreement)
        except Exception as error:  # noqa: BLE001 - the border of local scoring: any fault ends in a forward
            return self._failed(serving, error)
        self._metrics.decision_seconds.observe(perf_counter() - started)
        return of_local(local, serving)

    async def probabilities(
        self, serving: Serving, text: str, agreement: float | None = None
    ) -> dict[str, float] | None:
        """The policy's probability of each label; None where it has none to give, or scoring fails."""
        policy = serving.policy
        if policy is None:
            return None
        try:
            if policy.slow:
                return await self._slowly(lambda: policy.probabilities(text, agreement))
            return policy.probabilities(text, agreement)
        except Exception as error:  # noqa: BLE001 - the border of local scoring: any fault ends in a forward
            self._failed(serving, error)
            return None

    def close(self) -> None:
        """Let the threads end; what waits in them is dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _slowly(self, decide: Callable[[], T]) -> T | None:
        """What `decide` says; None where it would wait too long. A call given up keeps its place until it is over."""
        if self._encoding >= _MOST_ENCODING:
            return None
        self._encoding += 1
        loop = asyncio.get_running_loop()
        running = self._threads.submit(decide)
        running.add_done_callback(lambda _: _call_soon(loop, self._free_place))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(running), _LONGEST_SECONDS)
        except TimeoutError:
            return None

    def _free_place(self) -> None:
        self._encoding -= 1

    def _failed(self, serving: Serving, error: Exception) -> Decision:
        self._metrics.internal_errors.labels("decide").inc()
        # One line, and no message: a fault may come with every call and may quote its text.
        logger.error("local scoring failed (%s); the call is deferred", type(error).__name__)
        return deferred(serving, Reason.ERROR)


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody counts places any more
        loop.call_soon_threadsafe(call)


def deferred(serving: Serving, reason: Reason) -> Decision:
    """A decision to defer without having scored."""
    return Decision(Lane.TEACHER, reason=reason, policy_version=serving.version)


def of_local(local: LocalDecision, serving: Serving) -> Decision:
    """The call's decision where the policy has said `local`."""
    score = local.accept_score if local.reason in _SCORED else None
    lane = Lane.SURROGATE if local.handled else Lane.TEACHER
    return Decision(lane, local.label, score, local.reason, serving.version, local.stage, local.guess)
