"""A forwarded call and the teacher's answer -> a trace."""

import logging
import time
from dataclasses import dataclass

from gateway.decide import Decision
from gateway.reading import read_answer
from gateway.recognise import Recognised
from gateway.relay import COPY_LIMIT, Outcome
from gateway.services import Services
from gateway.shapes import Shape
from gateway.upstream import Upstream
from gateway.wire import Surface
from policies.types import Answer, AnswerKind, StoredTrace

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Forwarded:
    """A project's call on its way to the teacher. `model` is the name the teacher is asked by."""

    call_id: str
    found: Recognised
    decision: Decision
    surface: Surface
    shape: Shape
    model: str
    upstream: Upstream


def learn(services: Services, call: Forwarded, outcome: Outcome) -> Answer | None:
    """Record the teacher's answer where there is a whole one, and return it.

    Call it when the client has its last byte: it parses. Never raises.
    """
    if outcome.status != 200 or not (outcome.copy or outcome.overlong):
        return None
    try:
        if outcome.copy:
            answer = read_answer(call.surface, outcome.headers, bytes(outcome.copy))
        else:
            answer = Answer(f"an answer of more than {COPY_LIMIT:,} bytes", AnswerKind.OTHER)
        # What another model said in the teacher's place is not what the teacher would have said.
        if answer is not None and call.found.text is not None and not outcome.fallback and call.shape.chosen_freely:
            services.traces.record(_trace(call, call.found.text, answer))
    except Exception as error:  # noqa: BLE001 - the border of an endpoint whose client is already served
        services.metrics.internal_errors.labels("trace").inc()
        logger.error("reading an answer failed (%s); the call is no trace", type(error).__name__)
        return None
    return answer


def _trace(call: Forwarded, text: str, answer: Answer) -> StoredTrace:
    return StoredTrace(
        id=call.call_id,
        project=call.found.project,
        input=text,
        teacher=answer.text,
        ts=time.time(),
        upstream=call.upstream.name,
        teacher_model=call.model,
        prompt_fingerprint=call.shape.fingerprint(call.model),
        policy_version=call.decision.policy_version,
        reason=call.decision.reason or "",
        training_allowed=call.upstream.training_allowed,
        kind=answer.kind,
        arguments=answer.arguments,
    )
