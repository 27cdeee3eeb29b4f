"""An upstream that answers in bytes of the test's own choosing, and knows which of its connections are open.

with RawUpstream(answering(b"HTTP/1.1 200 OK\r\n...")) as upstream:
    ThreadedGateway(make_settings(tmp_path, {}, upstream.url))
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Self

Handler = Callable[["RawUpstream", "Connection"], Awaitable[None]]


class Connection:
    """One accepted connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """The next request's head and, where its length is given, its body; b"" where the peer has hung up."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""
        length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0)
        return head + await self.reader.readexactly(length)

    async def write(self, data: bytes) -> None:
        """Send bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def gone(self) -> None:
        """Wait until the peer hangs up, reading on."""
        while await self.reader.read(65_536):
            pass


class RawUpstream:
    """Serves from a thread of its own until the context ends; each connection is one run of `handler`."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.requests: list[bytes] = []
        self.accepted = 0
        self.open = 0
        self.closed_at = 0.0  # time.monotonic() when the last connection was seen to close
        self.arrived = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        """What the gateway is given."""
        return f"http://127.0.0.1:{self.port}/v1"

    def wait_until(self, n_open: int, timeout: float = 5.0) -> None:
        """Wait until so many connections are open."""
        deadline = time.monotonic() + timeout
        while self.open != n_open:
            assert time.monotonic() < deadline, f"{self.open} connections are open, not {n_open}"
            time.sleep(0.01)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._run(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0, backlog=2048)
        self.port: int = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopping.wait()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.open += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self.handler(self, Connection(reader, writer))
        finally:
            self.open -= 1
            self.closed_at = time.monotonic()
            writer.close()


def answering(*answers: bytes, hang_up: bool = False) -> Handler:
    """Answers the first request with the first of `answers` and so on, over all connections; the last one for ever.

    With `hang_up` a connection is closed after its answer.
    """

    async def handle(upstream: RawUpstream, connection: Connection) -> None:
        while request := await connection.request():
            upstream.requests.append(request)
            upstream.arrived.set()
            await connection.write(answers[min(len(upstream.requests), len(answers)) - 1])
            if hang_up:
                return

    return handle


async def silent(upstream: RawUpstream, connection: Connection) -> None:
    """Takes a request and says nothing until the peer has gone."""
    upstream.requests.append(await connection.request())
    upstream.arrived.set()
    await connection.gone()


def response(status: int = 200, body: bytes = b"{}", headers: bytes = b"") -> bytes:
    """A whole answer; `headers` are lines that end in CRLF."""
    return b"HTTP/1.1 %d Status\r\n%bContent-Length: %d\r\n\r\n%b" % (status, headers, len(body), body)
