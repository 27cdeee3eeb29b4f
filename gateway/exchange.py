"""One HTTP request and its answer, as everything that serves it sees them."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from gateway.access import ANYBODY, Caller
from gateway.asgi import Headers, header
from gateway.control import NO_CONTROL, Control
from gateway.relay import Client

BEGUN = "tracer.begun"
"""Where a scope has the exchange of a request that an endpoint has begun to serve (see `ModelEndpoint.begin`)."""


async def _nothing() -> Message:
    raise RuntimeError("there is nothing to receive from yet")


async def _nowhere(_: Message) -> None:
    raise RuntimeError("there is nowhere to send to yet")


@dataclass(slots=True)
class Exchange:
    """`headers` are the x-tracer headers of its answer, `control` is what the caller asks of the call.

    `given` are the request's headers by name, the last of each. `begun` is what an endpoint has made of the request
    before there was a task to serve it. `held` counts the bytes of a body that came in pieces (gateway/room.py).
    """

    scope: Scope
    headers: Headers
    receive: Receive = _nothing
    send: Send = _nowhere
    caller: Caller = ANYBODY
    control: Control = NO_CONTROL
    given: dict[bytes, bytes] = field(default_factory=dict)
    begun: Any = None
    held: int = 0

    def watched(self) -> AbstractContextManager[None]:
        """Cancels what runs inside when the client goes away, and raises ClientGone in its place."""
        return Client(self.scope, self.receive, self.send).watched(uploading=False)

    @property
    def encoded(self) -> bool:
        """Whether the body is compressed. Nothing of a client's is inflated here: it may be a bomb."""
        if b"content-encoding" not in self.given:
            return False
        return (header(self.scope, b"content-encoding") or "identity").lower() != "identity"
