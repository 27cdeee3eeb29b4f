"""A call -> its prompt: everything of it but the input and what cannot change the answer."""

import hashlib
import json
import re
from typing import Any

import orjson

from gateway.recognise import INSTRUCTION_ROLES
from gateway.wire import ModelRequest, Surface, text_of
from policies.prompt_spans import without_dates
from policies.prompts import Prompt

# Who asks, for how much, and how the answer is to travel and to be kept: the decision is the same. Nor does a seed
# make another prompt. Whatever is not listed counts, known or not.
_NEUTRAL = frozenset(
    {"model", "messages", "input", "seed", "n", "stream", "stream_options", "store", "metadata", "user"}
    | {"safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "service_tier"}
    | {"max_tokens", "max_completion_tokens", "max_output_tokens", "max_tool_calls", "logprobs", "top_logprobs"}
    | {"include", "background"}
)
# Objects of settings, in which null and absent are the same as well.
_SETTINGS = frozenset({"text", "reasoning"})
_DESCRIPTION = re.compile(rb'"description":"((?:[^"\\]|\\.)*)"')
_DIGIT = re.compile(rb"[0-9]")
_BORDER, _BEGIN = "\x02", "\x03"


def prompt_of(request: ModelRequest, model: str) -> Prompt:
    """The prompt of a call that asks `model`; never raises."""
    model = _utf8(model)
    try:
        before = request.messages[:-1]
        text = _utf8("".join(_instruction(message) for message in before if message["role"] in INSTRUCTION_ROLES))
        turns = [message for message in before if message["role"] not in INSTRUCTION_ROLES]
        said = _hash(_canonical(turns)) if turns else ""
        asked = _canonical(_parameters(request))
    except RecursionError:  # nested like nothing that a label answers: a prompt of its own
        text, said, asked = "", "", request.raw
    whole = b"\0".join((model.encode(), said.encode(), asked, text.encode()))
    return Prompt(_hash(whole), _hash(_DESCRIPTION.sub(_undated, asked)), model, text, said)


def _parameters(request: ModelRequest) -> dict[str, Any]:
    """What of the body makes another prompt, beside the messages."""
    asked = {key: value for key, value in request.body.items() if key not in _NEUTRAL and value is not None}
    for key in _SETTINGS & asked.keys():
        if type(asked[key]) is dict:
            asked[key] = {name: value for name, value in asked[key].items() if value is not None}
            if not asked[key]:
                del asked[key]
    # These stand among the messages.
    if request.surface is Surface.RESPONSES and type(asked.get("instructions")) is str:
        del asked["instructions"]
    questions = asked.get("questions")
    if request.surface is Surface.DECISIONS and type(questions) is list and questions and type(questions[0]) is dict:
        first = questions[0]
        if type(first.get("instructions")) is str:
            asked["questions"] = [{key: first[key] for key in first if key != "instructions"}, *questions[1:]]
    return asked


def _instruction(message: dict[str, Any]) -> str:
    """A message of instructions, with a border that says whose it is."""
    content = message.get("content")
    text = text_of(content)
    if text is None:
        text = _canonical(content).decode()
    more = {key: value for key, value in message.items() if key not in {"role", "content"} and value is not None}
    border = message["role"] + (_canonical(more).decode() if more else "")
    return f"{_BORDER}{border}{_BEGIN}{text}"


def _canonical(value: Any) -> bytes:
    """JSON with sorted keys. Raises RecursionError."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # a lone surrogate, an integer beyond 64 bits, or deep nesting
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _undated(match: re.Match[bytes]) -> bytes:
    """A description without its dates: what is said of a tool may begin with today's."""
    if not _DIGIT.search(match[1]):
        return match[0]
    return b'"description":"%b"' % without_dates(match[1].decode("utf-8", "replace")).encode()


def _utf8(text: str) -> str:
    """The text with its lone surrogates escaped, so that any store takes it."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _hash(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()[:16]
