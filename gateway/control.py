"""What a caller asks of one call, in `x-tracer-*` request headers; and the answer to `x-tracer-explain`."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gateway.decide import Decision
from gateway.errors import InvalidRequest
from gateway.registry import Serving
from policies.types import Reason

_NAMES = frozenset({b"x-tracer-project", b"x-tracer-mode", b"x-tracer-min-agreement", b"x-tracer-explain"})
_SHOWN = 200  # characters of a guess


class Mode(StrEnum):
    """Who is to answer."""

    TEACHER = "teacher"  # the teacher, whatever the policy would say
    SHADOW = "shadow"  # the teacher; the headers say what the policy would have said
    LOCAL = "local"  # the policy, or nobody: the call never leaves the gateway


@dataclass(frozen=True, slots=True)
class Control:
    """`agreement` is the agreement to be certified for this call, None where the policy's own target is enough."""

    project: str | None = None
    mode: Mode | None = None
    agreement: float | None = None
    explain: bool = False


NO_CONTROL = Control()


def read_control(headers: Iterable[tuple[bytes, bytes]], names: Iterable[bytes]) -> Control:
    """What the request's x-tracer headers ask for; raises InvalidRequest for a value that is none of theirs.

    `names` are those of the headers: nearly every call is done with once they are looked at.
    """
    if _NAMES.isdisjoint(names):
        return NO_CONTROL
    pairs = [pair for pair in headers if pair[0] in _NAMES]
    given = {name: value.decode("latin-1") for name, value in pairs}
    if len(given) < len(pairs):
        raise InvalidRequest("An x-tracer header is given twice.")
    return Control(
        given.get(b"x-tracer-project"),
        _mode(given.get(b"x-tracer-mode")),
        _agreement(given.get(b"x-tracer-min-agreement")),
        _flag(given.get(b"x-tracer-explain")),
    )


def explanation(decision: Decision, serving: Serving, agreement: float | None) -> bytes:
    """Why a call was decided as it was, as one line of ASCII JSON."""
    policy = serving.policy
    shown: dict[str, Any] = {
        "state": serving.state,
        "would_answer": decision.label is not None or _answered_but_for_the_asking(decision),
        "guess": None if decision.guess is None else decision.guess[:_SHOWN],
        "accept_score": decision.accept_score,
        "stage": decision.stage,
        "asked_agreement": agreement,
    }
    if policy is not None:
        certificate = policy.manifest.certificate
        shown |= {
            "threshold": policy.manifest.threshold,
            "target": certificate.target,
            "confidence": certificate.confidence,
            "coverage": certificate.coverage,
            "teacher_agreement_lower": certificate.teacher_agreement_lower,
        }
    return json.dumps(shown, separators=(",", ":")).encode("ascii")


def _answered_but_for_the_asking(decision: Decision) -> bool:
    return decision.reason is Reason.ASKED and decision.accept_score is not None


def _mode(value: str | None) -> Mode | None:
    if value is None:
        return None
    try:
        return Mode(value.strip().lower())
    except ValueError:
        raise InvalidRequest(f"x-tracer-mode takes {', '.join(Mode)}.", param="x-tracer-mode") from None


def _agreement(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 < number <= 1:
        message = "x-tracer-min-agreement takes a number above 0 and at most 1, such as 0.97."
        raise InvalidRequest(message, param="x-tracer-min-agreement")
    return number


def _flag(value: str | None) -> bool:
    found = {None: False, "false": False, "0": False, "true": True, "1": True}
    key = None if value is None else value.strip().lower()
    if key not in found:
        raise InvalidRequest("x-tracer-explain takes true or false.", param="x-tracer-explain")
    return found[key]
