"""How many calls may be with upstreams at a time, and how many may wait for a place among them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.errors import Overloaded
from gateway.metrics import Metrics
from gateway.settings import ServerSettings


class Places:
    """The places of forwarded calls, all upstreams together. Calls answered here never ask for one."""

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self._number = settings.max_concurrency
        self._free = asyncio.Semaphore(self._number)
        self._most_waiting = settings.max_queue
        self._seconds = settings.queue_timeout
        self._waiting = self._taken = self._taken_aside = 0
        metrics.forwards.set_function(lambda: self._taken)
        metrics.forwards_waiting.set_function(lambda: self._waiting)

    async def __aenter__(self) -> None:
        """A place, for as long as the block runs; first come, first served.

        Raises Overloaded where too many wait already or none becomes free within `queue_timeout`. A caller that is
        cancelled while it waits leaves the queue at once.
        """
        if self._free.locked():
            await self._wait()
        else:
            await self._free.acquire()
        self._taken += 1

    async def __aexit__(self, *_: object) -> None:
        """Give the place back."""
        self._taken -= 1
        self._free.release()

    def has_room_aside(self) -> bool:
        """Whether a call that nobody waits for may start: no other waits, and none would have to."""
        return not self._waiting and room_aside(self._number, self._taken, self._taken_aside)

    @asynccontextmanager
    async def aside(self) -> AsyncIterator[None]:
        """A place for a call that nobody waits for. Raises Overloaded, at once, where there is no room for it."""
        if not self.has_room_aside():
            raise Overloaded("Other calls need the places.")
        async with self:
            self._taken_aside += 1
            try:
                yield
            finally:
                self._taken_aside -= 1

    async def _wait(self) -> None:
        if self._waiting >= self._most_waiting:
            raise Overloaded("Too many calls wait for the upstream already. Try again in a moment.")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._seconds):
                await self._free.acquire()
        except TimeoutError:
            raise Overloaded(f"The upstream was busy for {self._seconds:g} seconds. Try again in a moment.") from None
        finally:
            self._waiting -= 1


def room_aside(limit: int, taken: int, aside: int) -> bool:
    """Whether one of `limit` places may go to a call that nobody waits for; `aside` of those `taken` have gone to such.

    They never get the last one, and no more than a quarter of them.
    """
    return taken + 1 < limit and aside < max(1, limit // 4)
