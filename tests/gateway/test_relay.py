"""Forwarding through real sockets: nothing changes on the way, and every end is told truthfully."""

import asyncio
import contextlib
import json
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from gateway import errors
from gateway.headers import end_to_end
from gateway.upstream import translate
from policies.store import Store
from tests.scripted_teacher import ScriptedTeacher
from tests.serving import ThreadedGateway, make_settings

BODY = json.dumps({"model": "tracer/new", "messages": [{"role": "user", "content": "hi"}]}).encode()
STREAM = json.dumps({"model": "tracer/new", "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()


def _settings(folder: Path, upstream: dict[str, Any]) -> Any:
    projects = {"new": {"policy": str(folder / "absent"), "teacher": "gpt"}}
    tree = {"projects": projects, "upstreams": {"teacher": upstream}, "default_upstream": "teacher"}
    return make_settings(folder, tree)


@pytest.fixture
def gateway(tmp_path: Path, teacher: ScriptedTeacher) -> Iterator[ThreadedGateway]:
    """An observing project before a scripted teacher."""
    with ThreadedGateway(_settings(tmp_path, {"base_url": teacher.url, "read_timeout": 5.0})) as running:
        yield running


def _traces(gateway: ThreadedGateway) -> int:
    gateway.stop()
    store = Store.open(gateway.services.settings.store.url)
    try:
        return store.count()
    finally:
        store.close()


def _ask(gateway: ThreadedGateway, body: bytes = BODY, script: str = "answer") -> httpx.Response:
    headers = {"x-script": script, "authorization": "Bearer sk-client"}
    return httpx.post(f"{gateway.base_url}/chat/completions", content=body, headers=headers)


class _ClosingUpstream:
    """Answers the first `served` calls of each connection, then hangs up on the next one's first byte without reading.

    With `holds` it reads that call, keeps it for so many seconds, and hangs up without a word.
    """

    def __init__(self, served: int, holds: float | None = None) -> None:
        self.connections = self.read = 0
        self._served, self._holds = served, holds
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            for _ in range(self._served):
                self._read(connection)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            select.select([connection], [], [], 10)
            if self._holds is not None and self._read(connection):
                threading.Event().wait(self._holds)

    def _read(self, connection: socket.socket) -> bool:
        received = b""
        while not received.endswith(BODY.replace(b"tracer/new", b"gpt")):
            piece = connection.recv(65_536)
            if not piece:
                return False
            received += piece
        self.read += 1
        return True

    def close(self) -> None:
        self._socket.close()


@pytest.mark.parametrize(("served", "statuses"), [(1, [200, 200, 200]), (0, [502, 502, 502])])
def test_a_connection_closed_while_idle_is_replaced_unseen(tmp_path: Path, served: int, statuses: list[int]) -> None:
    """A call on a kept-alive connection that turns out closed goes out again; on a fresh one the failure is told."""
    upstream = _ClosingUpstream(served)
    try:
        with ThreadedGateway(_settings(tmp_path, {"base_url": upstream.url})) as gateway:
            assert [_ask(gateway).status_code for _ in statuses] == statuses
    finally:
        upstream.close()
    assert (upstream.connections, upstream.read) == (3, 3 * served)


def test_a_call_that_was_worked_on_is_not_sent_again(tmp_path: Path) -> None:
    """An upstream that takes a call and hangs up later may have done the work: the client is told, once."""
    upstream = _ClosingUpstream(1, holds=0.3)
    try:
        with ThreadedGateway(_settings(tmp_path, {"base_url": upstream.url})) as gateway:
            assert _ask(gateway).status_code == 200
            assert _ask(gateway).status_code == 502
    finally:
        upstream.close()
    assert (upstream.connections, upstream.read) == (1, 2)


def _upstream_errors(gateway: ThreadedGateway, kind: str) -> float:
    return gateway.metric("tracer_upstream_errors_total", upstream="teacher", kind=kind)


def test_headers_travel_but_for_hop_by_hop_and_ours(gateway: ThreadedGateway, teacher: ScriptedTeacher) -> None:
    """In their order, repeated ones too; the HTTP client adds none of its own."""
    lines = [
        b"POST /v1/chat/completions HTTP/1.1",
        b"Host: localhost:8000",
        b"Authorization: Bearer sk-client",
        b"OpenAI-Organization: org",
        b"X-Twice: 1",
        b"X-Twice: 2",
        b"X-Hop: gone",
        b"Connection: keep-alive, X-Hop",
        b"Proxy-Authorization: Basic gone",
        b"TE: trailers",
        b"x-tracer-project: new",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(BODY),
    ]
    with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2]))) as connection:
        connection.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + BODY)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
    sent = [(name, value) for name, value in teacher.calls[0].headers if name not in (b"host", b"content-length")]
    assert sent == [
        (b"authorization", b"Bearer sk-client"),
        (b"openai-organization", b"org"),
        (b"x-twice", b"1"),
        (b"x-twice", b"2"),
        (b"content-type", b"application/json"),
    ]
    assert teacher.calls[0].header("host") == f"127.0.0.1:{teacher.port}"


