"""An OpenAI-compatible teacher on a real socket, with named behaviours.

    with ScriptedTeacher(label_of={"hello": "greeting"}.get) as teacher:
        openai.OpenAI(base_url=teacher.url, api_key="any")

A call's behaviour is the `x-script` request header, or `teacher.script` where the call has none. It holds for chat
completions, responses and decisions; other paths are echoed. Under the script `openai` the teacher sends what OpenAI
would send, files, embeddings and models included; `openai_answers` says how a label becomes an answer.
"""

import asyncio
import gzip
import hashlib
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

from tests.openai_answers import (
    DONE,
    Said,
    chat_chunks,
    chat_completion,
    decision,
    input_text,
    response,
    response_events,
    said,
)
from tests.openai_resources import Resources

# Asked for an answer, by path.
SURFACES = {"/chat/completions": "chat", "/responses": "responses", "/decisions": "decisions"}
# What a body that is no question of its surface raises when it is read as one.
_UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)

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
        """The last message's text, or the input's."""
        return input_text(self.json)

    @property
    def surface(self) -> str | None:
        """`chat`, `responses` or `decisions` where the path is one's; None elsewhere."""
        return next((surface for end, surface in SURFACES.items() if self.path.endswith(end)), None)


class ScriptedTeacher:
    """Serves from a thread of its own until the context ends. `latency` is in seconds."""

    def __init__(
        self,
        label_of: Callable[[str], str] = lambda _: "other",
        latency: float | Callable[[str], float] = 0.0,
        script: str = "answer",
        answer_of: Callable[[str, Any], str] | None = None,
    ) -> None:
        self.label_of = label_of
        self.answer_of = answer_of  # (text, body) -> label, where the answer hangs on more than the text
        self.model: str | None = None  # that it says it is; None: whatever it is asked for
        self.latency = latency
        self.script = script
        self.calls: list[Call] = []
        self.resources = Resources()
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
        script = call.header("x-script") or self.script
        if call.surface is None:
            await (_resource if script == "openai" else _echo)(self, call, receive, send)
            return
        self.arrived.set()
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await BEHAVIOURS[script](self, call, receive, send)
        except _UNREADABLE:
            await _respond(
                send, 400, JSON + exact_headers(call), error_body(400, "invalid_request_error", "unreadable")
            )
        finally:
            self._at_once -= 1

    def label(self, call: Call) -> str:
        """What this call is answered with."""
        return self.label_of(call.text) if self.answer_of is None else self.answer_of(call.text, call.json)

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


def exact_headers(call: Call) -> list[tuple[bytes, bytes]]:
    """The headers that OpenAI adds to every answer."""
    return [
        (b"x-request-id", b"req_" + hashlib.sha256(call.body).hexdigest()[:32].encode()),
        (b"openai-organization", b"org-scripted"),
        (b"openai-processing-ms", b"12"),
        (b"openai-version", b"2020-10-01"),
        (b"x-ratelimit-limit-requests", b"5000"),
        (b"x-ratelimit-remaining-requests", b"4999"),
    ]


def error_body(status: int, kind: str, code: str | None) -> bytes:
    """An error in OpenAI's shape."""
    return orjson.dumps({"error": {"message": f"scripted {status}", "type": kind, "param": None, "code": code}})


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


def _said(teacher: ScriptedTeacher, call: Call) -> Said:
    return said(teacher.label(call), call.json)


def _rendered(teacher: ScriptedTeacher, call: Call, **choice: Any) -> bytes:
    """The whole answer, with a field nobody knows."""
    if call.surface == "decisions":
        return orjson.dumps(decision(teacher.label(call), call.json))
    answer = _said(teacher, call)
    if call.surface == "responses":
        return orjson.dumps(response(answer, call.json) | {"x_unknown": {"kept": True}})
    if answer.calls:
        return orjson.dumps(chat_completion(answer, call.json) | {"x_unknown": {"kept": True}})
    return orjson.dumps(completion(answer.text or "", teacher.model or call.json["model"], **choice))


def _events(teacher: ScriptedTeacher, call: Call) -> list[bytes]:
    """The answer as server-sent events, without what ends the stream."""
    answer = _said(teacher, call)
    if call.surface == "responses":
        return list(response_events(answer, call.json))
    if answer.calls:
        return list(chat_chunks(answer, call.json))
    return list(chunks(answer.text or "", call.json["model"]))


def _end(call: Call) -> bytes:
    return DONE if call.surface == "chat" else b""


