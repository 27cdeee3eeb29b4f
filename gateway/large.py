"""Bodies too large to be read at once: walked through in steps, between which other calls have their turn.

A body of megabytes is an image or a long text, one string, or so many values that no label answers the call. So only
what tells whose call it is gets read: the model's name and the instructions before the first turn.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson

from gateway.cursor import ARRAY, OBJECT, OPENING, STEP, Cursor, Intricate, malformed
from gateway.errors import InvalidRequest
from gateway.wire import ModelRequest, parse_object, with_model

# Bytes that are read in a millisecond or three whatever they hold; and those that are where there are few values.
AT_ONCE = 262_144
_MOST_AT_ONCE = 524_288
_FEW_VALUES = 40_000  # quotes, commas and brackets together
_MOST_KEPT_TOKENS = 20_000
_DEEPEST = 4

# What of a request says whose call it is.
_TURNS = frozenset({"messages", "input"})
_READ = frozenset({"model", "instructions", "questions", "store"}) | _TURNS
_INSTRUCTION_ROLES = frozenset({"system", "developer"})


class LargeBodies:
    """Reads large bodies, one at a time: however many there are, others wait for one step of one of them."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def request(self, raw: bytes, parse: Callable[[bytes], ModelRequest]) -> ModelRequest | None:
        """The request in a body, abridged unless `parse` is quick with the whole; None where it has too many values.

        Raises InvalidRequest.
        """
        if _has_few_values(raw):
            return parse(raw)
        try:
            async with self._turn:
                body, spans = await _abridged(Cursor(raw))
        except Intricate:
            return None
        return replace(parse(body), raw=raw, model_spans=tuple(spans))

    async def object(self, raw: bytes) -> dict[str, Any]:
        """What `parse_object` gives. Raises InvalidRequest, Intricate where it has too many values."""
        if _has_few_values(raw):
            return parse_object(raw)
        cursor = Cursor(raw)
        async with self._turn:
            await cursor.space()
            found = await _value(cursor, _DEEPEST) if cursor.byte() == OBJECT else None
            await cursor.end()
        if type(found) is not dict:
            raise InvalidRequest("The body should be a JSON object.")
        return found


async def renamed(raw: bytes, model: str) -> bytes | None:
    """As `with_model`, without others having to wait; None where the body has too many values, or is no JSON object."""
    if len(raw) <= AT_ONCE:
        return with_model(raw, model)
    try:
        _, spans = await _abridged(Cursor(raw))
    except InvalidRequest:
        return None
    return with_model(raw, model, spans)


async def _abridged(cursor: Cursor) -> tuple[bytes, list[tuple[int, int]]]:
    """The body with nothing but what says whose call it is, and where in it the model's name stands."""
    kept, spans, first = [], [], True
    await cursor.space()
    cursor.enter(OBJECT)
    while await cursor.more(OBJECT, first=first):
        first = False
        key = await cursor.key()
        name = _text(key)
        start, tokens = cursor.at, cursor.tokens
        if name in _TURNS and cursor.byte() == ARRAY:
            kept.append(key + b":" + await _instructions(cursor))
            continue
        await cursor.skip()
        if name == "model":
            spans.append((start, cursor.at))
        if name in _READ:
            small = cursor.at - start <= AT_ONCE or name == "instructions"
            kept.append(key + b":" + (cursor.raw[start : cursor.at] if small else b"null"))
            _check_kept(cursor.tokens - tokens)
    await cursor.end()
    _check_kept(len(kept))
    return b"{" + b",".join(kept) + b"}", spans


async def _instructions(cursor: Cursor) -> bytes:
    """Of an array of messages those before the first turn, and of that its role."""
    kept, first, tokens = [], True, cursor.tokens
    cursor.enter(ARRAY)
    while await cursor.more(ARRAY, first=first):
        first = False
        start = cursor.at
        role = await _role(cursor)
        if role is not None and _text(role) in _INSTRUCTION_ROLES:
            _check_kept(cursor.tokens - tokens)
            kept.append(cursor.raw[start : cursor.at])
            continue
        kept.append(b"{}" if role is None else b'{"role":' + role + b"}")
        await cursor.skip(1)
        break
    return b"[" + b",".join(kept) + b"]"


async def _role(cursor: Cursor) -> bytes | None:
    """The value of a message's `role`; None where it has none. Go behind the message."""
    role, first = None, True
    if cursor.byte() != OBJECT:
        await cursor.skip()
        return None
    cursor.enter(OBJECT)
    while await cursor.more(OBJECT, first=first):
        first = False
        key = await cursor.key()
        start = cursor.at
        await cursor.skip()
        if _text(key) == "role":
            role = cursor.raw[start : cursor.at] if cursor.at - start <= STEP else None
    return role


async def _value(cursor: Cursor, depth: int) -> Any:
    """The value that stands here, read exactly, no more of it at a time than a step."""
    start = cursor.at
    await cursor.skip()
    stop = cursor.at
    kind = cursor.raw[start]
    if stop - start <= STEP or kind not in OPENING:
        return _loaded(cursor.raw[start:stop])
    if not depth:
        raise Intricate("The body is nested too deeply for its size.")
    cursor.at = start
    return await (_members(cursor, depth) if kind == OBJECT else _elements(cursor, depth))


async def _members(cursor: Cursor, depth: int) -> dict[str, Any]:
    found, first = {}, True
    cursor.enter(OBJECT)
    while await cursor.more(OBJECT, first=first):
        first = False
        key = await cursor.key()
        found[_loaded(key)] = await _value(cursor, depth - 1)
    return found


async def _elements(cursor: Cursor, depth: int) -> list[Any]:
    found: list[Any] = []
    first = True
    cursor.enter(ARRAY)
    while await cursor.more(ARRAY, first=first):
        first = False
        found.append(await _value(cursor, depth - 1))
    return found


def _has_few_values(raw: bytes) -> bool:
    """Whether to read all of a body takes about as long as to look for its values."""
    if len(raw) > _MOST_AT_ONCE:
        return False
    left = _FEW_VALUES
    for character in (b'"', b",", b"[", b"{"):
        left -= raw.count(character)
        if left < 0:
            return False
    return True


def _check_kept(tokens: int) -> None:
    if tokens > _MOST_KEPT_TOKENS:
        raise Intricate("The body has more values than any call.")


def _text(raw: bytes) -> Any:
    """A short string's text; None for anything else."""
    if b"\\" not in raw:
        return raw[1:-1].decode("utf-8", "replace") if raw[:1] == b'"' else None
    return _loaded(raw) if len(raw) <= STEP else None


def _loaded(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        try:  # as parse_object does
            return json.loads(raw.decode("utf-8"))
        except (ValueError, RecursionError):
            raise malformed() from None
