"""`POST /v1/responses`."""

from gateway.answer import EVENT_STREAM, NO_CACHE
from gateway.asgi import send_bytes
from gateway.encoding import JSON
from gateway.endpoints.model import LocalCall, ModelEndpoint
from gateway.exchange import Exchange
from gateway.response import render_response, render_response_stream
from gateway.wire import ModelRequest, Surface, parse_responses
from policies.types import Answer


class Responses(ModelEndpoint):
    """The ASGI endpoint."""

    surface = Surface.RESPONSES

    def parse(self, raw: bytes) -> ModelRequest:
        """A responses request."""
        return parse_responses(raw)

    async def answer(self, exchange: Exchange, call: LocalCall, reply: Answer) -> None:
        """A response, or its events."""
        request = call.read()
        if call.shape.streamed:
            content = render_response_stream(reply, request, call.id, call.model, call.usage)
            await send_bytes(exchange.send, 200, EVENT_STREAM, content, [NO_CACHE, *exchange.headers])
        else:
            content = render_response(reply, request, call.id, call.model, call.usage)
            await send_bytes(exchange.send, 200, JSON, content, exchange.headers)
