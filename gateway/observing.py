"""Calls that the teacher has answered -> what they say of the policies: comparisons, and what else has been seen.

Off the event loop, when the client has its answer. What a policy would have said is asked of the policy that serves, or
would: it was frozen before the answer came, so it does not matter that it decides after it.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from gateway.audit import Audit, Result
from gateway.draw import Draw, Seen, share
from gateway.metrics import Metrics
from gateway.orders import Orders
from gateway.reading import Teacher
from gateway.registry import Registry
from policies.evidence import Report
from policies.policy import Policy
from policies.prompts import Prompt
from policies.types import Answer, AnswerKind, Comparison, LocalDecision, Reason

logger = logging.getLogger(__name__)

Fits = Callable[[Policy, Answer], bool]

_REPORTED, _PROMPTS_AT_ONCE = 4_096, 20
# A call deferred under one of these might have been answered: what it says is about the policy that was not asked.
_STRANGE = frozenset({Reason.PROMPT, Reason.MODEL})
# The teacher's word to a call whose answer hangs on more than its text is no evidence.
_UNASKED = frozenset({Reason.ASKED, Reason.MIN_AGREEMENT, Reason.KEY})
_NO_NEWS = _UNASKED | _STRANGE  # an answer that is no label says nothing of the prompt that is certified


def anything(_: Policy, __: Answer) -> bool:
    """Whether an answer fits a call that asks for nothing in particular."""
    return True


@dataclass(frozen=True, slots=True)
class Observed:
    """One call and what the teacher said of it.

    `answer` is None where it said nothing that could be read. `asked` is the model that was asked for. `fits`: whether
    a policy's answer would have been what the call asks for. `reason` is why the call was deferred, `guess` what the
    surrogate would have said, if asked.
    `audit` is the audit that the answer is to; None for a forwarded call. `live` answered the project's calls then, and
    `rate` of those were audited. `ts` is seconds since the epoch.
    """

    project: str
    text: str
    answer: Answer
    teacher: Teacher
    prompt: Prompt | None
    asked: str
    fits: Fits
    reason: Reason | None
    guess: str | None
    ts: float
    live: str | None = None
    rate: float = 0.0
    audit: Audit | None = None


@dataclass(slots=True)
class Found:
    """What observed calls of a project come to."""

    comparisons: list[Comparison] = field(default_factory=list)
    held: list[Comparison] = field(default_factory=list)
    """Those that count only with the audits of their time (`gateway.epochs`)."""
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

    def read(self, call: Observed, found: Found) -> None:
        """Add what one call says."""
        orders = self._registry.orders(call.project)
        try:
            if orders is not None:
                self._read(call, orders, found)
        except Exception as error:  # noqa: BLE001 - the border of a background task: one call's fault is not the others'
            self._metrics.internal_errors.labels("watch").inc()
            logger.error("comparing a call failed (%s); it is no evidence", type(error).__name__)

    def _read(self, call: Observed, orders: Orders, found: Found) -> None:
        if call.teacher.model:
            name = call.asked, call.teacher.model, call.teacher.build
            found.report.teachers[name] = found.report.teachers.get(name, 0) + 1
        live = self._registry.policy(call.project, orders.live)
        shadow = self._registry.policy(call.project, orders.shadow)
        if shadow is not None:
            self._beside(call, shadow, found)
        if live is not None:
            self._of_live(call, live, orders, found)

    def _beside(self, call: Observed, policy: Policy, found: Found) -> None:
        """What the policy in shadow would have done."""
        if call.reason in _UNASKED:
            return
        alone = call.live is None
        if not alone and not self._drawn(call):
            return
        self._prompt(call, policy.version, found.report.prompts)
        local = policy.decide(call.text)
        if _is_news(call, policy):
            _add_unseen(call, policy, local.guess, found)
        if alone:
            calls, novel = found.report.decided.get(policy.version, (0, 0))
            found.report.decided[policy.version] = calls + 1, novel + (local.reason is Reason.NOVEL)
        label, told = _rungs(call, policy, policy.rungs, local)
        if label is not None:
            into = found.comparisons if alone else found.held
            into.append(self._comparison(call, policy, "shadow", label, 1.0 if alone else call.rate, told))

    def _drawn(self, call: Observed) -> bool:
        """Whether the call is in the sample of all calls that audits are taken from, handled or not."""
        return call.audit is not None or share(self._id(call)) < call.rate

    def _of_live(self, call: Observed, policy: Policy, orders: Orders, found: Found) -> None:
        """What the live policy answered, or would have but for what kept it from it."""
        audit = call.audit
        if call.reason not in _NO_NEWS and _is_news(call, policy):
            guess = audit.label if audit is not None else call.guess or policy.decide(call.text).guess
            _add_unseen(call, policy, guess, found)
        if audit is not None:
            if audit.version == policy.version:
                self._audited(call, policy, audit, found)
        elif call.live == policy.version:
            if orders.trusting:
                self._prompt(call, policy.version, found.report.prompts)
            self._put_off(call, policy, orders, found)
        if call.live == policy.version and orders.agreement is not None:
            self._looser(call, policy, orders.agreement, found)

    def _audited(self, call: Observed, policy: Policy, audit: Audit, found: Found) -> None:
        made = self._comparison(call, policy, "audit", audit.label, audit.probability, str(audit.stretch))
        result = Result.DISAGREED if made.wrong else Result.AGREED
        self._metrics.audits.labels(call.project, result).inc()
        found.comparisons.append(replace(made, base=audit.base))

    def _put_off(self, call: Observed, policy: Policy, orders: Orders, found: Found) -> None:
        """A call that was forwarded for a label that is withheld, or a prompt that is not known."""
        if call.reason is Reason.LABEL and call.guess is not None:
            found.comparisons.append(self._comparison(call, policy, "shadow", call.guess, 1.0, "label"))
        elif call.reason in _STRANGE:
            self._prompt(call, policy.version, found.report.strangers)
            label = _would(call, policy, policy.decide(call.text, orders.agreement))
            if label is not None:
                found.comparisons.append(self._comparison(call, policy, "shadow", label, 1.0, "prompt"))

    def _looser(self, call: Observed, policy: Policy, agreement: float, found: Found) -> None:
        """What the live policy would have answered, were it held to less."""
        asked = call.audit is not None or call.reason is Reason.UNCERTAIN
        if asked and self._drawn(call):
            label, told = _rungs(call, policy, policy.rungs[: policy.rungs.index(agreement)], policy.decide(call.text))
            if label is not None:
                found.held.append(self._comparison(call, policy, "shadow", label, call.rate, told))

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
        self, call: Observed, policy: Policy, kind: str, label: str, probability: float, detail: str = ""
    ) -> Comparison:
        """`probability` is that with which any call of this kind is compared."""
        teacher = policy.label_of(call.answer)
        return Comparison(
            id=self._id(call),
            project=call.project,
            version=policy.version,
            kind=kind,
            ts=call.ts,
            label=label,
            teacher=teacher,
            wrong=teacher != label,
            probability=probability,
            base=probability,
            prompt=_fingerprint(call),
            detail=detail,
        )

    def _id(self, call: Observed) -> str:
        return call.audit.id if call.audit else self._draw.id(call.project, _fingerprint(call), call.text, call.ts)


def _fingerprint(call: Observed) -> str:
    return call.audit.fingerprint if call.audit else "" if call.prompt is None else call.prompt.fingerprint


def _rungs(call: Observed, policy: Policy, rungs: Sequence[float], local: LocalDecision) -> tuple[str | None, str]:
    """What the policy would answer at the loosest of `rungs`, and for each whether that is right (1, 0 or -).

    `local` is what it says at its target, which is the loosest. What is not answered there is nowhere.
    """
    first = _would(call, policy, local)
    if first is None:
        return None, ""
    labels = [first, *(_would(call, policy, policy.decide(call.text, rung)) for rung in rungs[1:])]
    right = policy.label_of(call.answer)
    return first, "".join("-" if label is None else "1" if label == right else "0" for label in labels)


def _would(call: Observed, policy: Policy, local: LocalDecision) -> str | None:
    """The label that the call would have got where the policy says `local`."""
    return local.label if local.label is not None and call.fits(policy, policy.answers[local.label]) else None


def _is_news(call: Observed, policy: Policy) -> bool:
    """Whether the teacher has said what might be a label, and is none of the policy's."""
    return call.answer.kind is not AnswerKind.OTHER and policy.label_of(call.answer) is None


def _add_unseen(call: Observed, policy: Policy, guess: str | None, found: Found) -> None:
    digest = blake2b(call.text.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    found.report.unseen.append((policy.version, call.answer.text[:200], digest, guess))
