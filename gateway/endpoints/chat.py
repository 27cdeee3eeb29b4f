"""`POST /v1/chat/completions`."""

from gateway.answer import EVENT_STREAM, NO_CACHE, NO_USAGE, Envelope, render, render_stream
from gateway.asgi import send_bytes
from gateway.encoding import JSON
from gateway.endpoints.model import LocalCall, ModelEndpoint
from gateway.exchange import Exchange
from gateway.wire import ModelRequest, Surface, parse_chat
from policies.types import Answer


class Chat(ModelEndpoint):
    """The ASGI endpoint."""

    surface = Surface.CHAT

    def parse(self, raw: bytes) -> ModelRequest:
        """A chat completion request."""
        return parse_chat(raw)

    async def answer(self, exchange: Exchange, call: LocalCall, reply: Answer) -> None:
        """A completion, or its stream."""
        shape = call.shape
        finish = shape.wanted.finish_reason
        envelope = Envelope(call.id, call.serving.version or "", finish, call.model, call.usage or NO_USAGE)
        if not shape.streamed:
            await send_bytes(exchange.send, 200, JSON, render(reply, envelope), exchange.headers)
            return
        content = render_stream(reply, envelope, shape.include_usage)
        await send_bytes(exchange.send, 200, EVENT_STREAM, content, [NO_CACHE, *exchange.headers])
