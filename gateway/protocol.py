"""uvicorn's HTTP/1.1 with what it leaves open: bounds on size and time of a request, and errors in OpenAI's shape.

httptools refuses two lengths, a length beside chunks, bad chunks, folded headers and control characters by itself. What
it does not bound is how large a head or the framing of a body may grow; what uvicorn does not bound is how long either
may take. Trailers are dropped: merged into the headers, they could say what nobody has checked.
"""

import asyncio
import urllib.parse
from collections.abc import Callable
from enum import Enum
from functools import lru_cache, partial
from typing import Any, cast

import httptools
from starlette.types import Message, Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway.asgi import LOCAL_HEADERS, ON_LEAVE, Whole
from gateway.encoding import JSON
from gateway.errors import AnswerableError, HeadTooLarge, InvalidHttp, RequestTimeout
from gateway.turns import Turn, Turns

HEAD_BYTES = 65_536
# A chunk of one byte takes six bytes on the wire.
_FRAMING_PER_BYTE = 16
_OFFER = frozenset({b"upgrade", b"connection", b"http2-settings"})
_CLOSE = b"connection: close\r\n"
_PATHS = 256  # spellings of a URL that are remembered


class _Part(Enum):
    """What of a request is arriving."""

    NOTHING = "nothing"
    HEAD = "head"
    BODY = "body"


