"""What one client may do without the others noticing: every burden beside a steady stream of calls.

A call that waits for a burden waits while the gateway's process works, so what is measured is that process's time:
other work on the machine does not change it.
"""

import contextlib
import os
import random
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import yaml

from policies.policy import Policy
from tests.fidelity.fuzzing import open_files
from tests.pacer import Pacer
from tests.process_memory import anonymous
from tests.raw_upstream import RawUpstream, answering, response
from tests.serving import GatewayProcess

MB = 1_000_000
# What the gateway may do, more than alone, before it has answered a call. Measured: 2 to 10 ms with bodies of 10 MB, up
# to 25 with six of 30 MB. Read at one go, an image of 10 MB takes 70, six of 30 MB 200.
MOST_MORE_MS = 60.0
HELD_BYTES = 64 * MB
# What is held, once more where the model's name is replaced, and one body beyond the limit.
MOST_GROWTH = 2 * (HELD_BYTES / MB + 32)
MOST_LEFT = 10.0
IDLE = 1_000
MOST_IDLE = 25.0  # MB of all of them; measured: 7
DRIPPING = 50
_CHOICE = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "other"}}
_ANSWER = response(body=orjson.dumps({"object": "chat.completion", "choices": [_CHOICE]}))


@dataclass
class World:
    """A gateway in a process of its own, its upstream, and a call it answers itself."""

    gateway: GatewayProcess
    upstream: RawUpstream
    text: str
    label: str

    def pacer(self) -> Pacer:
        """Calls that the gateway answers."""
        return Pacer(self.gateway, self.text, self.label)

    def memory(self) -> float:
        """What the gateway has allocated, in MB."""
        return anonymous(self.gateway.process.pid)

    def post(self, body: bytes, path: str = "/v1/chat/completions") -> httpx.Response:
        """Send a body as it is."""
        return httpx.post(self.gateway.url + path, content=body, timeout=120)

    def connect(self) -> socket.socket:
        """A connection to the gateway."""
        return socket.create_connection(("127.0.0.1", self.gateway.port), timeout=60)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, policy_folder: Path, handled_text: str) -> Iterator[World]:
    """One for all burdens, warmed up with a large body."""
    folder = tmp_path_factory.mktemp("burdens")
    label = Policy.load(policy_folder).decide(handled_text).label
    assert label is not None
    with RawUpstream(answering(_ANSWER)) as upstream:
        tree = {
            "server": {"max_held_bytes": HELD_BYTES},
            "upstreams": {"teacher": {"base_url": upstream.url}},
            "default_upstream": "teacher",
            "projects": {
                "p": {
                    "policy": str(policy_folder),
                    "teacher": "big",
                    "promotion": "immediate",
                    "audit": {"rate": 0},
                }
            },
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(tree))
        with GatewayProcess(folder, "--config", "config.yaml") as gateway:
            found = World(gateway, upstream, handled_text, label)
            assert found.post(_one_string(10)).status_code == 200
            yield found


