"""The teacher's answer to an audit -> a trace, which knows how likely it was, and a comparison."""

import time
from collections.abc import Callable, Mapping

from gateway.audit import Answered, Audit
from gateway.observing import Observed, anything
from gateway.trace_log import TraceLog
from gateway.upstream import Upstream
from policies.types import Answer, StoredTrace


class AuditAnswers:
    """Takes what the teacher said to audits. `saw` hears of each."""

    def __init__(self, traces: TraceLog, upstreams: Mapping[str, Upstream]) -> None:
        self._traces = traces
        self._upstreams = upstreams
        self.saw: Callable[[Observed], None] = lambda _: None

    def take(self, audit: Audit, answer: Answer | None, answered: Answered) -> None:
        """What could not be read is no comparison: it is counted where it was read."""
        if answer is None:
            return
        self._traces.record(_trace(audit, answer, self._upstreams[audit.upstream]))
        self.saw(
            Observed(
                project=audit.project,
                text=audit.text,
                answer=answer,
                teacher=answered.teacher,
                prompt=None,
                asked=audit.model,
                fits=anything,
                reason=None,
                guess=audit.label,
                ts=audit.ts,
                live=audit.version,
                rate=audit.probability,
                audit=audit,
            )
        )


def _trace(audit: Audit, answer: Answer, upstream: Upstream) -> StoredTrace:
    return StoredTrace(
        id=audit.id,
        project=audit.project,
        input=audit.text,
        teacher=answer.text,
        ts=time.time(),
        upstream=upstream.name,
        teacher_model=audit.model,
        prompt_fingerprint=audit.fingerprint,
        policy_version=audit.version,
        sampling_probability=audit.probability,
        training_allowed=upstream.training_allowed,
        kind=answer.kind,
        arguments=answer.arguments,
    )
