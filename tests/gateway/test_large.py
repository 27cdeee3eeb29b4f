"""Large bodies read in steps: what becomes of them, and how long a step is."""

import asyncio
import json
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import orjson
import pytest

from gateway.cursor import Intricate
from gateway.errors import InvalidRequest
from gateway.large import AT_ONCE, LargeBodies, renamed
from gateway.recognise import instructions
from gateway.wire import ModelRequest, parse_chat, parse_decisions, parse_object, parse_responses, with_model

T = TypeVar("T")

SYSTEM = {"role": "system", "content": "Sort the mail."}
LONG = {"role": "user", "content": 'a "word"\n' * 200_000}
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:" + "A" * 2_000_000}}]}
# Milliseconds of work in one step; measured below one. A whole body takes more than all of its steps may.
LONGEST_STEP_MS = 15.0


def _chat(*messages: Any, **more: Any) -> bytes:
    return orjson.dumps({"model": "tracer/p", "messages": messages, **more})


def _read(raw: bytes) -> ModelRequest | None:
    return asyncio.run(LargeBodies().request(raw, parse_chat))


def _steps(reading: Coroutine[Any, Any, T]) -> tuple[T, list[float]]:
    """What is read, and the milliseconds of work between one turn of the event loop and the next."""

    async def run() -> tuple[T, list[float]]:
        steps, ended = [], False

        async def others() -> None:
            last = time.thread_time()
            while not ended:
                await asyncio.sleep(0)
                now = time.thread_time()
                steps.append(1e3 * (now - last))
                last = now

        beside = asyncio.create_task(others())
        await asyncio.sleep(0)
        try:
            return await reading, steps
        finally:
            ended = True
            await beside

    return asyncio.run(run())


@pytest.mark.parametrize(
    "raw",
    [
        _chat(SYSTEM, LONG),
        _chat(SYSTEM, IMAGE, temperature=0),
        _chat(SYSTEM, *[{"role": "user", "content": "b"}] * 15_000, SYSTEM),
        orjson.dumps({"messages": [SYSTEM, LONG], "model": "tracer/p"}),
        orjson.dumps({"messages": [{"content": "Sort the mail.", "role": "system"}, IMAGE], "model": "tracer/p"}),
        json.dumps(
            {"tools": [{"model": 1}] * 30_000, "model": "tracer/p", "messages": [SYSTEM, LONG]}, indent=1
        ).encode(),
        _chat(SYSTEM, LONG).replace(b'"model"', b'"mod\\u0065l"').replace(b'"system"', b'"s\\u0079stem"'),
    ],
    ids=["text", "image", "turns", "model last", "role last", "a model elsewhere", "escapes"],
)
def test_what_says_whose_call_it_is_gets_read(raw: bytes) -> None:
    """The model and the instructions, wherever they stand; the model can be replaced, and nothing else changes."""
    found, whole = _read(raw), parse_chat(raw)
    assert found is not None
    assert found.abridged
    assert (found.model, found.raw) == (whole.model, raw)
    assert instructions(found.messages) == instructions(whole.messages) == "Sort the mail."
    assert with_model(raw, "big", found.model_spans) == with_model(raw, "big") == asyncio.run(renamed(raw, "big"))


def test_a_large_body_of_few_values_is_read_whole() -> None:
    """A long prompt is no reason to call the teacher."""
    raw = _chat({"role": "system", "content": "An example. " * 25_000}, {"role": "user", "content": "hi"})
    found = _read(raw)
    assert len(raw) > AT_ONCE
    assert found == parse_chat(raw)
    assert found is not None
    assert not found.abridged


@pytest.mark.parametrize(("parse", "key"), [(parse_responses, "instructions"), (parse_decisions, "questions")])
def test_other_surfaces_have_instructions_elsewhere(parse: Any, key: str) -> None:
    """A response's stand beside the input, a decision's in its question."""
    given: Any = (
        "Sort the mail." if key == "instructions" else [{"type": "predicate", "instructions": "Sort the mail."}]
    )
    raw = orjson.dumps({"model": "tracer/p", "input": [LONG], key: given, "store": False})
    found = asyncio.run(LargeBodies().request(raw, parse))
    assert found is not None
    assert found.abridged
    assert instructions(found.messages) == "Sort the mail."
    assert (found.model, found.body["store"]) == ("tracer/p", False)


