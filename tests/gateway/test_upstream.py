"""One upstream over real sockets: each time-out by its name, and answers of every kind of wrong."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.raw_upstream import Connection, Handler, RawUpstream, answering, response, silent
from tests.scripted_teacher import ScriptedTeacher
from tests.serving import ThreadedGateway, make_settings

BODY = json.dumps({"model": "gpt", "messages": [{"role": "user", "content": "hi"}]}).encode()
LARGE = json.dumps({"model": "gpt", "messages": [{"role": "user", "content": "x" * 16_000_000}]}).encode()


def _gateway(folder: Path, url: str, **upstream: Any) -> ThreadedGateway:
    upstreams = {"teacher": {"base_url": url, "breaker_failures": 0, **upstream}}
    return ThreadedGateway(make_settings(folder, {"upstreams": upstreams, "default_upstream": "teacher"}))


def _ask(gateway: ThreadedGateway, body: bytes = BODY, headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.post(f"{gateway.base_url}/chat/completions", content=body, headers=headers, timeout=20)


def _timed_out(answer: httpx.Response, setting: str) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (504, "upstream_timeout", "server_error")
    assert f"({setting})" in error["message"]


@pytest.fixture
def full() -> Iterator[int]:
    """The port of a listener whose backlog is full: a connection to it is never made."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
        for client in waiting:
            client.close()


async def _deaf(upstream: RawUpstream, connection: Connection) -> None:
    """Takes no byte, until the test ends."""
    connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
    upstream.arrived.set()
    await asyncio.sleep(60)


def test_connect_timeout_is_named(tmp_path: Path, full: int) -> None:
    """A full backlog never answers the handshake."""
    with _gateway(tmp_path, f"http://127.0.0.1:{full}/v1", connect_timeout=0.2) as gateway:
        _timed_out(_ask(gateway), "connect_timeout")


def test_read_timeout_is_named(tmp_path: Path) -> None:
    """An upstream that takes the call and stays silent."""
    with RawUpstream(silent) as upstream, _gateway(tmp_path, upstream.url, read_timeout=0.2) as gateway:
        _timed_out(_ask(gateway), "read_timeout")
        upstream.wait_until(0, 1.0)


def test_write_timeout_is_named_for_a_large_body(tmp_path: Path) -> None:
    """An upstream that reads nothing of it, though it would have all the time in the world to answer."""
    with RawUpstream(_deaf) as upstream, _gateway(tmp_path, upstream.url, write_timeout=0.3) as gateway:
        _timed_out(_ask(gateway, LARGE), "write_timeout")


def test_write_timeout_is_named_for_an_upload(tmp_path: Path) -> None:
    """Streamed bodies too; nothing of it is held beyond a bound."""
    with RawUpstream(_deaf) as upstream, _gateway(tmp_path, upstream.url, write_timeout=0.3) as gateway:
        _timed_out(httpx.post(f"{gateway.base_url}/files", content=iter([b"x" * 65_536] * 500)), "write_timeout")


def test_a_slow_upload_is_the_clients_own_time(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """`write_timeout` and `read_timeout` run while the upstream is waited for, not the client."""

    def slowly() -> Iterator[bytes]:
        for _ in range(3):
            time.sleep(0.4)
            yield b"x" * 10

    with _gateway(tmp_path, teacher.url, write_timeout=0.2, read_timeout=0.3) as gateway:
        assert httpx.post(f"{gateway.base_url}/files", content=slowly()).content == b"x" * 30


def test_pool_timeout_is_named(tmp_path: Path) -> None:
    """The only connection is taken by a call that is not answered."""
    settings = {"max_connections": 1, "pool_timeout": 0.2, "read_timeout": 2.0}
    with RawUpstream(silent) as upstream, _gateway(tmp_path, upstream.url, **settings) as gateway:
        first = threading.Thread(target=_ask, args=(gateway,))
        first.start()
        assert upstream.arrived.wait(5)
        _timed_out(_ask(gateway), "pool_timeout")
        assert upstream.accepted == 1
        first.join()


def test_a_connection_is_used_again(tmp_path: Path) -> None:
    """Answers read to their end give their place and their connection back; errors as well."""
    with (
        RawUpstream(answering(response(), response(500), response(404), response())) as upstream,
        _gateway(tmp_path, upstream.url, max_connections=1, pool_timeout=0.5) as gateway,
    ):
        assert [_ask(gateway).status_code for _ in range(5)] == [200, 500, 404, 200, 200]
        assert upstream.accepted == 1


def _exchange(folder: Path, handler: Handler, request: bytes | None = None) -> tuple[bytes, RawUpstream]:
    """What a client is sent until its connection ends, byte for byte, and the upstream that was asked."""
    sent = request or (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
        % (len(BODY), BODY)
    )
    with RawUpstream(handler) as upstream, _gateway(folder, upstream.url) as gateway:
        with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2]))) as connection:
            connection.settimeout(10)
            connection.sendall(sent)
            received = b"".join(iter(lambda: connection.recv(65_536), b""))
        assert httpx.get(f"{gateway.url}/healthz").status_code == 200
        return received, upstream


