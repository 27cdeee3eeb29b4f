"""`POST /v1/responses`."""

from gateway.answer import EVENT_STREAM
from gateway.encoding import JSON
from gateway.endpoints.model import LocalCall, ModelEndpoint
from gateway.response import render_response, render_response_stream
from gateway.wire import ModelRequest, Surface, parse_responses
from policies.types import Answer


class Responses(ModelEndpoint):
    """The ASGI endpoint."""

    surface = Surface.RESPONSES

    def parse(self, raw: bytes) -> ModelRequest:
        """A responses request."""
        return parse_responses(raw)

    def answer(self, call: LocalCall, reply: Answer) -> tuple[bytes, bytes]:
        """A response, or its events."""
        request = call.read()
        if call.shape.streamed:
            return EVENT_STREAM, render_response_stream(reply, request, call.id, call.model, call.usage)
        return JSON, render_response(reply, request, call.id, call.model, call.usage)
