"""What every endpoint does with a socket: read a body within its limit, send an answer with the x-tracer headers."""

import asyncio
import random
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from gateway.decide import Decision
from gateway.encoding import JSON, encoded
from gateway.errors import AnswerableError, BodyTooLarge, ClientGone, RequestTimeout
from gateway.room import Holder, Room

Headers = list[tuple[bytes, bytes]]

ON_LEAVE = "tracer.on_leave"
"""What our server adds to a scope: given a function, it calls it once when the client leaves (None: it does not), and
says whether the client is still there."""

Whole = tuple[int, Headers, bytes]
"""Status, headers and body of an answer that is there as a whole."""

_NONE = b"none"


def _headers(lane: bytes, decision: bytes, project: bytes = _NONE, policy: bytes = _NONE) -> Headers:
    return [
        (b"x-tracer-lane", lane),
        (b"x-tracer-decision", decision),
        (b"x-tracer-score", _NONE),
        (b"x-tracer-reason", _NONE),
        (b"x-tracer-policy", policy),
        (b"x-tracer-project", project),
    ]


# For answers of the gateway's own, on which nobody decided: health pages, errors before a call was read.
LOCAL_HEADERS = _headers(_NONE, _NONE)
# For calls of no project, which the teacher answers.
RELAYED_HEADERS = _headers(b"teacher", b"deferred")
# A generator of our own: the module's may be seeded by whatever else runs in the process, and ids then come again.
_IDS = random.Random()  # noqa: S311 - unique, not secret


def new_id() -> str:
    """An id for one call, 32 hex digits.

    Unique, not secret: the system's own randomness is a system call, at which other threads may take over.
    """
    return f"{_IDS.getrandbits(128):032x}"


def header(scope: Scope, name: bytes) -> str | None:
    """The first value of a request header, or None. `name` is lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None


async def read_body(
    given: Mapping[bytes, bytes], receive: Receive, limit: int, seconds: float, room: Room, holder: Holder
) -> bytes:
    """The whole body of a request with the headers `given`.

    Raises BodyTooLarge over `limit` bytes, ClientGone where the client leaves midway.
    What has not come with the first piece must come within `seconds`, or RequestTimeout is raised; it takes up `room`,
    or Overloaded is raised.
    """
    declared = given.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limit:
        raise BodyTooLarge(f"The body has {int(declared)} bytes; the limit is {limit}.")
    first = await receive()
    if first["type"] == "http.request" and not first.get("more_body", False):
        # The common case, without a timer. (The server itself bounds the wait for one piece: gateway/protocol.py.)
        body: bytes = first.get("body", b"")
        if len(body) > limit:
            raise BodyTooLarge(f"The body is longer than the limit of {limit} bytes.")
        return body
    try:
        async with asyncio.timeout(seconds):
            return await _rest_of_body(first, receive, limit, room, holder)
    except TimeoutError:
        raise RequestTimeout(f"The body did not arrive within {seconds:g} seconds.") from None


async def _rest_of_body(message: Message, receive: Receive, limit: int, room: Room, holder: Holder) -> bytes:
    # Not a list to be joined: that would be everything twice, and megabytes copied at one go.
    whole, size = BytesIO(), 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        if size > limit:
            raise BodyTooLarge(f"The body is longer than the limit of {limit} bytes.")
        await room.take(holder, len(piece))
        whole.write(piece)
        if not message.get("more_body", False):
            return whole.getvalue()
        message = await receive()


def tracer_headers(project: str, decision: Decision, call_id: str) -> Headers:
    """The x-tracer headers of a project's call; `none` stands for what there is not."""
    score, reason, policy = decision.accept_score, decision.reason, decision.policy_version
    return [
        (b"x-tracer-lane", decision.lane.encode()),
        (b"x-tracer-decision", decision.word.encode()),
        (b"x-tracer-score", _NONE if score is None else b"%.4f" % score),
        (b"x-tracer-reason", _NONE if reason is None else reason.encode()),
        (b"x-tracer-policy", _NONE if policy is None else policy.encode()),
        (b"x-tracer-project", project.encode()),
        (b"x-tracer-id", call_id.encode()),
    ]


def batch_headers(project: str, policy_version: str | None) -> Headers:
    """The x-tracer headers of many decisions at once: lane, decision and reason stand in the body, row by row."""
    return _headers(_NONE, _NONE, project.encode(), _NONE if policy_version is None else policy_version.encode())


def whole(status: int, content_type: bytes, body: bytes, headers: Headers) -> Whole:
    """One whole answer, `headers` added to those that it needs."""
    framing: Headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    return status, framing + headers, body


async def send_whole(send: Send, answer: Whole) -> None:
    """Send one whole answer."""
    status, headers, body = answer
    # `whole` is ours: the server may wait for the body, which follows at once, and send both in one piece.
    await send({"type": "http.response.start", "status": status, "headers": headers, "whole": True})
    await send({"type": "http.response.body", "body": body})


async def send_bytes(send: Send, status: int, content_type: bytes, body: bytes, headers: Headers) -> None:
    """One whole answer."""
    await send_whole(send, whole(status, content_type, body, headers))


async def send_json(send: Send, value: Any, headers: Headers = LOCAL_HEADERS, status: int = 200) -> None:
    """One JSON answer."""
    await send_bytes(send, status, JSON, encoded(value), headers)


def error_answer(error: AnswerableError, headers: Headers = LOCAL_HEADERS) -> Whole:
    """An error in OpenAI's shape."""
    return whole(error.status, JSON, error.body(), [*error.headers, *headers])
