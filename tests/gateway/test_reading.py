"""A teacher's answers, whole and streamed, of every surface, read as what may become a trace."""

import gzip
import json
import zlib
from typing import Any

import pytest

from gateway.answer import Envelope, render, render_stream
from gateway.reading import LONGEST_LABEL, LONGEST_OBJECT, Reading, Teacher, events, read, read_answer, readable
from gateway.response import render_response, render_response_stream
from gateway.wire import ModelRequest, Surface, parse_responses
from policies.types import Answer, AnswerKind
from tests.scripted_teacher import DONE, chunks, completion

JSON = [(b"content-type", b"application/json")]
SSE = [(b"content-type", b"text/event-stream; charset=utf-8")]
CALL = Answer("book", AnswerKind.TOOL, '{"to": "Rome"}')
ENVELOPE = Envelope("x" * 32, "20261124T000000.000-abcdef12")


def _read(headers: list[tuple[bytes, bytes]], body: bytes, surface: Surface = Surface.CHAT) -> Answer | None:
    return read_answer(surface, headers, body)


def _request() -> ModelRequest:
    return parse_responses(b'{"model":"m","input":"a"}')


@pytest.mark.parametrize("answer", [Answer("a b"), Answer("é🙂"), Answer('{"a": 1}'), CALL])
def test_an_answer_survives_its_own_rendering(answer: Answer) -> None:
    """What we answer, we would learn: whole or streamed, as a completion or as a response."""
    assert _read(JSON, render(answer, ENVELOPE)) == answer
    assert _read(SSE, render_stream(answer, ENVELOPE, True)) == answer
    assert _read(JSON, render_response(answer, _request(), "x"), Surface.RESPONSES) == answer
    assert _read(SSE, render_response_stream(answer, _request(), "x"), Surface.RESPONSES) == answer


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"message": {"content": "y" * (LONGEST_LABEL + 1)}}, "y" * LONGEST_LABEL),
        ({"message": {"content": None, "refusal": "no"}}, "no"),
        ({"finish_reason": "content_filter"}, "content_filter"),
        ({"message": {"content": "Sure.", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}}, "f"),
        ({"message": {"content": None, "tool_calls": [{"function": {"name": n}} for n in "fg"]}}, "f, g"),
        ({"message": {"content": "{" + "y" * LONGEST_LABEL}}, "{" + "y" * (LONGEST_LABEL - 1)),
    ],
)
def test_answers_that_are_no_label_are_read_as_other(choice: dict[str, Any], said: str) -> None:
    """Prose, a refusal, a call with words beside it, several calls: seen, so that no certificate leaves them out."""
    choice = {"finish_reason": "stop", **choice}
    assert _read(JSON, json.dumps(completion("a", "m", **choice)).encode()) == Answer(said, AnswerKind.OTHER)


def test_json_objects_may_be_longer_than_labels() -> None:
    """Their length is in their keys."""
    text = json.dumps({"label": "x" * 2_000})
    assert len(text) < LONGEST_OBJECT
    assert _read(JSON, json.dumps(completion(text, "m")).encode()) == Answer(text)


@pytest.mark.parametrize("finish", ["tool_calls", "stop"])
def test_a_tool_call_is_read_with_its_arguments_as_written(finish: str) -> None:
    """A named tool_choice ends with "stop", any other with "tool_calls"."""
    call = {"id": "c1", "type": "function", "function": {"name": "book", "arguments": '{"to": "Rome"}'}}
    body = completion("a", "m", message={"content": None, "tool_calls": [call]}, finish_reason=finish)
    assert _read(JSON, json.dumps(body).encode()) == CALL


