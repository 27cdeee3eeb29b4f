"""One HTTP request and its answer, as everything that serves it sees them."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from gateway.access import ANYBODY, Caller
from gateway.asgi import Headers, header
from gateway.control import NO_CONTROL, Control
from gateway.relay import Client


@dataclass(slots=True)
class Exchange:
    """`headers` are the x-tracer headers of its answer, `control` is what the caller asks of the call."""

    scope: Scope
    receive: Receive
    send: Send
    headers: Headers
    caller: Caller = ANYBODY
    control: Control = NO_CONTROL

    def watched(self) -> AbstractAsyncContextManager[None]:
        """Cancels what runs inside when the client goes away, and raises ClientGone in its place."""
        return Client(self.receive, self.send).watched()

    @property
    def encoded(self) -> bool:
        """Whether the body is compressed. Nothing of a client's is inflated here: it may be a bomb."""
        return (header(self.scope, b"content-encoding") or "identity").lower() != "identity"