def _lines(received: bytes) -> list[bytes]:
    return received.partition(b"\r\n\r\n")[0].split(b"\r\n")


def test_an_answers_headers_keep_order_and_duplicates(tmp_path: Path) -> None:
    """Bytes that are no ASCII as well; ours come last and name the upstream."""
    headers = (
        b"X-B: 2\r\nX-A: 1\r\nSet-Cookie: a=1\r\nX-A: 3\r\nSet-Cookie: b=2\r\nRetry-After: 7\r\n"
        b"X-Utf: caf\xc3\xa9\r\nX-Latin: caf\xe9\r\nX-Empty:\r\nX-Tracer-Lane: forged\r\n"
        b"Connection: X-Hop\r\nX-Hop: 1\r\n"
    )
    received, _ = _exchange(tmp_path, answering(response(429, b'{"error":1}', headers)))
    lines = _lines(received)
    assert lines[0].startswith(b"HTTP/1.1 429 ")
    assert lines[1:11] == [
        b"x-b: 2",
        b"x-a: 1",
        b"set-cookie: a=1",
        b"x-a: 3",
        b"set-cookie: b=2",
        b"retry-after: 7",
        b"x-utf: caf\xc3\xa9",
        b"x-latin: caf\xe9",
        b"x-empty: ",
        b"content-length: 11",
    ]
    assert b"x-tracer-upstream: teacher" in lines[11:]
    assert received.endswith(b'\r\n\r\n{"error":1}')
    assert b"forged" not in received
    assert b"x-hop" not in received


def test_a_requests_bytes_arrive_as_they_were_sent(tmp_path: Path) -> None:
    """Unknown fields, spaces, escapes, big numbers, UTF-8 in headers, the query as it was encoded."""
    body = b'{ "model":"gpt",  "messages":[{"role":"user","content":"\\u00e9"}],"x":1e400,"big":123456789012345678901 }'
    request = (
        b"POST /v1/chat/completions?a=%%41&b=+&a=2 HTTP/1.1\r\nHost: localhost\r\nX-Utf: caf\xc3\xa9\r\n"
        b"X-Z: 1\r\nX-A: 2\r\nX-Z: 3\r\nConnection: close\r\nAccept-Encoding: br, zstd\r\nContent-Length: %d\r\n\r\n%b"
    ) % (len(body), body)
    _, upstream = _exchange(tmp_path, answering(response()), request)
    (arrived,) = upstream.requests
    lines = _lines(arrived)
    assert lines[0] == b"POST /v1/chat/completions?a=%41&b=+&a=2 HTTP/1.1"
    assert [line for line in lines[1:] if not line.lower().startswith((b"host", b"content-length"))] == [
        b"x-utf: caf\xc3\xa9",
        b"x-z: 1",
        b"x-a: 2",
        b"x-z: 3",
        b"accept-encoding: br, zstd",
    ]
    assert arrived.endswith(b"\r\n\r\n" + body)


def test_a_compressed_answer_stays_compressed(tmp_path: Path) -> None:
    """Whatever the encoding: nothing is unpacked on the way."""
    packed = bytes(range(256))
    received, _ = _exchange(tmp_path, answering(response(200, packed, b"Content-Encoding: zstd\r\n")))
    assert b"content-encoding: zstd" in _lines(received)
    assert received.endswith(packed)


def test_events_keep_every_byte(tmp_path: Path) -> None:
    """CRLF, comments, split characters, retry lines: no event is read, let alone written anew."""
    pieces = [
        b": ping\r\n\r\n",
        b"retry: 10\r\ndata: caf\xc3",
        b"\xa9\r\n\r\n",
        b"event: x\ndata:  two\n\n\n",
        b"data: [DONE]",
    ]
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    received, _ = _exchange(tmp_path, answering(head + chunked + b"0\r\n\r\n"))
    assert _unchunked(received) == b"".join(pieces)


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_an_answer_without_a_body_ends(tmp_path: Path, method: str) -> None:
    """A 304 may tell the length of what it does not send, and so may any answer to HEAD."""
    raw = b"HTTP/1.1 304 Not Modified\r\nEtag: x\r\nContent-Length: 100\r\n\r\n"
    request = f"{method} /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    received, _ = _exchange(tmp_path, answering(raw), request)
    assert received.startswith(b"HTTP/1.1 304 ")
    assert b"etag: x" in received
    assert received.endswith(b"\r\n\r\n")


