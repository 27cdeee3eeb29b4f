"""What OpenAI sends for an answer, key by key: chat completions, responses and decisions, whole and streamed.

The reference is the types of the `openai` package and OpenAI's streaming guide. A label says the answer:

    "refund"                      a text; in a JSON format the value of the property that takes it
    '{"intent":"refund"}'         the JSON itself
    'lookup {"id":"7"}'           a tool call where the request has a tool `lookup`; one a line for several

The same request gets the same answer to the byte, ids and times included: what differs between two ways to ask is the
ways' own doing.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

DONE = b"data: [DONE]\n\n"
CREATED = 1_790_000_000
_DEEPEST = 6  # schemas may refer to themselves


@dataclass(frozen=True, slots=True)
class Said:
    """What the teacher says: a text, or tool calls as (name, arguments). `seed` makes the answer's ids."""

    text: str | None
    calls: tuple[tuple[str, str], ...] = ()
    seed: bytes = b""

    def id(self, prefix: str, index: int = 0) -> str:
        """An id that no other answer has."""
        return prefix + hashlib.sha256(b"%d %b %b" % (index, prefix.encode(), self.seed)).hexdigest()[:24]


def said(label: str, body: dict[str, Any]) -> Said:
    """The answer of this label to a chat or responses request: a tool call, JSON or text, as the request asks for."""
    seed = orjson.dumps([label, body])
    tools = {tool["name"]: tool for tool in _functions(body)}
    calls = _calls(label, tools, body.get("tool_choice"))
    if calls:
        return Said(None, calls if body.get("parallel_tool_calls") is not False else calls[:1], seed)
    wanted = _format(body)
    if wanted.get("type") not in ("json_object", "json_schema") or _is_object(label):
        return Said(label, (), seed)
    value = {"label": label} if wanted["type"] == "json_object" else filled(wanted.get("schema") or {}, label)
    return Said(_json(value), (), seed)


def filled(schema: dict[str, Any], label: str) -> dict[str, Any]:
    """An object of this schema that says `label` in the first property that takes it."""
    properties = {key: _resolved(value, schema) for key, value in (schema.get("properties") or {}).items()}
    takers = [key for key, value in properties.items() if label in (value.get("enum") or ())]
    takers += [key for key, value in properties.items() if value.get("type") == "string" and "enum" not in value]
    return {key: label if key in takers[:1] else _value(value, schema, 0) for key, value in properties.items()}


def chat_completion(answer: Said, body: dict[str, Any]) -> dict[str, Any]:
    """A chat completion as OpenAI writes it."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.calls:
        message["tool_calls"] = [
            {
                "id": answer.id("call_", index),
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
            for index, (name, arguments) in enumerate(answer.calls)
        ]
    message |= {"refusal": None, "annotations": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(answer, body)}
    return {
        "id": answer.id("chatcmpl-"),
        "object": "chat.completion",
        "created": CREATED,
        "model": body["model"],
        "choices": [choice],
        "usage": _chat_usage(answer, body),
        "service_tier": "default",
        "system_fingerprint": "fp_50cad350e4",
    }


def chat_chunks(answer: Said, body: dict[str, Any]) -> Iterator[bytes]:
    """The same as server-sent events, without the closing [DONE]."""
    head = {
        "id": answer.id("chatcmpl-"),
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": body["model"],
        "service_tier": "default",
        "system_fingerprint": "fp_50cad350e4",
    }
    options = body.get("stream_options") or {}
    tail: dict[str, Any] = {"usage": None} if options.get("include_usage") else {}
    noise = {} if options.get("include_obfuscation") is False else {"obfuscation": "q1Zr"}
    for delta in _deltas(answer):
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        yield _event(head | {"choices": [choice]} | tail | noise)
    last = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": _finish(answer, body)}
    yield _event(head | {"choices": [last]} | tail | noise)
    if tail:
        yield _event(head | {"choices": [], "usage": _chat_usage(answer, body)} | noise)


def response(answer: Said, body: dict[str, Any]) -> dict[str, Any]:
    """A response of `/v1/responses` as OpenAI writes it, with the request's own settings in it."""
    wanted = body.get("text") or {}
    reasoning = body.get("reasoning") or {}
    size = len(answer.text or "".join(arguments for _, arguments in answer.calls)) // 4 + 1
    asked = len(orjson.dumps(body)) // 4
    return {
        "id": answer.id("resp_"),
        "object": "response",
        "created_at": CREATED,
        "status": "completed",
        "background": False,
        "completed_at": CREATED,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "max_tool_calls": body.get("max_tool_calls"),
        "model": body["model"],
        "output": list(_items(answer)),
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "previous_response_id": body.get("previous_response_id"),
        "prompt_cache_key": body.get("prompt_cache_key"),
        "prompt_cache_retention": body.get("prompt_cache_retention"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "safety_identifier": body.get("safety_identifier"),
        "service_tier": "default",
        "store": body.get("store", True),
        "temperature": body.get("temperature", 1.0),
        "text": {"format": _echoed_format(wanted.get("format")), "verbosity": wanted.get("verbosity") or "medium"},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": [_echoed_tool(tool) for tool in body.get("tools") or ()],
        "top_logprobs": body.get("top_logprobs") or 0,
        "top_p": body.get("top_p", 1.0),
        "truncation": body.get("truncation") or "disabled",
        "usage": {
            "input_tokens": asked,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": size,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": asked + size,
        },
        "user": body.get("user"),
        "metadata": body.get("metadata") or {},
    }


def response_events(answer: Said, body: dict[str, Any]) -> Iterator[bytes]:
    """The same as server-sent events. There is no [DONE]: the stream ends with response.completed."""
    whole = response(answer, body)
    begun = whole | {"status": "in_progress", "completed_at": None, "output": [], "usage": None, "service_tier": "auto"}
    for number, (kind, fields) in enumerate(_steps(whole, begun)):
        event = {"type": kind, "sequence_number": number, **fields}
        yield f"event: {kind}\n".encode() + _event(event)


def decision(label: str, body: dict[str, Any]) -> dict[str, Any]:
    """An answer of `/v1/decisions`. A label that is a JSON object has one value a question name."""
    values = json.loads(label) if _is_object(label) else {}
    answers = [
        _typed_answer(question, values.get(question.get("name"), label), question.get("name"))
        for question in body["questions"]
    ]
    asked = len(orjson.dumps(body)) // 4
    usage = {
        "input_tokens": asked,
        "input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": 0},
        "output_tokens": len(answers),
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": asked + len(answers),
    }
    return {"model": body["model"], "answers": answers, "usage": usage}


