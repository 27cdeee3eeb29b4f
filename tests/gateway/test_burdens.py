"""What one client may do to a gateway without the others' noticing: every burden beside a steady stream of calls."""

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
from tests.fidelity.fuzzing import memory, open_files
from tests.pacer import Pacer
from tests.raw_upstream import RawUpstream, answering, response
from tests.serving import GatewayProcess

MB = 1_000_000
# What a call beside a burden may take longer than the slowest without one. A machine that runs tests has other work.
MOST_MORE_MS = 100.0
HELD_BYTES = 64 * MB
_CHOICE = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "other"}}
_ANSWER = response(body=orjson.dumps({"object": "chat.completion", "choices": [_CHOICE]}))
_SECONDS = 1.0


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
        """Of the gateway, in MB."""
        return memory(self.gateway.process.pid)

    def post(self, body: bytes, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
        """Send a body as it is."""
        return httpx.post(self.gateway.url + path, content=body, headers=headers, timeout=60)

    def settled(self, most: float) -> float:
        """The gateway's memory when it has come down to `most` MB, or when it has had three seconds to."""
        deadline = time.monotonic() + 3
        while (found := self.memory()) > most and time.monotonic() < deadline:
            time.sleep(0.1)
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, policy_folder: Path, handled_text: str) -> Iterator[World]:
    """One for all burdens, warmed up with one of the largest."""
    folder = tmp_path_factory.mktemp("burdens")
    label = Policy.load(policy_folder).decide(handled_text).label
    assert label is not None
    with RawUpstream(answering(_ANSWER)) as upstream:
        tree = {
            "server": {"max_held_bytes": HELD_BYTES},
            "upstreams": {"teacher": {"base_url": upstream.url}},
            "default_upstream": "teacher",
            "projects": {"p": {"policy": str(policy_folder), "teacher": "big"}},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(tree))
        with GatewayProcess(folder, "--config", "config.yaml") as gateway:
            found = World(gateway, upstream, handled_text, label)
            assert found.post(_one_string(30)).status_code == 200
            upstream.requests.clear()
            yield found



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
    return _chat(
        [
            {"type": "text", "text": "what is this?"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        ]
    )


def _escapes(mb: int) -> bytes:
    return _chat('"\\\n\t' * (mb * MB // 8))


def _numbers(mb: int) -> bytes:
    return _chat("hi", seeds=[1] * (mb * MB // 2))


def _messages(mb: int) -> bytes:
    turn = {"role": "user", "content": "and then?" * 4}
    return orjson.dumps({"model": "tracer/p", "messages": [turn] * (mb * MB // 70)})


def _tools(mb: int) -> bytes:
    tools = [
        {"type": "function", "function": {"name": f"tool_{index}", "parameters": {"type": "object"}}}
        for index in range(mb * MB // 90)
    ]
    return _chat("hi", tools=tools)


def _brackets(mb: int) -> bytes:
    return b'{"model":"tracer/p","messages":[{"role":"user","content":"hi"}],"stop":' + b"[" * (mb * MB) + b"}"


def _many(name: Callable[[int], bytes], mb: int, times: int) -> list[bytes]:
    return [name(mb)] * times


@contextlib.contextmanager
def _unnoticed(world: World) -> Iterator[None]:
    """What happens inside makes no other call late, or wrong."""
    with world.pacer() as alone:
        time.sleep(_SECONDS)
    with world.pacer() as beside:
        time.sleep(_SECONDS / 4)
        yield
        time.sleep(_SECONDS / 4)
    print(f"\nalone: {alone}\nbeside: {beside}")
    assert (alone.wrong, beside.wrong) == (0, 0)
    assert beside.longest <= alone.longest + MOST_MORE_MS


BODIES = {
    "one string": _many(_one_string, 10, 1),
    "an image": _many(_image, 10, 1),
    "escapes": _many(_escapes, 10, 1),
    "numbers": _many(_numbers, 10, 1),
    "messages": _many(_messages, 10, 1),
    "tools": _many(_tools, 10, 1),
    "brackets": _many(_brackets, 10, 1),
    "eight strings": _many(_one_string, 10, 8),
    "eight of tools": _many(_tools, 10, 8),
    "eight of 30 MB": _many(_image, 30, 8),
}


@pytest.mark.parametrize("bodies", BODIES.values(), ids=BODIES.keys())
def test_a_large_body_holds_nobody_up(world: World, bodies: list[bytes]) -> None:
    before = world.memory()
    world.upstream.requests.clear()
    peak = [0.0]
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], world.memory())
            time.sleep(0.005)
    watcher = threading.Thread(target=watch); watcher.start()
    with _unnoticed(world), ThreadPoolExecutor(len(bodies)) as pool:
        started = time.monotonic()
        answers = list(pool.map(world.post, bodies))
        took = time.monotonic() - started
    done.set(); watcher.join()
    print([a.status_code for a in answers], answers[0].headers["x-tracer-project"], answers[0].headers["x-tracer-reason"], f"took {took:.2f}", "memory", before, "peak", peak[0], "after", world.settled(before + 10))
