"""Calls that the teacher has answered -> what they say of the policies: comparisons, and what else has been seen.

Off the event loop, when the client has its answer. What a policy would have said is asked of the policy that serves, or
would: it was frozen before the answer came, so it does not matter that it decides after it.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b

from gateway.audit import Audit, Result
from gateway.draw import Draw, Seen
from gateway.metrics import Metrics
from gateway.orders import Orders
from gateway.reading import Teacher
from gateway.registry import Registry
from policies.evidence import Report
from policies.policy import Policy
from policies.prompts import Prompt
from policies.types import Answer, AnswerKind, Comparison, Reason

logger = logging.getLogger(__name__)

Fits = Callable[[Policy, Answer], bool]

_REPORTED, _PROMPTS_AT_ONCE = 4_096, 20
# A call deferred under one of these might have been answered: what it says is about the policy that was not asked.
_STRANGE = frozenset({Reason.PROMPT, Reason.MODEL})
# The teacher's word to a call whose answer hangs on more than its text is no evidence.
_UNASKED = frozenset({Reason.ASKED, Reason.MIN_AGREEMENT, Reason.KEY})


def anything(_: Policy, __: Answer) -> bool:
    """Whether an answer fits a call that asks for nothing in particular."""
    return True


@dataclass(frozen=True, slots=True)
class Observed:
    """One call and what the teacher said of it.

    `answer` is None where it said nothing that could be read. `asked` is the model that was asked for. `fits`: whether
    a policy's answer would have been what the call asks for. `reason` is why the call was deferred, `guess` what the
    surrogate would have said, if asked.
    `audit` is the audit that the answer is to; None for a forwarded call. `ts` is seconds since the epoch.
    """

    project: str
    text: str
    answer: Answer | None
    teacher: Teacher
    prompt: Prompt | None
    asked: str
    fits: Fits
    reason: Reason | None
    guess: str | None
    ts: float
    audit: Audit | None = None


@dataclass(slots=True)
class Found:
    """What observed calls of one project come to."""

    comparisons: list[Comparison] = field(default_factory=list)
    report: Report = field(default_factory=Report)


class Observer:
    """Reads observed calls. One thread's; remembers which prompts it has reported."""

    def __init__(self, registry: Registry, metrics: Metrics, draw: Draw) -> None:
        self._registry = registry
        self._metrics = metrics
        self._draw = draw
        self._reported = Seen(_REPORTED)

    def forget(self) -> None:
        """Report prompts anew: where a policy stands has changed."""
        self._reported = Seen(_REPORTED)

    def read(self, project: str, observed: Iterable[Observed], rate: float) -> Found:
        """What calls of one project say, where `rate` of the handled ones are audited."""
        found = Found()
        orders = self._registry.orders(project)
        for call in observed:
            try:
                if orders is not None:
                    self._read(call, orders, rate, found)
            except Exception as error:  # noqa: BLE001 - the border of a background task: one call's fault is not the others'
                self._metrics.internal_errors.labels("watch").inc()
                logger.error("comparing a call failed (%s); it is no evidence", type(error).__name__)
        return found

    def _read(self, call: Observed, orders: Orders, rate: float, found: Found) -> None:
        if call.teacher.model:
            name = call.asked, call.teacher.model, call.teacher.build
            found.report.teachers[name] = found.report.teachers.get(name, 0) + 1
        if call.answer is None:
            return
        live = self._registry.policy(call.project, orders.live)
        shadow = self._registry.policy(call.project, orders.shadow)
        if shadow is not None:
            self._beside(call, shadow, orders, rate, found)
        if live is not None:
            self._of_live(call, live, orders, rate, found)

    def _beside(self, call: Observed, policy: Policy, orders: Orders, rate: float, found: Found) -> None:
        """What the policy in shadow would have done."""
        if call.reason in _UNASKED or call.answer is None:
            return
        # In a pause every call goes to the teacher, whatever the live policy would have done.
        base = 1.0 if orders.live is None or call.reason is Reason.PAUSED else rate
        if not base:
            return  # forwarded calls alone are those that another policy found hard
        self._prompt(call, policy.version, found.report.prompts)
        local = policy.decide(call.text)
        if policy.label_of(call.answer) is None and call.answer.kind is not AnswerKind.OTHER:
            found.report.unseen.append((policy.version, call.answer.text[:200], _hashed(call.text), local.guess))
        if orders.live is None:
            calls, novel = found.report.decided.get(policy.version, (0, 0))
            found.report.decided[policy.version] = calls + 1, novel + (local.reason is Reason.NOVEL)
        told, label = "", None
        for rung in policy.rungs:
            if told == "-":
                break  # what is not answered at the target is not answered where more is asked for
            if told:
                local = policy.decide(call.text, rung)
            answers = local.label is not None and call.fits(policy, policy.answers[local.label])
            told += ("1" if policy.label_of(call.answer) == local.label else "0") if answers else "-"
            label = label or (local.label if answers else None)
        if label is not None:
            found.comparisons.append(self._comparison(call, policy, "shadow", label, min(base, _p(call)), told))

    def _of_live(self, call: Observed, policy: Policy, orders: Orders, rate: float, found: Found) -> None:
        """What the live policy answered, or would have but for what kept it from it."""
        if call.answer is None:
            return
        audit = call.audit
        teacher = policy.label_of(call.answer)
        if teacher is None and call.answer.kind is not AnswerKind.OTHER and call.reason not in _UNASKED:
            guess = audit.label if audit is not None else call.guess or policy.decide(call.text).guess
            found.report.unseen.append((policy.version, call.answer.text[:200], _hashed(call.text), guess))
        if audit is not None:
            if audit.version == policy.version:
                comparison = self._comparison(call, policy, "audit", audit.label, audit.base)
                result = Result.DISAGREED if comparison.wrong else Result.AGREED
                self._metrics.audits.labels(call.project, result).inc()
                found.comparisons.append(comparison)
            return
        if orders.family is None:
            self._prompt(call, policy.version, found.report.prompts)
        if call.reason is Reason.LABEL and call.guess is not None:
            found.comparisons.append(self._comparison(call, policy, "shadow", call.guess, 1.0, "label"))
        elif call.reason in _STRANGE:
            self._prompt(call, policy.version, found.report.strangers)
            label = self._would(call, policy, orders.agreement)
            if label is not None:
                found.comparisons.append(self._comparison(call, policy, "shadow", label, 1.0, "prompt"))
        elif call.reason is Reason.UNCERTAIN and orders.agreement is not None and rate:
            self._looser(call, policy, orders.agreement, rate, found)

    def _looser(self, call: Observed, policy: Policy, agreement: float, rate: float, found: Found) -> None:
        """What the live policy would have answered, were it held to less."""
        told, first = "", None
        for rung in policy.rungs[: policy.rungs.index(agreement)]:
            label = self._would(call, policy, rung)
            told += "-" if label is None else "1" if policy.label_of(call.answer) == label else "0"  # type: ignore[arg-type]
            first = first or label
        if first is not None:
            found.comparisons.append(self._comparison(call, policy, "shadow", first, rate, told))

    def _would(self, call: Observed, policy: Policy, agreement: float | None) -> str | None:
        local = policy.decide(call.text, agreement)
        return local.label if local.label is not None and call.fits(policy, policy.answers[local.label]) else None

    def _prompt(self, call: Observed, version: str, into: list[tuple[str, Prompt]]) -> None:
        prompt = call.prompt
        # A prompt that fits no other costs the store's next change milliseconds.
        if (
            prompt is not None
            and len(into) < _PROMPTS_AT_ONCE
            and self._reported.add(f"{call.project} {version} {prompt.fingerprint}")
        ):
            into.append((version, prompt))

    def _comparison(
        self, call: Observed, policy: Policy, kind: str, label: str, base: float, detail: str = ""
    ) -> Comparison:
        audit = call.audit
        fingerprint = audit.fingerprint if audit else "" if call.prompt is None else call.prompt.fingerprint
        teacher = None if call.answer is None else policy.label_of(call.answer)
        return Comparison(
            id=self._draw.id(call.project, fingerprint, call.text, call.ts) if audit is None else audit.id,
            project=call.project,
            version=policy.version,
            kind=kind,
            ts=call.ts,
            label=label,
            teacher=teacher,
            wrong=teacher != label,
            probability=_p(call),
            base=base,
            prompt=fingerprint,
            detail=detail,
        )


def _p(call: Observed) -> float:
    """The probability with which the call was to be compared."""
    return 1.0 if call.audit is None else call.audit.probability


def _hashed(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
