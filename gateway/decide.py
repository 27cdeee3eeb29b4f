"""(project, input) -> Decision: who answers this call, and why."""

import logging
from dataclasses import dataclass
from enum import StrEnum
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from gateway.metrics import Metrics
from gateway.registry import Serving
from policies.types import LocalDecision, Reason

logger = logging.getLogger(__name__)

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


def decide(serving: Serving, value: str | NDArray[np.float32], metrics: Metrics) -> Decision:
    """Decide on one input. Never raises: a fault in scoring is a reason to defer, logged and counted."""
    policy = serving.policy
    if policy is None:
        return deferred(serving, serving.reason)
    started = perf_counter()
    try:
        local = policy.decide(value)
    except Exception as error:  # noqa: BLE001 - the border of local scoring: any fault ends in a forward
        metrics.internal_errors.labels("decide").inc()
        # One line, and no message: a fault may come with every call and may quote its text.
        logger.error("local scoring failed (%s); the call is deferred", type(error).__name__)
        return deferred(serving, Reason.ERROR)
    metrics.decision_seconds.observe(perf_counter() - started)
    return of_local(local, serving)


def deferred(serving: Serving, reason: Reason) -> Decision:
    """A decision to defer without having scored."""
    return Decision(Lane.TEACHER, reason=reason, policy_version=serving.version)


def of_local(local: LocalDecision, serving: Serving) -> Decision:
    """The call's decision where the policy has said `local`."""
    score = local.accept_score if local.reason in _SCORED else None
    lane = Lane.SURROGATE if local.handled else Lane.TEACHER
    return Decision(lane, local.label, score, local.reason, serving.version, local.stage)
