"""A label rendered as a chat completion, and a teacher's answer read as a label."""

import gzip
import json
import zlib
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.answer import LONGEST_LABEL, read_label, readable, render, render_stream
from tests.scripted_teacher import DONE, chunks, completion

JSON = [(b"content-type", b"application/json")]
SSE = [(b"content-type", b"text/event-stream; charset=utf-8")]
LABELS = ["card_lost", ' "quoted"\n', "é🙂", '{"intent":"x"}', "\ud83d"]


def _events(stream: bytes) -> list[Any]:
    assert stream.endswith(b"data: [DONE]\n\n")
    return [json.loads(event[6:]) for event in stream.split(b"\n\n")[:-2]]


@pytest.mark.parametrize("label", LABELS)
def test_an_answer_is_a_valid_chat_completion(label: str) -> None:
    """The official client's own types take it, strictly, and the label is whole."""
    answer = ChatCompletion.model_validate(json.loads(render(label, "abc")), strict=True)
    assert answer.choices[0].message.content == label
    assert (answer.id, answer.model, answer.choices[0].finish_reason) == ("chatcmpl-abc", "tracer_surrogate", "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 0


@pytest.mark.parametrize("label", LABELS)
def test_a_streamed_answer_is_role_content_finish(label: str) -> None:
    """Three valid chunks of one id, then [DONE]."""
    events = [
        ChatCompletionChunk.model_validate(event, strict=True) for event in _events(render_stream(label, "abc", False))
    ]
    assert [event.choices[0].delta.role for event in events] == ["assistant", None, None]
    assert "".join(event.choices[0].delta.content or "" for event in events) == label
    assert [event.choices[0].finish_reason for event in events] == [None, None, "stop"]
    assert {event.id for event in events} == {"chatcmpl-abc"}


def test_a_streamed_answer_has_a_usage_chunk_where_asked_for() -> None:
    """The last chunk has no choice and zero tokens; the others say null."""
    *others, last = _events(render_stream("x", "abc", True))
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 0
    assert all(event["usage"] is None for event in others)


@pytest.mark.parametrize("label", ["card_lost", " Card lost.\n", "é", '{"intent": "x"}', "y" * LONGEST_LABEL])
def test_a_label_is_what_the_teacher_wrote(label: str) -> None:
    """White space, quotes and case are kept, whole or streamed."""
    assert read_label(JSON, json.dumps(completion(label, "m")).encode()) == label
    assert read_label(SSE, b"".join(chunks(label, "m")) + DONE) == label


def test_a_label_survives_its_own_rendering() -> None:
    """What we answer, we would learn."""
    assert read_label(JSON, render("a b", "x")) == "a b"
    assert read_label(SSE, render_stream("a b", "x", True)) == "a b"


@pytest.mark.parametrize(
    "choice",
    [
        {"finish_reason": "length"},
        {"finish_reason": "content_filter"},
        {"finish_reason": None},
        {"message": {"content": None}},
        {"message": {"content": ""}},
        {"message": {"content": " \n"}},
        {"message": {"content": "y" * (LONGEST_LABEL + 1)}},
        {"message": {"content": [{"type": "text", "text": "a"}]}},
        {"message": {"refusal": "no"}},
        {"message": {"tool_calls": [{"id": "1"}]}},
        {"message": {"function_call": {"name": "f"}}},
    ],
)
def test_an_answer_that_is_no_complete_label_is_none(choice: dict[str, Any]) -> None:
    """Cut, refused, called a tool, empty, or prose."""
    assert read_label(JSON, json.dumps(completion("a", "m", **choice)).encode()) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html></html>",
        b"null",
        b"[]",
        b"{}",
        b'{"choices":[]}',
        b'{"choices":[3]}',
        b'{"choices":{"a":1}}',
        b'{"choices":[{"finish_reason":"stop"}]}',
        b'{"choices":[{"finish_reason":"stop","message":"a"}]}',
    ],
)
def test_an_answer_that_is_no_completion_is_none(body: bytes) -> None:
    """Whatever a proxy on the way may say with status 200."""
    assert read_label(JSON, body) is None


def test_two_choices_are_no_label() -> None:
    """It could be either."""
    answer = completion("a", "m")
    answer["choices"] *= 2
    assert read_label(JSON, json.dumps(answer).encode()) is None


def _event(**choice: Any) -> bytes:
    return (
        b"data: "
        + json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": None} | choice]}).encode()
        + b"\n\n"
    )


WHOLE = b"".join(chunks("card_lost", "m"))


@pytest.mark.parametrize(
    "stream",
    [
        WHOLE,
        WHOLE[:-40] + DONE,
        next(chunks("card_lost", "m")) + DONE,
        WHOLE + b'data: {"error":{"message":"overloaded"}}\n\n' + DONE,
        WHOLE + _event(finish_reason="length") + DONE,
        WHOLE + _event(delta={"tool_calls": [{"index": 0}]}) + DONE,
        WHOLE + _event(delta={"refusal": "no"}) + DONE,
        WHOLE + _event(index=1, delta={"content": "b"}) + DONE,
        WHOLE + _event(delta="x") + DONE,
        WHOLE + b"data: []\n\n" + DONE,
        WHOLE + DONE + _event(delta={"content": "b"}),
    ],
)
def test_a_stream_that_is_no_complete_label_is_none(stream: bytes) -> None:
    """Without its end, with an error in it, or with more than one text."""
    assert read_label(SSE, stream) is None


def test_comments_and_usage_in_a_stream_are_passed_over() -> None:
    """Keep-alive comments, event names and a usage chunk are no part of the label."""
    stream = (
        b": ping\r\n\r\nevent: x\r\n"
        + WHOLE.replace(b"\n", b"\r\n")
        + b'data: {"choices":[],"usage":{}}\r\n\r\n'
        + DONE
    )
    assert read_label(SSE, stream) == "card_lost"


def test_compressed_answers_are_read() -> None:
    """gzip and deflate; anything else is no label."""
    body = json.dumps(completion("a", "m")).encode()
    assert read_label([*JSON, (b"content-encoding", b"gzip")], gzip.compress(body)) == "a"
    assert read_label([*JSON, (b"content-encoding", b"deflate")], zlib.compress(body)) == "a"
    assert read_label([*JSON, (b"content-encoding", b"gzip")], gzip.compress(body)[:-9]) is None
    assert read_label([*JSON, (b"content-encoding", b"gzip")], body) is None
    assert read_label([*JSON, (b"content-encoding", b"br")], body) is None


@pytest.mark.parametrize(
    ("accepted", "narrowed"),
    [
        (b"gzip, deflate", b"gzip, deflate"),
        (b"gzip, deflate, br, zstd", b"gzip, deflate"),
        (b"br;q=1.0, GZIP;q=0.8, *;q=0.1", b"GZIP;q=0.8"),
        (b"br", b"identity"),
        (b"identity", b"identity"),
    ],
)
def test_only_what_can_be_read_is_asked_for(accepted: bytes, narrowed: bytes) -> None:
    """Encodings we cannot inflate would leave nothing to learn from; every other header stays."""
    other = (b"accept", b"br")
    assert readable([(b"accept-encoding", accepted), other]) == [(b"accept-encoding", narrowed), other]
    assert readable([other]) == [other]


def test_a_compression_bomb_stays_small() -> None:
    """What inflates beyond a label's answer is given up."""
    bomb = gzip.compress(json.dumps(completion("a" * 50_000_000, "m")).encode())
    assert read_label([*JSON, (b"content-encoding", b"gzip")], bomb) is None
