"""An OpenAI-compatible teacher on a real socket, with named behaviours.

    with ScriptedTeacher(label_of={"hello": "greeting"}.get) as teacher:
        openai.OpenAI(base_url=teacher.url, api_key="any")

A call's behaviour is the `x-script` request header, or `teacher.script` where the call has none. Paths other than chat
completions are echoed.
"""

import asyncio
import gzip
import socket
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import orjson
import uvicorn
from starlette.types import Receive, Scope, Send

Behaviour = Callable[["ScriptedTeacher", "Call", Receive, Send], Awaitable[None]]

JSON = [(b"content-type", b"application/json")]
SSE = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class Cut(Exception):  # noqa: N818 - uvicorn closes the connection when the app raises
    """The teacher hangs up in the middle of an answer."""


@dataclass(frozen=True)
class Call:
    """One request as it arrived."""

    method: str
    path: str  # percent-encoded, as it arrived
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """The first value of a header, or None."""
        wanted = name.lower().encode()
        return next((value.decode("latin-1") for key, value in self.headers if key == wanted), None)

    @property
    def json(self) -> Any:
        """The parsed body."""
        return orjson.loads(self.body)

    @property
    def text(self) -> str:
        """The last message's text."""
        content = self.json["messages"][-1]["content"]
        return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