def test_a_filtered_response_is_read_as_other() -> None:
    """Whole or streamed, as in chat."""
    filtered = {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}, "output": []}
    expected = Answer("content_filter", AnswerKind.OTHER)
    assert _read(JSON, json.dumps(filtered).encode(), Surface.RESPONSES) == expected
    event = {"type": "response.incomplete", "response": filtered}
    assert _read(SSE, b"data: " + json.dumps(event).encode() + b"\n\n", Surface.RESPONSES) == expected


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ([{"type": "reasoning", "summary": []}, {"type": "message", "content": [{"text": "a"}]}], Answer("a")),
        ([{"type": "function_call", "name": "book", "arguments": '{"to": "Rome"}'}], CALL),
        ([{"type": "message", "content": [{"refusal": "no"}]}], Answer("no", AnswerKind.OTHER)),
        ([{"type": "web_search_call"}], None),
        ([], None),
        ([3], None),
    ],
)
def test_the_items_of_a_response_are_read(output: list[Any], answer: Answer | None) -> None:
    """Reasoning beside the answer is no part of it; an item of another kind makes it no answer of ours."""
    body = json.dumps({"status": "completed", "output": output}).encode()
    assert _read(JSON, body, Surface.RESPONSES) == answer
    assert _read(JSON, body.replace(b"completed", b"incomplete"), Surface.RESPONSES) is None


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ({"choice": "refund"}, Answer("refund")),
        ({"choice": True}, Answer("true")),
        ({"probability": 0.7}, Answer("true")),
        ({"probability": 0.2}, Answer("false")),
        ({"type": "refusal"}, Answer("refused", AnswerKind.OTHER)),
        ({"score": 3}, None),
        ({"probability": "high"}, None),
    ],
)
def test_a_decision_is_read_as_its_likelier_value(given: dict[str, Any], answer: Answer | None) -> None:
    """A choice as it is, a predicate as the side it leans to."""
    assert _read(JSON, json.dumps({"answers": [given]}).encode(), Surface.DECISIONS) == answer


def test_events_are_split_as_the_standard_says() -> None:
    """CR, LF and CRLF; comments, a byte order mark, several data lines; characters that look like line ends."""
    stream = "\ufeff: hi\rdata: a\r\ndata:b\n\nevent: x\n\ndata: c\u2028\x85d\r\r"
    assert list(events(stream.encode())) == ["a\nb", "c\u2028\x85d"]
    assert list(events(b"data: [DONE]\n")) == ["[DONE]"]
    assert list(events(b"data: [DO")) == []


@pytest.mark.parametrize("label", ["card_lost", " Card lost.\n", "é", '{"intent": "x"}', "y" * LONGEST_LABEL])
def test_a_label_is_what_the_teacher_wrote(label: str) -> None:
    """White space, quotes and case are kept, whole or streamed."""
    assert _read(JSON, json.dumps(completion(label, "m")).encode()) == Answer(label)
    assert _read(SSE, b"".join(chunks(label, "m")) + DONE) == Answer(label)


@pytest.mark.parametrize(
    "choice",
    [
        {"finish_reason": "length"},
        {"finish_reason": None},
        {"message": {"content": None}},
        {"message": {"content": ""}},
        {"message": {"content": " \n"}},
        {"message": {"content": [{"type": "text", "text": "a"}]}},
        {"message": {"tool_calls": [{"id": "1"}]}},
        {"message": {"tool_calls": [3]}},
        {"message": {"audio": {"id": "a"}}},
    ],
)
def test_an_answer_that_is_not_whole_is_none(choice: dict[str, Any]) -> None:
    """Cut, empty, or of no known shape."""
    assert _read(JSON, json.dumps(completion("a", "m", **choice)).encode()) is None


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
    assert _read(JSON, body) is None


def test_two_choices_are_no_label() -> None:
    """It could be either."""
    answer = completion("a", "m")
    answer["choices"] *= 2
    assert _read(JSON, json.dumps(answer).encode()) is None


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
        WHOLE + _event(index=1, delta={"content": "b"}) + DONE,
        WHOLE + _event(delta="x") + DONE,
        WHOLE + b"data: []\n\n" + DONE,
        WHOLE + DONE + _event(delta={"content": "b"}),
    ],
)
def test_a_stream_that_is_not_whole_is_none(stream: bytes) -> None:
    """Without its end, with an error in it, or with more than one text."""
    assert _read(SSE, stream) is None


def test_comments_and_usage_in_a_stream_are_passed_over() -> None:
    """Keep-alive comments, event names and a usage chunk are no part of the label."""
    stream = (
        b": ping\r\n\r\nevent: x\r\n"
        + WHOLE.replace(b"\n", b"\r\n")
        + b'data: {"choices":[],"usage":{}}\r\n\r\n'
        + DONE
    )
    assert _read(SSE, stream) == Answer("card_lost")


def test_compressed_answers_are_read() -> None:
    """gzip and deflate; anything else is no label."""
    body = json.dumps(completion("a", "m")).encode()
    assert _read([*JSON, (b"content-encoding", b"gzip")], gzip.compress(body)) == Answer("a")
    assert _read([*JSON, (b"content-encoding", b"deflate")], zlib.compress(body)) == Answer("a")
    assert _read([*JSON, (b"content-encoding", b"gzip")], gzip.compress(body)[:-9]) is None
    assert _read([*JSON, (b"content-encoding", b"gzip")], body) is None
    assert _read([*JSON, (b"content-encoding", b"br")], body) is None


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
    assert _read([*JSON, (b"content-encoding", b"gzip")], bomb) is None


