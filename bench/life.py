"""One project's life on real sockets: a teacher, `tracer serve` as a process, and an application that sends calls.

Teacher and application share this process's event loop, the gateway is the command itself. What each call was answered
with is kept beside what the teacher would have said of it at that moment, so that every figure is of calls made.
"""

import asyncio
import bisect
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from bench import caller
from gateway.demo import processes
from gateway.demo.processes import Child
from policies.projects import Projects
from policies.record import Record
from policies.traces import to_seconds
from policies.types import Comparison

PROJECT = "bank"
_LOOK_SECONDS = 0.1
_HEADERS = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer any\r\n"
    b"content-type: application/json\r\nx-tracer-project: " + PROJECT.encode() + b"\r\ncontent-length: %d\r\n\r\n"
)

Teaching = Callable[[str], str]
"""What the teacher says of a text."""


@dataclass(frozen=True, slots=True)
class Call:
    """What the application asks: a text under a system prompt."""

    text: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Answered:
    """A call, when its answer came (seconds since the epoch), what that was, and what the teacher would have said."""

    text: str
    ts: float
    handled: bool
    said: str
    truth: str
    reason: str

    @property
    def wrong(self) -> bool:
        """Whether the application got another answer than the teacher's."""
        return self.said != self.truth


class Life:
    """A gateway with its teacher and application. `teach` and what is sent may be changed at any time."""

    def __init__(self, folder: Path, ports: Sequence[int], teach: Teaching, per_second: float) -> None:
        self.folder, self.ports, self.teach, self.per_second = folder, ports, teach, per_second
        self.store = store_url(folder)
        self.calls: list[Answered] = []
        self.moves: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self._lines: list[caller.Line] = []
        self._due = 0.0

    @property
    def state(self) -> str:
        """The project's, as the store has it."""
        return str(self.summary.get("state", ""))

    def live(self, version: str | None = None) -> bool:
        """Whether a policy answers: that one, if it is given."""
        found = self.summary.get("live")
        return found is not None and version in (None, found)

    def number(self, ts: float) -> int:
        """How many calls had been answered at a time."""
        return bisect.bisect_right(self.calls, ts, key=lambda call: call.ts)

    async def send(self, calls: Iterable[Call], until: Callable[[], object] = lambda: False) -> bool:
        """Make calls until something holds (True) or there are no more. Raises RuntimeError where one fails."""
        source, over = iter(calls), False

        async def keep_calling(line: caller.Line) -> None:
            nonlocal over
            for call in source:
                await self._wait()
                await self._ask(line, call)
                over = over or bool(until())
                if over:
                    return

        await asyncio.gather(*(keep_calling(line) for line in self._lines))
        self.calls.sort(key=lambda call: call.ts)
        return over

    async def settle(self, holds: Callable[[], object], what: str, seconds: float = 30.0) -> None:
        """Wait, without a call, until something holds. Raises RuntimeError."""
        until = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > until:
                raise RuntimeError(f"it took more than {seconds:.0f} s until {what}")
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self) -> None:
        """Follow the store, until cancelled."""
        with contextlib.closing(Projects.open(self.store)) as projects:
            while True:
                self.summary, self.moves = await asyncio.to_thread(_read, projects)
                await asyncio.sleep(_LOOK_SECONDS)

    def comparisons(self, kind: str) -> list[Comparison]:
        """All that were counted."""
        with contextlib.closing(Record.open(self.store, create=False)) as record:
            return record.comparisons(PROJECT, kind=kind, limit=1_000_000)

    async def connect(self, lines: int) -> None:
        """Open connections to the gateways, in turn."""
        for number in range(lines):
            self._lines += await caller.connect(self.ports[number % len(self.ports)], 1)

    def hang_up(self) -> None:
        """Close them."""
        for line in self._lines:
            line.close()
        self._lines = []

    async def _wait(self) -> None:
        """Until the next call is due."""
        now = time.monotonic()
        self._due = max(self._due, now - 0.05) + 1 / self.per_second
        if self._due > now:
            await asyncio.sleep(self._due - now)

    async def _ask(self, line: caller.Line, call: Call) -> None:
        messages = [{"role": "system", "content": call.prompt}, {"role": "user", "content": call.text}]
        body = orjson.dumps({"model": "gpt-4.1-mini", "messages": messages})
        truth = self.teach(call.text)
        answer = await line.ask(_REQUEST % len(body) + body)
        head, _, content = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"a call failed: {answer[:300]!r}")
        headers = dict(row.split(b": ", 1) for row in head.lower().split(b"\r\n")[1:])
        said = orjson.loads(content)["choices"][0]["message"]["content"]
        handled = headers[b"x-tracer-decision"] == b"handled"
        reason = headers.get(b"x-tracer-reason", b"").decode()
        self.calls.append(Answered(call.text, time.time(), handled, said, truth, reason))


def _read(projects: Projects) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    if PROJECT not in projects.names():
        return {}, []
    moves = projects.moves(PROJECT, 1_000)
    return projects.summary(PROJECT), [move | {"ts": to_seconds(move["ts"])} for move in moves]


def store_url(folder: Path) -> str:
    """The store of a life in this folder."""
    return f"sqlite:///{folder / 'traces.db'}"


@contextlib.asynccontextmanager
async def living(
    folder: Path, teach: Teaching, per_second: float, audit: Mapping[str, Any], lines: int = 16
) -> AsyncIterator[Life]:
    """A life in `folder`, whose `policy` the gateway serves; over when the context is."""
    teacher_port, port = processes.free_port(), processes.free_port()
    life = Life(folder, [port], teach, per_second)
    (folder / "config.yaml").write_text(yaml.safe_dump(_config(folder, teacher_port, audit)), encoding="utf-8")
    argv = [sys.executable, "-m", "tracer", "serve", "--config", str(folder / "config.yaml"), "--port", str(port)]
    teacher = await asyncio.start_server(lambda r, w: _answer(r, w, life), "127.0.0.1", teacher_port, backlog=512)
    async with teacher:
        gateway = Child("the gateway", argv, folder / "gateway.log")
        with gateway:
            ready = lambda: processes.get(port, "/healthz") is not None  # noqa: E731
            await asyncio.to_thread(gateway.wait_until, ready, "it was ready")
            looking = asyncio.create_task(life.look())
            try:
                await life.connect(lines)
                yield life
            finally:
                looking.cancel()
                life.hang_up()
                with contextlib.suppress(asyncio.CancelledError):
                    await looking
                await asyncio.to_thread(gateway.stop)


def _config(folder: Path, teacher_port: int, audit: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "server": {"policy_poll_seconds": 0.2},
        "store": {"url": store_url(folder), "spool": str(folder / "spool.jsonl")},
        "upstreams": {"teacher": {"base_url": f"http://127.0.0.1:{teacher_port}/v1"}},
        "default_upstream": "teacher",
        "projects": {PROJECT: {"policy": str(folder / "policy"), "audit": dict(audit)}},
    }


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, life: Life) -> None:
    """One connection to the teacher."""
    while True:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = head.partition(b"\r\ncontent-length: ")[2].split(b"\r\n", 1)[0]
            request = orjson.loads(await reader.readexactly(int(length)))
        except (asyncio.IncompleteReadError, ConnectionError):
            break
        label = life.teach(request["messages"][-1]["content"])
        body = orjson.dumps(_completion(label, request["model"]))
        writer.write(_HEADERS % len(body) + body)
    writer.close()


def _completion(label: str, model: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": label, "refusal": None}
    return {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": "fp_bench",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 40, "completion_tokens": 4, "total_tokens": 44},
    }
