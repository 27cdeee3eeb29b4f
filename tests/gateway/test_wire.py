"""The fields the gateway reads, and the bytes it leaves alone."""

import json
import sys
from typing import Any

import pytest

from gateway.errors import InvalidRequest
from gateway.wire import parse_chat, parse_object, text_of, with_model

MESSAGES = [{"role": "user", "content": "hi"}]


def _raw(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": MESSAGES} | fields).encode()


def test_a_call_is_read_and_kept_as_it_came() -> None:
    """The raw bytes stay beside what was read."""
    raw = b' {"model":"m",  "messages":[{"role":"user","content":"hi"}], "new_field": 1e2 }'
    request = parse_chat(raw)
    assert (request.raw, request.model, request.messages) == (raw, "m", MESSAGES)


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b'"text"', None),
        (b"\xff", None),
        (b"[" * 100_000, None),
        (b'{"model": "m"', None),
        (_raw(model=None), "model"),
        (_raw(model=3), "model"),
        (_raw(model=""), "model"),
        (_raw(messages=None), "messages"),
        (_raw(messages="hi"), "messages"),
        (_raw(messages={}), "messages"),
        (_raw(messages=[]), "messages"),
        (_raw(messages=["hi"]), "messages[0]"),
        (_raw(messages=[*MESSAGES, {"content": "hi"}]), "messages[1]"),
        (_raw(messages=[{"role": 1, "content": "hi"}]), "messages[0]"),
    ],
)
def test_what_is_no_chat_call_is_refused_with_the_field_at_fault(raw: bytes, param: str | None) -> None:
    """An InvalidRequest, whatever the bytes are."""
    with pytest.raises(InvalidRequest) as caught:
        parse_chat(raw)
    assert caught.value.param == param


@pytest.mark.parametrize("raw", [b'{"a": NaN}', b'{"a": "\\ud83d"}', b'{"a": 1e400}', b'{"a": ' + b"9" * 30 + b"}"])
def test_json_that_other_servers_take_is_taken(raw: bytes) -> None:
    """Strictness is the teacher's business."""
    assert "a" in parse_object(raw)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"model":"tracer/a"}', b'{"model":"gpt"}'),
        (b'{ "model" :\n "tracer/a" , "x": 1.0 }', b'{ "model" :\n "gpt" , "x": 1.0 }'),
        (b'{"metadata":{"model":"tracer/a"},"model":"tracer/a"}', b'{"metadata":{"model":"tracer/a"},"model":"gpt"}'),
        (b'{"x":["model","a"],"model":"a\\"}{"}', b'{"x":["model","a"],"model":"gpt"}'),
        (b'{"x":"model","y":"\\\\","model":"a"}', b'{"x":"model","y":"\\\\","model":"gpt"}'),
        (b'{"mod\\u0065l":"a"}', b'{"mod\\u0065l":"gpt"}'),
        (b'{"x":{"model":"b"},"mod\\u0065l":"a"}', b'{"x":{"model":"b"},"mod\\u0065l":"gpt"}'),
        (b'{"x":"say \\"model\\":\\"b\\"","model":"a"}', b'{"x":"say \\"model\\":\\"b\\"","model":"gpt"}'),
        (b'{"model":"a","model":"b"}', b'{"model":"gpt","model":"gpt"}'),
        ('{"x":"é🙂","model":"ü"}'.encode(), '{"x":"é🙂","model":"gpt"}'.encode()),
    ],
)
def test_the_model_is_replaced_and_nothing_else(raw: bytes, expected: bytes) -> None:
    """Only the value of the top-level key changes; spacing, order and look-alikes stay."""
    assert with_model(raw, "gpt") == expected


def test_a_model_name_is_quoted_as_json() -> None:
    """A name with a quote in it does not break out of its string."""
    assert json.loads(with_model(b'{"model":"a"}', 'x"y')) == {"model": 'x"y'}


def test_replacing_the_model_of_a_large_body_takes_one_pass() -> None:
    """A 5 MB image does not trip the scanner."""
    raw = _raw(image='\\"' * 1_000_000 + "x" * 3_000_000, model="a")
    assert sys.getsizeof(raw) > 5_000_000
    assert json.loads(with_model(raw, "b"))["model"] == "b"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("hi", "hi"),
        ("", ""),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a\nb"),
        ([], None),
        (None, None),
        (3, None),
        (["a"], None),
        ([{"type": "text"}], None),
        ([{"type": "text", "text": 3}], None),
        ([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}], None),
    ],
)
def test_the_text_of_a_message_is_its_text_parts(content: Any, expected: str | None) -> None:
    """Parts are joined by newlines; anything but text makes it no text."""
    assert text_of(content) == expected
