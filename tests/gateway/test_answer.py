"""A label's answer rendered as a chat completion."""

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.answer import Envelope, render, render_stream
from policies.types import Answer, AnswerKind

ENVELOPE = Envelope("abc", "20261124T000000.000-abcdef12")
LABELS = ["card_lost", ' "quoted"\n', "é🙂", '{"intent":"x"}', "\ud83d"]


def _events(stream: bytes) -> list[Any]:
    assert stream.endswith(b"data: [DONE]\n\n")
    return [json.loads(event[6:]) for event in stream.split(b"\n\n")[:-2]]


def _chunks(stream: bytes) -> list[ChatCompletionChunk]:
    return [ChatCompletionChunk.model_validate(event, strict=True) for event in _events(stream)]


@pytest.mark.parametrize("label", LABELS)
def test_an_answer_is_a_valid_chat_completion(label: str) -> None:
    """The official client's own types take it, strictly, and the label is whole."""
    answer = ChatCompletion.model_validate(json.loads(render(Answer(label), ENVELOPE)), strict=True)
    assert answer.choices[0].message.content == label
    assert (answer.id, answer.model, answer.choices[0].finish_reason) == ("chatcmpl-abc", "tracer_surrogate", "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 0


@pytest.mark.parametrize("label", LABELS)
def test_a_streamed_answer_is_role_content_finish(label: str) -> None:
    """Three valid chunks of one id, then [DONE]."""
    events = [
        ChatCompletionChunk.model_validate(event, strict=True)
        for event in _events(render_stream(Answer(label), ENVELOPE, False))
    ]
    assert [event.choices[0].delta.role for event in events] == ["assistant", None, None]
    assert "".join(event.choices[0].delta.content or "" for event in events) == label
    assert [event.choices[0].finish_reason for event in events] == [None, None, "stop"]
    assert {event.id for event in events} == {"chatcmpl-abc"}


def test_a_streamed_answer_has_a_usage_chunk_where_asked_for() -> None:
    """The last chunk has no choice and zero tokens; the others say null."""
    *others, last = _events(render_stream(Answer("x"), ENVELOPE, True))
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 0
    assert all(event["usage"] is None for event in others)


def test_a_tool_call_is_a_valid_completion() -> None:
    """No content, one call, and the finish reason that the client's own tool_choice gives."""
    answer = Answer("book", AnswerKind.TOOL, '{"to":"Rome"}')
    for reason in ("tool_calls", "stop"):
        envelope = Envelope("abc", "v", reason)
        choice = ChatCompletion.model_validate(json.loads(render(answer, envelope)), strict=True).choices[0]
        assert (choice.finish_reason, choice.message.content) == (reason, None)
        assert choice.message.tool_calls is not None
        (call,) = choice.message.tool_calls
        assert call.type == "function"
        assert (call.id, call.function.name, call.function.arguments) == ("call_abc", "book", '{"to":"Rome"}')


def test_a_streamed_tool_call_comes_name_first() -> None:
    """The name with empty arguments, then the arguments, then the finish."""
    answer = Answer("book", AnswerKind.TOOL, '{"to":"Rome"}')
    events = [
        ChatCompletionChunk.model_validate(e, strict=True) for e in _events(render_stream(answer, ENVELOPE, False))
    ]
    calls = [call.function for event in events for call in event.choices[0].delta.tool_calls or []]
    assert [(call.name, call.arguments) for call in calls if call] == [("book", ""), (None, '{"to":"Rome"}')]
    assert [event.choices[0].finish_reason for event in events] == [None, None, "tool_calls"]
    assert {event.system_fingerprint for event in events} == {"fp_abcdef12"}
