"""Request -> (project, input), or "not ours".

A project's call is known by its model name `tracer/<project>`, by the header `x-tracer-project`, or by a configured
match on the system prompt; in that order.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.errors import UnknownProject
from gateway.settings import MatchSettings, Settings
from gateway.wire import ChatRequest, text_of
from policies.types import Reason

MODEL_PREFIX = "tracer/"
_INSTRUCTION_ROLES = frozenset({"system", "developer"})
_MESSAGE_KEYS = frozenset({"role", "content", "name"})
_PROMPT_KEYS = ("tools", "functions", "tool_choice", "response_format", "reasoning_effort", "verbosity")


@dataclass(frozen=True, slots=True)
class Recognised:
    """A project's call. `text` is the input; None, with a `reason`, where a label cannot answer the call."""

    project: str
    text: str | None
    reason: Reason | None = None


class Recogniser:
    """Finds a call's project and input. Holds nothing but the settings, compiled."""

    def __init__(self, settings: Settings) -> None:
        self._projects = settings.projects
        self._max_chars = settings.server.max_input_chars
        self._matchers = [(name, _matcher(p.match)) for name, p in settings.projects.items() if p.match is not None]

    def recognise(self, request: ChatRequest, header: str | None) -> Recognised | None:
        """The project's call in `request`, or None. `header` is the value of x-tracer-project.

        Raises UnknownProject where the call names a project that is not configured.
        """
        project = self._project_of(request, header)
        if project is None:
            return None
        text, reason = read_input(request, self._projects[project].multi_turn == "last_user_message")
        if text is not None:
            reason = self.flaw(text)
        return Recognised(project, text if reason is None else None, reason)

    def flaw(self, text: str) -> Reason | None:
        """Why no policy would read this text, or None."""
        if not text or text.isspace():
            return Reason.EMPTY
        return Reason.TOO_LONG if len(text) > self._max_chars else None

    def named(self, name: str, param: str) -> str:
        """`name` where it is a project's; raises UnknownProject."""
        if name in self._projects:
            return name
        listed = ", ".join(sorted(self._projects)) or "none"
        raise UnknownProject(f"The project {name[:64]!r} does not exist. Configured projects: {listed}.", param=param)

    def _project_of(self, request: ChatRequest, header: str | None) -> str | None:
        if request.model.startswith(MODEL_PREFIX):
            return self.named(request.model[len(MODEL_PREFIX) :], "model")
        if header is not None:
            return self.named(header, "x-tracer-project")
        if not self._matchers:
            return None
        prompt = instructions(request.messages)
        return next((name for name, matches in self._matchers if matches(prompt)), None)


def read_input(request: ChatRequest, last_user_message: bool) -> tuple[str | None, Reason | None]:
    """The text to decide on, or the reason why a label cannot answer this call.

    With `last_user_message` earlier turns are ignored.
    """
    if not all(_honoured(key, value) for key, value in request.body.items()) or _options_without_stream(request.body):
        return None, Reason.UNSUPPORTED
    *before, last = request.messages
    content = last.get("content")
    if last["role"] != "user" or content is None or content == []:
        return None, Reason.NO_INPUT
    text = text_of(content)
    if text is None or not last.keys() <= _MESSAGE_KEYS:
        return None, Reason.UNSUPPORTED
    if not last_user_message and any(message["role"] not in _INSTRUCTION_ROLES for message in before):
        return None, Reason.CONVERSATION
    return text, None


def has_room(request: ChatRequest, label: str) -> bool:
    """Whether the call's token limit surely leaves room for `label`: no token is shorter than a byte."""
    limits = [request.body.get(key) for key in ("max_tokens", "max_completion_tokens")]
    given = [limit for limit in limits if limit is not None]
    return not given or min(given) >= len(label.encode("utf-8", "replace"))


def instructions(messages: list[dict[str, Any]]) -> str:
    """The text of the leading system and developer messages, joined by newlines."""
    texts = []
    for message in messages:
        if message["role"] not in _INSTRUCTION_ROLES:
            break
        texts.append(text_of(message.get("content")) or "")
    return "\n".join(texts)


def prompt_fingerprint(request: ChatRequest, model: str) -> str:
    """Identity of everything but the input: 16 hex digits over model, other messages, tools and response format."""
    asked = {key: request.body[key] for key in _PROMPT_KEYS if request.body.get(key) is not None}
    shape = {"model": model, "messages": request.messages[:-1], **asked}
    try:
        canonical = orjson.dumps(shape, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # a lone surrogate, or an integer beyond 64 bits
        canonical = repr(sorted(shape.items())).encode("utf-8", "backslashreplace")
    return hashlib.sha256(canonical).hexdigest()[:16]


def _matcher(match: MatchSettings) -> Callable[[str], object]:
    wanted = match.system_prompt
    if match.mode == "regex":
        return re.compile(wanted).search
    # A YAML block ends with a newline that the application's prompt need not have.
    stripped = wanted.strip()
    if match.mode == "contains":
        return lambda prompt: stripped in prompt
    return lambda prompt: prompt.strip() == stripped


def _options_without_stream(body: dict[str, Any]) -> bool:
    return body.get("stream_options") is not None and not body.get("stream")


def _honoured(key: str, value: Any) -> bool:
    """Whether a label can honour this parameter. One that does not exist yet cannot be known to be harmless."""
    accepts = _ACCEPTED.get(key)
    return accepts is not None and (value is None or accepts(value))


def _anything(_: Any) -> bool:
    return True


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _text(value: Any) -> bool:
    return type(value) is str


def _flag(value: Any) -> bool:
    return type(value) is bool


def _off(value: Any) -> bool:
    return value is False


def _one(value: Any) -> bool:
    return type(value) is int and value == 1


def _object(value: Any) -> bool:
    return type(value) is dict


def _limit(value: Any) -> bool:
    return type(value) is int and value > 0


def _plain_text(value: Any) -> bool:
    return value in ({"type": "text"}, ["text"])


# Parameters that cannot change which label is right, with the values for which that holds.
_ACCEPTED: Mapping[str, Callable[[Any], bool]] = {
    "model": _anything,
    "messages": _anything,
    "temperature": _number,
    "top_p": _number,
    "frequency_penalty": _number,
    "presence_penalty": _number,
    "seed": lambda value: type(value) is int,
    "stream": _flag,
    "stream_options": _object,
    "n": _one,
    "max_tokens": _limit,
    "max_completion_tokens": _limit,
    "logprobs": _off,
    "store": _off,
    "response_format": _plain_text,
    "modalities": _plain_text,
    "user": _text,
    "metadata": _object,
    "safety_identifier": _text,
    "prompt_cache_key": _text,
    "prompt_cache_retention": _text,
    "service_tier": _text,
    "reasoning_effort": _text,
    "verbosity": _text,
    # Asked for as null only: anything else is a reason to defer.
    "stop": lambda _: False,
    "top_logprobs": lambda _: False,
    "tools": lambda _: False,
    "tool_choice": lambda _: False,
    "functions": lambda _: False,
    "function_call": lambda _: False,
    "audio": lambda _: False,
    "logit_bias": lambda _: False,
    "prediction": lambda _: False,
}