TEACHER = Teacher("gpt-4.1-mini-2025-04-14", "fp_50cad350e4")
NAMES = {"model": TEACHER.model, "system_fingerprint": TEACHER.build}
NO_NAME = Teacher()


def _response(**fields: Any) -> dict[str, Any]:
    return {"status": "completed", "output": [{"type": "message", "content": [{"text": "a"}]}], **fields}


def _stream(*events: dict[str, Any], done: bool = True) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + (DONE if done else b"")


def _chunk(delta: dict[str, Any], finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **fields}


# What Azure sends first: the prompt's filter results, of no model.
_FILTERS: dict[str, Any] = {"choices": [], "model": "", "system_fingerprint": None, "prompt_filter_results": []}


@pytest.mark.parametrize(
    ("surface", "headers", "body", "teacher"),
    [
        (Surface.CHAT, JSON, completion("a", "m") | NAMES, TEACHER),
        (Surface.CHAT, JSON, completion("a", "m"), Teacher("m", "fp_scripted")),
        (Surface.CHAT, JSON, completion("a", "m") | {"model": None, "system_fingerprint": 3}, NO_NAME),
        (Surface.CHAT, JSON, completion("a", "m" * 1_000) | {"system_fingerprint": ""}, Teacher("m" * 200)),
        (Surface.CHAT, SSE, _stream(_chunk({"content": "a"}, "stop", **NAMES)), TEACHER),
        (
            Surface.CHAT,
            SSE,
            _stream(_FILTERS, _chunk({"content": "a"}, **NAMES), _chunk({}, "stop", model="x")),
            TEACHER,
        ),
        (
            Surface.CHAT,
            SSE,
            _stream(_chunk({"content": "a"}, model="m"), _chunk({}, "stop", **NAMES)),
            ("m", TEACHER[1]),
        ),
        (Surface.CHAT, SSE, _stream(_chunk({"content": "a"}, "stop")), NO_NAME),
        (Surface.RESPONSES, JSON, _response(model=TEACHER.model), Teacher(TEACHER.model)),
        (Surface.RESPONSES, JSON, _response(**NAMES), TEACHER),
        (
            Surface.RESPONSES,
            SSE,
            _stream(
                {"type": "response.created", "response": {"model": "asked for"}},
                {"type": "response.completed", "response": _response(model=TEACHER.model)},
                done=False,
            ),
            Teacher(TEACHER.model),
        ),
        (Surface.DECISIONS, JSON, {"model": TEACHER.model, "answers": [{"choice": "a"}]}, Teacher(TEACHER.model)),
    ],
)
def test_an_answer_says_who_gave_it(
    surface: Surface, headers: list[tuple[bytes, bytes]], body: Any, teacher: tuple[str, str]
) -> None:
    """The resolved model and the build, on every surface, whole or streamed; nothing where it does not say."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert read(surface, headers, raw) == Reading(Answer("a"), Teacher(*teacher))
    assert read(surface, [*headers, (b"content-encoding", b"gzip")], gzip.compress(raw)).teacher == teacher
    assert read(surface, headers, raw, named=False) == Reading(Answer("a"), Teacher("", teacher[1]))


@pytest.mark.parametrize(
    ("headers", "body", "teacher"),
    [
        (JSON, json.dumps(completion("a", "m", finish_reason="length") | NAMES).encode(), TEACHER),
        (SSE, _stream(_chunk({"content": "a"}, **NAMES), done=False), TEACHER),
        (JSON, b"[]", NO_NAME),
        (JSON, b"<html></html>", NO_NAME),
        (SSE, b"data: <html></html>\n\n", NO_NAME),
        ([*JSON, (b"content-encoding", b"br")], json.dumps(completion("a", "m")).encode(), NO_NAME),
    ],
)
def test_half_an_answer_may_say_who_gave_it(headers: list[tuple[bytes, bytes]], body: bytes, teacher: Teacher) -> None:
    """A teacher that is new is told even by an answer that was cut."""
    assert read(Surface.CHAT, headers, body) == Reading(None, teacher)


def test_a_rendered_answer_names_the_surrogate_and_its_policy() -> None:
    """A gateway before this one is a teacher like any other."""
    assert read(Surface.CHAT, JSON, render(CALL, ENVELOPE)).teacher == Teacher("tracer_surrogate", "fp_abcdef12")
    assert read(Surface.CHAT, SSE, render_stream(CALL, ENVELOPE, True)).teacher == ("tracer_surrogate", "fp_abcdef12")
