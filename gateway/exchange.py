"""One HTTP request and its answer, as everything that serves it sees them."""

from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from gateway.access import ANYBODY, Caller
from gateway.asgi import Headers, header
from gateway.control import NO_CONTROL, Control


@dataclass(slots=True)
class Exchange:
    """`headers` are the x-tracer headers of its answer, `control` is what the caller asks of the call.

    `held` counts the bytes of a body that came in pieces (gateway/room.py).
    """

    scope: Scope
    receive: Receive
    send: Send
    headers: Headers
    caller: Caller = ANYBODY
    control: Control = NO_CONTROL
    held: int = 0

    @property
    def encoded(self) -> bool:
        """Whether the body is compressed. Nothing of a client's is inflated here: it may be a bomb."""
        return (header(self.scope, b"content-encoding") or "identity").lower() != "identity"