@contextlib.contextmanager
def _unnoticed(world: World, seconds: float = 0.5) -> Iterator[None]:
    """What happens inside holds no other call up, and takes no more memory than it may, nor for longer."""
    before = world.memory()
    most, ended = [before], threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            most.append(world.memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with world.pacer() as alone:
            time.sleep(seconds)
        with world.pacer() as beside:
            time.sleep(seconds / 4)
            yield
            time.sleep(seconds / 4)
    finally:
        ended.set()
        watcher.join()
    told = f"alone {alone}; beside {beside}; memory {before:.0f}, at most {max(most):.0f} MB"
    assert (alone.wrong, beside.wrong) == (0, 0)
    assert beside.longest <= alone.longest + MOST_MORE_MS, told
    assert max(most) <= before + MOST_GROWTH, told
    deadline = time.monotonic() + 5
    while world.memory() > before + MOST_LEFT:
        assert time.monotonic() < deadline, f"{told}, {world.memory():.0f} MB at the end"
        time.sleep(0.1)


def _chat(content: Any, **more: Any) -> bytes:
    return orjson.dumps({"model": "tracer/p", "messages": [{"role": "user", "content": content}], **more})


def _words(characters: int) -> str:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 8))) for _ in range(1_000)]
    return " ".join(draw.choices(words, k=characters // 5))[:characters]


def _one_string(mb: int) -> bytes:
    return _chat(_words(mb * MB))


def _image(mb: int) -> bytes:
    data = b64encode(os.urandom(mb * MB * 3 // 4)).decode()
    url = {"url": f"data:image/png;base64,{data}"}
    return _chat([{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": url}])


def _escapes(mb: int) -> bytes:
    return _chat('"\\\n\t' * (mb * MB // 8))


def _numbers(mb: int) -> bytes:
    return _chat("hi", seeds=[1] * (mb * MB // 2))


def _messages(mb: int) -> bytes:
    turn = {"role": "user", "content": "and then?" * 4}
    return orjson.dumps({"model": "tracer/p", "messages": [turn] * (mb * MB // 70)})


def _tools(mb: int) -> bytes:
    functions = ({"name": f"tool_{index}", "parameters": {"type": "object"}} for index in range(mb * MB // 90))
    return _chat("hi", tools=[{"type": "function", "function": function} for function in functions])


def _brackets(mb: int) -> bytes:
    return b'{"model":"tracer/p","messages":[{"role":"user","content":"hi"}],"stop":' + b"[" * (mb * MB) + b"}"


# What a body of so many MB is taken for: its project's, or nobody's where it has more values than any call.
SHAPES: dict[str, tuple[Callable[[int], bytes], str]] = {
    "one string": (_one_string, "p"),
    "an image": (_image, "p"),
    "escapes": (_escapes, "p"),
    "numbers": (_numbers, "p"),
    "messages": (_messages, "none"),
    "tools": (_tools, "none"),
    "brackets": (_brackets, "none"),
}


@pytest.mark.parametrize(
    ("shape", "mb", "times"),
    [*((shape, 10, 1) for shape in SHAPES), ("one string", 10, 8), ("tools", 10, 8), ("an image", 30, 6)],
)
def test_a_large_body_holds_nobody_up(world: World, shape: str, mb: int, times: int) -> None:
    """Whatever it is made of, it reaches the upstream byte by byte, whoever else is being answered."""
    make, project = SHAPES[shape]
    body = make(mb)
    world.upstream.requests.clear()
    with _unnoticed(world), ThreadPoolExecutor(times) as pool:
        answers = list(pool.map(world.post, [body] * times))
    assert [answer.status_code for answer in answers] == [200] * times
    reason = "too_long" if project == "p" else "none"
    told = {(answer.headers["x-tracer-project"], answer.headers["x-tracer-reason"]) for answer in answers}
    assert told == {(project, reason)}
    wanted = body.replace(b'"tracer/p"', b'"big"', 1) if project == "p" else body
    arrived = [request.partition(b"\r\n\r\n")[2] == wanted for request in world.upstream.requests]
    assert arrived == [True] * times
    world.upstream.requests.clear()


def test_a_message_of_100_000_tokens_is_forwarded(world: World) -> None:
    """As too long, again and again."""
    body = _chat("word " * 100_000)
    with _unnoticed(world):
        for _ in range(10):
            answer = world.post(body)
            assert (answer.status_code, answer.headers["x-tracer-reason"]) == (200, "too_long")
    world.upstream.requests.clear()


def test_the_decision_servers_calls_may_be_large_as_well(world: World) -> None:
    """They are read whole: long texts, of which none is decided on."""
    text = _words(20_000)
    with _unnoticed(world):
        batch = world.post(orjson.dumps({"inputs": [text] * 500}), "/predict_batch")
        one = world.post(orjson.dumps({"input": _words(10 * MB)}), "/p/classify")
    assert batch.json()["handled"] == [False] * 500
    assert (one.json()["label"], one.headers["x-tracer-reason"]) == (None, "too_long")


def test_a_body_in_tiny_chunks_holds_nobody_up(world: World) -> None:
    """A byte a chunk."""
    body = _one_string(1)[: MB // 2] + b'"}]}'
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with _unnoticed(world), world.connect() as connection:
        connection.sendall(head + chunks)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200")
    world.upstream.requests.clear()


def test_a_thousand_idle_connections_cost_little(world: World) -> None:
    """Each was used once and stays open."""
    files = open_files(world.gateway.process.pid)
    before = world.memory()
    with contextlib.ExitStack() as stack, _unnoticed(world):
        connections = [stack.enter_context(world.connect()) for _ in range(IDLE)]
        for connection in connections:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200")
        assert open_files(world.gateway.process.pid) >= files + IDLE
        assert world.memory() <= before + MOST_IDLE
        for connection in connections:
            connection.close()


def test_a_byte_a_second_holds_nobody_up(world: World) -> None:
    """Clients whose heads or bodies drip in."""
    body = _chat("hi")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    with contextlib.ExitStack() as stack, _unnoticed(world):
        connections = [stack.enter_context(world.connect()) for _ in range(DRIPPING)]
        for index, connection in enumerate(connections):
            connection.sendall(head if index % 2 else b"")
        for second in range(2):
            for index, connection in enumerate(connections):
                connection.sendall((body if index % 2 else head)[second : second + 1])
            time.sleep(1)
        for connection in connections:
            connection.close()
