"""OpenAI request shapes: the few fields the gateway reads, with the raw bytes kept for whoever is forwarded to.

A `/v1/responses` call is read as the chat it stands for, so that everything behind this module knows one shape.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from gateway.errors import InvalidRequest

# Strings first: braces and colons inside them are text. One pass, no backtracking: a body may hold an image.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]:,]', re.DOTALL)
_KEY, _ESCAPED = b'"model"', b"\\u00"
_VALUE = re.compile(rb'\s*:\s*("[^"\\]*(?:\\.[^"\\]*)*")', re.DOTALL)
_QUOTE, _COLON = b'":'
_OPENING, _CLOSING = b"{[", b"}]"


# Parts of a `/v1/responses` message, and what chat calls them.
_PARTS = {"input_text": "text", "output_text": "text", "input_image": "image_url", "input_file": "file"}


# Of an input item, what says nothing of its text.
_ITEM_KEYS = frozenset({"type", "id", "status"})


class Surface(StrEnum):
    """The API a call came by. The value is its path under /v1."""

    CHAT = "/chat/completions"
    RESPONSES = "/responses"
    DECISIONS = "/decisions"


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One call of a model. `raw` is what the client sent, `body` the same parsed, `messages` the chat it stands for.

    Of a request too large to be read whole (gateway/large.py) `body` has what says whose call it is, and no more;
    `model_spans` are then the places of the model's name in `raw`.
    """

    raw: bytes
    body: dict[str, Any]
    model: str
    messages: list[dict[str, Any]]
    surface: Surface = Surface.CHAT
    model_spans: tuple[tuple[int, int], ...] | None = None

    @property
    def abridged(self) -> bool:
        """Whether most of it was not read."""
        return self.model_spans is not None


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


def parse_chat(raw: bytes) -> ModelRequest:
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
    return ModelRequest(raw, body, model, messages)


def parse_responses(raw: bytes) -> ModelRequest:
    """A `/v1/responses` request; raises InvalidRequest where it is no JSON object.

    What else may be wrong with it is the upstream's to say: the API has more ways to ask than are read here.
    """
    body = parse_object(raw)
    model, instructions = body.get("model"), body.get("instructions")
    messages = [] if type(instructions) is not str else [{"role": "system", "content": instructions}]
    given = body.get("input")
    if type(given) is str:
        messages.append({"role": "user", "content": given})
    elif type(given) is list:
        messages += [_message(item) for item in given]
    return ModelRequest(raw, body, model if type(model) is str else "", messages, Surface.RESPONSES)


def parse_decisions(raw: bytes) -> ModelRequest:
    """A `/v1/decisions` request; raises InvalidRequest where it is no JSON object.

    The chat it stands for has the first question's instructions before the input.
    """
    body = parse_object(raw)
    model, questions, given = body.get("model"), body.get("questions"), body.get("input")
    first = questions[0] if type(questions) is list and questions else None
    instructions = first.get("instructions") if type(first) is dict else None
    messages = [] if type(instructions) is not str else [{"role": "system", "content": instructions}]
    messages += [_message(item) for item in (given if type(given) is list else [{"role": "user", "content": given}])]
    return ModelRequest(raw, body, model if type(model) is str else "", messages, Surface.DECISIONS)


def with_model(raw: bytes, model: str, spans: Sequence[tuple[int, int]] | None = None) -> bytes:
    """The body with its top-level "model" replaced and every other byte as it was.

    `spans` are the places where it stands, where they are known.
    """
    value = orjson.dumps(model)
    pieces: list[bytes | memoryview] = []
    end, view = 0, memoryview(raw)  # megabytes are copied once
    for start, stop in _model_spans(raw) if spans is None else spans:
        pieces += [view[end:start], value]
        end = stop
    return b"".join([*pieces, view[end:]])


def repeats_a_key(request: ModelRequest) -> bool:
    """Whether an object of the body has a key twice: which of the two a server reads is the server's choice."""
    try:
        # Reading drops what stands twice, and with it some quotes. Where all are there still, nothing was dropped.
        if orjson.dumps(request.body).count(b'"') == request.raw.count(b'"'):
            return False
    except TypeError:  # a lone surrogate, or an integer beyond 64 bits
        pass
    return _repeats_a_key(request.raw)


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


def _message(item: Any) -> dict[str, Any]:
    """The chat message that an input item stands for; a turn of nobody's where it stands for none."""
    if type(item) is not dict or type(item.get("role")) is not str or item.get("type", "message") != "message":
        return {"role": "item"}
    content = item.get("content")
    if type(content) is list:
        content = [
            {**part, "type": _PARTS.get(part["type"], part["type"])}
            if type(part) is dict and type(part.get("type")) is str
            else part
            for part in content
        ]
    return {**{key: value for key, value in item.items() if key not in _ITEM_KEYS}, "content": content}


def _repeats_a_key(raw: bytes) -> bool:
    open_objects: list[set[str]] = []
    previous = b""
    for token in _TOKEN.finditer(raw):
        kind = raw[token.start()]
        if kind in _OPENING:
            open_objects.append(set())
        elif kind in _CLOSING:
            open_objects.pop()
        elif kind == _COLON:
            key = json.loads(previous)
            if key in open_objects[-1]:
                return True
            open_objects[-1].add(key)
        previous = token[0]
    return False


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