def test_an_upstreams_own_key_replaces_the_clients(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """With `api_key_env` the client's key goes no further."""
    settings = _settings(tmp_path, {"base_url": teacher.url, "api_key_env": "KEY"})
    with ThreadedGateway(settings, {"KEY": "sk-ours"}) as gateway:
        _ask(gateway)
        httpx.get(f"{gateway.base_url}/models", headers={"authorization": "Bearer sk-client"})
    given = [[value for name, value in call.headers if name == b"authorization"] for call in teacher.calls]
    assert given == [[b"Bearer sk-ours"]] * 2


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
def test_any_other_path_is_relayed_with_any_method(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, method: str
) -> None:
    """Path encoding, query, binary body, status and headers stay as they are."""
    content = None if method in {"GET", "HEAD", "OPTIONS"} else bytes(range(256)) * 1000
    url = f"{gateway.base_url}/files/a%2Fb%20c/content?after=x%26y&b=%C3%A9"
    answer = httpx.request(method, url, content=content, headers={"content-type": "application/x-tar"})
    assert answer.status_code == 200
    assert answer.headers["x-echo-method"] == method
    assert answer.headers["content-type"] == "application/x-tar"
    assert answer.headers["x-tracer-lane"] == "teacher"
    (call,) = teacher.calls
    assert (call.method, call.path, call.query) == (method, "/v1/files/a%2Fb%20c/content", b"after=x%26y&b=%C3%A9")
    assert call.body == (content or b"")
    assert answer.content == (b"" if method == "HEAD" else content or call.path.encode())


def test_a_multipart_upload_without_a_length_is_streamed(gateway: ThreadedGateway, teacher: ScriptedTeacher) -> None:
    """Chunked in, chunked out, byte for byte, above the limit for chat bodies too."""
    pieces = [b"x" * 65_536] * 40
    answer = httpx.post(
        f"{gateway.base_url}/files", content=iter(pieces), headers={"content-type": "multipart/form-data"}
    )
    assert answer.content == b"".join(pieces)
    assert teacher.calls[0].header("transfer-encoding") == "chunked"


def test_a_list_of_stored_chats_is_relayed(gateway: ThreadedGateway, teacher: ScriptedTeacher) -> None:
    """Only a POST to the chat path is a call to decide on."""
    teacher.script = "html"
    assert (
        httpx.get(f"{gateway.base_url}/chat/completions?limit=1").text
        == "<html><body>Welcome to the proxy</body></html>"
    )
    assert teacher.calls[0].method == "GET"


@pytest.mark.parametrize("path", ["/v1/../admin", "/v1/%2e%2e/admin", "/v1/files/../../x"])
def test_a_path_cannot_leave_the_upstreams_base(gateway: ThreadedGateway, teacher: ScriptedTeacher, path: str) -> None:
    """Our key opens what is below the base URL, nothing beside it."""
    with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2]))) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 404")
    assert teacher.calls == []


@pytest.mark.parametrize(
    ("script", "status", "text"),
    [
        ("rate_limited", 429, "rate_limit_exceeded"),
        ("error", 500, "boom"),
        ("html", 200, "<html>"),
        ("redirect", 307, ""),
    ],
)
def test_the_upstreams_own_answer_is_passed_on(gateway: ThreadedGateway, script: str, status: int, text: str) -> None:
    """Status, headers and body, whatever they are."""
    answer = _ask(gateway, script=script)
    assert answer.status_code == status
    assert text in answer.text
    if script == "rate_limited":
        assert (answer.headers["retry-after"], answer.headers["x-ratelimit-remaining-requests"]) == ("7", "0")
    if script == "redirect":
        assert answer.headers["location"] == "https://elsewhere.example/v1"
    assert answer.headers["x-tracer-reason"] == "no_policy"
    assert _upstream_errors(gateway, f"status_{status // 100}xx") == (status >= 400)
    assert _traces(gateway) == 0


