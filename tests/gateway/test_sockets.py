"""Raw bytes at the socket: what is no proper request is refused, what does not arrive is not waited for."""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.protocol import HEAD_BYTES
from tests.scripted_teacher import ScriptedTeacher
from tests.serving import ThreadedGateway, make_settings

BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
UPLOAD = b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\n"
HIDDEN = b"GET /v1/hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQBAAAAAAIAAAAA\r\n"


def _length(size: int) -> bytes:
    return b"Content-Length: %d\r\n" % size


def _chunks(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


@pytest.fixture
def gateway(tmp_path: Path, teacher: ScriptedTeacher) -> Iterator[ThreadedGateway]:
    """A gateway that forwards everything, with little patience."""
    server = {"request_timeout": 0.5, "keep_alive_timeout": 1, "max_body_bytes": 100_000}
    with ThreadedGateway(make_settings(tmp_path, {"server": server}, teacher.url)) as running:
        yield running


def _connect(gateway: ThreadedGateway) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2])))
    connection.settimeout(8)
    return connection


def _read(connection: socket.socket, until: Callable[[bytes], bool] = lambda _: False) -> bytes:
    """What comes until the connection ends or there is enough; raises TimeoutError where neither happens."""
    received = b""
    while not until(received):
        try:
            piece = connection.recv(65536)
        except ConnectionError:
            break
        if not piece:
            break
        received += piece
    return received


def _exchange(gateway: ThreadedGateway, request: bytes) -> bytes:
    with _connect(gateway) as connection:
        connection.sendall(request)
        return _read(connection)


def _statuses(received: bytes) -> list[int]:
    return [int(answer[:3]) for answer in received.split(b"HTTP/1.1 ")[1:]]


SMUGGLING = {
    "two lengths": CHAT + _length(len(BODY)) + _length(5) + b"\r\n" + BODY + HIDDEN,
    "one length twice": CHAT + _length(len(BODY)) + _length(len(BODY)) + b"\r\n" + BODY + HIDDEN,
    "a list of lengths": CHAT + b"Content-Length: 5, 5\r\n\r\n" + BODY + HIDDEN,
    "a signed length": CHAT + b"Content-Length: +5\r\n\r\n" + BODY + HIDDEN,
    "a hexadecimal length": CHAT + b"Content-Length: 0x5\r\n\r\n" + BODY + HIDDEN,
    "a negative length": CHAT + b"Content-Length: -5\r\n\r\n" + BODY + HIDDEN,
    "a length beyond 64 bits": CHAT + b"Content-Length: 99999999999999999999999\r\n\r\n" + BODY + HIDDEN,
    "length, then chunks": CHAT + _length(5) + CHUNKED + b"\r\n0\r\n\r\n" + HIDDEN,
    "chunks, then length": CHAT + CHUNKED + _length(5) + b"\r\n0\r\n\r\n" + HIDDEN,
    "an unknown coding": CHAT + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "chunked is not last": CHAT + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + HIDDEN,
    "two codings": CHAT + CHUNKED + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a space before the colon": CHAT + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a tab in the coding": CHAT + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a chunk of no size": CHAT + CHUNKED + b"\r\nzz\r\nabc\r\n0\r\n\r\n" + HIDDEN,
    "a chunk of negative size": CHAT + CHUNKED + b"\r\n-1\r\nabc\r\n0\r\n\r\n" + HIDDEN,
    "a chunk beyond 64 bits": CHAT + CHUNKED + b"\r\nffffffffffffffffff\r\nabc\r\n0\r\n\r\n" + HIDDEN,
    "a chunk longer than it says": CHAT + CHUNKED + b"\r\n3\r\nabcd\r\n0\r\n\r\n" + HIDDEN,
    "chunks that end lines with LF": CHAT + CHUNKED + b"\r\n3\nabc\n0\n\n" + HIDDEN,
    "a bad chunk of an upload": UPLOAD + CHUNKED + b"\r\n3\r\nabc\r\nzz\r\n" + HIDDEN,
    "a folded header": CHAT + b"X-A: b\r\n c\r\n" + _length(len(BODY)) + b"\r\n" + BODY + HIDDEN,
    "a folded coding": CHAT + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "NUL in a value": CHAT + b"X-A: b\0c\r\n" + _length(len(BODY)) + b"\r\n" + BODY + HIDDEN,
    "NUL in a name": CHAT + b"X\0A: b\r\n" + _length(len(BODY)) + b"\r\n" + BODY + HIDDEN,
    "CR in a value": CHAT + b"X-A: b\rc\r\n" + _length(len(BODY)) + b"\r\n" + BODY + HIDDEN,
    "lines end with LF": CHAT.replace(b"\r\n", b"\n") + b"Content-Length: %d\n\n" % len(BODY) + BODY + HIDDEN,
    "CONNECT": b"CONNECT hidden:443 HTTP/1.1\r\nHost: localhost\r\n\r\n" + HIDDEN,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + HIDDEN,
    "bytes above ASCII in a path": b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n" + HIDDEN,
}


