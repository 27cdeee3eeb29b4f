"""A label's answer as the object that `/v1/responses` gives: whole, or as its sequence of events."""

import time
from collections.abc import Iterator
from typing import Any

import orjson

from gateway.answer import SURROGATE_MODEL
from gateway.encoding import encoded
from gateway.wire import ModelRequest
from policies.types import Answer, AnswerKind

# What the API repeats of a request, with what it says where the request is silent.
_REPEATED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "prompt_cache_key": None,
    "prompt_cache_retention": None,
    "safety_identifier": None,
    "temperature": 1.0,
    "tool_choice": "auto",
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
NO_TOKENS = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}
_PLAIN = {"type": "text"}


def render_response(
    answer: Answer, request: ModelRequest, call_id: str, model: str = SURROGATE_MODEL, usage: bytes | None = None
) -> bytes:
    """A completed response. `usage` is JSON: what `model` says it spent; None for nothing."""
    return encoded(_completed(answer, _response(request, call_id, model), usage))


def render_response_stream(
    answer: Answer, request: ModelRequest, call_id: str, model: str = SURROGATE_MODEL, usage: bytes | None = None
) -> bytes:
    """The same as server-sent events, in the API's order."""
    pieces = []
    for number, event in enumerate(_events(answer, _response(request, call_id, model), usage)):
        event["sequence_number"] = number
        pieces.append(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), encoded(event)))
    return b"".join(pieces)


def _events(answer: Answer, started: dict[str, Any], usage: bytes | None) -> Iterator[dict[str, Any]]:
    completed = _completed(answer, started, usage)
    yield {"type": "response.created", "response": started}
    yield {"type": "response.in_progress", "response": started}
    yield from _item_events(answer, completed["output"][0])
    yield {"type": "response.completed", "response": completed}


def _item_events(answer: Answer, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    at = {"item_id": item["id"], "output_index": 0}
    begun = {**item, "status": "in_progress"}
    if answer.kind is AnswerKind.TOOL:
        yield {"type": "response.output_item.added", "output_index": 0, "item": {**begun, "arguments": ""}}
        yield {"type": "response.function_call_arguments.delta", **at, "delta": item["arguments"]}
        yield {
            "type": "response.function_call_arguments.done",
            **at,
            "name": item["name"],
            "arguments": item["arguments"],
        }
    else:
        yield {"type": "response.output_item.added", "output_index": 0, "item": {**begun, "content": []}}
        part = {**at, "content_index": 0}
        yield {"type": "response.content_part.added", **part, "part": _text_part("")}
        yield {"type": "response.output_text.delta", **part, "delta": answer.text, "logprobs": []}
        yield {"type": "response.output_text.done", **part, "text": answer.text, "logprobs": []}
        yield {"type": "response.content_part.done", **part, "part": _text_part(answer.text)}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}


def _item(answer: Answer, call_id: str) -> dict[str, Any]:
    if answer.kind is AnswerKind.TOOL:
        return {
            "id": f"fc_{call_id}",
            "type": "function_call",
            "status": "completed",
            "arguments": answer.arguments or "",
            "call_id": f"call_{call_id[:24]}",
            "name": answer.text,
        }
    return {
        "id": f"msg_{call_id}",
        "type": "message",
        "status": "completed",
        "content": [_text_part(answer.text)],
        "role": "assistant",
    }


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _response(request: ModelRequest, call_id: str, model: str) -> dict[str, Any]:
    """A response that has begun."""
    body = request.body
    repeated = {key: default if body.get(key) is None else body[key] for key, default in _REPEATED.items()}
    text = body.get("text") or {}
    return {
        "id": f"resp_{call_id}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "previous_response_id": None,
        "reasoning": {"effort": (body.get("reasoning") or {}).get("effort"), "summary": None},
        "service_tier": "auto",
        "store": False,  # there is nothing that could be retrieved, or continued from
        "text": {"format": _format(text.get("format")), "verbosity": text.get("verbosity") or "medium"},
        "tools": [{"description": None, "strict": True, **tool} for tool in body.get("tools") or ()],
        "usage": None,
        **repeated,
    }


def _format(given: dict[str, Any] | None) -> dict[str, Any]:
    if given is None:
        return _PLAIN
    return {"description": None, "strict": False, **given} if given.get("type") == "json_schema" else given


def _completed(answer: Answer, started: dict[str, Any], usage: bytes | None) -> dict[str, Any]:
    return started | {
        "status": "completed",
        "completed_at": int(time.time()),
        "output": [_item(answer, started["id"].removeprefix("resp_"))],
        "service_tier": "default",
        "usage": NO_TOKENS if usage is None else orjson.loads(usage),
    }