def test_interim_answers_are_passed_over(tmp_path: Path) -> None:
    """100 and 103 are for the connection to us."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"
    received, _ = _exchange(tmp_path, answering(interim + response(200, b"whole")))
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.endswith(b"whole")


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"this is not HTTP\r\n\r\n", id="garbage"),
        pytest.param(b"\x16\x03\x01\x00\x05hello", id="tls"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2", id="half a head"),
        pytest.param(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", id="101"),
        pytest.param(b"HTTP/1.1 700 What\r\nContent-Length: 0\r\n\r\n", id="700"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n", id="long header"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", id="two lengths"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: minus\r\n\r\n{}", id="no length"),
    ],
)
def test_what_is_no_answer_is_a_502(tmp_path: Path, raw: bytes) -> None:
    """In OpenAI's shape; the gateway goes on."""
    received, upstream = _exchange(tmp_path, answering(raw, hang_up=True))
    assert received.startswith(b"HTTP/1.1 502 ")
    assert b'"code":"upstream_unreachable"' in received
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", id="fewer bytes than told"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n", id="no last chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\nzz\r\nx", id="bad chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n9\r\nx", id="half a chunk"),
    ],
)
def test_a_broken_body_is_broken_for_the_client(tmp_path: Path, raw: bytes) -> None:
    """What came is passed on, and no end is made up for it."""

    async def handle(_: RawUpstream, connection: Connection) -> None:
        await connection.request()
        first = raw.index(b"short") + 5
        await connection.write(raw[:first])
        await asyncio.sleep(0.1)
        await connection.write(raw[first:])

    received, _ = _exchange(tmp_path, handle)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"short" in received
    if b"chunked" in raw:
        assert not received.endswith(b"0\r\n\r\n")
    else:
        assert b"content-length: 100" in received


def test_bytes_after_the_end_are_nobodys(tmp_path: Path) -> None:
    """More than was told is not taken for the next answer."""
    handler = answering(response(200, b"first") + response(200, b"forged"), response(200, b"second"))
    with RawUpstream(handler) as upstream, _gateway(tmp_path, upstream.url) as gateway:
        assert [_ask(gateway).text for _ in range(2)] == ["first", "second"]


def test_a_length_beside_chunks_has_no_meaning(tmp_path: Path) -> None:
    """Either the chunks are the body, or there is no answer: never a body of the wrong length."""
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n"
    received, _ = _exchange(tmp_path, answering(raw))
    if received.startswith(b"HTTP/1.1 200 "):
        assert b"content-length" not in received
        assert _unchunked(received) == b"whole"
    else:
        assert received.startswith(b"HTTP/1.1 502 ")


def test_an_early_answer_to_an_upload_is_passed_on(tmp_path: Path) -> None:
    """A 413 that comes before the last byte does not wait for it."""

    async def refuse(_: RawUpstream, connection: Connection) -> None:
        await connection.reader.readuntil(b"\r\n\r\n")
        await connection.write(response(413, b"too large"))
        await connection.gone()

    request = b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000
    with RawUpstream(refuse) as upstream, _gateway(tmp_path, upstream.url) as gateway:
        with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2]))) as connection:
            connection.settimeout(5)
            connection.sendall(request)
            assert connection.recv(65_536).startswith(b"HTTP/1.1 413 ")
        upstream.wait_until(0, 1.0)


def test_a_key_of_ours_never_travels(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """Nor does any header of ours; a key of the client's own does where none is configured."""
    headers = {
        "authorization": "Bearer trc_ours",
        "x-api-key": "trc_ours",
        "api-key": "trc_ours",
        "x-tracer-mode": "teacher",
    }
    with _gateway(tmp_path, teacher.url) as gateway:
        _ask(gateway, headers=headers)
        httpx.post(f"{gateway.base_url}/files", content=iter([b"x"]), headers=headers)
        _ask(gateway, headers={"x-api-key": "sk-client"})
    ours, upload, client = teacher.calls
    for call in (ours, upload):
        assert b"trc_" not in repr(call.headers).encode()
        assert not any(name.startswith(b"x-tracer-") for name, _ in call.headers)
    assert client.header("x-api-key") == "sk-client"


def test_a_clients_keys_stay_where_the_upstream_has_its_own(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """In any of the headers providers read keys from, and with whatever else says whose they are."""
    upstreams = {"teacher": {"base_url": teacher.url, "api_key_env": "KEY"}}
    access = {"key_headers": ["x-custom-key"]}
    settings = make_settings(tmp_path, {"upstreams": upstreams, "default_upstream": "teacher", "access": access})
    with ThreadedGateway(settings, {"KEY": "sk-ours"}) as gateway:
        keys = {"authorization": "Bearer sk-client", "x-api-key": "sk-client", "api-key": "sk-client"}
        keys |= {"x-goog-api-key": "sk-client", "x-custom-key": "sk-client", "cookie": "sk-client"}
        _ask(gateway, headers=keys | {"openai-organization": "sk-client", "openai-project": "sk-client", "x-kept": "1"})
    (call,) = teacher.calls
    assert call.header("authorization") == "Bearer sk-ours"
    assert "sk-client" not in repr(call.headers)
    assert call.header("x-kept") == "1"


def _unchunked(received: bytes) -> bytes:
    rest, body = received.partition(b"\r\n\r\n")[2], b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body
