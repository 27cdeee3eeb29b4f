"""The teacher's bytes to the client as they come, and a copy to the trace; the upstream is closed on every exit."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from time import perf_counter

from starlette.types import Receive, Send

from gateway.asgi import Headers
from gateway.errors import AnswerableError, ClientGone, Overloaded, UpstreamBroken, UpstreamTimeout
from gateway.limits import Places
from gateway.metrics import Metrics
from gateway.upstream import Upstream, UpstreamCall

logger = logging.getLogger(__name__)

# A label of 512 characters, one an event, with room to spare; what is longer is no label.
_COPY_LIMIT = 262_144
# Pieces of an upload that may wait for the upstream; more would only fill memory.
_UPLOAD_AHEAD = 4


@dataclass(slots=True)
class Outcome:
    """What came back from an upstream. `status` is 0 until an answer has begun.

    `copy` holds the body's bytes; None where nobody asked for them, or they are no whole answer of a label's size.
    """

    copy: bytearray | None
    status: int = 0
    headers: Headers = field(default_factory=list)

    def keep(self, chunk: bytes) -> None:
        """Add a piece to the copy, which is given up where it grows beyond a label's answer."""
        if self.copy is not None:
            self.copy += chunk
            if len(self.copy) > _COPY_LIMIT:
                self.copy = None


class Client:
    """The connection to one client: where its request comes from and its answer goes."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self.send = send
        self._receive = receive
        self._upload: asyncio.Queue[bytes | None] = asyncio.Queue(_UPLOAD_AHEAD)

    async def upload(self) -> AsyncIterator[bytes]:
        """The request body as it comes; only inside `watched`."""
        while (piece := await self._upload.get()) is not None:
            yield piece

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Cancels what runs inside when the client goes away, and raises ClientGone in its place."""
        task = asyncio.current_task()
        gone = False

        async def watch() -> None:
            nonlocal gone
            await self._until_gone()
            gone = True
            if task is not None:
                task.cancel()

        watcher = asyncio.create_task(watch())
        try:
            yield
        except asyncio.CancelledError:
            # A server that shuts down cancels too: that one must go through.
            if gone and task is not None and task.uncancel() == 0:
                raise ClientGone from None
            raise
        finally:
            watcher.cancel()

    async def _until_gone(self) -> None:
        while (message := await self._receive())["type"] != "http.disconnect":
            if body := message.get("body"):
                await self._upload.put(body)
            if not message.get("more_body", False):
                await self._upload.put(None)


async def forward(
    upstream: Upstream,
    call: UpstreamCall,
    client: Client,
    headers: Headers,
    metrics: Metrics,
    places: Places,
    *,
    copied: bool = False,
) -> Outcome:
    """Forward `call` and relay its answer with `headers` added, and a copy in the outcome where it is to be `copied`.

    Raises Overloaded, UpstreamUnreachable, UpstreamTimeout or ClientGone where no answer has begun. An upstream that
    breaks off later leaves the client's answer without its end, so that nobody takes half an answer for a whole one.
    """
    outcome = Outcome(bytearray() if copied else None)
    started = perf_counter()
    try:
        async with client.watched(), places.taken():
            await _relay(upstream, call, client.send, headers, outcome)
        # Outside the watch: a client that hangs up on its last byte has not left early.
        await client.send({"type": "http.response.body", "body": b""})
    except Overloaded:
        raise
    except AnswerableError as error:
        kind = "timeout" if isinstance(error, UpstreamTimeout) else "unreachable"
        metrics.upstream_errors.labels(upstream.name, kind).inc()
        raise
    except UpstreamBroken as error:
        metrics.upstream_errors.labels(upstream.name, "broken").inc()
        logger.warning("upstream %s: %s", upstream.name, error)
        outcome.copy = None
    except ClientGone:
        if not outcome.status:
            raise
        metrics.disconnects.inc()
    metrics.upstream_seconds.labels(upstream.name).observe(perf_counter() - started)
    if outcome.status >= 400:
        metrics.upstream_errors.labels(upstream.name, f"status_{outcome.status // 100}xx").inc()
    return outcome


async def _relay(upstream: Upstream, call: UpstreamCall, send: Send, headers: Headers, outcome: Outcome) -> None:
    answer = await upstream.send(call)
    try:
        outcome.status, outcome.headers = answer.status, answer.headers
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers + headers})
        while chunk := await answer.read():
            outcome.keep(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    finally:
        await answer.close()
