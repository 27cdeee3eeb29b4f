"""Bodies too large to be read at once: walked through in steps, between which other calls have their turn.

A body of megabytes is an image or a long text, one string, or so many values that no label answers the call. So only
what tells whose call it is gets read: the model's name and the instructions before the first turn.
"""

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson

from gateway.errors import InvalidRequest
from gateway.wire import ModelRequest, parse_object, with_model

# Bytes that are read in a millisecond or three whatever they hold; and those that are where there are few values.
AT_ONCE = 262_144
_MOST_AT_ONCE = 524_288
_FEW_VALUES = 40_000  # quotes, commas and brackets together
# What is walked through in one step: about a third of a millisecond.
_STEP = 65_536
_TOKEN_COST = 160
# Strings and brackets of a body that is anybody's call.
_MOST_TOKENS = 250_000
_MOST_KEPT_TOKENS = 20_000
_DEEPEST = 4

_SPACE = re.compile(rb"[ \t\r\n]*+")
_SCALAR = re.compile(rb"[-+.0-9A-Za-z]*+")
# Between brackets and strings. Nothing that could begin a comment: whoever is lenient sees the same strings.
_BETWEEN = re.compile(rb"[-+.,: \t\r\n0-9A-Za-z]*+")
_INSIDE = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_QUOTE, _BACKSLASH, _COMMA, _COLON = b'"\\,:'
_OPENING, _CLOSING = b"{[", b"}]"
# What of a request says whose call it is.
_TURNS = frozenset({"messages", "input"})
_READ = frozenset({"model", "instructions", "questions", "store"}) | _TURNS
_INSTRUCTION_ROLES = frozenset({"system", "developer"})


class Intricate(InvalidRequest):
    """More values than any call has."""


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
                body, spans = await _abridged(_Cursor(raw))
        except Intricate:
            return None
        return replace(parse(body), raw=raw, model_spans=tuple(spans))

    async def object(self, raw: bytes) -> dict[str, Any]:
        """What `parse_object` gives. Raises InvalidRequest, Intricate where it has too many values."""
        if _has_few_values(raw):
            return parse_object(raw)
        cursor = _Cursor(raw)
        async with self._turn:
            await cursor.space()
            found = await _value(cursor, _DEEPEST) if cursor.byte() == _OPENING[0] else None
            await cursor.end()
        if type(found) is not dict:
            raise InvalidRequest("The body should be a JSON object.")
        return found


async def renamed(raw: bytes, model: str) -> bytes | None:
    """As `with_model`, without others having to wait; None where the body has too many values, or is no JSON object."""
    if len(raw) <= AT_ONCE:
        return with_model(raw, model)
    try:
        _, spans = await _abridged(_Cursor(raw))
    except InvalidRequest:
        return None
    return with_model(raw, model, spans)


