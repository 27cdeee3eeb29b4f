"""`POST /v1/chat/completions`: answered in-process where the policy may, forwarded where not."""

import logging
from time import perf_counter

from gateway.access import Caller
from gateway.answer import EVENT_STREAM, JSON, readable, render, render_stream
from gateway.asgi import RELAYED_HEADERS, new_id, send_bytes, tracer_headers
from gateway.decide import Decision, Lane, deferred
from gateway.endpoints.exchange import Exchange
from gateway.endpoints.passthrough import Relaying
from gateway.errors import AnswerableError, InvalidRequest
from gateway.learn import Forwarded, learn
from gateway.recognise import MODEL_PREFIX, Recognised, has_room
from gateway.relay import Client, Outcome, forward
from gateway.upstream import Upstream, UpstreamCall
from gateway.wire import ChatRequest, parse_chat, with_model
from policies.types import Reason

logger = logging.getLogger(__name__)

PATH = "/chat/completions"


class Chat(Relaying):
    """The ASGI endpoint."""

    async def serve(self, exchange: Exchange) -> None:
        """Answer or forward one chat completion call."""
        if exchange.encoded:
            await self.relay(exchange)
            return
        raw = await self.body(exchange)
        started = perf_counter()
        request = parse_chat(raw)
        found = self._recognise(request, exchange.project_header)
        self.admit(exchange, None if found is None else found.project)
        if found is None:
            exchange.headers = RELAYED_HEADERS
            self.metrics.requests.labels("", Lane.TEACHER, "").inc()
            await self._forward(exchange, self.services.upstream_of(None), raw, copied=False)
            lane = Lane.TEACHER
        else:
            lane = await self._serve_project(exchange, request, found)
        self.metrics.request_seconds.labels(lane).observe(perf_counter() - started)

    async def _serve_project(self, exchange: Exchange, request: ChatRequest, found: Recognised) -> Lane:
        call_id = new_id()
        decision = await self._decide(found, request, exchange.caller)
        self.count(found.project, decision)
        exchange.headers = tracer_headers(found.project, decision, call_id)
        if decision.label is not None:
            await _answer(exchange, request, decision.label, call_id)
            return decision.lane
        upstream = self.services.upstream_of(found.project)
        model, body = self._for_teacher(request, found.project)
        outcome = await self._forward(exchange, upstream, body, copied=found.text is not None)
        learn(self.services, Forwarded(call_id, found, decision, request, model, upstream), outcome)
        return decision.lane

    def _recognise(self, request: ChatRequest, project: str | None) -> Recognised | None:
        try:
            return self.services.recogniser.recognise(request, project)
        except AnswerableError:
            raise
        except Exception as error:  # noqa: BLE001 - the border of an endpoint: what cannot be read is forwarded
            self.metrics.internal_errors.labels("recognise").inc()
            logger.error("reading a call failed (%s); it is forwarded", type(error).__name__)
            return None

    async def _decide(self, found: Recognised, request: ChatRequest, caller: Caller) -> Decision:
        serving = self.serving(found.project, caller)
        if found.reason is not None:
            return deferred(serving, found.reason)
        decision = await self.services.decider.decide(serving, found.text or "")
        if decision.label is not None and not has_room(request, decision.label):
            return deferred(serving, Reason.UNSUPPORTED)
        return decision

    def _for_teacher(self, request: ChatRequest, project: str) -> tuple[str, bytes]:
        """The teacher's model name, and the body that asks for it."""
        if not request.model.startswith(MODEL_PREFIX):
            return request.model, request.raw
        teacher = self.services.settings.projects[project].teacher
        if teacher is None:
            message = f"The call was deferred, and the project {project!r} has no 'teacher' model configured to ask."
            raise InvalidRequest(message, param="model")
        return teacher, with_model(request.raw, teacher)

    async def _forward(self, exchange: Exchange, upstream: Upstream, body: bytes, *, copied: bool) -> Outcome:
        scope = exchange.scope
        headers = readable(scope["headers"]) if copied else scope["headers"]
        call = UpstreamCall("POST", PATH, scope["query_string"], headers, body)
        client = Client(exchange.receive, exchange.send)
        outcome = await forward(
            upstream, call, client, exchange.headers, self.metrics, self.services.places, copied=copied
        )
        self.services.access.learned(upstream.name, exchange.caller, outcome.status)
        return outcome


async def _answer(exchange: Exchange, request: ChatRequest, label: str, call_id: str) -> None:
    if request.body.get("stream"):
        options = request.body.get("stream_options") or {}
        body = render_stream(label, call_id, options.get("include_usage") is True)
        headers = [(b"cache-control", b"no-cache"), *exchange.headers]
        await send_bytes(exchange.send, 200, EVENT_STREAM, body, headers)
    else:
        await send_bytes(exchange.send, 200, JSON, render(label, call_id), exchange.headers)
