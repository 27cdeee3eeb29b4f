"""Calls that differ in nothing but their text."""

import json
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.recognise import Recognised, Recogniser
from gateway.settings import build_settings
from gateway.shapes import Shape, Shapes
from gateway.wire import ModelRequest, parse_chat, parse_decisions, parse_responses

_SETTINGS = build_settings({"projects": {"bank": {"policy": "none"}, "other": {"policy": "none"}}}, {})
_RECOGNISER = Recogniser(_SETTINGS)
_TEXTS = st.text(max_size=40) | st.sampled_from(
    ['a"b', '","', "\\", '\\"', "é中\u2028", "\x00", '"},{"role":"user"', "x" * 20]
)
_Parse = Callable[[bytes], ModelRequest]


def _shapes(parse: _Parse = parse_chat) -> Shapes:
    return Shapes(lambda raw, named: (request := parse(raw), _RECOGNISER.recognise(request, named)))


def _read(parse: _Parse, raw: bytes) -> Recognised | None:
    return _RECOGNISER.recognise(parse(raw), None)


def _learn(shapes: Shapes, raw: bytes, named: str | None = None, parse: _Parse = parse_chat) -> None:
    request = parse(raw)
    found = _RECOGNISER.recognise(request, named)
    assert found is not None
    assert found.text is not None
    shapes.remember(raw, named, Shape(request, found.project), found.text)


def _chat(text: Any, **fields: Any) -> bytes:
    messages = [{"role": "system", "content": "Sort."}, {"role": "user", "content": text}]
    return json.dumps({"model": "tracer/bank", "messages": messages, "temperature": 0, **fields}).encode()


_SURFACES: dict[str, tuple[_Parse, Callable[[str], Any]]] = {
    "chat": (parse_chat, lambda text: json.loads(_chat(text))),
    "parts": (parse_chat, lambda text: json.loads(_chat([{"type": "text", "text": text}]))),
    "tools": (
        parse_chat,
        lambda text: json.loads(_chat(text, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])),
    ),
    "responses": (parse_responses, lambda text: {"input": text, "model": "tracer/bank", "store": False}),
    "decisions": (
        parse_decisions,
        lambda text: {"model": "tracer/bank", "input": text, "questions": [{"type": "predicate", "instructions": "?"}]},
    ),
}


@pytest.mark.parametrize("surface", _SURFACES)
@pytest.mark.parametrize("ascii_only", [True, False])
@settings(max_examples=60, deadline=None)
@given(first=_TEXTS, second=_TEXTS)
@example(first="hello", second='"')
def test_a_call_is_read_as_if_from_scratch(surface: str, ascii_only: bool, first: str, second: str) -> None:
    """Whatever the two texts are, and however they are written."""
    parse, body = _SURFACES[surface]
    before, after = (
        json.dumps(body(text), ensure_ascii=ascii_only).encode("utf-8", "replace") for text in (first, second)
    )
    shapes = _shapes(parse)
    request = parse(before)
    found = _RECOGNISER.recognise(request, None)
    assert found is not None
    if found.text is None:
        return
    shapes.remember(before, None, Shape(request, found.project), found.text)
    known, scratch = shapes.find(after, None), _read(parse, after)
    assert scratch is not None
    if known is None:
        return
    shape, text = known
    assert (shape.project, _RECOGNISER.flaw(text)) == (scratch.project, scratch.reason)
    assert scratch.text in (text, None)


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=30), st.sampled_from(["hello", "a"]))
def test_bytes_that_are_no_string_are_not_taken_for_a_text(middle: bytes, first: str) -> None:
    """Whatever stands where the text stood, the body says the same when it is parsed."""
    shapes = _shapes()
    body = _chat(first)
    _learn(shapes, body)
    before, _, after = body.partition(orjson.dumps(first))
    raw = before + middle + after
    known = shapes.find(raw, None)
    if known is not None:
        messages = orjson.loads(raw)["messages"]
        assert messages[-1]["content"] == known[1]
        assert len(messages) == 2


def test_the_second_call_is_known() -> None:
    """With other words, of any length, escapes and all."""
    shapes = _shapes()
    _learn(shapes, _chat("hello"))
    for text in ("where is my card?", 'say "no"\n', "ü", ""):
        known = shapes.find(_chat(text), None)
        assert known is not None
        assert known[1] == text


@pytest.mark.parametrize(
    "other",
    [
        _chat("hi", temperature=1),
        _chat("hi", stop="x"),
        _chat("hi", stream=True),
        _chat("hi").replace(b"Sort.", b"Sort!"),
        _chat("hi").replace(b'"role": "user"', b'"role": "user", "name": "x"'),
        _chat(["hi"]),
        _chat(None),
    ],
)
def test_a_call_that_asks_for_something_else_is_not_known(other: bytes) -> None:
    """However little it is."""
    shapes = _shapes()
    _learn(shapes, _chat("hello"))
    assert shapes.find(other, None) is None


def test_the_project_that_a_header_names_is_part_of_it() -> None:
    """The same body may be another project's."""
    shapes = _shapes()
    body = _chat("hello").replace(b"tracer/bank", b"gpt")
    _learn(shapes, body, "bank")
    _learn(shapes, body, "other")
    found = {named: shapes.find(body, named) for named in ("bank", "other", None)}
    assert {named: known and known[0].project for named, known in found.items()} == {
        "bank": "bank",
        "other": "other",
        None: None,
    }


@pytest.mark.parametrize("text", ["Sort.", "tracer/bank", "user", "0"])
def test_a_text_that_stands_there_twice_teaches_nothing_wrong(text: str) -> None:
    """Which of the two is the text would be a guess."""
    shapes = _shapes()
    _learn(shapes, _chat(text))
    known = shapes.find(_chat("something else"), None)
    assert known is None or known[1] == "something else"


def test_no_more_than_a_few_shapes_are_held_and_the_used_ones_stay() -> None:
    """Prompts that change with every call, with a date for one, push out neither the others nor the memory."""
    shapes = _shapes()
    _learn(shapes, _chat("hello"))
    for number in range(200):
        assert shapes.find(_chat("hello there"), None) is not None
        _learn(shapes, _chat(f"text {number}", user=f"user {number}"))
    assert len(shapes._known) <= 8


def test_what_is_never_seen_again_is_remembered_less_and_less() -> None:
    """Remembering costs a call some microseconds, which must not be spent for nothing."""
    shapes = _shapes()
    for number in range(400):
        _learn(shapes, _chat(f"text {number}", user=f"user {number}"))
    assert shapes.find(_chat("x", user="user 399"), None) is None
    for _ in range(1_100):
        _learn(shapes, _chat("hello"))
    assert shapes.find(_chat("x"), None) is not None
