"""A forwarded call and the teacher's answer -> a trace."""

import logging
import time
from dataclasses import dataclass

from gateway.answer import read_label
from gateway.decide import Decision
from gateway.recognise import Recognised, prompt_fingerprint
from gateway.relay import Outcome
from gateway.services import Services
from gateway.upstream import Upstream
from gateway.wire import ChatRequest
from policies.types import StoredTrace

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A project's call on its way to the teacher. `model` is the name the teacher is asked by."""

    call_id: str
    found: Recognised
    decision: Decision
    request: ChatRequest
    model: str
    upstream: Upstream


def learn(services: Services, call: Forwarded, outcome: Outcome) -> str | None:
    """Record the teacher's label where the answer holds one, and return it.

    Call it when the client has its last byte: it parses. Never raises.
    """
    if outcome.status != 200 or not outcome.copy:
        return None
    try:
        label = read_label(outcome.headers, bytes(outcome.copy))
        # What another model said in the teacher's place is not what the teacher would have said.
        if label is not None and call.found.text is not None and not outcome.fallback:
            services.traces.record(_trace(call, call.found.text, label))
    except Exception as error:  # noqa: BLE001 - the border of an endpoint whose client is already served
        services.metrics.internal_errors.labels("trace").inc()
        logger.error("reading a label failed (%s); the call is no trace", type(error).__name__)
        return None
    return label


def _trace(call: Forwarded, text: str, label: str) -> StoredTrace:
    return StoredTrace(
        id=call.call_id,
        project=call.found.project,
        input=text,
        teacher=label,
        ts=time.time(),
        upstream=call.upstream.name,
        teacher_model=call.model,
        prompt_fingerprint=prompt_fingerprint(call.request, call.model),
        policy_version=call.decision.policy_version,
        reason=call.decision.reason or "",
        training_allowed=call.upstream.training_allowed,
    )