class ScriptedTeacher:
    """Serves from a thread of its own until the context ends. `latency` is in seconds."""

    def __init__(
        self,
        label_of: Callable[[str], str] = lambda _: "other",
        latency: float | Callable[[str], float] = 0.0,
        script: str = "answer",
    ) -> None:
        self.label_of = label_of
        self.latency = latency
        self.script = script
        self.calls: list[Call] = []
        self.arrived = threading.Event()  # a chat call has come in
        self.released = threading.Event()  # set it to let `hang` and `slow_stream` go on
        self.disconnected = threading.Event()  # a client left before its answer was complete
        self.disconnects = 0
        self.most_at_once = 0  # chat calls answered side by side
        self._at_once = 0
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        config = uvicorn.Config(
            self._serve, interface="asgi3", log_level="critical", lifespan="off", timeout_graceful_shutdown=1
        )
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._server.ready.wait(10):
            raise RuntimeError("the scripted teacher did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop serving; later connections are refused."""
        self.released.set()
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()

    @property
    def chat_calls(self) -> list[Call]:
        """The chat completions asked for, in order of arrival."""
        return [call for call in self.calls if call.path.endswith("/chat/completions")]

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                break
        call = Call(scope["method"], scope["raw_path"].decode(), scope["query_string"], tuple(scope["headers"]), body)
        self.calls.append(call)
        if not call.path.endswith("/chat/completions"):
            await _echo(self, call, receive, send)
            return
        self.arrived.set()
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await BEHAVIOURS[call.header("x-script") or self.script](self, call, receive, send)
        finally:
            self._at_once -= 1

    async def wait_out_latency(self, call: Call) -> None:
        """Sleep as long as this call's answer takes."""
        seconds = self.latency(call.text) if callable(self.latency) else self.latency
        if seconds:
            await asyncio.sleep(seconds)

    async def wait_for_release(self, receive: Receive) -> bool:
        """Wait for `released` (True) or for the client to leave (False, counted)."""
        leaving = asyncio.ensure_future(receive())
        while not self.released.is_set():
            done, _ = await asyncio.wait({leaving}, timeout=0.01)
            if done:
                self.disconnects += 1
                self.disconnected.set()
                return False
        leaving.cancel()
        return True


def completion(label: str, model: str, **choice: Any) -> dict[str, Any]:
    """A chat completion as a provider writes it, with a field nobody knows."""
    message = {"role": "assistant", "content": label, "refusal": None, **choice.pop("message", {})}
    return {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", **choice}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
        "system_fingerprint": "fp_scripted",
        "x_unknown": {"kept": True},
    }


def chunks(label: str, model: str) -> Iterator[bytes]:
    """The same as server-sent events, the label in pieces; without the closing [DONE]."""
    pieces: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": ""}, None)]
    half = max(1, len(label) // 2)
    pieces += [({"content": label[:half]}, None), ({"content": label[half:]}, None), ({}, "stop")]
    for delta, finish in pieces:
        event = {
            "id": "chatcmpl-scripted",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        }
        yield b"data: " + orjson.dumps(event) + b"\n\n"


DONE = b"data: [DONE]\n\n"


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


async def _start(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _body(send: Send, body: bytes, more: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def _respond(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    await _start(send, status, [*headers, (b"content-length", str(len(body)).encode())])
    await _body(send, body)


def _rendered(teacher: ScriptedTeacher, call: Call, **choice: Any) -> bytes:
    return orjson.dumps(completion(teacher.label_of(call.text), call.json["model"], **choice))


async def _answer(teacher: ScriptedTeacher, call: Call, _: Receive, send: Send) -> None:
    await teacher.wait_out_latency(call)
    if not call.json.get("stream"):
        extra = [(b"x-request-id", b"req-scripted"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
        await _respond(send, 200, JSON + extra, _rendered(teacher, call))
        return
    await _start(send, 200, SSE)
    for chunk in chunks(teacher.label_of(call.text), call.json["model"]):
        await _body(send, chunk, more=True)
    await _body(send, DONE)


async def _slow_stream(teacher: ScriptedTeacher, call: Call, receive: Receive, send: Send) -> None:
    first, *rest = chunks(teacher.label_of(call.text), call.json["model"])
    await _start(send, 200, SSE)
    await _body(send, first, more=True)
    if await teacher.wait_for_release(receive):
        await _body(send, b"".join(rest) + DONE)


async def _hang(teacher: ScriptedTeacher, call: Call, receive: Receive, send: Send) -> None:
    if await teacher.wait_for_release(receive):
        await _answer(teacher, call, receive, send)


async def _cut_stream(teacher: ScriptedTeacher, call: Call, _: Receive, send: Send) -> None:
    await _start(send, 200, SSE)
    await _body(send, next(chunks(teacher.label_of(call.text), call.json["model"])), more=True)
    raise Cut


async def _cut_after_done(teacher: ScriptedTeacher, call: Call, _: Receive, send: Send) -> None:
    await _start(send, 200, SSE)
    await _body(send, b"".join(chunks(teacher.label_of(call.text), call.json["model"])) + DONE, more=True)
    raise Cut


async def _no_done(teacher: ScriptedTeacher, call: Call, _: Receive, send: Send) -> None:
    await _start(send, 200, SSE)
    await _body(send, b"".join(chunks(teacher.label_of(call.text), call.json["model"])))


async def _stream_error(teacher: ScriptedTeacher, call: Call, _: Receive, send: Send) -> None:
    first = next(chunks(teacher.label_of(call.text), call.json["model"]))
    await _start(send, 200, SSE)
    await _body(send, first + b'data: {"error":{"message":"overloaded"}}\n\n' + DONE)


async def _cut_body(teacher: ScriptedTeacher, call: Call, _: Receive, send: Send) -> None:
    body = _rendered(teacher, call)
    await _start(send, 200, [*JSON, (b"content-length", str(len(body)).encode())])
    await _body(send, body[:-10], more=True)
    raise Cut


async def _hang_up(_t: ScriptedTeacher, _c: Call, _r: Receive, send: Send) -> None:
    # A response that is started and closed at once would still have headers: closing the socket gives none.
    transport = getattr(send, "__self__").transport  # noqa: B009 - uvicorn's cycle, typed as a callable
    transport.abort()


async def _rate_limited(_t: ScriptedTeacher, _c: Call, _r: Receive, send: Send) -> None:
    body = b'{"error":{"message":"slow down","type":"requests","param":null,"code":"rate_limit_exceeded"}}'
    await _respond(send, 429, [*JSON, (b"retry-after", b"7"), (b"x-ratelimit-remaining-requests", b"0")], body)


async def _error(_t: ScriptedTeacher, _c: Call, _r: Receive, send: Send) -> None:
    await _respond(send, 500, JSON, b'{"error":{"message":"boom","type":"server_error","param":null,"code":null}}')


def _refused(status: int, code: str) -> Behaviour:
    async def behave(_t: ScriptedTeacher, _c: Call, _r: Receive, send: Send) -> None:
        error = {"message": "Incorrect API key.", "type": "invalid_request_error", "param": None, "code": code}
        await _respond(send, status, JSON, orjson.dumps({"error": error}))

    return behave


async def _raw(_t: ScriptedTeacher, _c: Call, _r: Receive, send: Send) -> None:
    await _respond(send, 200, JSON, b"{}")


async def _html(_t: ScriptedTeacher, _c: Call, _r: Receive, send: Send) -> None:
    await _respond(send, 200, [(b"content-type", b"text/html")], b"<html><body>Welcome to the proxy</body></html>")


async def _redirect(_t: ScriptedTeacher, _c: Call, _r: Receive, send: Send) -> None:
    await _respond(send, 307, [(b"location", b"https://elsewhere.example/v1")], b"")


async def _gzip(teacher: ScriptedTeacher, call: Call, _: Receive, send: Send) -> None:
    await _respond(send, 200, [*JSON, (b"content-encoding", b"gzip")], gzip.compress(_rendered(teacher, call)))


async def _deflate(teacher: ScriptedTeacher, call: Call, _: Receive, send: Send) -> None:
    await _respond(send, 200, [*JSON, (b"content-encoding", b"deflate")], zlib.compress(_rendered(teacher, call)))


async def _unknown_encoding(teacher: ScriptedTeacher, call: Call, _: Receive, send: Send) -> None:
    await _respond(send, 200, [*JSON, (b"content-encoding", b"br")], _rendered(teacher, call))


def _with_choice(**choice: Any) -> Behaviour:
    async def behave(teacher: ScriptedTeacher, call: Call, _: Receive, send: Send) -> None:
        await _respond(send, 200, JSON, _rendered(teacher, call, **choice))

    return behave


async def _two_choices(teacher: ScriptedTeacher, call: Call, _: Receive, send: Send) -> None:
    answer = completion(teacher.label_of(call.text), call.json["model"])
    answer["choices"] *= 2
    await _respond(send, 200, JSON, orjson.dumps(answer))


async def _echo(_: ScriptedTeacher, call: Call, _receive: Receive, send: Send) -> None:
    content_type = call.header("content-type") or "application/octet-stream"
    headers = [(b"content-type", content_type.encode()), (b"x-echo-method", call.method.encode())]
    await _respond(send, 200, headers, call.body or call.path.encode())


BEHAVIOURS: dict[str, Behaviour] = {
    "answer": _answer,
    "slow_stream": _slow_stream,
    "hang": _hang,
    "cut_stream": _cut_stream,
    "cut_after_done": _cut_after_done,
    "cut_body": _cut_body,
    "no_done": _no_done,
    "stream_error": _stream_error,
    "hang_up": _hang_up,
    "rate_limited": _rate_limited,
    "error": _error,
    "unauthorized": _refused(401, "invalid_api_key"),
    "forbidden": _refused(403, "unsupported_country_region_territory"),
    "raw": _raw,  # says nothing of the body, which need not be JSON
    "html": _html,
    "redirect": _redirect,
    "gzip": _gzip,
    "deflate": _deflate,
    "unknown_encoding": _unknown_encoding,
    "two_choices": _two_choices,
    "refusal": _with_choice(message={"content": None, "refusal": "I cannot help with that."}),
    "tool_call": _with_choice(
        message={"content": None, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f"}}]},
        finish_reason="tool_calls",
    ),
    "truncated": _with_choice(finish_reason="length"),
    "empty": _with_choice(message={"content": ""}),
    "long": _with_choice(message={"content": "word " * 200}),
}

__all__ = ["BEHAVIOURS", "Call", "ScriptedTeacher", "chunks", "completion"]
