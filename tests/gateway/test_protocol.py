"""The HTTP/1.1 protocol under the gateway, with an application that answers as it is told."""

import contextlib
import gc
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send

from gateway.cycle import Cycle
from gateway.protocol import GuardedProtocol

REQUEST = b"POST /any HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi"


class _App:
    """Sends `messages`, and keeps what sending them raised."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.raised: list[Exception] = []
        self.calls = 0

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        await receive()
        self.calls += 1
        try:
            for message in self.messages:
                await send(message)
        except RuntimeError as error:
            self.raised.append(error)


@pytest.fixture(scope="module")
def app() -> _App:
    """What answers."""
    return _App()


@pytest.fixture(scope="module")
def port(app: _App) -> Iterator[int]:
    """A server's port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http=GuardedProtocol, lifespan="off", log_config=None, ws="none", server_header=False, date_header=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join()


def _start(*headers: tuple[bytes, bytes], status: int = 200, **fields: Any) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers), **fields}


def _body(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


def _ask(port: int, request: bytes = REQUEST, pieces: int | None = None) -> bytes:
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), timeout=5)) as connection:
        connection.sendall(request.replace(b"Host:", b"Connection: close\r\nHost:"))
        received = b""
        while (pieces is None or pieces > 0) and (piece := connection.recv(65_536)):
            received += piece
            pieces = None if pieces is None else pieces - 1
        return received


def test_a_whole_answer_comes_in_one_piece(app: _App, port: int) -> None:
    """Head and body in one packet: a second one costs both sides a system call."""
    app.messages = [_start((b"content-length", b"5"), whole=True), _body(b"hello")]
    received = _ask(port, pieces=1)
    assert received == b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello"


def test_without_a_length_the_body_is_chunked(app: _App, port: int) -> None:
    """And ends with the last chunk."""
    app.messages = [_start(), _body(b"hello", more=True), _body(b"")]
    assert _ask(port).endswith(b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", 200), (b"POST", 204), (b"POST", 304)])
def test_some_answers_have_no_body(app: _App, port: int, method: bytes, status: int) -> None:
    """A length they may have."""
    app.messages = [_start((b"content-length", b"0"), status=status, whole=True), _body(b"")]
    received = _ask(port, REQUEST.replace(b"POST", method))
    assert received.endswith(b"\r\n\r\n")
    assert received.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "header",
    [
        (b"x-name", b"a\r\nx-other: b"),
        (b"x-name", b"a\nx-other: b"),
        (b"x-name", b"a\r"),
        (b"x-name", b"\x00"),
        (b"x\r\n-name", b"a"),
    ],
)
def test_a_header_that_would_be_two_is_not_sent(app: _App, port: int, header: tuple[bytes, bytes]) -> None:
    """Nobody else's header, and nobody else's answer, can be put into ours."""
    app.raised.clear()
    app.messages = [_start((b"content-length", b"0"), header), _body(b"")]
    received = _ask(port)
    assert b"x-other" not in received
    assert len(app.raised) == 1


@pytest.mark.parametrize("body", [b"hell", b"hello!"])
def test_a_body_of_another_length_is_an_error(app: _App, port: int, body: bytes) -> None:
    """The client sees an answer that was cut, not one that runs into the next."""
    app.raised.clear()
    app.messages = [_start((b"content-length", b"5")), _body(body)]
    assert b"hello!" not in _ask(port)
    assert len(app.raised) == 1


def test_messages_out_of_order_are_errors(app: _App, port: int) -> None:
    """A body first, or an answer after the end."""
    for messages in ([_body(b"x")], [_start((b"content-length", b"0")), _body(b""), _body(b"x")]):
        app.raised.clear()
        app.messages = messages
        _ask(port)
        assert len(app.raised) == 1


def test_requests_on_one_connection_are_answered_one_by_one(app: _App, port: int) -> None:
    """A hundred of them, sent at once."""
    app.messages = [_start((b"content-length", b"5"), whole=True), _body(b"hello")]
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), timeout=5)) as connection:
        connection.sendall(REQUEST * 99 + REQUEST.replace(b"Host:", b"Connection: close\r\nHost:"))
        received = b""
        while piece := connection.recv(65_536):
            received += piece
    assert received.count(b"hello") == 100


def test_without_a_length_an_old_clients_answer_ends_with_its_connection(app: _App, port: int) -> None:
    """HTTP/1.0 knows no chunks."""
    app.messages = [_start(), _body(b"hel", more=True), _body(b"lo")]
    received = _ask(
        port, REQUEST.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"Host:", b"Connection: keep-alive\r\nHost:")
    )
    assert received.endswith(b"\r\n\r\nhello")
    assert b"transfer-encoding" not in received


def test_a_client_that_asks_and_never_reads_is_not_read_from(app: _App, port: int) -> None:
    """However many requests it sends: what it does not take is not made for it."""
    app.messages = [_start((b"content-length", b"100000"), whole=True), _body(b"x" * 100_000)]
    taken = app.calls
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), timeout=1)) as connection:
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 50_000_000:
                sent += connection.send(REQUEST * 1_000)
    assert sent < 20_000_000
    assert app.calls - taken < 1_000


def test_a_body_is_let_go_with_its_answer(port: int) -> None:
    """A connection that stays open behind it costs what one costs that has sent nothing."""
    with contextlib.ExitStack() as stack:
        body = b"x" * 50_000
        request = b"POST /any HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        for _ in range(20):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            connection.sendall(request)
            assert connection.recv(65_536)
        held = [cycle for cycle in gc.get_objects() if isinstance(cycle, Cycle) and len(cycle.body) > 1_000]
        assert held == []


def test_a_closed_connection_leaves_nothing_for_the_collector(port: int) -> None:
    """Neither it nor its requests."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(50):
            _ask(port)
        time.sleep(0.2)
        left = [each for each in gc.get_objects() if isinstance(each, GuardedProtocol)]
        assert len(left) < 5
    finally:
        gc.enable()
