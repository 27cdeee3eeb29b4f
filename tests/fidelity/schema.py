"""Whether a body is what OpenAI would send: checked key by key against the types of the installed `openai` package.

Stricter than the client itself, which takes anything: no key that the types do not have, every key there that must be
there, every value of its type.
"""

import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import openai.types
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    chat_completion,
    chat_completion_chunk,
)
from openai.types.responses import (
    Response,
    ResponseFunctionCallArgumentsDeltaEvent,
    ResponseFunctionCallArgumentsDoneEvent,
    ResponseTextDeltaEvent,
)
from openai.types.shared import ErrorObject
from pydantic import BaseModel, StrictBool, StrictStr

# The API's reference calls these required where the types, for being nullable, give them a default.
_REQUIRED: Mapping[type[BaseModel], frozenset[str]] = {
    ChatCompletion: frozenset({"usage", "service_tier", "system_fingerprint"}),
    chat_completion.Choice: frozenset({"logprobs"}),
    ChatCompletionMessage: frozenset({"content", "refusal"}),
    chat_completion_chunk.Choice: frozenset({"finish_reason", "logprobs"}),
    Response: frozenset(
        {"error", "incomplete_details", "instructions", "metadata", "temperature", "top_p", "status", "text", "usage"}
    ),
    ErrorObject: frozenset({"code", "message", "param", "type"}),
}
# Sent by the API, and missing in the types.
_UNTYPED: Mapping[type[BaseModel], frozenset[str]] = {
    Response: frozenset({"store"}),
    ChatCompletionChunk: frozenset({"obfuscation"}),
    ResponseTextDeltaEvent: frozenset({"obfuscation"}),
    ResponseFunctionCallArgumentsDeltaEvent: frozenset({"obfuscation"}),
    # Required by the types of openai 2, gone from those of 3: sent, for the sake of the clients that read it.
    ResponseFunctionCallArgumentsDoneEvent: frozenset({"name"}),
}


class Probability(BaseModel):
    """Of one choice."""

    value: StrictStr | StrictBool
    probability: float


class Choice(BaseModel):
    """An answer to a choice question."""

    type: Literal["choice"]
    name: str | None = None
    choice: StrictStr | StrictBool
    confidence: float
    probabilities: list[Probability]


class Predicate(BaseModel):
    """An answer to a predicate question."""

    type: Literal["predicate"]
    name: str | None = None
    probability: float


class Level(BaseModel):
    """Of one level of a score."""

    label: str
    value: int
    probability: float


class Score(BaseModel):
    """An answer to a score question."""

    type: Literal["score"]
    name: str | None = None
    score: float
    confidence: float
    probabilities: list[Level]


class Decision(BaseModel):
    """The body of `/v1/decisions`, for clients that do not know it yet."""

    answers: list[Choice | Predicate | Score]
    model: str
    usage: openai.types.responses.ResponseUsage


class Error(BaseModel):
    """The body of an error."""

    error: ErrorObject


DECISION: type[BaseModel] = getattr(openai.types, "Decision", Decision)


def violations(value: Any, expected: Any, path: str = "$") -> list[str]:
    """What is wrong with `value` as an `expected`, one line a fault; empty where nothing is."""
    if get_origin(expected) is Annotated:
        return violations(value, get_args(expected)[0], path)
    expected = getattr(expected, "__value__", expected)
    if isinstance(expected, type) and issubclass(expected, BaseModel):
        return _of_model(value, expected, path)
    checker = _CHECKERS.get(get_origin(expected) or expected)
    return _of_scalar(value, expected, path) if checker is None else checker(value, get_args(expected), path)


def _of_union(value: Any, members: tuple[Any, ...], path: str) -> list[str]:
    """The faults by the member that fits best."""
    tried = [violations(value, member, path) for member in members if member is not type(None) or value is None]
    found: list[str] = min(tried, key=len, default=[f"{path}: nothing may stand here"])
    return found


def _of_literal(value: Any, words: tuple[Any, ...], path: str) -> list[str]:
    return [] if value in words else [f"{path}: {value!r} is none of {words}"]


def _of_list(value: Any, inside: tuple[Any, ...], path: str) -> list[str]:
    if not isinstance(value, list):
        return [f"{path}: {type(value).__name__} in place of an array"]
    return [fault for i, item in enumerate(value) for fault in violations(item, (inside or (Any,))[0], f"{path}[{i}]")]


def _of_dict(value: Any, inside: tuple[Any, ...], path: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{path}: {type(value).__name__} in place of an object"]
    kind = inside[1] if inside else Any
    return [fault for key, item in value.items() for fault in violations(item, kind, f"{path}.{key}")]


def _of_model(value: Any, model: type[BaseModel], path: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{path}: {type(value).__name__} in place of a {model.__name__}"]
    fields = {info.alias or name: info for name, info in model.model_fields.items()}
    required = {key for key, info in fields.items() if info.is_required()} | _REQUIRED.get(model, frozenset())
    faults = [
        f"{path}: {model.__name__} has no {key!r}" for key in value.keys() - fields.keys() - _UNTYPED.get(model, set())
    ]
    faults += [f"{path}: {model.__name__} needs {key!r}" for key in required - value.keys()]
    for key in value.keys() & fields.keys():
        faults += violations(value[key], fields[key].annotation, f"{path}.{key}")
    return faults


def _of_scalar(value: Any, expected: Any, path: str) -> list[str]:
    if expected in (Any, object) or isinstance(expected, TypeVar):
        return []
    if expected is type(None):
        return [] if value is None else [f"{path}: {value!r} in place of null"]
    kinds = (int, float) if expected is float else expected
    fits = isinstance(value, kinds) and (expected is bool or not isinstance(value, bool))
    return [] if fits else [f"{path}: {value!r} in place of a {getattr(expected, '__name__', expected)}"]


_CHECKERS: Mapping[Any, Callable[[Any, tuple[Any, ...], str], list[str]]] = {
    Union: _of_union,
    types.UnionType: _of_union,
    Literal: _of_literal,
    list: _of_list,
    tuple: _of_list,
    dict: _of_dict,
}
