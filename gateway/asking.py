"""Calls the gateway makes itself, on behalf of a client that waits: whole answers, and nothing of them relayed."""

from starlette.types import Message, Receive

from gateway.asgi import Headers
from gateway.headers import ACCOUNT_HEADERS
from gateway.metrics import Metrics
from gateway.relay import Client, Outcome, forward
from gateway.upstream import Upstream, UpstreamCall
from gateway.wire import Surface

_JSON = b"application/json"


async def ask(
    upstream: Upstream, surface: Surface, body: bytes, client_headers: Headers, receive: Receive, metrics: Metrics
) -> Outcome:
    """Ask `upstream` for a whole answer; raises as `forward` does, ClientGone where the client leaves meanwhile."""
    # Of the client's headers only what says who asks belongs to a call whose body is ours.
    kept = [(name, value) for name, value in client_headers if name in ACCOUNT_HEADERS]
    headers = [(b"content-type", _JSON), (b"accept", _JSON), *kept]
    call = UpstreamCall("POST", surface, b"", headers, body)
    return await forward(upstream, call, Client(receive, _discard), [], metrics, copied=True)


async def _discard(_: Message) -> None:
    """A client that is answered in another shape than the upstream's."""
