"""A forwarded call and the teacher's answer -> a trace."""

import logging
import time
from dataclasses import dataclass

from gateway.decide import Decision
from gateway.observing import Fits, Observed, anything
from gateway.reading import Teacher
from gateway.recognise import Recognised
from gateway.relay import Outcome, read_outcome
from gateway.retrying import seconds_asked
from gateway.services import Services
from gateway.shapes import Shape
from gateway.upstream import Upstream
from gateway.wire import Surface
from policies.types import Answer, StoredTrace

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


def learn(services: Services, call: Forwarded, outcome: Outcome, fits: Fits = anything) -> Answer | None:
    """Record the teacher's answer where there is a whole one, and return it. `fits` is as in `Observed`.

    Call it when the client has its last byte: it parses. Never raises.
    """
    if outcome.status == 429 and not outcome.fallback:
        services.auditor.throttled(outcome.upstream, seconds_asked(outcome.headers))
    if outcome.status != 200 or not (outcome.copy or outcome.overlong):
        return None
    try:
        answer, teacher = read_outcome(call.surface, outcome)
        # What another model said in the teacher's place is not what the teacher would have said.
        if answer is not None and call.found.text is not None and not outcome.fallback and call.shape.chosen_freely:
            services.traces.record(_trace(call, call.found.text, answer))
            if services.watch.compares(call.found.project):
                rate = services.watch.intakes[call.found.project].rate
                services.watch.saw(_observed(call, call.found.text, answer, teacher, fits, rate))
    except Exception as error:  # noqa: BLE001 - the border of an endpoint whose client is already served
        services.metrics.internal_errors.labels("trace").inc()
        logger.error("reading an answer failed (%s); the call is no trace", type(error).__name__)
        return None
    return answer


def _observed(call: Forwarded, text: str, answer: Answer, teacher: Teacher, fits: Fits, rate: float) -> Observed:
    return Observed(
        project=call.found.project,
        text=text,
        answer=answer,
        teacher=teacher,
        prompt=call.shape.prompt(call.model),
        asked=call.model,
        fits=fits,
        reason=call.decision.reason,
        guess=call.decision.guess,
        ts=time.time(),
        live=call.decision.policy_version,
        rate=rate,
    )


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