async def _answer(teacher: ScriptedTeacher, call: Call, _: Receive, send: Send) -> None:
    await teacher.wait_out_latency(call)
    if not call.json.get("stream"):
        extra = [(b"x-request-id", b"req-scripted"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
        await _respond(send, 200, JSON + extra, _rendered(teacher, call))
        return
    events = _events(teacher, call)
    await _start(send, 200, SSE)
    for event in events:
        await _body(send, event, more=True)
    await _body(send, _end(call))


async def _exact(teacher: ScriptedTeacher, call: Call, _: Receive, send: Send) -> None:
    await teacher.wait_out_latency(call)
    body, label = call.json, teacher.label(call)
    if type(body["model"]) is not str:
        raise TypeError("model")
    if call.surface == "decisions":
        await _respond(send, 200, JSON + exact_headers(call), orjson.dumps(decision(label, body)))
        return
    answer = said(label, body)
    if not body.get("stream"):
        whole = (chat_completion if call.surface == "chat" else response)(answer, body)
        await _respond(send, 200, JSON + exact_headers(call), orjson.dumps(whole))
        return
    events = list((chat_chunks if call.surface == "chat" else response_events)(answer, body))
    await _start(send, 200, SSE + exact_headers(call))
    for event in events:
        await _body(send, event, more=True)
    await _body(send, _end(call))


async def _slow_stream(teacher: ScriptedTeacher, call: Call, receive: Receive, send: Send) -> None:
    first, *rest = _events(teacher, call)
    await _start(send, 200, SSE)
    await _body(send, first, more=True)
    if await teacher.wait_for_release(receive):
        await _body(send, b"".join(rest) + _end(call))


async def _hang(teacher: ScriptedTeacher, call: Call, receive: Receive, send: Send) -> None:
    if await teacher.wait_for_release(receive):
        await _answer(teacher, call, receive, send)


async def _cut_stream(teacher: ScriptedTeacher, call: Call, _: Receive, send: Send) -> None:
    await _start(send, 200, SSE)
    await _body(send, _events(teacher, call)[0], more=True)
    raise Cut


async def _cut_after_done(teacher: ScriptedTeacher, call: Call, _: Receive, send: Send) -> None:
    await _start(send, 200, SSE)
    await _body(send, b"".join(_events(teacher, call)) + _end(call), more=True)
    raise Cut


async def _no_done(teacher: ScriptedTeacher, call: Call, _: Receive, send: Send) -> None:
    await _start(send, 200, SSE)
    await _body(send, b"".join(_events(teacher, call)))


async def _stream_error(teacher: ScriptedTeacher, call: Call, _: Receive, send: Send) -> None:
    first = _events(teacher, call)[0]
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
    answer = completion(teacher.label(call), call.json["model"])
    answer["choices"] *= 2
    await _respond(send, 200, JSON, orjson.dumps(answer))


def _status(status: int, kind: str, code: str | None, *extra: tuple[bytes, bytes]) -> Behaviour:
    async def behave(_t: ScriptedTeacher, call: Call, _r: Receive, send: Send) -> None:
        await _respond(send, status, JSON + exact_headers(call) + list(extra), error_body(status, kind, code))

    return behave


async def _flaky(teacher: ScriptedTeacher, call: Call, receive: Receive, send: Send) -> None:
    """Overloaded at the first asking of a question, and then no more."""
    asked = sum(other.body == call.body for other in teacher.calls)
    await (_overloaded if asked == 1 else _exact)(teacher, call, receive, send)


_overloaded = _status(503, "server_error", "overloaded", (b"retry-after-ms", b"1"))


async def _resource(teacher: ScriptedTeacher, call: Call, _receive: Receive, send: Send) -> None:
    content_type = call.header("content-type") or ""
    path = call.path.removeprefix("/v1/")
    try:
        status, kind, body = teacher.resources.answer(call.method, path, content_type, call.body)
    except _UNREADABLE:
        status, kind, body = 400, "application/json", error_body(400, "invalid_request_error", "unreadable")
    await _respond(send, status, [(b"content-type", kind.encode()), *exact_headers(call)], body)


async def _echo(_: ScriptedTeacher, call: Call, _receive: Receive, send: Send) -> None:
    content_type = call.header("content-type") or "application/octet-stream"
    headers = [(b"content-type", content_type.encode()), (b"x-echo-method", call.method.encode())]
    await _respond(send, 200, headers, call.body or call.path.encode())


BEHAVIOURS: dict[str, Behaviour] = {
    "answer": _answer,
    "openai": _exact,
    "flaky": _flaky,
    "status_400": _status(400, "invalid_request_error", "context_length_exceeded"),
    "status_401": _status(401, "invalid_request_error", "invalid_api_key"),
    "status_403": _status(403, "invalid_request_error", "unsupported_country_region_territory"),
    "status_404": _status(404, "invalid_request_error", "model_not_found"),
    "status_409": _status(409, "server_error", None),
    "status_422": _status(422, "invalid_request_error", None),
    "status_429": _status(429, "insufficient_quota", "insufficient_quota", (b"retry-after", b"7")),
    "status_429_briefly": _status(429, "requests", "rate_limit_exceeded", (b"retry-after", b"1")),
    "status_500": _status(500, "server_error", None),
    "status_503": _status(503, "server_error", "overloaded", (b"retry-after", b"2"), (b"x-should-retry", b"false")),
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

__all__ = ["BEHAVIOURS", "DONE", "Call", "ScriptedTeacher", "chunks", "completion"]
