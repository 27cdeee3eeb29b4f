"""The teacher's bytes to the client as they come, and a copy to the trace; the upstream is closed on every exit."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from starlette.types import Receive, Scope, Send

from gateway.asgi import ON_LEAVE, Headers
from gateway.errors import ClientGone, UpstreamBroken
from gateway.limits import Places
from gateway.metrics import Metrics
from gateway.reading import Reading, Teacher, read
from gateway.upstream import Upstream, UpstreamAnswer, UpstreamCall
from gateway.wire import Surface
from policies.types import Answer, AnswerKind

logger = logging.getLogger(__name__)

# A label of 512 characters, one an event, with room to spare; what is longer is no label.
COPY_LIMIT = 262_144
# Bytes of an upload that may wait for an upstream that takes none. While there is room the client's leaving is noticed;
# beyond it, the upstream's write_timeout ends the call.
_UPLOAD_AHEAD = 1_048_576


@dataclass(slots=True)
class Outcome:
    """What came back from an upstream. `status` is 0 until an answer has begun.

    `upstream` is the one that answered, `fallback` whether it stood in for the one that was to be asked, and `model`
    what it was asked for where that is another model than the call's. A fallback's answer is not the teacher's.

    `named`: the model that the answer names is the one that gave it.

    `copy` holds the body's bytes; None where nobody asked for them, or they are no whole answer of a label's size.
    `overlong`: it was whole, and of more bytes than any label's.
    """

    copy: bytearray | None
    status: int = 0
    headers: Headers = field(default_factory=list)
    upstream: str = ""
    model: str | None = None
    fallback: bool = False
    overlong: bool = False
    named: bool = True

    def began(self, answer: UpstreamAnswer) -> None:
        """Take down what there is of an answer whose body is yet to come."""
        self.status, self.headers = answer.status, answer.headers
        origin = answer.origin
        self.upstream, self.model, self.fallback = origin.upstream, origin.model, origin.fallback
        self.named = origin.named

    def keep(self, chunk: bytes) -> None:
        """Add a piece to the copy, which is given up where it grows beyond a label's answer."""
        if self.copy is not None:
            self.copy += chunk
            if len(self.copy) > COPY_LIMIT:
                self.give_up()
                self.overlong = True

    def give_up(self) -> None:
        """Forget what has come: it will not be a whole answer."""
        self.copy, self.overlong = None, False


def read_outcome(surface: Surface, outcome: Outcome) -> Reading:
    """What a teacher's 200 says, of which a copy was kept; what is too long for a label is prose."""
    if outcome.overlong:
        return Reading(Answer(f"an answer of more than {COPY_LIMIT:,} bytes", AnswerKind.OTHER), Teacher())
    return read(surface, outcome.headers, bytes(outcome.copy or b""), named=outcome.named)


class Client:
    """The connection to one client: where its request comes from and its answer goes."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.send = send
        self._receive = receive
        self._uploaded: _Upload | None = None
        # Our own server calls back when a client leaves; any other has to be asked all the time.
        self._on_leave = scope.get(ON_LEAVE)

    async def upload(self) -> AsyncIterator[bytes]:
        """The request body as it comes; only inside `watched`."""
        upload = self._upload()
        while piece := await upload.take():
            yield piece

    def watched(self, *, uploading: bool) -> "_Watch":
        """Cancels what runs inside when the client goes away, and raises ClientGone in its place.

        `uploading`: the request's body is yet to come.
        """
        return _Watch(self, None if uploading else self._on_leave)

    async def until_gone(self) -> None:
        """Take what the client sends until it goes away."""
        while (message := await self._receive())["type"] != "http.disconnect":
            await self._upload().put(message.get("body", b""), last=not message.get("more_body", False))

    def _upload(self) -> "_Upload":
        if self._uploaded is None:
            self._uploaded = _Upload()
        return self._uploaded


class _Watch:
    """A context that ends when its client leaves."""

    def __init__(self, client: Client, on_leave: Callable[[Callable[[], None] | None], bool] | None) -> None:
        self._client = client
        self._on_leave = on_leave
        self._task: asyncio.Task[Any] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._gone = False

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        if self._on_leave is None:
            self._watcher = asyncio.create_task(self._watch())
        elif not self._on_leave(self._left):
            raise ClientGone

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._on_leave is not None:
            self._on_leave(None)
        if self._watcher is not None:
            self._watcher.cancel()
        # A server that shuts down cancels too: that one must go through.
        if kind is asyncio.CancelledError and self._gone and self._task is not None and self._task.uncancel() == 0:
            raise ClientGone

    async def _watch(self) -> None:
        await self._client.until_gone()
        self._left()

    def _left(self) -> None:
        self._gone = True
        if self._task is not None:
            self._task.cancel()


class _Upload:
    """What a client has sent and an upstream has not taken: as much as comes, and no more while that is too much."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._changed = asyncio.Event()

    async def put(self, piece: bytes, *, last: bool) -> None:
        if piece:
            self._pieces.append(piece)
            self._size += len(piece)
        self._ended = self._ended or last
        self._changed.set()
        while self._size >= _UPLOAD_AHEAD and not self._ended:
            self._changed.clear()
            await self._changed.wait()

    async def take(self) -> bytes:
        """The next piece; b"" at the end."""
        while not self._pieces:
            if self._ended:
                return b""
            self._changed.clear()
            await self._changed.wait()
        piece = self._pieces.popleft()
        self._size -= len(piece)
        self._changed.set()
        return piece


async def forward(
    upstream: Upstream,
    call: UpstreamCall,
    client: Client,
    headers: Headers,
    metrics: Metrics,
    places: Places,
    *,
    copied: bool = False,
    whole: bool = False,
) -> Outcome:
    """Forward `call` and relay its answer with `headers` added, and a copy in the outcome where it is to be `copied`.

    Where only a `whole` answer is of use, a client that leaves in the midst of it raises ClientGone, too.

    Raises AnswerableError or ClientGone where no answer has begun. An upstream that breaks off later leaves the
    client's answer without its end, so that nobody takes half an answer for a whole one.
    """
    outcome = Outcome(bytearray() if copied else None)
    started = perf_counter()
    try:
        with client.watched(uploading=not isinstance(call.body, bytes)):
            async with places:
                await _relay(upstream, call, client.send, headers, outcome)
        # Outside the watch: a client that hangs up on its last byte has not left early.
        await client.send({"type": "http.response.body", "body": b""})
    except UpstreamBroken as error:
        metrics.upstream_errors.labels(outcome.upstream, "broken").inc()
        logger.warning("upstream %s: %s", outcome.upstream, error)
        outcome.give_up()
    except ClientGone:
        if whole or not outcome.status:
            raise
        metrics.disconnects.inc()
        outcome.overlong = False
    metrics.upstream_seconds.labels(outcome.upstream).observe(perf_counter() - started)
    return outcome


async def _relay(upstream: Upstream, call: UpstreamCall, send: Send, headers: Headers, outcome: Outcome) -> None:
    answer = await upstream.send(call)
    try:
        outcome.began(answer)
        added = [*headers, (b"x-tracer-upstream", outcome.upstream.encode())]
        start = {"type": "http.response.start", "status": answer.status, "headers": answer.headers + added}
        chunk = answer.at_hand()
        start["whole"] = bool(chunk)  # then the server sends both in one piece
        await send(start)
        while chunk := chunk or await answer.read():
            outcome.keep(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            chunk = b""
    finally:
        await answer.close()
