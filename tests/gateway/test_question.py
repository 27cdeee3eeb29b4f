"""A handled call as a question to the teacher."""

import json
from typing import Any

import pytest

from gateway.question import question
from gateway.wire import Surface

MESSAGES = [{"role": "system", "content": "Sort."}, {"role": "user", "content": "wo ist meine Karte, né"}]
FUNCTION = {"type": "function", "function": {"name": "route", "parameters": {"type": "object"}}}


def _asked(surface: Surface, **body: Any) -> Any:
    raw = question(surface, json.dumps(body).encode(), "teacher-1")
    return None if raw is None else json.loads(raw)


def test_it_asks_the_teacher_for_the_same_decision() -> None:
    """Every parameter of the answer stays, function tools among them; the model is the teacher's."""
    same = {"messages": MESSAGES, "temperature": 0, "max_tokens": 8, "seed": 7, "user": "u1", "x_unknown": [1]}
    same |= {"tools": [FUNCTION], "tool_choice": "required"}
    assert _asked(Surface.CHAT, model="tracer/bank", **same) == {"model": "teacher-1", **same}


def test_it_asks_for_a_whole_answer_that_is_kept_nowhere() -> None:
    """Neither streamed, nor stored, nor labelled for a store."""
    extra = {"stream": True, "stream_options": {"include_usage": True}, "metadata": {"a": "b"}, "background": False}
    assert _asked(Surface.CHAT, model="m", messages=MESSAGES, **extra).keys() == {"model", "messages"}
    assert _asked(Surface.CHAT, model="m", messages=MESSAGES, store=None)["store"] is False
    assert _asked(Surface.RESPONSES, model="m", input="hi", **extra) == {
        "model": "teacher-1",
        "input": "hi",
        "store": False,
    }
    decision = {"input": "hi", "questions": [{"type": "predicate", "instructions": "Spam?"}]}
    assert _asked(Surface.DECISIONS, model="m", **decision) == {"model": "teacher-1", **decision}


@pytest.mark.parametrize("surface", [Surface.CHAT, Surface.RESPONSES])
@pytest.mark.parametrize(
    "extra",
    [
        {"tools": [{"type": "web_search"}]},
        {"tools": [FUNCTION, {"type": "code_interpreter", "container": {"type": "auto"}}]},
        {"tools": [{"type": "mcp", "server_url": "https://elsewhere.example"}]},
        {"tools": [{"name": "route"}]},
        {"tools": {"type": "function"}},
        {"tools": ["function"]},
        {"web_search_options": {"search_context_size": "low"}},
        {"web_search_options": {}},
        {"background": True},
        {"conversation": "conv_1"},
        {"previous_response_id": "resp_1"},
    ],
)
def test_what_would_do_more_than_answer_is_not_asked(surface: Surface, extra: dict[str, Any]) -> None:
    """Tools that the provider runs, turns that it keeps, work that goes on without us."""
    assert _asked(surface, model="m", messages=MESSAGES, input="hi", **extra) is None


def test_web_search_options_of_none_are_none() -> None:
    """A client may spell out that it wants nothing."""
    nothing = {"web_search_options": None, "tools": None, "conversation": None}
    assert _asked(Surface.CHAT, model="m", messages=MESSAGES, **nothing) is not None


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}'])
def test_a_body_that_cannot_be_written_again_is_not_asked(raw: bytes) -> None:
    """Nothing is made up in its place."""
    assert question(Surface.CHAT, raw, "teacher-1") is None
