"""`/openapi.json`: the gateway's API as an OpenAPI 3.1 document."""

from pathlib import Path

from gateway.asgi import LOCAL_HEADERS, send_bytes
from gateway.encoding import JSON
from gateway.endpoints.exchange import Endpoint
from gateway.exchange import Exchange
from gateway.services import Services

DOCUMENT = Path(__file__).parents[1] / "openapi.json"


class OpenApi(Endpoint):
    """The ASGI endpoint."""

    public = True

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._document = DOCUMENT.read_bytes()

    async def serve(self, exchange: Exchange) -> None:
        """Answer."""
        await send_bytes(exchange.send, 200, JSON, self._document, LOCAL_HEADERS)