def test_a_refused_connection_is_a_502(tmp_path: Path) -> None:
    """In OpenAI's shape, with our headers; the gateway goes on."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with ThreadedGateway(_settings(tmp_path, {"base_url": f"http://127.0.0.1:{port}/v1"})) as gateway:
        answer = _ask(gateway)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_unreachable")
        assert answer.headers["x-tracer-project"] == "new"
        assert _upstream_errors(gateway, "unreachable") == 1
        assert httpx.get(f"{gateway.base_url}/models").status_code == 502
        assert _traces(gateway) == 0


def test_an_upstream_that_hangs_up_without_an_answer_is_a_502(gateway: ThreadedGateway) -> None:
    """Nothing was sent, so a whole error can be."""
    answer = _ask(gateway, script="hang_up")
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_unreachable")
    assert _traces(gateway) == 0


def test_an_upstream_that_is_too_slow_is_a_504(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """`read_timeout` bounds the wait for an answer, and the upstream's connection is closed."""
    with ThreadedGateway(_settings(tmp_path, {"base_url": teacher.url, "read_timeout": 0.2})) as gateway:
        answer = _ask(gateway, script="hang")
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "upstream_timeout")
        assert _upstream_errors(gateway, "timeout") == 1
        assert teacher.disconnected.wait(5)
        assert _traces(gateway) == 0


def test_a_connection_that_cannot_be_made_in_time_is_a_504(tmp_path: Path) -> None:
    """`connect_timeout` bounds the handshake; a full backlog never answers it."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(address)
        upstream = {"base_url": f"http://127.0.0.1:{address[1]}/v1", "connect_timeout": 0.2}
        with ThreadedGateway(_settings(tmp_path, upstream)) as gateway:
            assert _ask(gateway).status_code == 504
        for client in waiting:
            client.close()


def _receive(gateway: ThreadedGateway, body: bytes, script: str, received: list[bytes]) -> None:
    url = f"{gateway.base_url}/chat/completions"
    with httpx.stream("POST", url, content=body, headers={"x-script": script}) as answer:
        assert answer.status_code == 200
        for piece in answer.iter_raw():
            received.append(piece)  # what came before the break is kept


@pytest.mark.parametrize(("script", "body"), [("cut_stream", STREAM), ("cut_after_done", STREAM), ("cut_body", BODY)])
def test_an_answer_that_breaks_off_breaks_off_for_the_client(
    gateway: ThreadedGateway, script: str, body: bytes
) -> None:
    """No end is invented, and half an answer is no trace."""
    received: list[bytes] = []
    with pytest.raises(httpx.RemoteProtocolError):
        _receive(gateway, body, script, received)
    assert received
    assert b"".join(received).count(b"[DONE]") == (script == "cut_after_done")
    assert _upstream_errors(gateway, "broken") == 1
    assert httpx.get(f"{gateway.url}/healthz").status_code == 200
    assert _traces(gateway) == 0


def test_an_answer_that_stalls_breaks_off(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """`read_timeout` holds between two pieces too."""
    with ThreadedGateway(_settings(tmp_path, {"base_url": teacher.url, "read_timeout": 0.2})) as gateway:
        with pytest.raises(httpx.RemoteProtocolError):
            _ask(gateway, STREAM, script="slow_stream")
        assert teacher.disconnected.wait(5)


def test_events_arrive_as_they_are_sent(gateway: ThreadedGateway, teacher: ScriptedTeacher) -> None:
    """The first one is there while the teacher still thinks about the second."""
    with httpx.stream(
        "POST", f"{gateway.base_url}/chat/completions", content=STREAM, headers={"x-script": "slow_stream"}
    ) as answer:
        pieces = answer.iter_raw()
        assert next(pieces).startswith(b'data: {"id":"chatcmpl-scripted"')
        teacher.released.set()
        assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
    assert _traces(gateway) == 1


@pytest.mark.parametrize("script", ["hang", "slow_stream"])
def test_a_client_that_leaves_closes_the_upstream_call(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, script: str
) -> None:
    """Before the first byte and in the middle of a stream."""
    request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nx-script: %b\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2]))) as connection:
        connection.sendall(request % (script.encode(), len(STREAM)) + STREAM)
        assert teacher.arrived.wait(5)
        if script == "slow_stream":
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    assert teacher.disconnected.wait(5)
    gateway.stop()
    assert gateway.metric("tracer_disconnects_total") == 1
    assert _traces(gateway) == 0


def test_a_complete_answer_is_learned_though_the_client_has_left(
    gateway: ThreadedGateway, teacher: ScriptedTeacher
) -> None:
    """The teacher has been asked and has answered; who read it does not matter."""
    request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(STREAM)
    with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2]))) as connection:
        connection.sendall(request + STREAM)
        assert connection.recv(1) == b"H"
        # What is left unread makes closing a reset.
    assert len(teacher.calls) == 1
    assert _traces(gateway) == 1


def test_encodings_are_narrowed_only_where_there_is_something_to_learn(
    gateway: ThreadedGateway, teacher: ScriptedTeacher
) -> None:
    """A project's call asks for what can be read; any other call is left alone."""
    headers = {"accept-encoding": "gzip, br"}
    httpx.post(f"{gateway.base_url}/chat/completions", content=BODY, headers=headers)
    httpx.post(f"{gateway.base_url}/chat/completions", content=BODY.replace(b"tracer/new", b"gpt"), headers=headers)
    httpx.get(f"{gateway.base_url}/models", headers=headers)
    assert [call.header("accept-encoding") for call in teacher.calls] == ["gzip", "gzip, br", "gzip, br"]


