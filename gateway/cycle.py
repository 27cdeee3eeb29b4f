"""One request and its answer, on uvicorn's: less work for each, and two ways more to answer."""

from collections.abc import Callable

from starlette.types import Message
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle
from uvicorn.protocols.utils import get_client_addr, get_path_with_query_string

from gateway.asgi import ON_LEAVE, Whole

_CLOSE = b"connection: close\r\n"


class Cycle(RequestResponseCycle):
    """One request: its answer's head is checked as one, and sent with a body that is at hand."""

    unframed = False
    _held = b""
    _leaving: Callable[[], None] | None = None

    async def send(self, message: Message) -> None:  # type: ignore[override]
        """Send a part of the answer. A start that says `whole` is sent with what follows it, in one piece."""
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
        if self.access_log:
            self._log(status)
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
        framed = self.chunked_encoding is not None or self.scope["method"] == "HEAD" or status in (204, 304)
        if not framed and self.scope["http_version"] == "1.0":
            # It knows no chunks: the end of the connection is the end of the body.
            framed, self.keep_alive, self.unframed = True, False, True
        if not self.keep_alive and not closes:
            content.append(_CLOSE)
            lines += 1
        if not framed:
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
        elif self.unframed:
            pass
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
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
        # Both hold this cycle: with them, body and all, it would stay until the collector comes.
        self.scope.pop(ON_LEAVE, None)  # type: ignore[misc]
        self.on_response = _nothing

    def _log(self, status: int) -> None:
        method, path = self.scope["method"], get_path_with_query_string(self.scope)
        client, version = get_client_addr(self.scope), self.scope["http_version"]
        self.access_logger.info('%s - "%s %s HTTP/%s" %d', client, method, path, version, status)

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


def _nothing() -> None:
    pass