@pytest.mark.parametrize("request_bytes", SMUGGLING.values(), ids=SMUGGLING.keys())
def test_what_two_parsers_could_read_differently_is_refused(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, request_bytes: bytes
) -> None:
    """One 400 in OpenAI's shape, the connection ends, and nothing that was hidden behind it is answered."""
    received = _exchange(gateway, request_bytes)
    assert _statuses(received) == [400]
    assert b'"code":"invalid_http"' in received
    assert b"connection: close" in received
    assert not [call for call in teacher.calls if b"hidden" in call.path.encode() or call.path.endswith("completions")]


@pytest.mark.parametrize(
    "request_bytes",
    [
        CHAT + b"X-A: " + b"b" * 100_000 + b"\r\n" + _length(len(BODY)) + b"\r\n" + BODY,
        CHAT + b"X-A: b\r\n" * 20_000 + _length(len(BODY)) + b"\r\n" + BODY,
        b"GET /v1/" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        CHAT + b"X-A: " + b"b" * 3_000_000,
        UPLOAD + CHUNKED + b"\r\n3;" + b"a" * 3_000_000 + b"\r\nabc\r\n0\r\n\r\n",
        UPLOAD + CHUNKED + b"\r\n3\r\nabc\r\n0\r\nX-A: " + b"b" * 3_000_000,
    ],
    ids=["value", "many", "path", "endless value", "endless chunk extension", "endless trailer"],
)
def test_a_head_has_a_size(gateway: ThreadedGateway, request_bytes: bytes) -> None:
    """Nothing grows without end. A client that is still sending may see a reset instead of the 431."""
    with _connect(gateway) as connection:
        try:
            connection.sendall(request_bytes)
        except ConnectionError:
            return
        assert _statuses(_read(connection)) in ([431], [])


def test_a_large_head_within_the_limit_is_served(gateway: ThreadedGateway, teacher: ScriptedTeacher) -> None:
    """However the bytes are cut, and however much body comes with it."""
    head = UPLOAD + b"X-A: " + b"b" * 60_000 + b"\r\n" + _length(90_000) + b"\r\n"
    for cut in (0, 10, 40_000, len(head), len(head) + 50_000):
        with _connect(gateway) as connection:
            request = head + bytes(90_000)
            connection.sendall(request[:cut])
            time.sleep(0.05)
            connection.sendall(request[cut:])
            assert _statuses(_read(connection, lambda got: b"\r\n\r\n" in got)) == [200]
    assert [len(call.body) for call in teacher.calls] == [90_000] * 5
    assert len(head) < HEAD_BYTES


def test_a_body_in_tiny_chunks_is_read(gateway: ThreadedGateway, teacher: ScriptedTeacher) -> None:
    """A byte a chunk is slow, not wrong."""
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY.ljust(30_000))
    assert _statuses(_exchange(gateway, CHAT + CHUNKED + b"\r\n" + chunks + b"0\r\n\r\n")) == [200]
    assert len(teacher.calls[0].body) == 30_000