def input_text(body: dict[str, Any]) -> str:
    """The text a request asks about: of its last message, or its `input`."""
    last = body["messages"] if "messages" in body else body["input"]
    if isinstance(last, list):
        content = last[-1]["content"]
        return content if isinstance(content, str) else "\n".join(part["text"] for part in content)
    return str(last)


def _functions(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Function tools with their name at the top, from chat's nested form or the flat one of responses."""
    tools = [tool.get("function", tool) for tool in body.get("tools") or () if tool.get("type") == "function"]
    return [tool for tool in tools if "name" in tool]


def _format(body: dict[str, Any]) -> dict[str, Any]:
    """The JSON format asked for, its schema at the top as in responses."""
    wanted: dict[str, Any] = body.get("response_format") or (body.get("text") or {}).get("format") or {}
    return {"type": wanted.get("type"), **wanted.get("json_schema", wanted)}


def _calls(label: str, tools: dict[str, Any], choice: Any) -> tuple[tuple[str, str], ...]:
    if not tools or choice == "none":
        return ()
    named = _named(choice)
    if named is not None:
        tools = {named: tools[named]}
    found = [line.partition(" ") for line in label.splitlines()]
    if found and all(name in tools for name, _, _ in found):
        return tuple((name, arguments or "{}") for name, _, arguments in found)
    takers = [name for name, tool in tools.items() if label in filled(tool.get("parameters") or {}, label).values()]
    takers = [name for name in takers if _has_enum(tools[name].get("parameters") or {}, label)]
    if not takers and (named is not None or choice == "required"):
        takers = list(tools)
    return tuple((name, _json(filled(tools[name].get("parameters") or {}, label))) for name in takers[:1])


def _has_enum(schema: dict[str, Any], label: str) -> bool:
    return any(label in (_resolved(p, schema).get("enum") or ()) for p in schema.get("properties", {}).values())


def _named(choice: Any) -> str | None:
    if not isinstance(choice, dict):
        return None
    name = choice.get("function", choice).get("name")
    return name if isinstance(name, str) else None


def _finish(answer: Said, body: dict[str, Any]) -> str:
    # A named tool was no decision of the model's: OpenAI ends such a call with "stop".
    return "tool_calls" if answer.calls and _named(body.get("tool_choice")) is None else "stop"


def _deltas(answer: Said) -> Iterator[dict[str, Any]]:
    if answer.text is not None:
        yield {"role": "assistant", "content": "", "refusal": None}
        for piece in _pieces(answer.text):
            yield {"content": piece}
    for index, (name, arguments) in enumerate(answer.calls):
        function = {"name": name, "arguments": ""}
        call = {"index": index, "id": answer.id("call_", index), "type": "function", "function": function}
        first = {"role": "assistant", "content": None} if index == 0 else {}
        yield first | {"tool_calls": [call]} | ({"refusal": None} if index == 0 else {})
        for piece in _pieces(arguments):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def _steps(whole: dict[str, Any], begun: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "response.created", {"response": begun}
    yield "response.in_progress", {"response": begun}
    for index, item in enumerate(whole["output"]):
        place = {"item_id": item["id"], "output_index": index}
        if item["type"] == "message":
            started = item | {"status": "in_progress", "content": []}
            inside = _text_steps(item["content"][0], place | {"content_index": 0})
        else:
            started = item | {"status": "in_progress", "arguments": ""}
            inside = _argument_steps(item, place)
        yield "response.output_item.added", {"output_index": index, "item": started}
        yield from inside
        yield "response.output_item.done", {"output_index": index, "item": item}
    yield "response.completed", {"response": whole}


def _text_steps(part: dict[str, Any], place: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "response.content_part.added", place | {"part": part | {"text": ""}}
    for piece in _pieces(part["text"]):
        yield "response.output_text.delta", place | {"delta": piece, "logprobs": [], "obfuscation": "q1Zr"}
    yield "response.output_text.done", place | {"text": part["text"], "logprobs": []}
    yield "response.content_part.done", place | {"part": part}


def _argument_steps(item: dict[str, Any], place: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for piece in _pieces(item["arguments"]):
        yield "response.function_call_arguments.delta", place | {"delta": piece, "obfuscation": "q1Zr"}
    yield "response.function_call_arguments.done", place | {"name": item["name"], "arguments": item["arguments"]}


def _items(answer: Said) -> Iterator[dict[str, Any]]:
    if answer.text is not None:
        part = {"type": "output_text", "annotations": [], "logprobs": [], "text": answer.text}
        yield {
            "id": answer.id("msg_"),
            "type": "message",
            "status": "completed",
            "content": [part],
            "role": "assistant",
        }
    for index, (name, arguments) in enumerate(answer.calls):
        yield {
            "id": answer.id("fc_", index),
            "type": "function_call",
            "status": "completed",
            "arguments": arguments,
            "call_id": answer.id("call_", index),
            "name": name,
        }


def _echoed_format(wanted: dict[str, Any] | None) -> dict[str, Any]:
    if wanted is None or wanted.get("type") != "json_schema":
        return wanted or {"type": "text"}
    keys = ("type", "description", "name", "schema", "strict")
    return {key: wanted.get(key, False if key == "strict" else None) for key in keys}


def _echoed_tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        return tool
    defaults = {"type": "function", "description": None, "name": None, "parameters": None, "strict": True}
    return defaults | tool


def _typed_answer(question: dict[str, Any], value: Any, name: str | None) -> dict[str, Any]:
    kind = question["type"]
    named = {} if name is None else {"name": name}
    if kind == "predicate":
        yes = value is True or value in ("true", "yes", name)
        return {"type": kind, **named, "probability": 0.97 if yes else 0.03}
    key, listed = ("value", question["choices"]) if kind == "choice" else ("label", question["levels"])
    options = [option[key] for option in listed]
    chosen = next((option for option in options if type(option) is type(value) and option == value), options[0])
    rest = 0.1 / (len(options) - 1) if len(options) > 1 else 0.0
    shares = [(option, 0.9 if option is chosen and rest else rest or 1.0) for option in options]
    if kind == "choice":
        spread = [{"value": option, "probability": share} for option, share in shares]
        return {"type": kind, **named, "choice": chosen, "confidence": 0.9, "probabilities": spread}
    graded = [{"label": o, "value": i, "probability": share} for i, (o, share) in enumerate(shares)]
    score = sum(i * share for i, (_, share) in enumerate(shares))
    return {"type": kind, **named, "score": score, "confidence": 0.9, "probabilities": graded}


def _chat_usage(answer: Said, body: dict[str, Any]) -> dict[str, Any]:
    asked = len(orjson.dumps(body["messages"])) // 4
    size = len(answer.text or "".join(arguments for _, arguments in answer.calls)) // 4 + 1
    details = ("reasoning_tokens", "audio_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens")
    return {
        "prompt_tokens": asked,
        "completion_tokens": size,
        "total_tokens": asked + size,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": dict.fromkeys(details, 0),
    }


def _resolved(schema: Any, root: dict[str, Any]) -> dict[str, Any]:
    """A property's own schema behind a local reference."""
    for _ in range(_DEEPEST):
        if not isinstance(schema, dict):
            return {}
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/$defs/"):
            return schema
        schema = root.get("$defs", {}).get(reference.removeprefix("#/$defs/"))
    return {}


def _value(schema: dict[str, Any], root: dict[str, Any], depth: int) -> Any:
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    if schema.get("type") == "object" and depth < _DEEPEST:
        inner = {key: _resolved(value, root) for key, value in schema.get("properties", {}).items()}
        return {key: _value(value, root, depth + 1) for key, value in inner.items()}
    empty = {"string": "", "number": 0, "integer": 0, "boolean": False, "array": [], "object": {}}
    kind = schema.get("type")
    return empty.get(kind) if isinstance(kind, str) else None


def _is_object(text: str) -> bool:
    if not text.startswith("{"):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _pieces(text: str) -> list[str]:
    half = max(1, len(text) // 2)
    return [piece for piece in (text[:half], text[half:]) if piece]


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"
