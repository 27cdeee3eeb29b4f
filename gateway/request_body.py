"""A request's body on its way to an upstream, under a time-out of its own: the HTTP client has none for writing."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
from aiohttp.abc import AbstractStreamWriter

# What is written at once under the time-out; the HTTP client waits for the socket about as often.
PIECE = 65_536


class WriteStalled(TimeoutError):  # noqa: N818
    """The upstream took nothing of a request's body for `write_timeout`."""


class RequestBody(aiohttp.Payload):
    """A request body of `size` bytes (None: unknown), each piece of which must be taken within `seconds`."""

    def __init__(self, pieces: AsyncIterator[bytes], size: int | None, seconds: float) -> None:
        super().__init__(pieces)
        self._size = size
        self._pieces = pieces
        self._seconds = seconds

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:  # noqa: ARG002
        """A body on its way has no text."""
        raise TypeError("a body on its way cannot be decoded")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write what comes as it comes; only the upstream's part of the time counts."""
        transport: asyncio.WriteTransport | None = getattr(writer, "transport", None)
        try:
            async for piece in self._pieces:
                for start in range(0, len(piece), PIECE):
                    await self._write(writer, piece[start : start + PIECE])
        except BaseException:
            # Closed, the connection would stay until the upstream had taken all that it does not take.
            if transport is not None:
                transport.abort()
            raise

    async def _write(self, writer: AbstractStreamWriter, piece: bytes) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await writer.write(piece)
        except TimeoutError:
            raise WriteStalled from None


async def whole(body: bytes) -> AsyncIterator[bytes]:
    """A body that is there, as one that comes."""
    yield body
