"""OpenAI chat shapes: the few fields the gateway reads, with the raw bytes kept for whoever is forwarded to."""

import json
import re
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.errors import InvalidRequest

# Strings first: braces and colons inside them are text. One pass, no backtracking: a body may hold a 20 MB image.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]:,]', re.DOTALL)
_KEY, _ESCAPED = b'"model"', b"\\u00"
_VALUE = re.compile(rb'\s*:\s*("[^"\\]*(?:\\.[^"\\]*)*")', re.DOTALL)
_QUOTE, _COLON = b'":'
_OPENING, _CLOSING = b"{[", b"}]"


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One chat completion call. `raw` is what the client sent, `body` the same parsed."""

    raw: bytes
    body: dict[str, Any]
    model: str
    messages: list[dict[str, Any]]


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in a request body; raises InvalidRequest.

    What orjson refuses and other servers take (a lone surrogate, NaN) is left to the standard library: a call the
    teacher would have answered must not fail here.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        try:
            body = json.loads(raw.decode("utf-8"))
        except (ValueError, RecursionError):
            raise InvalidRequest("The body is not valid JSON.") from None
    if type(body) is not dict:
        raise InvalidRequest("The body should be a JSON object.")
    return body


def parse_chat(raw: bytes) -> ChatRequest:
    """A chat completion request; raises InvalidRequest where `model` or `messages` is missing or of a wrong type."""
    body = parse_object(raw)
    model = body.get("model")
    if type(model) is not str or not model:
        raise InvalidRequest("'model' should be a string that is not empty.", param="model")
    messages = body.get("messages")
    if type(messages) is not list or not messages:
        raise InvalidRequest("'messages' should be an array with at least one message.", param="messages")
    for index, message in enumerate(messages):
        if type(message) is not dict or type(message.get("role")) is not str:
            raise InvalidRequest("A message should be an object with a 'role'.", param=f"messages[{index}]")
    return ChatRequest(raw, body, model, messages)


def with_model(raw: bytes, model: str) -> bytes:
    """The body with its top-level "model" replaced and every other byte as it was."""
    value = orjson.dumps(model)
    pieces, end = [], 0
    for start, stop in _model_spans(raw):
        pieces += [raw[end:start], value]
        end = stop
    return b"".join([*pieces, raw[end:]])


def text_of(content: Any) -> str | None:
    """The text of a message's content, its text parts joined by newlines; None where it is anything but text."""
    if type(content) is str:
        return content
    if type(content) is not list or not content:
        return None
    texts = []
    for part in content:
        if type(part) is not dict or part.get("type") != "text" or type(part.get("text")) is not str:
            return None
        texts.append(part["text"])
    return "\n".join(texts)


def _model_spans(raw: bytes) -> list[tuple[int, int]]:
    # The common case, found fast: quotes inside a string are escaped, so where no key can be spelt with escapes, the
    # only `"model"` of a body that has the key is that key.
    if raw.count(_KEY) == 1 and _ESCAPED not in raw and (value := _VALUE.match(raw, raw.index(_KEY) + len(_KEY))):
        return [value.span(1)]
    # A key given twice is replaced twice: which of them a parser keeps is the parser's choice.
    spans, depth, key, before = [], 0, b"", 0
    for token in _TOKEN.finditer(raw):
        kind = raw[token.start()]
        if kind in _OPENING:
            depth += 1
        elif kind in _CLOSING:
            depth -= 1
        elif depth == 1 and kind == _QUOTE:
            if before != _COLON:
                key = token[0]
            elif json.loads(key) == "model":
                spans.append(token.span())
        before = kind
    return spans
