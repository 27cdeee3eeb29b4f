"""Request parameters that a local answer honours, and the reason to defer for each that it does not.

A parameter that is not listed did not exist when this was written: it defers, whatever it means.
"""

from collections.abc import Callable, Mapping
from typing import Any

from gateway.wire import ModelRequest, Surface, repeats_a_key
from policies.types import Reason

_Rule = tuple[Callable[[Any], bool], Reason]


def flaw(request: ModelRequest) -> Reason | None:
    """Why no local answer honours this call's parameters, or None."""
    rules = _RULES[request.surface]
    body = request.body
    for key, value in body.items():
        rule = rules.get(key)
        if rule is None:
            return Reason.UNKNOWN_PARAMETER
        if value is not None and not rule[0](value):
            return rule[1]
    return Reason.UNSUPPORTED if repeats_a_key(request) else _together(body, request.surface)


def stored_by_default(request: ModelRequest) -> bool:
    """Whether the provider would keep the answer although the call does not ask for it."""
    return request.surface is Surface.RESPONSES and request.body.get("store") is None


def _together(body: Mapping[str, Any], surface: Surface) -> Reason | None:
    """Why parameters that are each in order make none together, or None: errors, which are the upstream's to tell."""
    if body.get("stream_options") is not None and not body.get("stream"):
        return Reason.UNSUPPORTED
    if body.get("max_tokens") is not None and body.get("max_completion_tokens") is not None:
        return Reason.MAX_TOKENS
    if body.get("tools") is not None or surface is not Surface.CHAT:
        return None
    if body.get("parallel_tool_calls") is not None:
        return Reason.TOOLS
    return None if body.get("tool_choice") in (None, "none") else Reason.TOOL_CHOICE


def _anything(_: Any) -> bool:
    return True


def _nothing(_: Any) -> bool:
    return False


def _within(lowest: float, highest: float) -> Callable[[Any], bool]:
    """A number in the API's range; what is outside it (or is none: NaN) is an error, and the upstream's to tell."""
    return lambda value: type(value) in (int, float) and lowest <= value <= highest


def _one_of(*words: str) -> Callable[[Any], bool]:
    """A word the API has; another one is an error, or a choice that did not exist when this was written."""
    return lambda value: type(value) is str and value in words


def _integer(value: Any) -> bool:
    return type(value) is int


def _text(value: Any) -> bool:
    return type(value) is str


def _flag(value: Any) -> bool:
    return type(value) is bool


def _off(value: Any) -> bool:
    return value is False


def _zero(value: Any) -> bool:
    return type(value) is int and value == 0


def _one(value: Any) -> bool:
    return type(value) is int and value == 1


def _object(value: Any) -> bool:
    return type(value) is dict


def _texts(value: Any) -> bool:
    return type(value) is dict and all(type(given) is str for given in value.values())


def _empty(value: Any) -> bool:
    return bool(value == [])


def _positive(value: Any) -> bool:
    return type(value) is int and value > 0


def _text_only(value: Any) -> bool:
    return bool(value == ["text"])


def _only(*keys: str) -> Callable[[Any], bool]:
    """An object with flags under some of `keys`, and nothing else asked for."""

    def accepts(value: Any) -> bool:
        if type(value) is not dict:
            return False
        return all(given is None or given is False or (key in keys and given is True) for key, given in value.items())

    return accepts


def format_flaw(value: Any) -> bool:
    """Whether a response format is other than text, a JSON object, or a JSON schema that is there."""
    if type(value) is not dict:
        return True
    kind = value.get("type")
    if kind in ("text", "json_object"):
        return len(value) > 1
    schema = value.get("json_schema", value)
    return kind != "json_schema" or type(schema) is not dict or type(schema.get("schema")) is not dict


def _format(value: Any) -> bool:
    return not format_flaw(value)


def _text_settings(value: Any) -> bool:
    """`text` of /v1/responses."""
    if type(value) is not dict or not value.keys() <= {"format", "verbosity"}:
        return False
    if value.get("verbosity") is not None and value["verbosity"] not in _VERBOSITIES:
        return False
    return value.get("format") is None or _format(value["format"])


def _reasoning(value: Any) -> bool:
    # A summary would be an item of its own in the output.
    effort = value.get("effort") if type(value) is dict else ""
    return (effort is None or effort in _EFFORTS) and all(
        given is None or key == "effort" for key, given in value.items()
    )


_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_VERBOSITIES = ("low", "medium", "high")
_FUNCTION_KEYS = frozenset({"name", "description", "parameters", "strict"})


def _chat_tools(value: Any) -> bool:
    return (
        type(value) is list
        and bool(value)
        and all(
            type(tool) is dict
            and tool.keys() == {"type", "function"}
            and tool["type"] == "function"
            and _function(tool["function"])
            for tool in value
        )
    )


def _flat_tools(value: Any) -> bool:
    return (
        type(value) is list
        and bool(value)
        and all(
            type(tool) is dict
            and tool.get("type") == "function"
            and _function({key: given for key, given in tool.items() if key != "type"})
            for tool in value
        )
    )


def _function(value: Any) -> bool:
    return (
        type(value) is dict
        and value.keys() <= _FUNCTION_KEYS
        and type(value.get("name")) is str
        and type(value.get("parameters", {})) in (dict, type(None))
    )


