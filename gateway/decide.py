"""(project, input) -> Decision: who answers this call, and why."""

import asyncio
import logging
from dataclasses import dataclass
from enum import StrEnum
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from gateway.metrics import Metrics
from gateway.registry import Serving
from policies.policy import Policy
from policies.types import LocalDecision, Reason

logger = logging.getLogger(__name__)

# Inputs that may be with the encoder at a time; the teacher takes what comes on top.
_MOST_ENCODING = 16
# Reasons that come after scoring: only then does a score mean anything.
_SCORED = frozenset({None, Reason.UNCERTAIN, Reason.NOVEL})


class Lane(StrEnum):
    """Who answers."""

    SURROGATE = "surrogate"
    TEACHER = "teacher"


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one call. `label` is the answer where the lane is the surrogate's, else None.

    `accept_score` is None where nothing was scored, `stage` is -1 where nothing was answered.
    """

    lane: Lane
    label: str | None = None
    accept_score: float | None = None
    reason: Reason | None = None
    policy_version: str | None = None
    stage: int = -1

    @property
    def word(self) -> str:
        """`handled` or `deferred`."""
        return "handled" if self.lane is Lane.SURROGATE else "deferred"


class Decider:
    """Decides on inputs, on the event loop where that takes microseconds, in a thread where an encoder is needed."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._encoding = 0

    async def decide(self, serving: Serving, text: str) -> Decision:
        """Decide on one text. Never raises: a fault in scoring is a reason to defer, logged and counted."""
        started = perf_counter()
        try:
            policy = serving.policy
            if policy is None or not policy.slow:
                return self.decide_here(serving, text)
            local = policy.decide_quickly(text)
            if local is None:
                if self._encoding >= _MOST_ENCODING:
                    return deferred(serving, Reason.BUSY)
                local = await self._decide_slowly(policy, text)
        except Exception as error:  # noqa: BLE001 - the border of local scoring: any fault ends in a forward
            return self._failed(serving, error)
        self._metrics.decision_seconds.observe(perf_counter() - started)
        return of_local(local, serving)

    def decide_here(self, serving: Serving, value: str | NDArray[np.float32]) -> Decision:
        """As `decide`, on the calling thread whatever it takes; also for an embedding."""
        policy = serving.policy
        if policy is None:
            return deferred(serving, serving.reason)
        started = perf_counter()
        try:
            local = policy.decide(value)
        except Exception as error:  # noqa: BLE001 - the border of local scoring: any fault ends in a forward
            return self._failed(serving, error)
        self._metrics.decision_seconds.observe(perf_counter() - started)
        return of_local(local, serving)

    async def _decide_slowly(self, policy: Policy, text: str) -> LocalDecision:
        self._encoding += 1
        try:
            return await asyncio.to_thread(policy.decide, text)
        finally:
            self._encoding -= 1

    def _failed(self, serving: Serving, error: Exception) -> Decision:
        self._metrics.internal_errors.labels("decide").inc()
        # One line, and no message: a fault may come with every call and may quote its text.
        logger.error("local scoring failed (%s); the call is deferred", type(error).__name__)
        return deferred(serving, Reason.ERROR)


def deferred(serving: Serving, reason: Reason) -> Decision:
    """A decision to defer without having scored."""
    return Decision(Lane.TEACHER, reason=reason, policy_version=serving.version)


def of_local(local: LocalDecision, serving: Serving) -> Decision:
    """The call's decision where the policy has said `local`."""
    score = local.accept_score if local.reason in _SCORED else None
    lane = Lane.SURROGATE if local.handled else Lane.TEACHER
    return Decision(lane, local.label, score, local.reason, serving.version, local.stage)
