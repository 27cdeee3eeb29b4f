"""Clients that leave, crawl or come in crowds: no upstream call outlives its client by more than a second."""

import asyncio
import contextlib
import json
import os
import resource
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.raw_upstream import Connection, Handler, RawUpstream, response, silent
from tests.serving import ThreadedGateway, make_settings

BODY = json.dumps({"model": "gpt", "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
UPLOAD = b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b"d\r\ndata: hello\n\n\r\n"
LIMIT = 1.0  # seconds an upstream call may go on without its client
CROWD = 1000


@contextlib.contextmanager
def _gateway(folder: Path, url: str, **upstream: Any) -> Iterator[ThreadedGateway]:
    upstreams = {"teacher": {"base_url": url, **upstream}}
    settings = make_settings(folder, {"upstreams": upstreams, "default_upstream": "teacher"})
    with ThreadedGateway(settings) as gateway:
        yield gateway


def _connect(gateway: ThreadedGateway, request: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2])))
    connection.settimeout(10)
    connection.sendall(request)
    return connection


def _within(seconds: float, happened: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"{what} takes more than {seconds} s"
        time.sleep(0.005)


def _disconnects(gateway: ThreadedGateway, number: int) -> Callable[[], bool]:
    return lambda: gateway.metric("tracer_disconnects_total") == number


async def _stream(upstream: RawUpstream, connection: Connection) -> None:
    """One event, and no more until the peer has gone."""
    await connection.request()
    await connection.write(STREAM + EVENT)
    upstream.arrived.set()
    await connection.gone()


async def _deaf(upstream: RawUpstream, connection: Connection) -> None:
    """Reads the head and no more; says every now and then that it goes on, which fails when the peer has gone."""
    await connection.reader.readuntil(b"\r\n\r\n")
    upstream.arrived.set()
    while True:
        await connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await asyncio.sleep(0.05)


async def _attentive(upstream: RawUpstream, connection: Connection) -> None:
    """Reads all there is."""
    upstream.arrived.set()
    await connection.gone()


@pytest.mark.parametrize(
    ("handler", "request_bytes"),
    [
        pytest.param(silent, CHAT, id="waiting for the first byte"),
        pytest.param(_stream, CHAT, id="in mid-stream"),
        pytest.param(_attentive, UPLOAD + b"x" * 100_000, id="during an upload"),
        pytest.param(_deaf, UPLOAD + b"x" * 900_000, id="during an upload nobody reads"),
    ],
)
@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_leaves_closes_the_upstream_call(
    tmp_path: Path, handler: Handler, request_bytes: bytes, reset: bool
) -> None:
    """Whatever the call was waiting for, and however the client went."""
    with RawUpstream(handler) as upstream, _gateway(tmp_path, upstream.url) as gateway:
        connection = _connect(gateway, request_bytes)
        assert upstream.arrived.wait(5)
        if handler is _stream:
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        upstream.wait_until(0, LIMIT)
        _within(LIMIT, _disconnects(gateway, 1), "noticing that the client has gone")


def test_a_client_that_leaves_while_it_waits_for_a_place_is_forgotten(tmp_path: Path) -> None:
    """Its call never reaches the upstream, and the place goes to the next."""
    with RawUpstream(_stream) as upstream, _gateway(tmp_path, upstream.url, max_connections=1) as gateway:
        first = _connect(gateway, CHAT)
        assert first.recv(65_536)
        _connect(gateway, CHAT).close()
        _within(LIMIT, _disconnects(gateway, 1), "noticing that the client has gone")
        first.close()
        third = _connect(gateway, CHAT)
        assert third.recv(65_536).startswith(b"HTTP/1.1 200 ")
        assert upstream.accepted == 2
        third.close()


def test_a_client_that_leaves_ends_the_connecting(tmp_path: Path) -> None:
    """A handshake that is not answered is given up."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        port = full.getsockname()[1]
        with _gateway(tmp_path, f"http://127.0.0.1:{port}/v1") as gateway:
            before = _sockets_to(port)
            connection = _connect(gateway, CHAT)
            _within(5.0, lambda: _sockets_to(port) == before + 1, "connecting")
            connection.close()
            _within(LIMIT, _disconnects(gateway, 1), "noticing that the client has gone")
            _within(LIMIT, lambda: _sockets_to(port) == before, "giving the handshake up")
        for client in waiting:
            client.close()


def test_an_upload_nobody_reads_is_held_back_and_ended_by_the_write_timeout(tmp_path: Path) -> None:
    """No more than a bound of it is taken from the client; beyond it, leaving is noticed when the time is over."""
    with RawUpstream(_deaf) as upstream, _gateway(tmp_path, upstream.url, write_timeout=1.5) as gateway:
        connection = _connect(gateway, UPLOAD)
        connection.settimeout(0.5)
        taken = 0
        with contextlib.suppress(TimeoutError):
            while True:
                taken += connection.send(b"x" * 65_536)
        assert taken < 32_000_000  # ours, and what four sockets hold
        connection.close()
        upstream.wait_until(0, 1.5 + LIMIT)


def test_a_slow_client_holds_the_upstream_back(tmp_path: Path) -> None:
    """What it does not read is not read for it, so memory stays as it is; and its leaving is noticed all the same."""
    written = 0

    async def flood(upstream: RawUpstream, connection: Connection) -> None:
        nonlocal written
        await connection.request()
        await connection.write(STREAM)
        upstream.arrived.set()
        while True:
            await connection.write(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
            written += 65_536

    with RawUpstream(flood) as upstream, _gateway(tmp_path, upstream.url) as gateway:
        connection = _connect(gateway, CHAT)
        assert upstream.arrived.wait(5)
        time.sleep(0.5)
        held, memory = written, _memory()
        for _ in range(3):
            assert connection.recv(1)
            time.sleep(0.5)
        assert held < 32_000_000  # what four sockets hold, and little of ours
        assert written - held < 1_000_000
        assert _memory() - memory < 4_000_000
        connection.close()
        upstream.wait_until(0, LIMIT)


def test_a_slow_upstream_is_followed_event_by_event(tmp_path: Path) -> None:
    """`read_timeout` bounds each silence, not their sum, and nothing waits for what comes after it."""
    pause = 0.15

    async def drip(_: RawUpstream, connection: Connection) -> None:
        await connection.request()
        await connection.write(STREAM)
        for _event in range(5):
            await asyncio.sleep(pause)
            await connection.write(EVENT)
        await connection.write(b"0\r\n\r\n")
        await connection.gone()

    with RawUpstream(drip) as upstream, _gateway(tmp_path, upstream.url, read_timeout=0.4) as gateway:
        connection = _connect(gateway, CHAT)
        times, received = [], b""
        while not received.endswith(b"0\r\n\r\n"):
            received += connection.recv(65_536)
            times.append(time.monotonic())
        connection.close()
    assert received.count(b"data: hello\n\n") == 5
    assert times[-1] - times[0] > 4 * pause


def test_an_upstream_that_dies_in_mid_stream_ends_the_clients_stream_at_once(tmp_path: Path) -> None:
    """Without an end of its own making, whether it hangs up or resets the connection."""

    async def die(_: RawUpstream, connection: Connection) -> None:
        await connection.request()
        await connection.write(STREAM + EVENT)
        await asyncio.sleep(0.1)
        connection.writer.transport.abort()

    with RawUpstream(die) as upstream, _gateway(tmp_path, upstream.url) as gateway:
        connection = _connect(gateway, CHAT)
        started = time.monotonic()
        received = b"".join(iter(lambda: connection.recv(65_536), b""))
        assert time.monotonic() - started < LIMIT
        connection.close()
        assert received.endswith(EVENT)
        assert gateway.metric("tracer_upstream_errors_total", upstream="teacher", kind="broken") == 1


@pytest.mark.usefixtures("many_files")
def test_a_crowd_that_leaves_at_once_leaves_nothing_behind(tmp_path: Path) -> None:
    """A thousand clients in mid-stream: no call, connection or task outlives them."""
    with RawUpstream(_stream) as upstream, _gateway(tmp_path, upstream.url) as gateway:
        port = int(gateway.url.rpartition(":")[2])

        async def come_and_go() -> float:
            clients = await asyncio.gather(*(_begin(port) for _ in range(CROWD)))
            assert upstream.open == CROWD
            for writer in clients:
                writer.transport.abort()
            return time.monotonic()

        _connect(gateway, CHAT).close()  # the first call opens what stays open
        _within(5.0, _disconnects(gateway, 1), "the first call")
        upstream.wait_until(0)
        sockets, tasks = _open_sockets(), gateway.tasks()
        left_at = asyncio.run(come_and_go())
        upstream.wait_until(0)
        assert upstream.closed_at - left_at < LIMIT
        _within(LIMIT, _disconnects(gateway, 1 + CROWD), "noticing that the clients have gone")
        _within(LIMIT, lambda: _open_sockets() <= sockets, "closing what was open")
        _within(LIMIT, lambda: gateway.tasks() <= tasks, "ending the tasks")
        with _connect(gateway, CHAT) as connection:
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")


def test_places_are_given_back_however_a_call_ends(tmp_path: Path) -> None:
    """A pool of two serves for ever: after hang-ups, broken answers, leaving clients and errors."""
    ends: list[Handler] = [_hang_up, _break_off, _stream, silent, _refuse]

    async def one_after_the_other(upstream: RawUpstream, connection: Connection) -> None:
        await ends[upstream.accepted % len(ends)](upstream, connection)

    settings = {"max_connections": 2, "pool_timeout": 0.5, "breaker_failures": 0}
    with RawUpstream(one_after_the_other) as upstream, _gateway(tmp_path, upstream.url, **settings) as gateway:
        for _ in range(3 * len(ends)):
            connection = _connect(gateway, CHAT)
            connection.settimeout(0.15)
            with contextlib.suppress(TimeoutError):
                while received := connection.recv(65_536):
                    assert b"pool_timeout" not in received
                    if b"\r\n0\r\n\r\n" in received or b"Content-Length" in received:
                        break
            connection.close()
        assert gateway.metric("tracer_upstream_errors_total", upstream="teacher", kind="timeout") == 0
        upstream.handler = _refuse
        with _connect(gateway, CHAT) as connection:
            assert connection.recv(65_536).startswith(b"HTTP/1.1 404 ")


async def _hang_up(_: RawUpstream, connection: Connection) -> None:
    await connection.request()


async def _break_off(_: RawUpstream, connection: Connection) -> None:
    await connection.request()
    await connection.write(STREAM + EVENT)


async def _refuse(_: RawUpstream, connection: Connection) -> None:
    await connection.request()
    await connection.write(response(404))


async def _begin(port: int) -> asyncio.StreamWriter:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(CHAT)
    assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200 ")
    return writer


@pytest.fixture
def many_files() -> Iterator[None]:
    """Four sockets a client, all in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 5 * CROWD
    if hard not in (resource.RLIM_INFINITY, -1) and hard < wanted:
        pytest.skip(f"a process may open {hard} files here; this needs {wanted}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _open_sockets() -> int:
    """This process's; other files come and go with the trace store."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return found


def _sockets_to(port: int) -> int:
    """How many sockets of this machine are connected, or being connected, to a local port."""
    lines = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
    return sum(line.split()[2].endswith(f":{port:04X}") for line in lines)


def _memory() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