class _Cycle(RequestResponseCycle):
    """One request and its answer: as uvicorn's, with the head checked as one and sent with a body that is at hand."""

    _held = b""
    _leaving: Callable[[], None] | None = None

    async def send(self, message: Message) -> None:  # type: ignore[override]
        """Send a part of the answer. A start that says `whole` is sent with what follows it, in one piece."""
        if self.access_log:
            await super().send(message)  # type: ignore[arg-type]
            return
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if not self.response_started:
            if message["type"] != "http.response.start":
                raise RuntimeError(f"an answer begins with http.response.start, not {message['type']}")
            head = self._head(message["status"], message["headers"])
            self.response_started = True
            self.waiting_for_100_continue = False
            if message.get("whole"):
                self._held = head
            else:
                self.transport.write(head)
            return
        if self.response_complete or message["type"] != "http.response.body":
            raise RuntimeError(f"{message['type']} after the answer's start or end")
        self._send_body(message.get("body", b""), more=message.get("more_body", False))

    def _head(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Status line and headers. Names are lower case already, and valid: ours, or read by the HTTP client."""
        content, lines = [STATUS_LINE[status]], 2 + len(headers)
        closes = False
        for name, value in headers:
            content += (name, b": ", value, b"\r\n")
            if name == b"content-length":
                self.expected_content_length = int(value)
                self.chunked_encoding = False
            elif name == b"transfer-encoding":
                self.chunked_encoding = True
            elif name == b"connection" and b"close" in value.lower():
                closes, self.keep_alive = True, False
        if not self.keep_alive and not closes:
            content.append(_CLOSE)
            lines += 1
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in (204, 304):
            self.chunked_encoding = True
            content.append(b"transfer-encoding: chunked\r\n")
            lines += 1
        head = b"".join((*content, b"\r\n"))
        # One look at the whole: a value with a line of its own would be a header, or an answer, that nobody sent.
        if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head:
            raise RuntimeError("a header of the answer holds a control character")
        return head

    def _send_body(self, body: bytes, *, more: bool) -> None:
        if self.scope["method"] == "HEAD":
            self.expected_content_length, body = 0, b""
        elif self.chunked_encoding:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"" if more else b"0\r\n\r\n")
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("the answer is longer than its content-length")
        if self._held or body:
            self.transport.write(self._held + body)
            self._held = b""
        if more:
            return
        if self.expected_content_length:
            raise RuntimeError("the answer is shorter than its content-length")
        self.response_complete = True
        # It holds this cycle, which holds the scope: let go, both are gone at once.
        self.scope.pop(ON_LEAVE, None)  # type: ignore[misc]
        self.message_event.set()
        # A ring: with it, body and all, this call would stay until the collector comes.
        self.scope.pop(ON_LEAVE, None)  # type: ignore[misc]
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    def answer(self, answer: Whole) -> None:
        """Send a whole answer."""
        status, headers, body = answer
        self._held = self._head(status, headers)
        self.response_started = True
        self._send_body(body, more=False)

    def on_leave(self, call: Callable[[], None] | None) -> bool:
        """Have `call` called once if the client leaves before its answer is out; False where it has."""
        self._leaving = call
        if call is not None:
            # Reading is paused behind a large body's last piece, and who does not read sees nobody leave.
            self.flow.resume_reading()
        return not self.disconnected

    def left(self) -> None:
        """The client is gone."""
        call, self._leaving = self._leaving, None
        if call is not None:
            call()


class GuardedProtocol(HttpToolsProtocol):
    """One connection.

    `request_timeout` bounds a whole head, and the wait between two pieces of a body, in seconds. `begin` reads a
    request that has come whole; what it returns takes its turn among `turns`, what it does not is the application's, in
    a task of its own.
    """

    request_timeout: float = 60.0
    begin: Callable[[Scope, bytes], Turn | None] | None = None
    turns = Turns()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected: its first request is due."""
        self._part = _Part.NOTHING
        self._request_bytes = self._body_bytes = self._fed_bytes = self._first_bytes = 0
        self._too_large = False
        self._pieces: list[bytes] = []
        self._answered: _Cycle | None = None
        self._fresh: _Cycle | None = None  # whose turn it is, and which nobody serves yet
        self._due: float | None = None  # on the loop's clock: when what is waited for must have come
        self._timer: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._due = None
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)
        if self._answered is not None and not self._answered.response_complete:
            # uvicorn tells the newest request; the one that is being answered may be an older one.
            self._answered.disconnected = True
            self._answered.message_event.set()
            self._answered.left()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        self._request_bytes += len(data)
        self._fed_bytes = len(data)
        self._feed(data)
        if self._fresh is not None:
            self._start(self._fresh)
        if self.transport.is_closing():
            return
        framing = self._request_bytes - self._body_bytes * (1 + _FRAMING_PER_BYTE)
        if self._part is not _Part.NOTHING and framing > HEAD_BYTES:
            self._refuse(_too_large())
        else:
            self._watch()

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                self._hand_on()
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_offer() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
            except httptools.HttpParserError:
                self._refuse(_too_large() if self._too_large else InvalidHttp("This is not a valid HTTP request."))
                return

    def _without_offer(self) -> bytes:
        """The head that has just come, for a new parser: the old one stops at the offer of another protocol.

        So a client that offers h2c, say, is answered in HTTP/1.1, as RFC 9110, 7.8 has it.
        """
        kept = [(name, value) for name, value in self.headers if name not in _OFFER]
        lines = [b"%b: %b\r\n" % pair for pair in kept]
        version = self.parser.get_http_version().encode()
        return b"%b %b HTTP/%b\r\n%b\r\n" % (self.parser.get_method(), self.url, version, b"".join(lines))

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._part = _Part.HEAD
        self._due = None  # what was waited for until now has come
        # How many of the bytes at hand are of this request is not known: none is the least, all of them the most.
        self._request_bytes = self._body_bytes = 0
        self._first_bytes = self._fed_bytes
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        if self._part is _Part.HEAD:
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is there. Raising refuses the request before the application hears of it."""
        if self._request_bytes + self._first_bytes > HEAD_BYTES:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            self._too_large = size > HEAD_BYTES
            if self._too_large:
                raise ValueError("head too large")
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise ValueError("for proxies")
            return  # the same head comes again, without its offer
        self._part = _Part.BODY
        self._request_bytes = 0
        self._begin()

    def _begin(self) -> None:
        """Hand the request to the application, or put it behind the one that is being answered."""
        version = self.parser.get_http_version()
        path, raw_path, query = _path(self.url)
        scope = self.scope
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["http_version"] = version
        scope["path"], scope["raw_path"], scope["query_string"] = path, raw_path, query
        before = self.cycle
        cycle = self.cycle = _Cycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        scope[ON_LEAVE] = cycle.on_leave  # type: ignore[literal-required]
        if before is None or before.response_complete:
            self._fresh = cycle
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _start(self, cycle: _Cycle) -> None:
        self._fresh = None
        waits = cycle.more_body or cycle.waiting_for_100_continue or self.flow.write_paused or self.access_log
        begin = None if waits else self.begin
        turn = None if begin is None else begin(cast("Scope", cycle.scope), bytes(cycle.body))
        if turn is None:
            self._start_asgi_task(cycle, self.app)
            return
        self._answered = cycle
        self.turns.take(self.loop, turn, partial(self._finish, cycle))

    def _finish(self, cycle: _Cycle, answer: Whole | None) -> None:
        if answer is None:
            self._start_asgi_task(cycle, self.app)
        elif not cycle.disconnected:
            cycle.answer(answer)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle if isinstance(cycle, _Cycle) else None
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """An answer is out: the next request's turn, if it has come."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._watch()

    def on_body(self, body: bytes) -> None:
        """A piece of the body. It may have one byte: uvicorn, which copies all of them for each, gets them together."""
        self._body_bytes += len(body)
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._part is _Part.BODY:
            self._part = _Part.NOTHING
            self._hand_on()
            super().on_message_complete()
            if self._fresh is not None:
                self._start(self._fresh)

    def _hand_on(self) -> None:
        if self._pieces:
            super().on_body(b"".join(self._pieces))
            self._pieces = []

    def send_400_response(self, msg: str) -> None:
        """What uvicorn says to what is no HTTP."""
        self._refuse(InvalidHttp(msg))

    def _refuse(self, error: AnswerableError) -> None:
        """Answer and hang up; only hang up where an answer of the application's is under way."""
        if not self._answering():
            body = error.body()
            headers: list[tuple[bytes, bytes]] = [
                (b"content-type", JSON),
                (b"content-length", b"%d" % len(body)),
                (b"connection", b"close"),
                *LOCAL_HEADERS,
            ]
            lines = [b"%b: %b\r\n" % pair for pair in headers]
            self.transport.write(b"".join([STATUS_LINE[error.status], *lines, b"\r\n", body]))
        self._due = None
        self.transport.close()

    def _answering(self) -> bool:
        """Whether bytes of ours would land in the middle of another answer, or after it, where nobody expects any."""
        cycle: Any = self.cycle
        if cycle is None:
            return False
        if self._part is _Part.BODY:
            return bool(self.pipeline) or cycle.response_started is True
        return not cycle.response_complete

    def _watch(self) -> None:
        """Set the time at which what is waited for must be there: a first or next request, a head, more of a body."""
        if self._part is _Part.NOTHING:
            if self.cycle is not None and not self.cycle.response_complete:
                self._due = None
            elif self._due is None:
                self._wait(self.timeout_keep_alive)
        elif self._due is None or (self._part is _Part.BODY and not self.cycle.response_complete):
            self._wait(self.request_timeout)

    def _wait(self, seconds: float) -> None:
        # A timer that is set stays, and looks again when it is up: a new one for every request costs more.
        self._due = self.loop.time() + seconds
        if self._timer is None or self._timer.when() > self._due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_at(self._due, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._due is None:
            return
        if self.loop.time() < self._due:
            self._timer = self.loop.call_at(self._due, self._look)
        else:
            self._overdue()

    def _overdue(self) -> None:
        self._due = None
        if self.transport.is_closing():
            return
        if self._part is _Part.BODY and self.flow.read_paused:
            self._watch()  # it is we who do not read
        elif self._part is _Part.HEAD and self._answering():
            self._watch()  # the answer before it is still under way
        elif self._part is _Part.NOTHING:
            self.transport.close()
        else:
            what = self._part.value
            self._refuse(
                RequestTimeout(f"The request's {what} did not arrive within {self.request_timeout:g} seconds.")
            )


def _too_large() -> HeadTooLarge:
    return HeadTooLarge(f"The request's head is larger than {HEAD_BYTES} bytes.")


@lru_cache(_PATHS)
def _path(url: bytes) -> tuple[str, bytes, bytes]:
    """The path, decoded and as it came, and the query of a request's URL. Raises HttpParserInvalidURLError."""
    parsed = httptools.parse_url(url)
    path = parsed.path.decode("ascii")
    return (urllib.parse.unquote(path) if "%" in path else path), parsed.path, parsed.query or b""
