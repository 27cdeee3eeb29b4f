"""A label's answer rendered as `/v1/responses` gives it."""

import json
from typing import Any

import pytest
from openai.types.responses import Response

from gateway.response import render_response, render_response_stream
from gateway.wire import ModelRequest, parse_responses
from policies.types import Answer, AnswerKind

CALL = Answer("book", AnswerKind.TOOL, '{"to":"Rome"}')


def _request(**fields: Any) -> ModelRequest:
    return parse_responses(json.dumps({"model": "m", "input": "a"} | fields).encode())


def _events(stream: bytes) -> list[Any]:
    found = []
    for event in stream.split(b"\n\n")[:-1]:
        name, data = event.split(b"\n")
        found.append(json.loads(data.removeprefix(b"data: ")))
        assert name.removeprefix(b"event: ").decode() == found[-1]["type"]
    return found


@pytest.mark.parametrize("text", ["card_lost", ' "quoted"\n', "é🙂", '{"intent":"x"}', "\ud83d"])
def test_a_text_is_a_valid_response(text: str) -> None:
    """The official client's own types take it, and `output_text` is the label."""
    body = json.loads(render_response(Answer(text), _request(), "abc"))
    response = Response.model_validate(body)
    assert (response.output_text, response.status, response.model) == (text, "completed", "tracer_surrogate")
    assert response.usage is not None
    assert response.usage.total_tokens == 0
    assert body["store"] is False


def test_a_tool_call_is_a_valid_response() -> None:
    """One function_call item."""
    (item,) = Response.model_validate_json(render_response(CALL, _request(), "abc")).output
    assert item.type == "function_call"
    assert (item.name, item.arguments, item.call_id) == ("book", '{"to":"Rome"}', "call_abc")


def test_a_response_repeats_what_it_was_asked() -> None:
    """As the API does; what the request does not say has the API's default."""
    tool = {"type": "function", "name": "book", "parameters": {"type": "object"}, "strict": False}
    asked = {"instructions": "Sort.", "temperature": 0.0, "tools": [tool], "metadata": {"a": "b"}, "top_p": None}
    body = json.loads(render_response(Answer("a"), _request(**asked), "abc"))
    assert {key: body[key] for key in ("instructions", "temperature", "metadata")} == {
        "instructions": "Sort.",
        "temperature": 0.0,
        "metadata": {"a": "b"},
    }
    assert body["tools"] == [{**tool, "description": None}]
    assert (body["top_p"], body["tool_choice"], body["truncation"]) == (1.0, "auto", "disabled")


@pytest.mark.parametrize(
    ("answer", "kinds"),
    [
        (
            Answer("a b"),
            [
                *("output_item.added", "content_part.added", "output_text.delta", "output_text.done"),
                *("content_part.done", "output_item.done"),
            ],
        ),
        (
            CALL,
            [
                *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done"),
                "output_item.done",
            ],
        ),
    ],
)
def test_a_stream_has_the_events_of_the_api_in_order(answer: Answer, kinds: list[str]) -> None:
    """Numbered from nought, between created and completed."""
    events = _events(render_response_stream(answer, _request(), "abc"))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    expected = ["created", "in_progress", *kinds, "completed"]
    assert [event["type"] for event in events] == [f"response.{kind}" for kind in expected]
    whole = json.loads(render_response(answer, _request(), "abc"))
    assert events[-1]["response"]["output"] == whole["output"]
    assert events[0]["response"]["output"] == []


def test_who_wrote_a_part_is_named_with_what_it_cost() -> None:
    """Arguments that an LLM wrote are its own, and so is their price."""
    body = json.loads(render_response(CALL, _request(), "abc", "mini", b'{"total_tokens":7}'))
    assert (body["model"], body["usage"]) == ("mini", {"total_tokens": 7})
