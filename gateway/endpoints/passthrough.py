"""Everything else under /v1/: relayed untouched, bodies streamed both ways."""

from urllib.parse import unquote_to_bytes

from starlette.types import Scope

from gateway.asgi import RELAYED_HEADERS, header
from gateway.control import Mode
from gateway.decide import Lane
from gateway.endpoints.exchange import Endpoint
from gateway.errors import KeptLocal, NotFound
from gateway.exchange import Exchange
from gateway.relay import Client, forward
from gateway.upstream import UpstreamCall


class Relaying(Endpoint):
    """An endpoint that can relay a call untouched, as one of no project."""

    async def relay(self, exchange: Exchange) -> None:
        """Relay one call, its body unread."""
        self.admit(exchange, None)
        self.keep_local(exchange)
        exchange.headers = RELAYED_HEADERS
        self.count("", Lane.TEACHER)
        upstream = self.services.upstream_of(None)
        scope = exchange.scope
        client = Client(scope, exchange.receive, exchange.send)
        body = client.upload() if _has_body(scope) else b""
        call = UpstreamCall(scope["method"], _path(scope), scope["query_string"], scope["headers"], body)
        outcome = await forward(upstream, call, client, exchange.headers, self.metrics, self.services.places)
        if outcome.status >= 400:
            # A yes counts only where keys are surely checked, which not every path does; a no counts everywhere.
            self.services.access.learned(outcome.upstream, exchange.caller, outcome.status)

    def keep_local(self, exchange: Exchange) -> None:
        """Raise KeptLocal where the caller asked that a call of no project's, too, stays here."""
        if exchange.control.mode is Mode.LOCAL:
            raise KeptLocal("The call was to be answered locally or not at all, and belongs to no project.")


class Passthrough(Relaying):
    """The ASGI endpoint, for every method."""

    async def serve(self, exchange: Exchange) -> None:
        """Relay one call."""
        await self.relay(exchange)


def _path(scope: Scope) -> str:
    """What follows /v1, as the client encoded it."""
    if ".." in scope["path"].split("/"):
        # The upstream's key must not open paths beside those it is configured for.
        raise NotFound("The path holds '..'.")
    _, version, *rest = scope["raw_path"].split(b"/", 2)
    if unquote_to_bytes(version) != b"v1" or not rest:
        # An encoded slash: what the route took for two segments is one.
        raise NotFound("The path has no /v1/ of its own.")
    return "/" + str(rest[0], "latin-1")


def _has_body(scope: Scope) -> bool:
    return header(scope, b"content-length") not in (None, "0") or header(scope, b"transfer-encoding") is not None
