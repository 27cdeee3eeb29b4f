"""The words of the house as values. A leaf: imports nothing internal."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple


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
    TEMPLATE = "template"  # the message is not built like those of the traces
    NO_EMBEDDING = "no_embedding"  # the policy reads embeddings and the request brought none
    # Where the project's policy stands.
    CANDIDATE = "candidate"  # certified on traces, and not compared with live calls yet
    SHADOW = "shadow"  # it decides beside the teacher and has to prove itself first
    DEMOTED = "demoted"  # evidence has stopped it
    PAUSED = "paused"  # a person has stopped the project
    STATE = "state"  # the store has not said yet where it stands
    LABEL = "label"  # the answer would be a label that is withheld
    PROMPT = "prompt"  # instructions, tools or parameters that it is not certified for
    MODEL = "model"  # another model is asked for than it is certified for
    # Features of a request that a local answer cannot honour.
    UNKNOWN_PARAMETER = "unknown_parameter"  # one that did not exist when this was written
    UNSUPPORTED = "unsupported"  # one that steers sampling or the platform: stop, logit_bias, prediction, ...
    CHOICES = "n"  # more than one choice
    LOGPROBS = "logprobs"
    AUDIO = "audio"
    IMAGE = "image"
    FILE = "file"
    RESPONSE_FORMAT = "response_format"  # unknown, or the answer would not fit it
    TOOLS = "tools"  # of an unknown kind, or the answer is no call that they take
    TOOL_CHOICE = "tool_choice"  # unknown, or the answer would not honour it
    MAX_TOKENS = "max_tokens"  # too small for the answer
    STORE = "store"  # the answer is to be kept, or continued from, at the provider
    QUESTION = "question"  # of /v1/decisions: not one that the policy answers
    # Who asks, and how.
    ASKED = "asked"  # x-tracer-mode asked for the teacher
    MIN_AGREEMENT = "min_agreement"  # more agreement was asked for than is certified
    KEY = "key"  # the upstream has not accepted the client's key recently
    ARGUMENTS = "arguments"  # the tool is known, its arguments are an LLM's to write
    BUSY = "busy"  # it would wait too long to be scored, or has
    ERROR = "error"  # local scoring raised


# Under these every call is deferred, whatever it says: what is recorded then is a fair sample of the traffic.
FAIR_REASONS = frozenset(
    {
        *(Reason.NO_POLICY, Reason.REFUSED, Reason.DAMAGED, Reason.NO_EMBEDDING, Reason.KEY),
        *(Reason.CANDIDATE, Reason.SHADOW, Reason.DEMOTED, Reason.PAUSED, Reason.STATE, Reason.PROMPT, Reason.MODEL),
    }
)


class AnswerKind(StrEnum):
    """What a teacher's answer is."""

    TEXT = "text"  # the message's content, JSON included
    TOOL = "tool"  # one tool call
    OTHER = "other"  # prose, a refusal, several tool calls: seen, never learned, and always a disagreement


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer in the teacher's own form.

    `text` is the content exactly as written, or the tool's name. `arguments` is the JSON text of a tool call's
    arguments as written; None for a text, and where an LLM is to write them.
    """

    text: str
    kind: AnswerKind = AnswerKind.TEXT
    arguments: str | None = None


class LocalDecision(NamedTuple):
    """What a policy says of one input. A named tuple, which takes half the time of a frozen dataclass to make.

    `label` is the surrogate's answer when `handled`, else None. `accept_score` lies in 0..1, 0.0 where nothing was
    scored. `stage` is the index of the stage that answered, -1 when deferred. `reason` is None when `handled`.
    `guess` is what the surrogate would have said, whether it may or not; None where nothing was scored.
    """

    label: str | None
    handled: bool
    accept_score: float
    reason: Reason | None = None
    stage: int = -1
    guess: str | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """One recorded decision as a file holds it.

    `teacher`, `kind` and `arguments` are the answer's, as in `Answer`. `weight` is the inverse of the probability of
    having been recorded. `reason` is why the gateway deferred the call; None for a trace that did not come through a
    gateway.
    """

    input: str
    teacher: str
    id: str | None = None
    ground_truth: str | None = None
    mini: str | None = None
    ts: float | None = None  # seconds since the epoch
    weight: float = 1.0
    reason: Reason | None = None
    kind: AnswerKind = AnswerKind.TEXT
    arguments: str | None = None

    @property
    def answer(self) -> Answer:
        """The teacher's answer."""
        return Answer(self.teacher, self.kind, self.arguments)


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
    kind: AnswerKind = AnswerKind.TEXT
    arguments: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What surrogate and teacher said of one live call.

    `id` is the call's: the same comparison of the same `version` counts once. `kind` is `shadow` (the teacher answered,
    the surrogate decided beside it) or `audit` (the surrogate answered, the teacher was asked in the background). `ts`
    is seconds since the epoch. `label` is the surrogate's; `teacher` the teacher's, None where it is no label.
    `probability`, in (0, 1], is that with which this call was to be compared; `base`, in (0, probability], the least
    such probability at that moment over all calls that the statement is about: base / probability is the weight.
    """

    id: str
    project: str
    version: str
    kind: str
    ts: float
    label: str
    teacher: str | None
    wrong: bool
    probability: float
    base: float
    prompt: str = ""  # fingerprint
    detail: str = ""  # what it is evidence of: see policies.evidence


@dataclass(frozen=True, slots=True)
class Move:
    """One step of a project, or of one version of its policy, from one state to the next.

    `old` is None for the first. `cause` says why, `by` who: a person's key or the test that ruled. `ts` is seconds
    since the epoch. `evidence` is JSON: the numbers on which it rests.
    """

    project: str
    version: str | None
    old: str | None
    new: str
    cause: str
    by: str
    ts: float
    evidence: dict[str, Any]
