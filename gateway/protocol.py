"""uvicorn's HTTP/1.1 with what it leaves open: bounds on size and time of a request, and errors in OpenAI's shape.

httptools refuses two lengths, a length beside chunks, bad chunks, folded headers and control characters by itself. What
it does not bound is how large a head or the framing of a body may grow; what uvicorn does not bound is how long either
may take. Trailers are dropped: merged into the headers, they could say what nobody has checked.
"""

import asyncio
from enum import Enum
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.asgi import LOCAL_HEADERS
from gateway.encoding import JSON
from gateway.errors import AnswerableError, HeadTooLarge, InvalidHttp, RequestTimeout

HEAD_BYTES = 65_536
# A chunk of one byte takes six bytes on the wire.
_FRAMING_PER_BYTE = 16
_OFFER = frozenset({b"upgrade", b"connection", b"http2-settings"})


class _Part(Enum):
    """What of a request is arriving."""

    NOTHING = "nothing"
    HEAD = "head"
    BODY = "body"


class GuardedProtocol(HttpToolsProtocol):
    """One connection. `request_timeout` bounds a whole head, and the wait between two pieces of a body, in seconds."""

    request_timeout: float = 60.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected: its first request is due."""
        self._part = _Part.NOTHING
        self._request_bytes = self._body_bytes = self._fed_bytes = self._first_bytes = 0
        self._too_large = False
        self._pieces: list[bytes] = []
        self._due: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._call_off()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        self._request_bytes += len(data)
        self._fed_bytes = len(data)
        self._unset_keepalive_if_required()
        self._feed(data)
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
        self._call_off()  # what was due until now has come
        # How many of the bytes at hand are of this request is not known: none is the least, all of them the most.
        self._request_bytes = self._body_bytes = 0
        self._first_bytes = self._fed_bytes
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        if self._part is _Part.HEAD:
            super().on_header(name, value)

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
        super().on_headers_complete()

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
        self._call_off()
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
        """Set the time at which what is due must be there: a first or next request, a head, or more of a body."""
        if self._part is _Part.NOTHING:
            if self.cycle is not None and not self.cycle.response_complete:
                self._call_off()
            elif self._due is None:
                self._due = self.loop.call_later(self.timeout_keep_alive, self._overdue)
        elif self._due is None or (self._part is _Part.BODY and not self.cycle.response_complete):
            self._call_off()
            self._due = self.loop.call_later(self.request_timeout, self._overdue)

    def _call_off(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

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
