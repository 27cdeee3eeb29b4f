"""Whether a local answer is what the client's request asks for."""

import json
import time
from typing import Any

import pytest

from gateway.wanted import arguments_fit, misfit, wanted
from gateway.wire import parse_chat, parse_responses
from policies.types import Answer, AnswerKind, Reason

PARAMETERS = {"type": "object", "properties": {"to": {"enum": ["Rome", "Oslo"]}}, "required": ["to"]}
TOOLS = [
    {"type": "function", "function": {"name": "book", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "cancel"}},
]
BOOK = Answer("book", AnswerKind.TOOL, '{"to":"Rome"}')
SCHEMA = {"type": "object", "properties": {"intent": {"type": "string"}}, "required": ["intent"]}


def _misfit(answer: Answer, **fields: Any) -> Reason | None:
    messages = [{"role": "user", "content": "a"}]
    return misfit(answer, wanted(parse_chat(json.dumps({"model": "m", "messages": messages} | fields).encode())))


def _named(tool: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": tool}}


def _json_schema(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}}


@pytest.mark.parametrize(
    ("answer", "fields", "reason"),
    [
        (Answer("refund"), {}, None),
        (Answer("refund"), {"tools": TOOLS}, None),
        (Answer("refund"), {"tools": TOOLS, "tool_choice": "none"}, None),
        (Answer("refund"), {"tools": TOOLS, "tool_choice": "required"}, Reason.TOOL_CHOICE),
        (Answer("refund"), {"response_format": {"type": "json_object"}}, Reason.RESPONSE_FORMAT),
        (Answer("[1]"), {"response_format": {"type": "json_object"}}, Reason.RESPONSE_FORMAT),
        (Answer('{"a":1}'), {"response_format": {"type": "json_object"}}, None),
        (Answer('{"intent":"x"}'), _json_schema(SCHEMA), None),
        (Answer('{"intent":3}'), _json_schema(SCHEMA), Reason.RESPONSE_FORMAT),
        (Answer("x"), _json_schema(SCHEMA), Reason.RESPONSE_FORMAT),
        (BOOK, {}, Reason.TOOLS),
        (BOOK, {"tools": TOOLS}, None),
        (BOOK, {"tools": TOOLS[1:]}, Reason.TOOLS),
        (BOOK, {"tools": TOOLS, "tool_choice": "none"}, Reason.TOOL_CHOICE),
        (BOOK, {"tools": TOOLS, "tool_choice": "required"}, None),
        (BOOK, {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "book"}}}, None),
        (
            BOOK,
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "cancel"}}},
            Reason.TOOL_CHOICE,
        ),
        (Answer("book", AnswerKind.TOOL, '{"to":"Mars"}'), {"tools": TOOLS}, Reason.TOOLS),
        (Answer("book", AnswerKind.TOOL), {"tools": TOOLS}, None),
        (Answer("cancel", AnswerKind.TOOL, "{}"), {"tools": TOOLS}, None),
        (Answer("cancel", AnswerKind.TOOL, "{"), {"tools": TOOLS}, Reason.TOOLS),
        (Answer("x" * 500), {}, None),
        (Answer("refund"), {"max_tokens": 6}, None),
        (Answer("refund"), {"max_tokens": 5}, Reason.MAX_TOKENS),
        (Answer("refund"), {"max_completion_tokens": 5, "max_tokens": 500}, Reason.MAX_TOKENS),
        (Answer("é"), {"max_tokens": 1}, Reason.MAX_TOKENS),
        (BOOK, {"tools": TOOLS, "max_tokens": 10}, Reason.MAX_TOKENS),
    ],
)
def test_an_answer_is_given_only_where_it_is_what_was_asked_for(
    answer: Answer, fields: dict[str, Any], reason: Reason | None
) -> None:
    """Its format, the tools there are, the choice among them, and the room there is: a token is at least a byte."""
    assert _misfit(answer, **fields) == reason


def test_responses_ask_in_their_own_words() -> None:
    """Flat tools, `text.format`, `max_output_tokens`."""
    body = {
        "model": "m",
        "input": "a",
        "max_output_tokens": 40,
        "tools": [{"type": "function", "name": "book", "parameters": PARAMETERS}],
        "tool_choice": {"type": "function", "name": "book"},
        "text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}},
    }
    found = wanted(parse_responses(json.dumps(body).encode()))
    assert (found.limit, found.named, found.schema, found.parameters("book")) == (40, "book", SCHEMA, PARAMETERS)
    assert misfit(BOOK, found) is None


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://127.0.0.1:9/x.json"},
        {"$ref": "#/nowhere"},
        {"type": "strin"},
        {"pattern": "("},
        {"$schema": "http://example.com/unknown"},
    ],
)
def test_a_schema_that_cannot_be_read_lets_nothing_pass(schema: dict[str, Any]) -> None:
    """The teacher knows what to make of it. Nothing is fetched."""
    assert _misfit(Answer('{"a":1}'), **_json_schema(schema)) is Reason.RESPONSE_FORMAT


def test_reference_cycles_and_hard_patterns_end() -> None:
    """A schema is the client's: it must not hold up the others."""
    started = time.perf_counter()
    cycle = {"$defs": {"a": {"properties": {"a": {"$ref": "#/$defs/a"}}}}, "$ref": "#/$defs/a"}
    assert _misfit(Answer('{"a":{"a":{}}}'), **_json_schema(cycle)) is None
    hard = {"properties": {"a": {"pattern": "^(a+)+$"}}}
    assert not arguments_fit(json.dumps({"a": "a" * 5_000 + "!"}), hard)
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"properties": {"a": deep}}
    assert arguments_fit("{}", deep)
    assert time.perf_counter() - started < 1
