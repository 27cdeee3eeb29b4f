"""Which project a call belongs to, what its input is, and what a label cannot answer."""

import json
from typing import Any

import pytest

from gateway.errors import UnknownProject
from gateway.recognise import Recognised, Recogniser, instructions
from gateway.settings import build_settings
from gateway.wire import ModelRequest, parse_chat, parse_responses
from policies.types import Reason

SYSTEM = {"role": "system", "content": "Sort it."}
USER = {"role": "user", "content": "where is my card?"}


def _request(*messages: Any, model: str = "tracer/bank", **fields: Any) -> ModelRequest:
    return parse_chat(json.dumps({"model": model, "messages": messages or (SYSTEM, USER)} | fields).encode())


def _recogniser(server: dict[str, Any] | None = None, **project: Any) -> Recogniser:
    other = {"policy": "q", "match": {"system_prompt": "Route it", "mode": "contains"}}
    tree = {"server": server or {}, "projects": {"bank": {"policy": "p"} | project, "shop": other}}
    return Recogniser(build_settings(tree, {}))


def _found(request: ModelRequest, header: str | None = None, **project: Any) -> Recognised | None:
    return _recogniser(**project).recognise(request, header)


def test_a_project_is_named_by_the_model() -> None:
    """`tracer/<project>`."""
    assert _found(_request()) == Recognised("bank", "where is my card?")


def test_a_project_is_named_by_the_header() -> None:
    """x-tracer-project leaves the model free."""
    assert _found(_request(model="gpt"), "shop") == Recognised("shop", "where is my card?")


def test_the_model_comes_before_the_header_and_the_header_before_the_prompt() -> None:
    """The most explicit name wins."""
    routed = {"role": "system", "content": "Route it"}
    by_model = _found(_request(routed, USER), "shop")
    by_header = _found(_request(routed, USER, model="gpt"), "bank")
    assert [found and found.project for found in (by_model, by_header)] == ["bank", "bank"]


@pytest.mark.parametrize(
    ("mode", "configured", "prompt", "matches"),
    [
        ("exact", "Sort it.\n", "Sort it.", True),
        ("exact", "Sort it.", "Sort it. Please.", False),
        ("contains", "Sort it.", "Hello. Sort it. Please.", True),
        ("contains", "Sort it.", "sort it.", False),
        ("regex", r"^Sort (it|them)\.", "Sort them. Please.", True),
        ("regex", r"^Sort it$", "Do sort it", False),
    ],
)
def test_a_project_is_known_by_its_system_prompt(mode: str, configured: str, prompt: str, matches: bool) -> None:
    """exact (but for white space around it), contains, or a regular expression."""
    request = _request({"role": "system", "content": prompt}, USER, model="gpt")
    found = _found(request, match={"system_prompt": configured, "mode": mode})
    assert (found is not None) == matches


def test_a_call_of_no_project_is_not_ours() -> None:
    """It is relayed untouched."""
    assert _found(_request(model="gpt-4")) is None


@pytest.mark.parametrize(("model", "header"), [("tracer/nobody", None), ("gpt", "nobody"), ("tracer/", None)])
def test_an_unknown_project_is_an_error_that_lists_the_known_ones(model: str, header: str | None) -> None:
    """A typo is told, not forwarded."""
    with pytest.raises(UnknownProject, match="Configured projects: bank, shop"):
        _found(_request(model=model), header)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([SYSTEM], Reason.NO_INPUT),
        ([USER, SYSTEM], Reason.NO_INPUT),
        ([SYSTEM, {"role": "user"}], Reason.NO_INPUT),
        ([SYSTEM, {"role": "user", "content": None}], Reason.NO_INPUT),
        ([SYSTEM, {"role": "user", "content": []}], Reason.NO_INPUT),
        ([SYSTEM, {"role": "user", "content": ""}], Reason.EMPTY),
        ([SYSTEM, {"role": "user", "content": " \n"}], Reason.EMPTY),
        ([SYSTEM, {"role": "user", "content": 7}], Reason.UNSUPPORTED),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], Reason.IMAGE),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], Reason.AUDIO),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "file", "file": {}}]}], Reason.FILE),
        ([{"role": "user", "content": [{"type": "hologram"}]}], Reason.UNSUPPORTED),
        ([{"role": "user", "content": "x", "audio": {"id": "a"}}], Reason.UNKNOWN_PARAMETER),
        ([{"role": "user", "content": [{"type": "text", "text": "a", "new": 1}]}], Reason.UNKNOWN_PARAMETER),
        ([{**SYSTEM, "new": 1}, USER], Reason.UNKNOWN_PARAMETER),
        ([{"role": "system", "content": [{"type": "image_url", "image_url": {}}]}, USER], Reason.IMAGE),
        ([USER, USER], Reason.CONVERSATION),
        ([SYSTEM, USER, {"role": "assistant", "content": "ok"}, USER], Reason.CONVERSATION),
        ([{"role": "tool", "content": "1", "tool_call_id": "c"}, USER], Reason.CONVERSATION),
        ([{"role": "user", "content": "x" * 16_385}], Reason.TOO_LONG),
    ],
)
def test_messages_a_label_cannot_answer_have_a_reason(messages: list[Any], reason: Reason) -> None:
    """Each shape has its word, and no text to decide on or learn from."""
    assert _found(_request(*messages)) == Recognised("bank", None, reason)


def test_earlier_turns_are_ignored_where_the_project_says_so() -> None:
    """`multi_turn: last_user_message`."""
    request = _request(SYSTEM, USER, {"role": "assistant", "content": "ok"}, {"role": "user", "content": "and now?"})
    assert _found(request, multi_turn="last_user_message") == Recognised("bank", "and now?")


def test_fields_that_say_nothing_are_no_fields() -> None:
    """A dumped message has nulls, an input item of /v1/responses its own id and status."""
    assert _found(_request({**USER, "tool_calls": None, "name": None})) == Recognised("bank", "where is my card?")
    item = {"type": "message", "id": "msg_1", "status": "completed", **USER}
    request = parse_responses(json.dumps({"model": "tracer/bank", "input": [item]}).encode())
    assert _found(request) == Recognised("bank", "where is my card?")


def test_text_parts_are_joined() -> None:
    """Content may be a list of text parts."""
    request = _request({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]})
    assert _found(request) == Recognised("bank", "a\nb")


def test_the_length_limit_is_a_setting() -> None:
    """`server.max_input_chars`."""
    request = _request({"role": "user", "content": "four"})
    assert _recogniser({"max_input_chars": 3}).recognise(request, None) == Recognised("bank", None, Reason.TOO_LONG)
    assert _recogniser({"max_input_chars": 4}).recognise(request, None) == Recognised("bank", "four")


def test_instructions_are_the_leading_system_and_developer_messages() -> None:
    """Joined by newlines, up to the first other role."""
    developer = {"role": "developer", "content": [{"type": "text", "text": "b"}]}
    assert instructions([SYSTEM, developer, USER, SYSTEM]) == "Sort it.\nb"
