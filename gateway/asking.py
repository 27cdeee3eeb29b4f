"""Calls the gateway makes itself, on behalf of a client that waits: whole answers, and nothing of them relayed."""

from starlette.types import Message

from gateway.encoding import JSON
from gateway.exchange import Exchange
from gateway.headers import account_only
from gateway.relay import Client, Outcome, forward
from gateway.services import Services
from gateway.upstream import Upstream, UpstreamCall
from gateway.wire import Surface


async def ask(services: Services, exchange: Exchange, upstream: Upstream, surface: Surface, body: bytes) -> Outcome:
    """Ask `upstream` for a whole answer; raises as `forward` does, ClientGone where the client leaves meanwhile."""
    # Of the client's headers only what says who asks belongs to a call whose body is ours.
    kept = account_only(exchange.scope["headers"], services.settings.access.account_headers)
    headers = [(b"content-type", JSON), (b"accept", JSON), *kept]
    call = UpstreamCall("POST", surface, b"", headers, body)
    client = Client(exchange.scope, exchange.receive, _discard)
    outcome = await forward(upstream, call, client, [], services.metrics, services.places, copied=True, whole=True)
    # A no to a question of the gateway's own, of a model the client never named, is no verdict on the client's key.
    if outcome.status < 400:
        services.access.learned(outcome.upstream, exchange.caller, outcome.status)
    return outcome


async def _discard(_: Message) -> None:
    """A client that is answered in another shape than the upstream's."""
