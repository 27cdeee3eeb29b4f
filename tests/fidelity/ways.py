"""Ways in which an application asks, with the official Python client, and what it observes: plain values to compare.

Every way is a function of a client (sync or async, for `Way.ask` and `Way.ask_async`), a form and a text.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import openai
from openai._legacy_response import LegacyAPIResponse
from pydantic import BaseModel

from tests.fidelity.differences import check_sequence, order
from tests.fidelity.world import Form

Observed = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """One way to ask, and the forms for which it makes sense."""

    name: str
    ask: Callable[[openai.OpenAI, Form, str], Observed]
    ask_async: Callable[[openai.AsyncOpenAI, Form, str], Awaitable[Observed]]
    fits: Callable[[Form], bool] = lambda _: True


def plain(value: Any) -> Any:
    """A result as plain values: what was sent and nothing else, with the class that the client made of it."""
    if isinstance(value, BaseModel):
        sent = value.model_dump(exclude_unset=True, by_alias=True, warnings=False)
        parsed = {key: plain(getattr(value, key)) for key in ("parsed", "output_parsed") if hasattr(value, key)}
        return {"class": type(value).__name__.split("[")[0], **_deep(sent), **parsed}
    return _deep(value)


def _deep(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return plain(value)
    if isinstance(value, dict):
        return {key: _deep(item) for key, item in value.items()}
    return [_deep(item) for item in value] if isinstance(value, list | tuple) else value


def failure(error: openai.APIError) -> Observed:
    """What an application can read of an exception."""
    seen: Observed = {"class": type(error).__name__, "message": error.message, "body": error.body}
    seen |= {"code": error.code, "param": error.param, "type": error.type}
    if isinstance(error, openai.APIStatusError):
        kept = ("retry-after", "retry-after-ms", "x-should-retry", "content-type")
        seen |= {"status": error.status_code, "request_id": error.request_id}
        seen |= {name: error.response.headers.get(name) for name in kept}
    return seen


def _create(client: openai.OpenAI, form: Form, text: str) -> Observed:
    return {"result": plain(client.chat.completions.create(**form.chat(text)))}


async def _create_async(client: openai.AsyncOpenAI, form: Form, text: str) -> Observed:
    return {"result": plain(await client.chat.completions.create(**form.chat(text)))}


def _raw(client: openai.OpenAI, form: Form, text: str) -> Observed:
    return _raw_seen(client.chat.completions.with_raw_response.create(**form.chat(text)))


async def _raw_async(client: openai.AsyncOpenAI, form: Form, text: str) -> Observed:
    return _raw_seen(await client.chat.completions.with_raw_response.create(**form.chat(text)))


def _raw_seen(raw: LegacyAPIResponse[Any]) -> Observed:
    seen = {"status": raw.status_code, "type": raw.headers["content-type"], "request_id": raw.request_id}
    return {**seen, "result": plain(raw.parse())}


def _streaming(client: openai.OpenAI, form: Form, text: str) -> Observed:
    with client.chat.completions.with_streaming_response.create(**form.chat(text)) as answer:
        return {"status": answer.status_code, "result": plain(answer.parse())}


async def _streaming_async(client: openai.AsyncOpenAI, form: Form, text: str) -> Observed:
    async with client.chat.completions.with_streaming_response.create(**form.chat(text)) as answer:
        return {"status": answer.status_code, "result": plain(await answer.parse())}


def _stream(client: openai.OpenAI, form: Form, text: str) -> Observed:
    return {"events": [plain(chunk) for chunk in client.chat.completions.create(**form.chat(text), stream=True)]}


async def _stream_async(client: openai.AsyncOpenAI, form: Form, text: str) -> Observed:
    stream = await client.chat.completions.create(**form.chat(text), stream=True)
    return {"events": [plain(chunk) async for chunk in stream]}


_USAGE: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def _usage(client: openai.OpenAI, form: Form, text: str) -> Observed:
    return {"events": [plain(chunk) for chunk in client.chat.completions.create(**form.chat(text), **_USAGE)]}


async def _usage_async(client: openai.AsyncOpenAI, form: Form, text: str) -> Observed:
    stream = await client.chat.completions.create(**form.chat(text), **_USAGE)
    return {"events": [plain(chunk) async for chunk in stream]}


def _helped(form: Form, text: str) -> dict[str, Any]:
    """What the helpers are given: a pydantic model in place of its schema."""
    asked = form.chat(text)
    if "response_format" in asked and form.parsed is not None:
        asked["response_format"] = form.parsed
    elif "tools" in asked and form.parsed is not None:
        asked["tools"] = [openai.pydantic_function_tool(form.parsed, name="sort")]
    return asked


def _helper_seen(events: list[Any], final: Any) -> Observed:
    chunks = [plain(event.chunk) for event in events if event.type == "chunk"]
    others = [plain(event) for event in events if event.type != "chunk"]
    kinds = order([event.type for event in events])
    return {"kinds": kinds, "chunks": chunks, "events": others, "result": plain(final)}


def _helper(client: openai.OpenAI, form: Form, text: str) -> Observed:
    with client.chat.completions.stream(**_helped(form, text)) as stream:
        return _helper_seen(list(stream), stream.get_final_completion())


async def _helper_async(client: openai.AsyncOpenAI, form: Form, text: str) -> Observed:
    async with client.chat.completions.stream(**_helped(form, text)) as stream:
        return _helper_seen([event async for event in stream], await stream.get_final_completion())


def _parse(client: openai.OpenAI, form: Form, text: str) -> Observed:
    answer = client.chat.completions.parse(**_helped(form, text))
    return {"parsed": plain(answer.choices[0].message.parsed), "result": plain(answer)}


async def _parse_async(client: openai.AsyncOpenAI, form: Form, text: str) -> Observed:
    answer = await client.chat.completions.parse(**_helped(form, text))
    return {"parsed": plain(answer.choices[0].message.parsed), "result": plain(answer)}


def _response(client: openai.OpenAI, form: Form, text: str) -> Observed:
    answer = client.responses.create(**form.responses(text))
    return {"text": answer.output_text, "result": plain(answer)}


async def _response_async(client: openai.AsyncOpenAI, form: Form, text: str) -> Observed:
    answer = await client.responses.create(**form.responses(text))
    return {"text": answer.output_text, "result": plain(answer)}


def _response_stream(client: openai.OpenAI, form: Form, text: str) -> Observed:
    return _events(list(client.responses.create(**form.responses(text), stream=True)))


async def _response_stream_async(client: openai.AsyncOpenAI, form: Form, text: str) -> Observed:
    stream = await client.responses.create(**form.responses(text), stream=True)
    return _events([event async for event in stream])


def _events(events: list[Any]) -> Observed:
    seen = [plain(event) for event in events]
    check_sequence(seen)
    return {"events": seen}


def _responses_helped(form: Form, text: str) -> dict[str, Any]:
    asked = form.responses(text)
    if "text" in asked and form.parsed is not None:
        del asked["text"]
        asked["text_format"] = form.parsed
    return asked


def _response_helper(client: openai.OpenAI, form: Form, text: str) -> Observed:
    with client.responses.stream(**_responses_helped(form, text)) as stream:
        return {**_events(list(stream)), "result": plain(stream.get_final_response())}


async def _response_helper_async(client: openai.AsyncOpenAI, form: Form, text: str) -> Observed:
    async with client.responses.stream(**_responses_helped(form, text)) as stream:
        seen = _events([event async for event in stream])
        return {**seen, "result": plain(await stream.get_final_response())}


def _response_parse(client: openai.OpenAI, form: Form, text: str) -> Observed:
    answer = client.responses.parse(**_responses_helped(form, text))
    return {"parsed": plain(answer.output_parsed), "result": plain(answer)}


async def _response_parse_async(client: openai.AsyncOpenAI, form: Form, text: str) -> Observed:
    answer = await client.responses.parse(**_responses_helped(form, text))
    return {"parsed": plain(answer.output_parsed), "result": plain(answer)}


WAYS = (
    Way("create", _create, _create_async),
    Way("raw response", _raw, _raw_async),
    Way("streaming response", _streaming, _streaming_async),
    Way("stream=True", _stream, _stream_async),
    Way("stream with usage", _usage, _usage_async),
    Way(".stream()", _helper, _helper_async),
    Way(".parse()", _parse, _parse_async, lambda form: form.parsed is not None),
    Way("responses.create", _response, _response_async),
    Way("responses stream=True", _response_stream, _response_stream_async),
    Way("responses.stream()", _response_helper, _response_helper_async),
    Way(
        "responses.parse()",
        _response_parse,
        _response_parse_async,
        lambda form: form.parsed is not None and "response_format" in form.asks,
    ),
)
