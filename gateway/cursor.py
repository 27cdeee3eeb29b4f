"""A place in a large JSON text, and the ways on from it: in steps, between which other calls have their turn."""

import asyncio
import re

from gateway.errors import InvalidRequest

# What is walked through in one step: about a third of a millisecond.
STEP = 65_536
_TOKEN_COST = 160
# Strings and brackets of a body that is anybody's call.
_MOST_TOKENS = 250_000

_SPACE = re.compile(rb"[ \t\r\n]*+")
_SCALAR = re.compile(rb"[-+.0-9A-Za-z]*+")
# Between brackets and strings. Nothing that could begin a comment: whoever is lenient sees the same strings.
_BETWEEN = re.compile(rb"[-+.,: \t\r\n0-9A-Za-z]*+")
_INSIDE = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_QUOTE, _BACKSLASH, _COMMA, _COLON = b'"\\,:'
OPENING, _CLOSING = b"{[", b"}]"
OBJECT, ARRAY = OPENING


class Intricate(InvalidRequest):
    """More values than any call has."""


class Cursor:
    """A place in a JSON text. Every way on gives way to others where it is long; raises InvalidRequest, Intricate."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.at = 0
        self.tokens = 0
        self._work = 0

    def byte(self) -> int:
        """What stands here."""
        if self.at >= len(self.raw):
            raise malformed()
        return self.raw[self.at]

    async def space(self) -> None:
        """Pass over white space."""
        await self._pass(_SPACE)

    async def end(self) -> None:
        """Nothing may follow."""
        await self.space()
        if self.at < len(self.raw):
            raise malformed()

    def enter(self, bracket: int) -> None:
        """Go into the object or array that begins here."""
        if self.byte() != bracket:
            raise malformed()
        self.at += 1

    async def more(self, opened: int, *, first: bool) -> bool:
        """Go to the next member or element of what `opened`; False, behind its closing bracket, where there is none."""
        await self.space()
        if self.byte() == _CLOSING[OPENING.index(opened)]:
            self.at += 1
            return False
        if not first:
            if self.byte() != _COMMA:
                raise malformed()
            self.at += 1
            await self.space()
        return True

    async def key(self) -> bytes:
        """The key that stands here, with its quotes; go to its value."""
        start = self.at
        if self.byte() != _QUOTE:
            raise malformed()
        await self._string()
        key = self.raw[start : self.at]
        await self.space()
        if self.byte() != _COLON:
            raise malformed()
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
            elif kind in OPENING:
                depth += 1
                self.at += 1
            elif depth and kind in _CLOSING:
                depth -= 1
                self.at += 1
            elif depth:
                raise malformed()
            else:
                start = self.at
                await self._pass(_SCALAR)
                if self.at == start:
                    raise malformed()
            if not depth:
                return

    async def _string(self) -> None:
        start = self.at + 1
        end = self.raw.find(b'"', start)
        if end < 0:
            raise malformed()
        if self.raw[end - 1] != _BACKSLASH:
            self.at = end + 1
            self._work += (end - start) // 32  # to search for one byte is quick
            return
        self.at = start
        while self.byte() != _QUOTE:
            before = self.at
            await self._pass(_INSIDE)
            if self.at == before:
                raise malformed()
        self.at += 1

    async def _pass(self, pattern: re.Pattern[bytes]) -> None:
        """Go behind what `pattern` takes, which it does piece by piece."""
        self.tokens += 1
        if self.tokens > _MOST_TOKENS:
            raise Intricate("The body has more values than any call.")
        while True:
            found = pattern.match(self.raw, self.at, self.at + STEP)
            taken = 0 if found is None else found.end() - self.at
            self.at += taken
            self._work += _TOKEN_COST + taken
            if self._work >= STEP:
                self._work = 0
                await asyncio.sleep(0)
            if taken < STEP:
                return


def malformed() -> InvalidRequest:
    """What is said of what is no JSON."""
    return InvalidRequest("The body is not valid JSON.")
