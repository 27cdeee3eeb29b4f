"""`POST /v1/chat/completions`."""

from gateway.answer import EVENT_STREAM, NO_USAGE, Envelope, render, render_stream
from gateway.encoding import JSON
from gateway.endpoints.model import LocalCall, ModelEndpoint
from gateway.wire import ModelRequest, Surface, parse_chat
from policies.types import Answer


class Chat(ModelEndpoint):
    """The ASGI endpoint."""

    surface = Surface.CHAT

    def parse(self, raw: bytes) -> ModelRequest:
        """A chat completion request."""
        return parse_chat(raw)

    def answer(self, call: LocalCall, reply: Answer) -> tuple[bytes, bytes]:
        """A completion, or its stream."""
        shape = call.shape
        finish = shape.wanted.finish_reason
        envelope = Envelope(call.id, call.serving.version or "", finish, call.model, call.usage or NO_USAGE)
        if not shape.streamed:
            return JSON, render(reply, envelope)
        return EVENT_STREAM, render_stream(reply, envelope, shape.include_usage)
