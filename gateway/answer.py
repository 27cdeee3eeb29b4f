"""A label's answer as the chat completion that carries it: whole, or as server-sent events."""

import time
from typing import NamedTuple

from gateway.encoding import encoded
from policies.types import Answer, AnswerKind

SURROGATE_MODEL = "tracer_surrogate"
EVENT_STREAM = b"text/event-stream; charset=utf-8"
NO_CACHE = (b"cache-control", b"no-cache")

NO_USAGE = (
    b'{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0,'
    b'"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},'
    b'"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,'
    b'"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}'
)
_DONE = b"data: [DONE]\n\n"


class Envelope(NamedTuple):
    """What stands around an answer.

    `finish_reason` is for a tool call; a text ends with "stop". `usage` is JSON, `version` the policy's.
    """

    call_id: str
    version: str
    finish_reason: str = "tool_calls"
    model: str = SURROGATE_MODEL
    usage: bytes = NO_USAGE


def render(answer: Answer, envelope: Envelope) -> bytes:
    """A chat completion."""
    if answer.kind is AnswerKind.TOOL:
        message = b'"content":null,"tool_calls":[%b],"refusal":null,"annotations":[]' % _tool_call(answer, envelope)
    else:
        message = b'"content":%b,"refusal":null,"annotations":[]' % encoded(answer.text)
    return b"".join(
        (
            b"{",
            _head(envelope, b"chat.completion"),
            b'"choices":[{"index":0,"message":{"role":"assistant",',
            message,
            b'},"logprobs":null,"finish_reason":"',
            _finish(answer, envelope),
            b'"}],"usage":',
            envelope.usage,
            _tail(envelope),
            b"}",
        )
    )


def render_stream(answer: Answer, envelope: Envelope, include_usage: bool) -> bytes:
    """The same as server-sent events: role, the answer, finish, usage where asked for, [DONE]."""
    head = b"data: {" + _head(envelope, b"chat.completion.chunk")
    tail = _tail(envelope) + (b',"usage":null' if include_usage else b"") + b"}\n\n"
    finish = b'"' + _finish(answer, envelope) + b'"'
    parts = [
        b'%b"choices":[{"index":0,"delta":%b,"logprobs":null,"finish_reason":%b}]%b' % (head, delta, end, tail)
        for delta, end in (*((delta, b"null") for delta in _deltas(answer, envelope)), (b"{}", finish))
    ]
    if include_usage:
        parts.append(b'%b"choices":[]%b,"usage":%b}\n\n' % (head, _tail(envelope), envelope.usage))
    return b"".join((*parts, _DONE))


def fingerprint(version: str) -> str:
    """A policy's version as a system fingerprint: what answered, as far as a client cares."""
    return f"fp_{version[-8:]}"


def _deltas(answer: Answer, envelope: Envelope) -> tuple[bytes, bytes]:
    if answer.kind is not AnswerKind.TOOL:
        return b'{"role":"assistant","content":"","refusal":null}', b'{"content":%b}' % encoded(answer.text)
    call = b'{"index":0,' + _tool_call(Answer(answer.text, answer.kind, ""), envelope)[1:]
    return (
        b'{"role":"assistant","content":null,"tool_calls":[%b],"refusal":null}' % call,
        b'{"tool_calls":[{"index":0,"function":{"arguments":%b}}]}' % encoded(answer.arguments or ""),
    )


def _tool_call(answer: Answer, envelope: Envelope) -> bytes:
    return b'{"id":"call_%b","type":"function","function":{"name":%b,"arguments":%b}}' % (
        envelope.call_id[:24].encode(),
        encoded(answer.text),
        encoded(answer.arguments or ""),
    )


def _finish(answer: Answer, envelope: Envelope) -> bytes:
    return envelope.finish_reason.encode() if answer.kind is AnswerKind.TOOL else b"stop"


def _head(envelope: Envelope, kind: bytes) -> bytes:
    return b'"id":"chatcmpl-%b","object":"%b","created":%d,"model":%b,' % (
        envelope.call_id.encode(),
        kind,
        int(time.time()),
        encoded(envelope.model),
    )


def _tail(envelope: Envelope) -> bytes:
    return b',"service_tier":"default","system_fingerprint":"%b"' % fingerprint(envelope.version).encode()
