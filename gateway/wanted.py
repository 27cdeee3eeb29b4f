"""What a client's request asks of an answer, and whether a local answer honours it.

Only for requests whose parameters `gateway.parameters` has let through.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import Any

import orjson

from gateway.effort import PATTERN_BYTES, affordable
from gateway.wire import ModelRequest
from policies.types import Answer, AnswerKind, Reason

_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
# Verdicts that are kept, and the bytes of schema and text up to which one is: the same few come again and again.
_KEPT = 1_024
_LARGEST_KEPT = 16_384


class Choice(StrEnum):
    """What the client's tool_choice leaves open."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"
    NAMED = "named"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the answer to one call must be.

    `tools` maps names to the tools as the client gave them, `named` is the one that tool_choice names. `schema` is the
    JSON schema of the response format; `as_json` says that any JSON object will do.
    """

    tools: Mapping[str, Any]
    choice: Choice
    named: str | None
    schema: dict[str, Any] | None
    as_json: bool
    limit: int | None

    @property
    def may_call(self) -> bool:
        """Whether the answer may be a tool call."""
        return bool(self.tools) and self.choice is not Choice.NONE

    @property
    def finish_reason(self) -> str:
        """With which a chat completion that calls a tool ends."""
        return "stop" if self.choice is Choice.NAMED else "tool_calls"

    def parameters(self, tool: str) -> Any:
        """The JSON schema of a tool's arguments; None where the client gave none."""
        given = self.tools[tool]
        return given.get("function", given).get("parameters")


def wanted(request: ModelRequest) -> Wanted:
    """What `request` asks of an answer."""
    body = request.body
    tools = {tool.get("function", tool)["name"]: tool for tool in body.get("tools") or ()}
    choice, named = _choice(body.get("tool_choice"))
    given = body.get("response_format") or (body.get("text") or {}).get("format") or {}
    kind = given.get("type")
    schema = given.get("json_schema", given).get("schema") if kind == "json_schema" else None
    limits = [body[key] for key in _LIMITS if body.get(key) is not None]
    return Wanted(tools, choice, named, schema, kind == "json_object", min(limits) if limits else None)


def misfit(answer: Answer, wanted: Wanted) -> Reason | None:
    """Why `answer` would not be what the client asked for, or None."""
    length = len(answer.text.encode("utf-8", "replace")) + len((answer.arguments or "").encode("utf-8", "replace"))
    # No token is shorter than a byte.
    if wanted.limit is not None and wanted.limit < length:
        return Reason.MAX_TOKENS
    return _text_misfit(answer.text, wanted) if answer.kind is AnswerKind.TEXT else _tool_misfit(answer, wanted)


def arguments_fit(arguments: str, schema: Any) -> bool:
    """Whether a tool call's arguments are a JSON object that `schema` (None: any) allows."""
    return _fits(arguments, schema)


def _choice(given: Any) -> tuple[Choice, str | None]:
    if given is None:
        return Choice.AUTO, None
    if type(given) is str:
        return Choice(given), None
    return Choice.NAMED, given.get("function", given)["name"]


def _text_misfit(text: str, wanted: Wanted) -> Reason | None:
    if wanted.choice in (Choice.REQUIRED, Choice.NAMED):
        return Reason.TOOL_CHOICE
    if (wanted.schema is not None or wanted.as_json) and not _fits(text, wanted.schema):
        return Reason.RESPONSE_FORMAT
    return None


def _tool_misfit(answer: Answer, wanted: Wanted) -> Reason | None:
    if answer.text not in wanted.tools:
        return Reason.TOOLS
    if wanted.choice is Choice.NONE or (wanted.choice is Choice.NAMED and wanted.named != answer.text):
        return Reason.TOOL_CHOICE
    # Some models write no arguments as nothing at all.
    if answer.arguments is not None and not _fits(answer.arguments or "{}", wanted.parameters(answer.text)):
        return Reason.TOOLS
    return None


def _fits(text: str, schema: Any) -> bool:
    try:
        encoded = b"" if schema is None else orjson.dumps(schema)
    except TypeError:  # a lone surrogate or a number of more than 64 bits
        return False
    return (_kept_fit if len(encoded) + len(text) <= _LARGEST_KEPT else _fit)(text, encoded)


def _fit(text: str, encoded: bytes) -> bool:
    """Whether `text` is a JSON object that the schema allows. A schema that cannot be read allows nothing."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    if type(value) is not dict:
        return False
    if not encoded:
        return True
    # By name, with the first schema: 3 MB that most gateways never need.
    jsonschema_rs = import_module("jsonschema_rs")
    try:
        # The client wrote the schema: nothing is fetched for it, its patterns run in linear time, its size is bounded.
        schema = orjson.loads(encoded)
        if not affordable(schema):
            return False
        patterns = jsonschema_rs.RegexOptions(size_limit=PATTERN_BYTES)
        return bool(jsonschema_rs.validator_for(schema, offline=True, pattern_options=patterns).is_valid(value))
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError, RecursionError):
        return False


_kept_fit = functools.lru_cache(_KEPT)(_fit)
