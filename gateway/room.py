"""How many bytes of request bodies may be held at a time, all clients together."""

import asyncio
from typing import Protocol

from gateway.errors import Overloaded
from gateway.metrics import Metrics
from gateway.settings import ServerSettings


class Holder(Protocol):
    """A call, and how many bytes of its body it holds."""

    held: int


class Room:
    """Room for `max_held_bytes`. A body takes it up piece by piece and keeps it until its call has been answered.

    A client whose next piece finds none is not read from meanwhile. So that bodies which have come in part do not wait
    for each other, one at a time may go on beyond the limit: what is held is at most that and one more body.
    """

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self._limit = settings.max_held_bytes
        self._seconds = settings.queue_timeout
        self._used = 0
        self._beyond: Holder | None = None
        self._freed = asyncio.Event()
        metrics.held_bytes.set_function(lambda: self._used)

    async def take(self, holder: Holder, size: int) -> None:
        """Take up room for `size` more bytes. Raises Overloaded where there is none within `queue_timeout`."""
        if not self._lets(holder, size):
            await self._wait(holder, size)
        self._used += size
        holder.held += size

    def give_back(self, holder: Holder) -> None:
        """A call is over."""
        self._used -= holder.held
        holder.held = 0
        if self._beyond is holder:
            self._beyond = None
        self._freed.set()

    def _lets(self, holder: Holder, size: int) -> bool:
        if self._used + size <= self._limit or self._beyond is holder:
            return True
        if self._beyond is None and (holder.held or not self._used):
            self._beyond = holder
            return True
        return False

    async def _wait(self, holder: Holder, size: int) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                while not self._lets(holder, size):
                    self._freed.clear()
                    await self._freed.wait()
        except TimeoutError:
            message = f"There was no room for the body for {self._seconds:g} seconds. Try again in a moment."
            raise Overloaded(message) from None