def test_a_client_that_leaves_during_an_upload_is_counted(gateway: ThreadedGateway) -> None:
    """Nothing waits for the rest of the file."""
    with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2]))) as connection:
        connection.sendall(b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n" + b"x" * 10)
    gateway.stop()
    assert gateway.metric("tracer_disconnects_total") == 1


def test_a_pool_serves_more_calls_than_it_has_connections(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """`max_connections` makes calls wait their turn, and all are answered."""
    teacher.latency = 0.02

    async def ask_all(url: str) -> list[int]:
        async with aiohttp.ClientSession() as session:

            async def ask() -> int:
                async with session.post(f"{url}/chat/completions", data=BODY) as answer:
                    await answer.read()
                    return answer.status

            return await asyncio.gather(*(ask() for _ in range(20)))

    with ThreadedGateway(_settings(tmp_path, {"base_url": teacher.url, "max_connections": 2})) as gateway:
        assert asyncio.run(ask_all(gateway.base_url)) == [200] * 20
    assert teacher.most_at_once == 2


def test_the_wait_for_a_free_connection_is_bounded(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """By `pool_timeout`, which the error names."""
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nx-script: hang\r\nContent-Length: %d\r\n\r\n"
        % len(BODY)
    )
    upstream = {"base_url": teacher.url, "max_connections": 1, "pool_timeout": 0.2}
    with ThreadedGateway(_settings(tmp_path, upstream)) as gateway, socket.socket() as connection:
        connection.connect(("127.0.0.1", int(gateway.url.rpartition(":")[2])))
        connection.sendall(request + BODY)
        assert teacher.arrived.wait(5)
        answer = _ask(gateway)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "upstream_timeout")
        assert len(teacher.calls) == 1


def test_a_bare_host_means_its_v1(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """`http://host` and `http://host/v1` are the same upstream; another path is kept."""
    for suffix, seen in [("", "/v1/models"), ("/v1/", "/v1/models"), ("/api/v3", "/api/v3/models")]:
        with ThreadedGateway(_settings(tmp_path, {"base_url": f"http://127.0.0.1:{teacher.port}{suffix}"})) as gateway:
            httpx.get(f"{gateway.base_url}/models")
        assert teacher.calls[-1].path == seen


def test_what_ends_at_each_connection_does_not_travel() -> None:
    """Hop-by-hop headers, those Connection names, and ours."""
    given = [
        (b"connection", b"close, X-Own"),
        (b"x-own", b"1"),
        (b"upgrade", b"h2c"),
        (b"x-tracer-lane", b"a"),
        (b"a", b"b"),
    ]
    assert end_to_end(given) == [(b"a", b"b")]


def test_every_error_of_the_http_client_is_mapped() -> None:
    """A new class of its tree would be an error of ours in its own shape."""
    kinds = [
        kind for kind in vars(aiohttp).values() if isinstance(kind, type) and issubclass(kind, aiohttp.ClientError)
    ]
    assert len(kinds) > 10
    for kind in kinds:
        mapped = translate(kind.__new__(kind), "teacher")
        expected = errors.UpstreamTimeout if issubclass(kind, TimeoutError) else errors.UpstreamUnreachable
        assert type(mapped) is expected
        assert mapped.status in {502, 504}


@pytest.mark.parametrize("path", ["/v1%2fmodels", "/v1%2Fmodels/m", "/v1%2f"])
def test_an_encoded_slash_is_no_path_of_the_api(gateway: ThreadedGateway, teacher: ScriptedTeacher, path: str) -> None:
    """It is part of a name, so there is no /v1/ to cut off: a 404 in OpenAI's shape."""
    with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2]))) as connection:
        connection.settimeout(5)
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        received = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert received.startswith(b"HTTP/1.1 404 ")
    assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["code"] == "not_found"
    assert teacher.calls == []