@pytest.mark.parametrize("framing", ["declared", "chunked"])
def test_a_body_over_the_limit_is_a_413(gateway: ThreadedGateway, teacher: ScriptedTeacher, framing: str) -> None:
    """Told by its length at once, or found while it comes; what follows it on the connection is a request again."""
    large = bytes(150_000)
    request = _length(len(large)) + b"\r\n" + large if framing == "declared" else CHUNKED + b"\r\n" + _chunks(large)
    with _connect(gateway) as connection:
        connection.sendall(CHAT + request + HEALTH)
        received = _read(connection, lambda got: b'"ok"' in got)
    assert _statuses(received) == [413, 200]
    assert teacher.calls == []


def test_trailers_are_no_headers(gateway: ThreadedGateway, teacher: ScriptedTeacher) -> None:
    """What comes after a body cannot name a project or a key."""
    trailers = b"Authorization: Bearer late\r\nX-Tracer-Project: nobody\r\nX-Late: 1\r\n"
    request = CHAT + CHUNKED + b"\r\n" + _chunks(BODY)[:-2] + trailers + b"\r\n"
    assert _statuses(_exchange(gateway, request)) == [200]
    assert not {b"authorization", b"x-late", b"x-tracer-project"} & {name for name, _ in teacher.calls[0].headers}


@pytest.mark.parametrize("framing", ["declared", "chunked"])
def test_an_offer_of_another_protocol_is_declined(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, framing: str
) -> None:
    """Java's HttpClient offers h2c with a body; the call is answered in HTTP/1.1, and so is the next one."""
    request = _length(len(BODY)) + b"\r\n" + BODY if framing == "declared" else CHUNKED + b"\r\n" + _chunks(BODY)
    for cut in (0, 60, len(CHAT + UPGRADE) + 40):
        with _connect(gateway) as connection:
            whole = CHAT + UPGRADE + request + HEALTH
            connection.sendall(whole[:cut])
            time.sleep(0.05)
            connection.sendall(whole[cut:])
            assert _statuses(_read(connection, lambda got: b'"ok"' in got)) == [200, 200]
    assert [call.body for call in teacher.calls] == [BODY] * 3


def test_many_offers_at_once_are_declined_one_by_one(gateway: ThreadedGateway) -> None:
    """However many come in one piece."""
    with _connect(gateway) as connection:
        connection.sendall(HEALTH.replace(b"\r\n\r\n", b"\r\n" + UPGRADE + b"\r\n") * 1_500)
        assert _statuses(_read(connection, lambda got: got.count(b'"ok"') == 1_500)) == [200] * 1_500


def test_pipelined_calls_are_answered_in_order(gateway: ThreadedGateway, teacher: ScriptedTeacher) -> None:
    """Each with its own answer."""
    with _connect(gateway) as connection:
        connection.sendall((CHAT + _length(len(BODY)) + b"\r\n" + BODY + HEALTH) * 3)
        received = _read(connection, lambda got: got.count(b'"ok"') == 3)
    assert _statuses(received) == [200] * 6
    assert len(teacher.calls) == 3


# Time.


STALLED = {
    "nothing": (b"", []),
    "half a head": (CHAT, [408]),
    "half a header": (CHAT + b"Content-Len", [408]),
    "no body": (CHAT + _length(10) + b"\r\n", [408]),
    "half a body": (CHAT + _length(10) + b"\r\n{", [408]),
    "half a chunk": (CHAT + CHUNKED + b"\r\n5\r\nab", [408]),
    "half an upload": (UPLOAD + _length(10) + b"\r\nab", [408]),
    "no trailers": (CHAT + CHUNKED + b"\r\n2\r\n{}\r\n0\r\n", [408]),
    "half a body after its refusal": (CHAT + _length(900_000) + b"\r\n{", [413]),
    "half a second head": (HEALTH + CHAT, [200, 408]),
    "empty lines": (b"\r\n\r\n", []),
    "empty lines after an answer": (HEALTH + b"\r\n\r\n", [200]),
}


