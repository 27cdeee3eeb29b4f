"""What the endpoints have in common: one HTTP exchange, and the border where errors become answers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive, Scope, Send

from gateway.asgi import LOCAL_HEADERS, Headers, header, read_body, send_error, send_json
from gateway.decide import Decision
from gateway.errors import AnswerableError, ClientGone
from gateway.services import Services


@dataclass(slots=True)
class Exchange:
    """One request and its answer. `headers` are the x-tracer headers of whatever answer it ends in."""

    scope: Scope
    receive: Receive
    send: Send
    headers: Headers

    @property
    def project_header(self) -> str | None:
        """The value of x-tracer-project."""
        return header(self.scope, b"x-tracer-project")


class Endpoint(ABC):
    """An ASGI endpoint: `serve` answers, and what it raises on purpose is answered here."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.metrics = services.metrics
        self._limit = services.settings.server.max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        exchange = Exchange(scope, receive, send, LOCAL_HEADERS)
        try:
            await self.serve(exchange)
        except ClientGone:
            self.metrics.disconnects.inc()
        except AnswerableError as error:
            self.metrics.errors.labels(error.code).inc()
            await send_error(send, error, exchange.headers)

    @abstractmethod
    async def serve(self, exchange: Exchange) -> None:
        """Answer one call, or raise AnswerableError before anything has been sent."""

    async def body(self, exchange: Exchange) -> bytes:
        """The request's body, within the limit."""
        return await read_body(exchange.scope, exchange.receive, self._limit)

    def count(self, project: str, decision: Decision) -> None:
        """Count a project's call under its lane and reason."""
        self.metrics.requests.labels(project, decision.lane, decision.reason or "").inc()


async def answer_json(exchange: Exchange, value: Any) -> None:
    """End the exchange with a JSON answer."""
    await send_json(exchange.send, value, exchange.headers)
