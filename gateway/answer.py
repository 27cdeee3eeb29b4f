"""A label and the chat completion that carries it: rendered for the client, read from the teacher."""

import json
import time
import zlib
from collections.abc import Iterable
from typing import Any

import orjson

SURROGATE_MODEL = "tracer_surrogate"
LONGEST_LABEL = 512  # characters; a longer answer is prose, not a label

JSON = b"application/json"
EVENT_STREAM = b"text/event-stream; charset=utf-8"

_MODEL = SURROGATE_MODEL.encode()
_USAGE = b'{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}'
_DONE = b"data: [DONE]\n\n"
# What `read_label` can inflate; the standard library knows no more.
_READABLE = frozenset({b"gzip", b"deflate", b"identity"})
# A label's answer inflates to a few kilobytes; more is not one.
_LARGEST_INFLATED = 1_048_576


def render(label: str, call_id: str) -> bytes:
    """A chat completion that answers `label`."""
    return b"".join(
        (
            _head(call_id, b"chat.completion"),
            b'"choices":[{"index":0,"message":{"role":"assistant","content":',
            _quoted(label),
            b',"refusal":null,"annotations":[]},"logprobs":null,"finish_reason":"stop"}],"usage":',
            _USAGE,
            b',"service_tier":null,"system_fingerprint":null}',
        )
    )


def render_stream(label: str, call_id: str, include_usage: bool) -> bytes:
    """The same as server-sent events: role, content, finish, usage where asked for, [DONE]."""
    head = b"data: " + _head(call_id, b"chat.completion.chunk")
    tail = (b',"usage":null' if include_usage else b"") + b',"service_tier":null,"system_fingerprint":null}\n\n'
    deltas = (
        (b'{"role":"assistant","content":"","refusal":null}', b"null"),
        (b'{"content":' + _quoted(label) + b"}", b"null"),
        (b"{}", b'"stop"'),
    )
    events = [
        b"".join(
            (head, b'"choices":[{"index":0,"delta":', delta, b',"logprobs":null,"finish_reason":', finish, b"}]", tail)
        )
        for delta, finish in deltas
    ]
    if include_usage:
        events.append(head + b'"choices":[],"usage":' + _USAGE + b',"service_tier":null,"system_fingerprint":null}\n\n')
    return b"".join((*events, _DONE))


def read_label(headers: Iterable[tuple[bytes, bytes]], body: bytes) -> str | None:
    """The label in a teacher's 200 answer, exactly as the teacher wrote it; None where it is no complete label.

    A label is the text of one choice that ended with "stop", without tool calls or refusal, of 1 to 512 characters; in
    a stream only where [DONE] has come.
    """
    found = {name.lower(): value.lower() for name, value in headers}
    plain = _inflate(found.get(b"content-encoding", b""), body)
    if plain is None:
        return None
    try:
        if found.get(b"content-type", b"").startswith(b"text/event-stream"):
            label = _read_stream(plain)
        else:
            label = _read_choice(orjson.loads(plain), "message")
    except (orjson.JSONDecodeError, _NoLabel):
        return None
    return label if label.strip() and len(label) <= LONGEST_LABEL else None


def readable(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Request headers with accept-encoding narrowed to what `read_label` can inflate; the others as they are.

    A client that would also take br or zstd still gets an answer it can read, and we get one to learn from.
    """
    return [(name, _narrowed(value) if name == b"accept-encoding" else value) for name, value in headers]


class _NoLabel(Exception):  # noqa: N818
    """The answer is something else than one complete label."""


def _narrowed(accepted: bytes) -> bytes:
    tokens = [token.strip() for token in accepted.split(b",")]
    return b", ".join(t for t in tokens if t.split(b";")[0].strip().lower() in _READABLE) or b"identity"


def _head(call_id: str, kind: bytes) -> bytes:
    created = int(time.time())
    return b'{"id":"chatcmpl-%b","object":"%b","created":%d,"model":"%b",' % (call_id.encode(), kind, created, _MODEL)


def _quoted(label: str) -> bytes:
    try:
        return orjson.dumps(label)
    except TypeError:  # a lone surrogate, which UTF-8 cannot carry and an escape can
        return json.dumps(label).encode()


def _read_choice(answer: Any, key: str) -> str:
    """The text of the only choice of a completion."""
    choices = answer.get("choices") if type(answer) is dict else None
    if type(choices) is not list or len(choices) != 1 or type(choices[0]) is not dict:
        raise _NoLabel
    if choices[0].get("finish_reason") != "stop":
        raise _NoLabel
    return _text_only(choices[0].get(key))


def _text_only(message: Any) -> str:
    if type(message) is not dict or any(
        message.get(key) for key in ("tool_calls", "function_call", "refusal", "audio")
    ):
        raise _NoLabel
    content = message.get("content")
    if type(content) is not str:
        raise _NoLabel
    return content


def _read_stream(body: bytes) -> str:
    texts: list[str] = []
    finished = done = False
    for line in body.splitlines():
        if done and line.startswith(b"data:"):
            raise _NoLabel
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            done = True
            continue
        text, stopped = _read_event(orjson.loads(data))
        texts.append(text)
        finished = finished or stopped
    if not (done and finished):
        raise _NoLabel
    return "".join(texts)


def _read_event(event: Any) -> tuple[str, bool]:
    """(text, whether the choice stopped) of one streamed event."""
    if type(event) is not dict or event.get("error"):
        raise _NoLabel
    choices = event.get("choices")
    if not choices:
        return "", False
    if type(choices) is not list or len(choices) != 1 or type(choices[0]) is not dict or choices[0].get("index"):
        raise _NoLabel
    delta = choices[0].get("delta") or {}
    finish = choices[0].get("finish_reason")
    if type(delta) is not dict or finish not in (None, "stop"):
        raise _NoLabel
    return _text_only({"content": "", **{k: v for k, v in delta.items() if v is not None}}), finish == "stop"


def _inflate(encoding: bytes, body: bytes) -> bytes | None:
    if encoding in (b"", b"identity"):
        return body
    if encoding not in (b"gzip", b"deflate"):
        return None
    # 32 + MAX_WBITS reads both the gzip and the zlib header.
    inflater = zlib.decompressobj(32 + zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(body, _LARGEST_INFLATED)
    except zlib.error:
        return None
    return plain if inflater.eof else None