class _Cursor:
    """A place in a JSON text. Every way on gives way to others where it is long; raises InvalidRequest, Intricate."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.at = 0
        self.tokens = 0
        self._work = 0

    def byte(self) -> int:
        """What stands here."""
        if self.at >= len(self.raw):
            raise _malformed()
        return self.raw[self.at]

    async def space(self) -> None:
        """Pass over white space."""
        await self._pass(_SPACE)

    async def end(self) -> None:
        """Nothing may follow."""
        await self.space()
        if self.at < len(self.raw):
            raise _malformed()

    def enter(self, bracket: int) -> None:
        """Go into the object or array that begins here."""
        if self.byte() != bracket:
            raise _malformed()
        self.at += 1

    async def more(self, *, first: bool) -> bool:
        """Go to the next member or element; False, behind the closing bracket, where there is none."""
        await self.space()
        if self.byte() in _CLOSING:
            self.at += 1
            return False
        if not first:
            if self.byte() != _COMMA:
                raise _malformed()
            self.at += 1
            await self.space()
        return True

    async def key(self) -> bytes:
        """The key that stands here, with its quotes; go to its value."""
        start = self.at
        if self.byte() != _QUOTE:
            raise _malformed()
        await self._string()
        key = self.raw[start : self.at]
        await self.space()
        if self.byte() != _COLON:
            raise _malformed()
        self.at += 1
        await self.space()
        return key

    async def skip(self, depth: int = 0) -> None:
        """Pass over the value that stands here, or out of `depth` brackets that are open."""
        while True:
            await self._pass(_BETWEEN if depth else _SPACE)
            kind = self.byte()
            if kind == _QUOTE:
                await self._string()
            elif kind in _OPENING:
                depth += 1
                self.at += 1
            elif depth and kind in _CLOSING:
                depth -= 1
                self.at += 1
            elif depth:
                raise _malformed()
            else:
                start = self.at
                await self._pass(_SCALAR)
                if self.at == start:
                    raise _malformed()
            if not depth:
                return

    async def _string(self) -> None:
        start = self.at + 1
        end = self.raw.find(b'"', start)
        if end < 0:
            raise _malformed()
        if self.raw[end - 1] != _BACKSLASH:
            self.at = end + 1
            self._work += (end - start) // 32  # to search for one byte is quick
            return
        self.at = start
        while self.byte() != _QUOTE:
            before = self.at
            await self._pass(_INSIDE)
            if self.at == before:
                raise _malformed()
        self.at += 1

    async def _pass(self, pattern: re.Pattern[bytes]) -> None:
        """Go behind what `pattern` takes, which it does piece by piece."""
        self.tokens += 1
        if self.tokens > _MOST_TOKENS:
            raise Intricate("The body has more values than any call.")
        while True:
            found = pattern.match(self.raw, self.at, self.at + _STEP)
            taken = 0 if found is None else found.end() - self.at
            self.at += taken
            self._work += _TOKEN_COST + taken
            if self._work >= _STEP:
                self._work = 0
                await asyncio.sleep(0)
            if taken < _STEP:
                return


async def _abridged(cursor: _Cursor) -> tuple[bytes, list[tuple[int, int]]]:
    """The body with nothing but what says whose call it is, and where in it the model's name stands."""
    kept, spans, first = [], [], True
    await cursor.space()
    cursor.enter(_OPENING[0])
    while await cursor.more(first=first):
        first = False
        key = await cursor.key()
        name = _text(key)
        start, tokens = cursor.at, cursor.tokens
        if name in _TURNS and cursor.byte() == _OPENING[1]:
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


async def _instructions(cursor: _Cursor) -> bytes:
    """Of an array of messages those before the first turn, and of that its role."""
    kept, first, tokens = [], True, cursor.tokens
    cursor.enter(_OPENING[1])
    while await cursor.more(first=first):
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


async def _role(cursor: _Cursor) -> bytes | None:
    """The value of a message's `role`; None where it has none. Go behind the message."""
    role, first = None, True
    if cursor.byte() != _OPENING[0]:
        await cursor.skip()
        return None
    cursor.enter(_OPENING[0])
    while await cursor.more(first=first):
        first = False
        key = await cursor.key()
        start = cursor.at
        await cursor.skip()
        if _text(key) == "role":
            role = cursor.raw[start : cursor.at] if cursor.at - start <= _STEP else None
    return role


async def _value(cursor: _Cursor, depth: int) -> Any:
    """The value that stands here, read exactly, no more of it at a time than a step."""
    start = cursor.at
    await cursor.skip()
    stop = cursor.at
    kind = cursor.raw[start]
    if stop - start <= _STEP or kind not in _OPENING:
        return _loaded(cursor.raw[start:stop])
    if not depth:
        raise Intricate("The body is nested too deeply for its size.")
    cursor.at = start
    return await (_members(cursor, depth) if kind == _OPENING[0] else _elements(cursor, depth))


async def _members(cursor: _Cursor, depth: int) -> dict[str, Any]:
    found, first = {}, True
    cursor.enter(_OPENING[0])
    while await cursor.more(first=first):
        first = False
        key = await cursor.key()
        found[_loaded(key)] = await _value(cursor, depth - 1)
    return found


async def _elements(cursor: _Cursor, depth: int) -> list[Any]:
    found: list[Any] = []
    first = True
    cursor.enter(_OPENING[1])
    while await cursor.more(first=first):
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
    if _BACKSLASH not in raw:
        return raw[1:-1].decode("utf-8", "replace") if raw[:1] == b'"' else None
    return _loaded(raw) if len(raw) <= _STEP else None


def _loaded(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        try:  # as parse_object does
            return json.loads(raw.decode("utf-8"))
        except (ValueError, RecursionError):
            raise _malformed() from None


def _malformed() -> InvalidRequest:
    return InvalidRequest("The body is not valid JSON.")
