"""Request -> (project, input), or "not ours".

A project's call is known by its model name `tracer/<project>`, by the header `x-tracer-project`, or by a configured
match on the system prompt; in that order.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from gateway import parameters
from gateway.errors import UnknownProject
from gateway.settings import MatchSettings, Settings
from gateway.wire import ModelRequest, text_of
from policies.types import Reason

MODEL_PREFIX = "tracer/"
INSTRUCTION_ROLES = frozenset({"system", "developer"})
_MESSAGE_KEYS = frozenset({"role", "content", "name"})
_PART_KEYS = frozenset({"type", "text"})
_PART_REASONS = {"image_url": Reason.IMAGE, "input_audio": Reason.AUDIO, "file": Reason.FILE}


class Recognised(NamedTuple):
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

    def recognise(self, request: ModelRequest, header: str | None) -> Recognised | None:
        """The project's call in `request`, or None. `header` is the value of x-tracer-project.

        Raises UnknownProject where the call names a project that is not configured.
        """
        project = self._project_of(request, header)
        if project is None:
            return None
        if request.abridged:
            return Recognised(project, None, Reason.TOO_LONG)
        settings = self._projects[project]
        if settings.responses_default_store == "forward" and parameters.stored_by_default(request):
            return Recognised(project, None, Reason.STORE)
        text, reason = read_input(request, settings.multi_turn == "last_user_message")
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

    def _project_of(self, request: ModelRequest, header: str | None) -> str | None:
        if request.model.startswith(MODEL_PREFIX):
            return self.named(request.model[len(MODEL_PREFIX) :], "model")
        if header is not None:
            return self.named(header, "x-tracer-project")
        if not self._matchers:
            return None
        prompt = instructions(request.messages)
        return next((name for name, matches in self._matchers if matches(prompt)), None)


def read_input(request: ModelRequest, last_user_message: bool) -> tuple[str | None, Reason | None]:
    """The text to decide on, or the reason why a label cannot answer this call.

    With `last_user_message` earlier turns are ignored.
    """
    flaw = parameters.flaw(request)
    if flaw is not None:
        return None, flaw
    *before, last = request.messages or [{"role": "nobody"}]
    content = last.get("content")
    if last["role"] != "user" or content is None or content == []:
        return None, Reason.NO_INPUT
    if not last_user_message and any(message["role"] not in INSTRUCTION_ROLES for message in before):
        return None, Reason.CONVERSATION
    read = [last, *(message for message in before if message["role"] in INSTRUCTION_ROLES)]
    reason = next((found for message in read if (found := _message_reason(message)) is not None), None)
    return (text_of(content), None) if reason is None else (None, reason)


def instructions(messages: list[dict[str, Any]]) -> str:
    """The text of the leading system and developer messages, joined by newlines."""
    texts = []
    for message in messages:
        if message["role"] not in INSTRUCTION_ROLES:
            break
        texts.append(text_of(message.get("content")) or "")
    return "\n".join(texts)


def _message_reason(message: dict[str, Any]) -> Reason | None:
    """Why a message is more, or other, than text."""
    if not {key for key, value in message.items() if value is not None} <= _MESSAGE_KEYS:
        return Reason.UNKNOWN_PARAMETER
    content = message.get("content")
    if type(content) is list and all(type(part) is dict for part in content):
        kinds = [part.get("type") for part in content if type(part.get("type")) is str]
        found = next((_PART_REASONS[kind] for kind in kinds if kind in _PART_REASONS), None)
        if found is None and kinds == ["text"] * len(content) and any(part.keys() > _PART_KEYS for part in content):
            return Reason.UNKNOWN_PARAMETER
        if found is not None:
            return found
    return Reason.UNSUPPORTED if text_of(content) is None else None


def _matcher(match: MatchSettings) -> Callable[[str], object]:
    wanted = match.system_prompt
    if match.mode == "regex":
        return re.compile(wanted).search
    # A YAML block ends with a newline that the application's prompt need not have.
    stripped = wanted.strip()
    if match.mode == "contains":
        return lambda prompt: stripped in prompt
    return lambda prompt: prompt.strip() == stripped
