"""Which request parameters a local answer honours, and the named reason for each that it does not."""

import json
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming

from gateway.parameters import flaw
from gateway.wire import parse_chat, parse_decisions, parse_responses
from policies.types import Reason

FUNCTION = {"name": "book", "parameters": {"type": "object"}, "strict": True}
TOOL = {"type": "function", "function": FUNCTION}
SCHEMA = {"name": "s", "schema": {"type": "object"}, "strict": True}
HONOURED: dict[str, Any] = {
    "temperature": 0,
    "top_p": 0.5,
    "seed": 7,
    "user": "u1",
    "metadata": {"a": "b"},
    "stream": True,
    "n": 1,
    "max_tokens": 5,
    "max_completion_tokens": 32,
    "logprobs": False,
    "store": False,
    "modalities": ["text"],
    "frequency_penalty": 0.1,
    "presence_penalty": -0.1,
    "service_tier": "auto",
    "reasoning_effort": "low",
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "stop": None,
    "top_logprobs": None,
    "tools": [TOOL],
}


def _chat(**fields: Any) -> Reason | None:
    messages = [{"role": "user", "content": "a"}]
    return flaw(parse_chat(json.dumps({"model": "m", "messages": messages} | fields).encode()))


def _responses(**fields: Any) -> Reason | None:
    return flaw(parse_responses(json.dumps({"model": "m", "input": "a"} | fields).encode()))


@pytest.mark.parametrize("key", HONOURED)
def test_parameters_that_a_local_answer_honours_pass(key: str) -> None:
    """They cannot change which answer is right, or the answer is checked against them."""
    assert _chat(**{key: HONOURED[key]}) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": SCHEMA}},
        {"tool_choice": "auto", "tools": [TOOL]},
        {"tool_choice": "required", "tools": [TOOL]},
        {"tool_choice": {"type": "function", "function": {"name": "book"}}, "tools": [TOOL]},
        {"tools": [TOOL], "parallel_tool_calls": True},
        {"stream": True, "stream_options": {"include_usage": True}},
    ],
)
def test_formats_and_tools_pass(fields: dict[str, Any]) -> None:
    """Whether the answer fits them shows when there is one."""
    assert _chat(**fields) is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "logprobs"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f", "unheard_of": 1}}]}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": "all"}, "tools"),
        ({"functions": [{"name": "f"}]}, "tools"),
        ({"function_call": "auto"}, "tools"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"response_format": "json"}, "response_format"),
        ({"modalities": ["text", "audio"]}, "audio"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_tokens"),
        ({"max_tokens": "64"}, "max_tokens"),
        ({"store": True}, "store"),
        ({"stop": ["\n"]}, "unsupported"),
        ({"logit_bias": {"1": 2}}, "unsupported"),
        ({"prediction": {"type": "content", "content": "a"}}, "unsupported"),
        ({"web_search_options": {}}, "unsupported"),
        ({"temperature": "hot"}, "unsupported"),
        ({"temperature": 50}, "unsupported"),
        ({"temperature": float("nan")}, "unsupported"),
        ({"top_p": 9}, "unsupported"),
        ({"reasoning_effort": "banana"}, "unsupported"),
        ({"service_tier": "zzz"}, "unsupported"),
        ({"metadata": {"a": 1}}, "unsupported"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ({"tools": []}, "tools"),
        ({"parallel_tool_calls": True}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"stream": "yes"}, "unsupported"),
        ({"stream_options": {"include_usage": True}}, "unsupported"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "unsupported"),
        ({"user": 3}, "unsupported"),
        ({"a_parameter_of_2031": 1}, "unknown_parameter"),
        ({"a_parameter_of_2031": None}, "unknown_parameter"),
    ],
)
def test_what_a_chat_answer_cannot_honour_has_a_name(fields: dict[str, Any], reason: str) -> None:
    """So has a parameter that does not exist yet, and one of a wrong type: the teacher knows what to say."""
    assert _chat(**fields) == reason


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, None),
        ({"instructions": "Sort it.", "text": {"format": {"type": "text"}, "verbosity": "low"}}, None),
        ({"text": {"format": {"type": "json_schema", **SCHEMA}}}, None),
        ({"tools": [{"type": "function", **FUNCTION}], "tool_choice": {"type": "function", "name": "book"}}, None),
        ({"include": [], "background": False, "store": False, "reasoning": {"effort": "low"}}, None),
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "conversation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": {"type": "mcp", "server_label": "x"}}, "tool_choice"),
        ({"text": {"format": {"type": "grammar"}}}, "response_format"),
        ({"top_logprobs": 2}, "logprobs"),
        ({"reasoning": {"summary": "auto"}}, "unsupported"),
        ({"include": ["reasoning.encrypted_content"]}, "unsupported"),
        ({"background": True}, "unsupported"),
        ({"prompt": {"id": "p"}}, "unsupported"),
        ({"messages": []}, "unknown_parameter"),
    ],
)
def test_what_a_response_cannot_honour_has_a_name(fields: dict[str, Any], reason: str | None) -> None:
    """The same of /v1/responses, whose parameters are others."""
    assert _responses(**fields) == reason


CHOICE = {"type": "choice", "instructions": "Which?", "choices": [{"value": "a"}, {"value": True}]}


@pytest.mark.parametrize(
    ("questions", "reason"),
    [
        ([CHOICE], None),
        ([{"type": "predicate", "instructions": "Is it spam?", "name": "spam"}], None),
        ([CHOICE, CHOICE], "question"),
        ([], "question"),
        ([{"type": "score", "instructions": "How much?", "levels": []}], "question"),
        ([{**CHOICE, "choices": [{"value": 3}]}], "question"),
        ([{**CHOICE, "unheard_of": 1}], "question"),
        ([{**CHOICE, "choices": [{"value": "a", "unheard_of": 1}]}], "question"),
        ([{**CHOICE, "name": 5}], "question"),
        ("all", "question"),
    ],
)
def test_one_choice_or_predicate_is_a_question_for_a_policy(questions: Any, reason: str | None) -> None:
    """Anything else of /v1/decisions is forwarded."""
    body = json.dumps({"model": "m", "input": "a", "questions": questions}).encode()
    assert flaw(parse_decisions(body)) == reason


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (b'"n":2,"n":1', "unsupported"),
        (b'"n":2,"\\u006e":1', "unsupported"),
        (b'"user":"a","metadata":{"user":"b"}', None),
        (b'"metadata":{"a":"1","a":"2"}', "unsupported"),
        (b'"metadata":{"a":"\\u0022","a":"2"}', "unsupported"),
        (b'"user":"\\u0041"', None),
    ],
)
def test_a_parameter_given_twice_is_the_teachers_to_read(fields: bytes, reason: str | None) -> None:
    """Which of the two counts is the server's choice; the same name further in is another."""
    assert flaw(parse_chat(b'{"model":"m","messages":[{"role":"user","content":"a"}],%b}' % fields)) == reason


def test_the_words_of_parameters_are_those_of_the_official_client() -> None:
    """A word that it knows and the gateway does not would defer every call that says it."""
    params = get_type_hints(CompletionCreateParamsNonStreaming)
    for key in ("reasoning_effort", "verbosity", "service_tier", "prompt_cache_retention"):
        words = {word for word in _literals(params[key]) if isinstance(word, str)}
        assert words
        for word in words:
            assert _chat(**{key: word}) is None, (key, word)


def _literals(annotation: Any) -> set[Any]:
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    return set().union(*(_literals(inner) for inner in get_args(annotation)))