@pytest.mark.parametrize(
    "raw",
    [
        _chat(SYSTEM, LONG)[:-1],
        _chat(SYSTEM, LONG) + b"x",
        _chat(SYSTEM, LONG).replace(b'"messages":', b'"messages"'),
        _chat(SYSTEM, LONG).replace(b'"model":', b'/* " */ "model":'),
        _chat(SYSTEM, LONG).replace(b'"tracer/p",', b'"tracer/p"'),
        b"[" + _chat(SYSTEM, LONG) + b"]",
        b'"' + b"a" * 2_000_000,
        b'"' + b"\\" * 2_000_001,
        b" " * 2_000_000,
        _chat("no message", LONG),
        _chat({"content": "no role"}, LONG),
        orjson.dumps({"messages": [SYSTEM, LONG]}),
    ],
)
def test_what_is_no_request_is_refused(raw: bytes) -> None:
    """As far as it is looked at, as a small one is."""
    with pytest.raises(InvalidRequest):
        _read(raw)


def test_nobodys_call_has_so_many_values() -> None:
    """They are not even counted to their end."""
    assert _read(_chat(SYSTEM, *[{"role": "user", "content": "b"}] * 200_000)) is None
    assert asyncio.run(renamed(_chat(SYSTEM, *[{"role": "user"}] * 200_000), "big")) is None


@pytest.mark.parametrize(
    "value",
    [
        {"inputs": ["a text\n" * 100] * 5_000},
        {"embeddings": [[0.25, -1e-3, 7] * 500] * 1_000},
        {"input": "long " * 500_000, "explain": True, "messages": [SYSTEM, LONG], "nothing": None, "": []},
    ],
    ids=["texts", "embeddings", "long"],
)
def test_an_object_is_read_exactly(value: Any) -> None:
    """In pieces, and the same as at once."""
    for raw in (orjson.dumps(value), json.dumps(value, indent=2).encode()):
        found, steps = _steps(LargeBodies().object(raw))
        assert found == parse_object(raw) == value
        assert max(steps) < LONGEST_STEP_MS


@pytest.mark.parametrize(
    "raw", [b"[" + b'"a",' * 300_000 + b"1]", b'{"a":' + b"[" * 600_000, b'{"a":[1 2]}' + b" " * 600_000]
)
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    """Another value, too many, or no JSON."""
    with pytest.raises(InvalidRequest):
        asyncio.run(LargeBodies().object(raw))


def test_an_object_of_too_many_values_is_refused() -> None:
    """It would take many times its own memory."""
    with pytest.raises(Intricate):
        asyncio.run(LargeBodies().object(b'{"a":[' + b"[]," * 300_000 + b"1]}"))


@pytest.mark.parametrize(
    "raw",
    [
        _chat(SYSTEM, {"role": "user", "content": "a" * 10_000_000}),
        _chat(SYSTEM, {"role": "user", "content": '"\\' * 2_500_000}),
        _chat(SYSTEM, *[{"role": "user", "content": "and then?"}] * 250_000),
        _chat(SYSTEM, LONG, seeds=[1] * 5_000_000),
        _chat(SYSTEM, LONG) + b" " * 10_000_000,
        b'{"model":"m","messages":' + b"[" * 10_000_000,
        b'{"model":"m","seed":' + b"1" * 10_000_000 + b',"messages":[{"role":"user"}]}',
    ],
    ids=["string", "escapes", "messages", "numbers", "space", "brackets", "digits"],
)
def test_a_step_is_short(raw: bytes) -> None:
    """Whatever 10 MB are made of: others have their turn within milliseconds."""
    _, steps = _steps(LargeBodies().request(raw, parse_chat))
    assert max(steps) < LONGEST_STEP_MS
