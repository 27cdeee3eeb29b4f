"""The words of the house as values. A leaf: imports nothing internal."""

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a call was deferred. A closed list: on the response, in the log and in the metrics."""

    NO_POLICY = "no_policy"  # the project has no policy yet
    REFUSED = "refused"  # the gate refused the policy
    DAMAGED = "damaged"  # the policy folder failed its checks
    UNCERTAIN = "uncertain"  # accept score below the certified threshold
    NOVEL = "novel"  # outside the guard: unlike the traces
    EMPTY = "empty"  # no text to decide on
    TOO_LONG = "too_long"  # longer than the policy reads whole
    NO_INPUT = "no_input"  # no plain-text user message
    CONVERSATION = "conversation"  # the input hangs on earlier turns
    UNSUPPORTED = "unsupported"  # a request parameter a label cannot honour
    NO_EMBEDDING = "no_embedding"  # the policy reads embeddings and the request brought none
    BUSY = "busy"  # too many inputs wait for the encoder already
    ERROR = "error"  # local scoring raised


# Under these every call is deferred, whatever it says: what is recorded then is a fair sample of the traffic.
FAIR_REASONS = frozenset({Reason.NO_POLICY, Reason.REFUSED, Reason.DAMAGED, Reason.NO_EMBEDDING})


@dataclass(frozen=True, slots=True)
class LocalDecision:
    """What a policy says of one input.

    `label` is the surrogate's answer when `handled`, else None. `accept_score` lies in 0..1, 0.0 where nothing was
    scored. `stage` is the index of the stage that answered, -1 when deferred. `reason` is None when `handled`.
    """

    label: str | None
    handled: bool
    accept_score: float
    reason: Reason | None = None
    stage: int = -1


@dataclass(frozen=True, slots=True)
class Trace:
    """One recorded decision as a file holds it.

    `weight` is the inverse of the probability of having been recorded. `reason` is why the gateway deferred the call;
    None for a trace that did not come through a gateway.
    """

    input: str
    teacher: str
    id: str | None = None
    ground_truth: str | None = None
    mini: str | None = None
    ts: float | None = None  # seconds since the epoch
    weight: float = 1.0
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class StoredTrace:
    """One recorded decision as the store holds it.

    `id` is unique over all projects: writing the same id twice stores it once. `ts` is seconds since the epoch.
    `sampling_probability` is the probability with which the teacher's label came to be known (1 for a forwarded call).
    `reason` is the deferral reason under which the call was forwarded.
    """

    id: str
    project: str
    input: str
    teacher: str
    ts: float
    upstream: str = ""
    teacher_model: str = ""
    prompt_fingerprint: str = ""
    policy_version: str | None = None
    reason: str = ""
    sampling_probability: float = 1.0
    training_allowed: bool = True
