"""Requests that need no task: all that have come at once take each step together.

A processor is slow at what it has not done for a while: its caches then hold something else. One request after the
other, from socket to socket, decides with cold caches every time; when all that came at once are read, then all decided
on, then all answered, only the first does. Under load that is a third of what an answer costs.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from gateway.asgi import Whole

# A millisecond or so: the rest may wait until the event loop has looked at what else has come.
_TOGETHER = 32

Done = Callable[[Whole | None], None]


class Turn(Protocol):
    """One request on its way. Neither method raises."""

    def decide(self) -> None:
        """First, find out what to answer."""
        ...

    def answer(self) -> Whole | None:
        """Then, the whole answer; None where the request takes a task."""
        ...


class Turns:
    """The requests of one server, all of one event loop, that are to take their turn when all that came are read."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Turn, Done]] = []

    def take(self, loop: asyncio.AbstractEventLoop, turn: Turn, done: Done) -> None:
        """Have `turn` decided on and answered soon, and `done` called with the answer."""
        if not self._waiting:
            loop.call_soon(self._run, loop)
        self._waiting.append((turn, done))

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        now, self._waiting = self._waiting[:_TOGETHER], self._waiting[_TOGETHER:]
        if self._waiting:
            loop.call_soon(self._run, loop)
        for turn, _ in now:
            turn.decide()
        for turn, done in now:
            done(turn.answer())