@pytest.mark.parametrize(("request_bytes", "statuses"), STALLED.values(), ids=STALLED.keys())
def test_a_client_that_stops_sending_is_not_waited_for(
    gateway: ThreadedGateway, request_bytes: bytes, statuses: list[int]
) -> None:
    """A 408 where something had begun, and the connection ends within its time."""
    started = time.monotonic()
    received = _exchange(gateway, request_bytes)
    assert _statuses(received) == statuses
    assert time.monotonic() - started < 4
    if 408 in statuses:
        assert b'"code":"request_timeout"' in received


@pytest.mark.parametrize("request_bytes", [CHAT + b"X-A: ", CHAT + _length(99_000) + b"\r\n", b"\r\n"])
def test_a_client_that_drips_is_not_waited_for(gateway: ThreadedGateway, request_bytes: bytes) -> None:
    """A byte now and then does not buy more time for a head, or for a body that is read whole."""
    started = time.monotonic()
    with _connect(gateway) as connection:
        connection.sendall(request_bytes)
        connection.settimeout(0.1)
        received = b""
        while time.monotonic() - started < 6:
            try:
                piece = connection.recv(65536)
                if not piece:
                    break
                received += piece
            except TimeoutError:
                pass
            except ConnectionError:
                break
            try:
                connection.sendall(request_bytes[-1:] if request_bytes == b"\r\n" else b"1")
            except ConnectionError:
                break
    assert time.monotonic() - started < 4
    assert _statuses(received) in ([408], [])


def test_a_first_head_has_no_longer_than_any_other(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """`keep_alive_timeout` is for connections on which nothing has begun."""
    server = {"request_timeout": 0.5, "keep_alive_timeout": 60}
    with ThreadedGateway(make_settings(tmp_path, {"server": server}, teacher.url)) as gateway:
        started = time.monotonic()
        assert _statuses(_exchange(gateway, CHAT + b"X-A: ")) == [408]
        assert time.monotonic() - started < 4


def test_a_slow_upload_goes_on_as_long_as_bytes_come(gateway: ThreadedGateway, teacher: ScriptedTeacher) -> None:
    """Of a relayed body only the pauses are bounded."""
    with _connect(gateway) as connection:
        connection.sendall(UPLOAD + _length(8) + b"\r\n")
        for _ in range(8):
            time.sleep(0.2)
            connection.sendall(b"a")
        assert _statuses(_read(connection, lambda got: got.endswith(b"a" * 8))) == [200]
    assert teacher.calls[0].body == b"a" * 8


def test_a_slow_answer_is_not_cut_by_what_the_client_sends_next(
    gateway: ThreadedGateway, teacher: ScriptedTeacher
) -> None:
    """Half of the next head arrives while the answer streams; the answer comes whole."""
    teacher.script = "slow_stream"
    stream = BODY.replace(b'"m"', b'"m","stream":true')
    with _connect(gateway) as connection:
        connection.sendall(CHAT + _length(len(stream)) + b"\r\n" + stream + b"GET /heal")
        assert teacher.arrived.wait(5)
        time.sleep(1.2)
        teacher.released.set()
        received = _read(connection, lambda got: b"[DONE]" in got)
    assert _statuses(received) == [200]
    assert received.count(b"[DONE]") == 1


def test_a_slow_upstream_is_no_fault_of_the_client(gateway: ThreadedGateway, teacher: ScriptedTeacher) -> None:
    """A call may take longer than its request may take to arrive."""
    teacher.latency = 1.2
    with _connect(gateway) as connection:
        connection.sendall(CHAT + _length(len(BODY)) + b"\r\n" + BODY)
        assert _statuses(_read(connection, lambda got: b"completion" in got)) == [200]


def test_many_stalled_clients_leave_nothing_behind(gateway: ThreadedGateway) -> None:
    """Three hundred half heads: all are gone after their time, and the gateway serves all along."""
    connections = [_connect(gateway) for _ in range(300)]
    for connection in connections:
        connection.sendall(CHAT)
    assert _statuses(_exchange(gateway, HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))) == [200]
    started = time.monotonic()
    for connection in connections:
        assert _statuses(_read(connection)) == [408]
        connection.close()
    assert time.monotonic() - started < 4