def _tool_choice(value: Any) -> bool:
    if type(value) is str:
        return value in ("none", "auto", "required")
    # {"type": "function", "function": {"name": ...}} in chat, {"type": "function", "name": ...} elsewhere.
    if type(value) is not dict or value.get("type") != "function" or len(value) != 2:
        return False
    named = value.get("function", value)
    return type(named) is dict and type(named.get("name")) is str


def _one_question(value: Any) -> bool:
    """One question of a kind that a label answers."""
    if type(value) is not list or len(value) != 1 or type(value[0]) is not dict:
        return False
    (question,) = value
    if type(question.get("instructions")) is not str or type(question.get("name", "")) is not str:
        return False
    if question.get("type") == "predicate":
        return bool(question.keys() <= {"type", "name", "instructions"})
    choices = question.get("choices")
    return (
        question.get("type") == "choice"
        and question.keys() <= {"type", "name", "instructions", "choices"}
        and type(choices) is list
        and all(
            type(choice) is dict
            and choice.keys() <= {"value", "description"}
            and isinstance(choice.get("value"), str | bool)
            for choice in choices
        )
    )


_SHARED: dict[str, _Rule] = {
    "model": (_anything, Reason.UNSUPPORTED),
    "temperature": (_within(0, 2), Reason.UNSUPPORTED),
    "top_p": (_within(0, 1), Reason.UNSUPPORTED),
    "stream": (_flag, Reason.UNSUPPORTED),
    "store": (_off, Reason.STORE),
    "metadata": (_texts, Reason.UNSUPPORTED),
    "user": (_text, Reason.UNSUPPORTED),
    "safety_identifier": (_text, Reason.UNSUPPORTED),
    "prompt_cache_key": (_text, Reason.UNSUPPORTED),
    "prompt_cache_retention": (_one_of("in_memory", "24h"), Reason.UNSUPPORTED),
    "prompt_cache_options": (_object, Reason.UNSUPPORTED),
    "service_tier": (_one_of("auto", "default", "flex", "scale", "priority", "fast"), Reason.UNSUPPORTED),
    "tool_choice": (_tool_choice, Reason.TOOL_CHOICE),
    "parallel_tool_calls": (_flag, Reason.TOOLS),
    "moderation": (_nothing, Reason.UNSUPPORTED),
}
_CHAT: dict[str, _Rule] = {
    **_SHARED,
    "messages": (_anything, Reason.UNSUPPORTED),
    "frequency_penalty": (_within(-2, 2), Reason.UNSUPPORTED),
    "presence_penalty": (_within(-2, 2), Reason.UNSUPPORTED),
    "seed": (_integer, Reason.UNSUPPORTED),
    "stream_options": (_only("include_usage"), Reason.UNSUPPORTED),
    "n": (_one, Reason.CHOICES),
    "max_tokens": (_positive, Reason.MAX_TOKENS),
    "max_completion_tokens": (_positive, Reason.MAX_TOKENS),
    "logprobs": (_off, Reason.LOGPROBS),
    "top_logprobs": (_nothing, Reason.LOGPROBS),
    "response_format": (_format, Reason.RESPONSE_FORMAT),
    "modalities": (_text_only, Reason.AUDIO),
    "audio": (_nothing, Reason.AUDIO),
    "reasoning_effort": (_one_of(*_EFFORTS), Reason.UNSUPPORTED),
    "verbosity": (_one_of(*_VERBOSITIES), Reason.UNSUPPORTED),
    "tools": (_chat_tools, Reason.TOOLS),
    "functions": (_nothing, Reason.TOOLS),
    "function_call": (_nothing, Reason.TOOLS),
    "stop": (_nothing, Reason.UNSUPPORTED),
    "logit_bias": (_nothing, Reason.UNSUPPORTED),
    "prediction": (_nothing, Reason.UNSUPPORTED),
    "web_search_options": (_nothing, Reason.UNSUPPORTED),
}
_RESPONSES: dict[str, _Rule] = {
    **_SHARED,
    "input": (_anything, Reason.UNSUPPORTED),
    "instructions": (_text, Reason.UNSUPPORTED),
    "stream_options": (_only(), Reason.UNSUPPORTED),
    "max_output_tokens": (_positive, Reason.MAX_TOKENS),
    "max_tool_calls": (_integer, Reason.TOOLS),
    "top_logprobs": (_zero, Reason.LOGPROBS),
    "text": (_text_settings, Reason.RESPONSE_FORMAT),
    "reasoning": (_reasoning, Reason.UNSUPPORTED),
    "tools": (_flat_tools, Reason.TOOLS),
    "truncation": (_one_of("auto", "disabled"), Reason.UNSUPPORTED),
    "include": (_empty, Reason.UNSUPPORTED),
    "background": (_off, Reason.UNSUPPORTED),
    "previous_response_id": (_nothing, Reason.CONVERSATION),
    "conversation": (_nothing, Reason.CONVERSATION),
    "context_management": (_nothing, Reason.UNSUPPORTED),
    "prompt": (_nothing, Reason.UNSUPPORTED),
}
_DECISIONS: dict[str, _Rule] = {
    "model": (_anything, Reason.UNSUPPORTED),
    "input": (_anything, Reason.UNSUPPORTED),
    "questions": (_one_question, Reason.QUESTION),
    "safety_identifier": (_text, Reason.UNSUPPORTED),
}
_RULES: Mapping[Surface, Mapping[str, _Rule]] = {
    Surface.CHAT: _CHAT,
    Surface.RESPONSES: _RESPONSES,
    Surface.DECISIONS: _DECISIONS,
}
