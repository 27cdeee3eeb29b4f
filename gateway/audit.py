"""An audit: one handled call that the teacher is asked as well, and what became of it."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from gateway.reading import Teacher
from gateway.wire import Surface
from policies.types import Answer


class Result(StrEnum):
    """What became of an audit, as `tracer_audits_total` counts it. The first two are counted by whoever compares."""

    AGREED = "agreed"
    DISAGREED = "disagreed"
    UNREAD = "unread"  # the teacher answered, and no whole answer could be read from that
    FAILED = "failed"  # the teacher refused the question, broke off or took too long
    EXPIRED = "expired"  # it was away for too long
    THROTTLED = "throttled"  # it said 429 for too long
    DROPPED = "dropped"  # no room, no budget left, no question to ask, or the gateway stopped


@dataclass(frozen=True, slots=True)
class Audit:
    """A handled call that the draw has chosen. `id` is that of `Draw.id`.

    `label` is what the policy `version` answered; `body` and `query` are the client's own, `headers` of it those that
    say who asks (`headers.account_only`). `model` is the teacher's name at `upstream`. `probability` is that of
    this call to be compared, and `base` the least one of all calls that the statement is about at that moment. The
    policy was measured under `stretch` then. `made_at` is of the monotonic clock, `ts` seconds since the epoch.
    """

    id: str
    project: str
    version: str
    label: str
    text: str
    surface: Surface
    model: str
    body: bytes
    headers: list[tuple[bytes, bytes]]
    upstream: str
    probability: float
    base: float
    fingerprint: str
    made_at: float
    ts: float
    stretch: int = 0
    query: bytes = b""


@dataclass(frozen=True, slots=True)
class Answered:
    """What the teacher sent with its 200, and who it says it is.

    `body` is empty where it is too long to be a label's answer.
    """

    headers: list[tuple[bytes, bytes]]
    body: bytes
    usd: float
    teacher: Teacher


# Called in the event loop, once for an audit that the teacher has answered; None: in no way that can be read.
OnAnswer = Callable[[Audit, Answer | None, Answered], None]
