"""What an application may see of the gateway: the one list, and comparing by it.

A forwarded answer differs in nothing but `FORWARDED`, which is about headers; `HANDLED` is all by which a handled one
differs from what the teacher would have said. docs/fidelity.md prints both lists, and a test holds them together.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

FORWARDED = {
    "x-tracer-* headers": "added, so that anybody can see who answered and why",
    "date, connection, keep-alive, transfer-encoding headers": "belong to the connection, of which there are two",
    "no answer at all": "a 502 or 504 in OpenAI's shape, where the client alone would have had a connection error",
}
HANDLED = {
    "id, item_id, call_id, request_id": "our own, with OpenAI's prefixes",
    "created, created_at, completed_at": "when the gateway answered",
    "model": "`tracer_surrogate`",
    "usage": "zero tokens, under the same keys",
    "system_fingerprint": "the policy's",
    "service_tier": "always `default`",
    "obfuscation": "not sent: there is no network between model and answer whose packets could be measured",
    "pieces of a stream": "the text, or a tool's arguments, come in one delta, so `sequence_number` counts fewer",
    "probabilities and confidence of /v1/decisions": "the policy's own, calibrated; the choice is the teacher's",
    "headers": "`content-type`, `cache-control` and `x-request-id` are there as ever, the provider's others are not",
    "x-tracer-* headers": FORWARDED["x-tracer-* headers"],
}

_IDS = frozenset({"id", "item_id", "call_id", "tool_call_id", "request_id", "request"})
_TIMES = frozenset({"created", "created_at", "completed_at"})
_ANY = frozenset({"model", "system_fingerprint", "service_tier"})
_DROPPED = frozenset({"obfuscation", "sequence_number"})
_CONNECTION = frozenset({"date", "connection", "keep-alive", "transfer-encoding"})
_ALWAYS = frozenset({"content-type", "cache-control", "x-request-id"})


def forwarded_headers(headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers of an answer, in order, without those that may differ when it is forwarded."""
    return [(k, v) for k, v in headers if not k.startswith("x-tracer-") and k not in _CONNECTION]


def handled_headers(headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers of an answer that must be there when it is handled; of ids only their beginning."""
    return sorted((k, v[:4] if k == "x-request-id" else v) for k, v in headers if k in _ALWAYS)


def handled(value: Any) -> Any:
    """`value` (an answer as plain values, or a list of the events of a stream) without what may differ when handled."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        value = _merged(value)
    if isinstance(value, list | tuple):
        return [handled(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _masked(key, item) for key, item in value.items() if key not in _DROPPED}


def check_sequence(events: Sequence[dict[str, Any]]) -> None:
    """Assert that a stream of `/v1/responses` counts its events from 0."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def _masked(key: str, value: Any) -> Any:
    if key in _IDS and isinstance(value, str):
        return re.sub(r"^([a-z]+[-_]).+$", r"\1", value)
    if key in _TIMES or key in _ANY:
        return type(value).__name__
    return _types(value) if key == "usage" else handled(value)


def _types(value: Any) -> Any:
    """The shape of a usage: its keys, without its numbers."""
    if isinstance(value, dict):
        return {key: _types(item) for key, item in value.items()}
    return type(value).__name__


def _merged(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events with neighbouring deltas of the same thing joined into one."""
    merged: list[dict[str, Any]] = []
    for event in events:
        joined = next((join(merged[-1], event) for join in _JOINS if merged and join(merged[-1], event)), None)
        if joined is None:
            merged.append(event)
        else:
            merged[-1] = joined
    return merged


def _chunks(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any] | None:
    """Two chunks of a chat completion that go on with the same text, or the same call's arguments, as one."""
    first, second = _only_delta(one), _only_delta(other)
    if first is None or second is None or first.keys() != second.keys():
        return None
    if first.keys() == {"content"}:
        delta: dict[str, Any] = {"content": first["content"] + second["content"]}
    elif first.keys() == {"tool_calls"} and _continues(first, second):
        (begun,), (more,) = first["tool_calls"], second["tool_calls"]
        text = begun["function"]["arguments"] + more["function"]["arguments"]
        delta = {"tool_calls": [{**begun, "function": {"arguments": text}}]}
    else:
        return None
    return {**one, "choices": [{**one["choices"][0], "delta": delta}]}


def _only_delta(event: dict[str, Any]) -> dict[str, Any] | None:
    choices = event.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or choices[0].get("finish_reason") is not None:
        return None
    delta = choices[0].get("delta")
    return delta if isinstance(delta, dict) else None


def _continues(first: dict[str, Any], second: dict[str, Any]) -> bool:
    calls = [*first["tool_calls"], *second["tool_calls"]]
    return (
        len(calls) == 2
        and all(call.keys() == {"index", "function"} and call["function"].keys() == {"arguments"} for call in calls)
        and calls[0]["index"] == calls[1]["index"]
    )


def _typed(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any] | None:
    """Two delta events of `/v1/responses`, or of a client's helper, as one."""
    kind = str(one.get("type", ""))
    if not kind.endswith(".delta") or other.get("type") != kind or one.get("index") != other.get("index"):
        return None
    text = "arguments_delta" if "arguments_delta" in one else "delta"
    return {**other, text: one[text] + other[text]}


_JOINS: tuple[Callable[[dict[str, Any], dict[str, Any]], dict[str, Any] | None], ...] = (_chunks, _typed)


def order(kinds: Sequence[str]) -> list[str]:
    """Kinds of a helper's events in order, with repeated pairs of a chunk and its delta taken for one."""
    return re.sub(r"(chunk (\S+\.delta) )\1+", r"\1", " ".join(kinds) + " ").split()
