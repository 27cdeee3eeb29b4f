"""Calls for `load.py` over raw sockets: an open loop, which sends when a call is due and not when the last one is done.

How late an answer came is counted from the moment its call was due, so that a server that stalls does not make its own
figures better by the calls it kept from being sent. What came late because this process was late is `own`: from due to
sent where the connection was free.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Kinds of calls, and what the head of a right answer holds.
HANDLED, FORWARDED, STREAMED = "handled", "forwarded", "streamed"
LANES = {
    HANDLED: b"x-tracer-lane: surrogate",
    FORWARDED: b"x-tracer-lane: teacher",
    STREAMED: b"x-tracer-lane: teacher",
}
_OK = b"HTTP/1.1 200 "
_LENGTH = b"\r\ncontent-length: "
_END = b"0\r\n\r\n"


@dataclass(slots=True)
class Seen:
    """What came of the calls of one kind: milliseconds of the good ones, our own lateness, and what went wrong."""

    late: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    put_off: int = 0  # answered well, but not in the lane that was expected
    errors: list[str] = field(default_factory=list)

    def add(self, other: "Seen") -> None:
        """Take in what another saw."""
        self.late += other.late
        self.own += other.own
        self.put_off += other.put_off
        self.errors += other.errors

    def row(self) -> dict[str, Any]:
        """As JSON-safe values: counts, and percentiles in milliseconds."""
        found: dict[str, Any] = {"calls": len(self.late), "put_off": self.put_off, "errors": len(self.errors)}
        if self.errors:
            found["first_error"] = self.errors[0]
        if self.late:
            p50, p99 = np.percentile(self.late, [50, 99])
            found |= {
                "p50_ms": round(float(p50), 3),
                "p99_ms": round(float(p99), 3),
                "max_ms": round(max(self.late), 3),
            }
        if self.own:
            found["own_p99_ms"] = round(float(np.percentile(self.own, 99)), 3)
        return found


class Line(asyncio.Protocol):
    """One connection, with one call at a time on it."""

    def __init__(self) -> None:
        self._buffer = b""
        self._answer: asyncio.Future[bytes] | None = None
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self._transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        """The server has hung up."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the connection was closed"))

    def data_received(self, data: bytes) -> None:
        """A piece of an answer."""
        self._buffer += data
        if self._answer is not None and not self._answer.done() and is_whole(self._buffer):
            self._answer.set_result(self._buffer)

    async def ask(self, request: bytes, seconds: float = 30.0) -> bytes:
        """The whole answer. Raises ConnectionError, TimeoutError."""
        if self.closing:
            raise ConnectionError("the connection was closed")
        self._buffer = b""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await asyncio.wait_for(self._answer, seconds)

    @property
    def closing(self) -> bool:
        """Whether it is of no use any more."""
        return bool(self._transport.is_closing())

    def close(self) -> None:
        """Hang up."""
        self._transport.close()


def is_whole(buffer: bytes) -> bool:
    """Whether an answer is there to its end."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = buffer[:end].lower()
    _, found, length = head.partition(_LENGTH)
    if not found:
        return buffer.endswith(_END)
    return len(buffer) - end - 4 >= int(length.split(b"\r\n", 1)[0])


def fault(answer: bytes) -> str | None:
    """What is wrong with an answer, or None. A stream must have ended."""
    if not answer.startswith(_OK):
        return answer.split(b"\r\n", 1)[0].decode("latin-1")
    if b"text/event-stream" in answer.partition(b"\r\n\r\n")[0] and b"data: [DONE]" not in answer:
        return "a stream without its end"
    return None


async def connect(port: int, number: int) -> list[Line]:
    """So many connections."""
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(Line, "127.0.0.1", port))[1] for _ in range(number)]


@dataclass(frozen=True, slots=True)
class Load:
    """So many calls a second of one kind, over connections of their own, evenly but for chance; requests in turn."""

    kind: str
    per_second: float
    lines: Sequence[Line]
    requests: Sequence[bytes]


async def open_loop(loads: Sequence[Load], seconds: float, seed: int = 0) -> dict[str, Seen]:
    """What came of the calls that were due within `seconds`, by kind."""
    seen = {load.kind: Seen() for load in loads}
    draw = random.Random(seed)
    await asyncio.gather(
        *(
            _keep_calling(line, load, seconds, random.Random(draw.random()), seen[load.kind])
            for load in loads
            for line in load.lines
        )
    )
    return seen


async def _keep_calling(line: Line, load: Load, seconds: float, draw: random.Random, seen: Seen) -> None:
    loop = asyncio.get_running_loop()
    interval = len(load.lines) / load.per_second
    started = loop.time()
    due = started + draw.uniform(0, interval)
    free = started
    while due < started + seconds:
        now = loop.time()
        if now < due:
            await asyncio.sleep(due - now)
            now = loop.time()
        if free <= due:
            seen.own.append(1e3 * (now - due))
        await _call(line, draw.choice(load.requests), LANES[load.kind], due, seen)
        free = loop.time()
        if line.closing:
            return
        due += interval * draw.uniform(0.5, 1.5)


async def _call(line: Line, request: bytes, lane: bytes, due: float, seen: Seen) -> None:
    try:
        answer = await line.ask(request)
    except (ConnectionError, TimeoutError) as error:
        seen.errors.append(str(error) or type(error).__name__)
        return
    wrong = fault(answer)
    if wrong is not None:
        seen.errors.append(wrong)
        return
    if lane in answer:
        seen.late.append(1e3 * (asyncio.get_running_loop().time() - due))
    else:
        seen.put_off += 1


async def closed_loop(lines: Sequence[Line], request_of: Callable[[int], bytes], calls: int) -> list[str]:
    """Make so many calls, each connection its next when it has the last one's answer; what went wrong."""
    errors: list[str] = []
    numbers = iter(range(calls))

    async def keep_calling(line: Line) -> None:
        for number in numbers:
            try:
                wrong = fault(await line.ask(request_of(number)))
            except (ConnectionError, TimeoutError) as error:
                errors.append(str(error) or type(error).__name__)
                return
            if wrong is not None:
                errors.append(wrong)

    await asyncio.gather(*(keep_calling(line) for line in lines))
    return errors


async def serve(port: int, seconds: float, events: int) -> None:
    """An upstream on a loopback port: the same answer to every call after `seconds`, or its stream of `events`."""
    server = await asyncio.start_server(lambda r, w: _answer(r, w, seconds, events), "127.0.0.1", port, backlog=2048)
    async with server:
        await server.serve_forever()


_COMPLETION = (
    b'{"id":"chatcmpl-bench","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"card_arrival"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}}'
)
_CHUNK = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,'
    b'"delta":{"content":"%b"},"finish_reason":%b}]}\n\n'
)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float, events: int) -> None:
    while True:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            _, found, length = head.partition(_LENGTH)
            body = await reader.readexactly(int(length.split(b"\r\n", 1)[0])) if found else b""
        except (asyncio.IncompleteReadError, ConnectionError):
            break
        if body:
            await asyncio.sleep(seconds)
        if b'"stream":true' in body.replace(b" ", b""):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            for index in range(events):
                await asyncio.sleep(seconds / events)
                writer.write(_chunk(_CHUNK % (b"card_arrival" if index == 0 else b"", b"null")))
            writer.write(_chunk(_CHUNK % (b"", b'"stop"')) + _chunk(b"data: [DONE]\n\n") + _END)
        else:
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            writer.write(head % len(_COMPLETION) + _COMPLETION)
    writer.close()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
