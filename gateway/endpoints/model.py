"""What the surfaces that call a model have in common: recognise, decide, answer in-process or forward."""

import logging
from abc import abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import ClassVar

from starlette.types import Scope

from gateway.answer import EVENT_STREAM, NO_CACHE, SURROGATE_MODEL
from gateway.arguments import Writer, write_arguments
from gateway.asgi import LOCAL_HEADERS, RELAYED_HEADERS, Whole, new_id, send_whole, tracer_headers, whole
from gateway.control import Control, Mode
from gateway.decide import Decision, Lane, Watched, deferred
from gateway.endpoints.exchange import Asked
from gateway.endpoints.passthrough import Relaying
from gateway.errors import AnswerableError, InternalError, InvalidRequest, KeptLocal, ModelNotAllowed
from gateway.exchange import BEGUN, Exchange
from gateway.large import AT_ONCE
from gateway.learn import Forwarded, learn
from gateway.reading import readable
from gateway.recognise import MODEL_PREFIX, Recognised
from gateway.registry import Serving
from gateway.relay import Client, Outcome, forward
from gateway.services import Services
from gateway.shapes import Shape, Shapes
from gateway.upstream import Upstream, UpstreamCall
from gateway.wanted import misfit
from gateway.wire import ModelRequest, Surface, with_model
from policies.policy import Policy
from policies.types import Answer, AnswerKind, Reason

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class LocalCall:
    """A project's call on its way through: `reply` is the answer it may be given, once there is one.

    `model` is who gives it, `usage` (JSON) what it cost where an LLM wrote a part of it, `chosen` a decision's label
    with the probability of each. `watched` ends what takes long when the client goes away.
    """

    raw: bytes
    shape: Shape
    found: Recognised
    parse: Callable[[bytes], ModelRequest]
    control: Control
    serving: Serving
    watched: Watched = nullcontext
    open: bool = True  # nobody has tried to decide on it
    id: str = field(default_factory=new_id)
    reply: Answer | None = None
    model: str = SURROGATE_MODEL
    usage: bytes | None = None
    chosen: tuple[str, dict[str, float]] | None = None

    def read(self) -> ModelRequest:
        """The whole request, for the few calls that need more of it than its shape."""
        return self.parse(self.raw)


@dataclass(slots=True)
class _Begun:
    """A request whose body has been read: the project's call in it, None where it is no project's."""

    raw: bytes
    started: float
    call: LocalCall | None
    decision: Decision | None = None


class ModelEndpoint(Relaying):
    """An ASGI endpoint; a subclass knows the shapes of one surface.

    `waits`: it never answers at once.
    """

    surface: ClassVar[Surface]
    waits: ClassVar[bool] = False

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._shapes = Shapes(self._recognise)

    @abstractmethod
    def parse(self, raw: bytes) -> ModelRequest:
        """The request in a body; raises InvalidRequest."""

    def misfit(self, call: LocalCall, reply: Answer) -> Reason | None:
        """Why the answer would not be what the request asks for, or None."""
        asked = call.shape.wanted
        policy = call.serving.policy
        # Where no trace called a tool, none was offered, or none ever fitted: what the teacher would do now is unknown.
        if asked.may_call and policy is not None and not policy.knows_tools:
            return Reason.TOOLS
        return misfit(reply, asked)

    @abstractmethod
    def answer(self, call: LocalCall, reply: Answer) -> tuple[bytes, bytes]:
        """The content type and the body that carry `reply`, the answer of a handled call."""

    def begin(self, scope: Scope, raw: bytes) -> "ModelTurn | None":
        """Read a request whose body is there; None where it surely takes a task to answer it."""
        started = perf_counter()
        exchange = Exchange(scope, LOCAL_HEADERS)
        try:
            self.enter(exchange)
            scope[BEGUN] = exchange
            if self.waits or exchange.encoded or len(raw) > min(self.body_limit, AT_ONCE):
                return None
            call = self._call(exchange, raw, self._read(raw, exchange.control.project))
        except AnswerableError as error:
            return ModelTurn(self, exchange, error)
        except Exception:  # noqa: BLE001 - the border of an endpoint
            return ModelTurn(self, exchange, self.failed())
        exchange.begun = _Begun(raw, started, call)
        return None if call is None else ModelTurn(self, exchange)

    def failed(self) -> InternalError:
        """Log and count the fault that is being handled; the error that tells the client."""
        logger.exception("a call could not be served")
        self.metrics.internal_errors.labels("endpoint").inc()
        return InternalError("The gateway failed to answer.")

    def decide_begun(self, exchange: Exchange) -> None:
        """Decide on a call that has begun, where that takes microseconds."""
        begun: _Begun = exchange.begun
        if begun.call is not None:
            begun.decision = self._decide_quickly(begun.call)

    def answer_begun(self, exchange: Exchange) -> Whole | None:
        """The answer of a call that has been decided on; None where it takes a task."""
        begun: _Begun = exchange.begun
        call, decision = begun.call, begun.decision
        if call is None or decision is None or call.reply is None or _wants_arguments(call.reply):
            return None
        answer = self._answered(exchange, call, decision, call.reply)
        self.took(decision.lane, perf_counter() - begun.started)
        return answer

    async def serve(self, exchange: Exchange) -> None:
        """Answer or forward one call."""
        if exchange.encoded:
            await self.relay(exchange)
            return
        begun: _Begun | None = exchange.begun
        if begun is None:
            raw, named = await self.body(exchange), exchange.control.project
            started = perf_counter()
            read = self._read(raw, named) if len(raw) <= AT_ONCE else await self._read_large(raw, named)
            begun = _Begun(raw, started, self._call(exchange, raw, read))
        if begun.call is None:
            self.keep_local(exchange)
            exchange.headers = RELAYED_HEADERS
            self.count("", Lane.TEACHER)
            await self._forward(exchange, self.services.upstream_of(None), begun.raw, copied=False)
            lane = Lane.TEACHER
        else:
            begun.call.watched = exchange.watched
            lane = await self._serve_project(exchange, begun.call, begun.decision)
        self.took(lane, perf_counter() - begun.started)

    def _call(self, exchange: Exchange, raw: bytes, read: tuple[Shape, Recognised] | None) -> LocalCall | None:
        """The project's call in a body, None where it is no project's; raises where the caller may not make it."""
        self.admit(exchange, None if read is None else read[1].project)
        if read is None:
            return None
        shape, found = read
        if not exchange.caller.may_ask(self.services.settings.projects[found.project], shape.model):
            raise ModelNotAllowed(f"This key may be used for the project {found.project!r} with its own model only.")
        return LocalCall(raw, shape, found, self.parse, exchange.control, self.serving(found.project, exchange.caller))

    async def _serve_project(self, exchange: Exchange, call: LocalCall, decision: Decision | None) -> Lane:
        if decision is None:
            decision = await self.decide(call)
        if decision.label is not None and call.reply is not None and _wants_arguments(call.reply):
            decision = await self._write_arguments(exchange, call, decision, call.reply)
        if decision.label is not None and call.reply is not None:
            await send_whole(exchange.send, self._answered(exchange, call, decision, call.reply))
            return decision.lane
        if call.control.mode is Mode.LOCAL:
            decision = decision._replace(lane=Lane.NONE)
        self._tell(exchange, call, decision)
        if decision.lane is Lane.NONE:
            raise KeptLocal(f"The call was to be answered locally or not at all, and was deferred: {decision.reason}.")
        upstream = self.services.upstream_of(call.found.project)
        model, body = self._for_teacher(call, call.found.project)
        outcome = await self._forward(exchange, upstream, body, copied=call.found.text is not None)
        forwarded = Forwarded(call.id, call.found, decision, self.surface, call.shape, model, upstream)
        learn(self.services, forwarded, outcome, partial(self._fits, call))
        return decision.lane

    def _answered(self, exchange: Exchange, call: LocalCall, decision: Decision, reply: Answer) -> Whole:
        """The answer of a handled call."""
        self._tell(exchange, call, decision)
        if self.services.watch.intakes[call.found.project].rate:
            asked = Asked(call.found.text or "", self.surface, self._model_of(call), call.shape, call.raw)
            self.draw(exchange, call.found.project, decision, asked)
        content_type, body = self.answer(call, reply)
        # OpenAI's clients show it as the answer's `request_id`; a forwarded answer brings the upstream's own.
        headers = [*exchange.headers, (b"x-request-id", b"req_" + call.id.encode())]
        if content_type is EVENT_STREAM:
            headers.append(NO_CACHE)
        return whole(200, content_type, body, headers)

    def _tell(self, exchange: Exchange, call: LocalCall, decision: Decision) -> None:
        """Count a decision, and put it into the headers of the answer."""
        project = call.found.project
        self.count(project, decision.lane, decision.reason or "")
        exchange.headers = tracer_headers(project, decision, call.id)
        self.explain(exchange, decision, call.serving)

    def _read(self, raw: bytes, named: str | None) -> tuple[Shape, Recognised] | None:
        """The project's call in a body: its shape and its input; None where it is no project's."""
        known = self._shapes.find(raw, named)
        if known is not None:
            shape, text = known
            reason = self.services.recogniser.flaw(text)
            return shape, Recognised(shape.project, text if reason is None else None, reason)
        try:
            request, found = self._recognise(raw, named)
            if found is None:
                return None
            shape = Shape(request, found.project)
            if found.text is not None:
                self._shapes.remember(raw, named, shape, found.text)
        except AnswerableError:
            raise
        except Exception as error:  # noqa: BLE001 - the border of an endpoint: what cannot be read is forwarded
            self._failed_to_read(error)
            return None
        return shape, found

    async def _read_large(self, raw: bytes, named: str | None) -> tuple[Shape, Recognised] | None:
        """As `_read`, of a body for which others should not have to wait."""
        try:
            request = await self.services.large.request(raw, self.parse)
            found = None if request is None else self.services.recogniser.recognise(request, named)
        except AnswerableError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            self._failed_to_read(error)
            return None
        return None if request is None or found is None else (Shape(request, found.project), found)

    def _failed_to_read(self, error: Exception) -> None:
        self.metrics.internal_errors.labels("recognise").inc()
        logger.error("reading a call failed (%s); it is forwarded", type(error).__name__)

    def _recognise(self, raw: bytes, named: str | None) -> tuple[ModelRequest, Recognised | None]:
        request = self.parse(raw)
        return request, self.services.recogniser.recognise(request, named)

    async def decide(self, call: LocalCall) -> Decision:
        """Who answers; sets the call's reply where the policy may and does."""
        decision = self._decide_quickly(call) if call.open else None
        if decision is not None:
            return decision
        text, agreement = call.found.text or "", call.control.agreement
        decision = await self.services.decider.decide_slowly(call.serving, text, agreement, call.watched)
        return self._checked(call, decision)

    def _decide_quickly(self, call: LocalCall) -> Decision | None:
        """As `decide`, where that takes microseconds; None where it does not."""
        call.open = False
        serving, found, control = call.serving, call.found, call.control
        if found.reason is not None or found.text is None:
            return deferred(serving, found.reason or Reason.NO_INPUT)
        if serving.policy is not None:
            if control.mode is Mode.TEACHER:
                return deferred(serving, Reason.ASKED)
            stranger = self._stranger(call)
            if stranger is not None:
                return deferred(serving, stranger)
        decision = self.services.decider.decide_quickly(serving, found.text, control.agreement)
        return None if decision is None else self._checked(call, decision)

    def _stranger(self, call: LocalCall) -> Reason | None:
        """Why the policy is not certified for what is asked beside the text, or None."""
        return self.stranger(call.found.project, call.serving, call.shape, self._model_of(call))

    def _checked(self, call: LocalCall, decision: Decision) -> Decision:
        """The policy's decision, put off where its answer is not what the call asks for."""
        if decision.label is None or call.serving.policy is None:
            return decision
        reply = call.serving.policy.answers[decision.label]
        reason = self.misfit(call, reply)
        if reason is None and call.control.mode is Mode.SHADOW:
            reason = Reason.ASKED
        if reason is None and call.control.mode is Mode.LOCAL and _wants_arguments(reply):
            reason = Reason.ARGUMENTS
        if reason is not None:
            return decision.put_off(reason)
        call.reply = reply
        return decision

    async def _write_arguments(
        self, exchange: Exchange, call: LocalCall, decision: Decision, reply: Answer
    ) -> Decision:
        """The decision when an LLM has written the picked tool's arguments, or could not."""
        writer = self._writer(call)
        written = None
        if writer is not None:
            written = await write_arguments(self.services, exchange, call.read(), call.shape.wanted, reply.text, writer)
        if writer is None or written is None:
            return decision.put_off(Reason.ARGUMENTS)
        call.reply, call.model, call.usage = written.answer, written.model, written.usage
        return decision.completed_by(writer.lane)

    def _writer(self, call: LocalCall) -> Writer | None:
        """The project's mini, or else its teacher; None where it has neither."""
        settings = self.services.settings
        project = settings.projects[call.found.project]
        if project.mini is not None:
            name = project.mini_upstream or settings.upstream_of(call.found.project)
            return None if name is None else Writer(Lane.MINI, self.services.upstreams[name], project.mini)
        name = settings.upstream_of(call.found.project)
        asked = call.shape.model
        model = project.teacher if asked.startswith(MODEL_PREFIX) else asked
        return None if name is None or model is None else Writer(Lane.TEACHER, self.services.upstreams[name], model)

    def _model_of(self, call: LocalCall) -> str:
        """The teacher's name for itself; "" where a call names none and none is configured."""
        asked = call.shape.model
        return (
            self.services.settings.projects[call.found.project].teacher or ""
            if asked.startswith(MODEL_PREFIX)
            else asked
        )

    def _fits(self, call: LocalCall, policy: Policy, reply: Answer) -> bool:
        """Whether another policy's answer would have been what the call asks for."""
        return self.misfit(replace(call, serving=Serving(policy)), reply) is None

    def _for_teacher(self, call: LocalCall, project: str) -> tuple[str, bytes]:
        """The teacher's model name, and the body that asks for it."""
        asked = call.shape.model
        if not asked.startswith(MODEL_PREFIX):
            return asked, call.raw
        teacher = self.services.settings.projects[project].teacher
        if teacher is None:
            message = f"The call was deferred, and the project {project!r} has no 'teacher' model configured to ask."
            raise InvalidRequest(message, param="model")
        return teacher, with_model(call.raw, teacher, call.shape.model_spans)

    async def _forward(self, exchange: Exchange, upstream: Upstream, body: bytes, *, copied: bool) -> Outcome:
        scope = exchange.scope
        headers = readable(scope["headers"]) if copied else scope["headers"]
        call = UpstreamCall("POST", self.surface, scope["query_string"], headers, body)
        client = Client(scope, exchange.receive, exchange.send)
        outcome = await forward(
            upstream, call, client, exchange.headers, self.metrics, self.services.places, copied=copied
        )
        self.services.access.learned(outcome.upstream, exchange.caller, outcome.status)
        return outcome


class ModelTurn:
    """A request of an endpoint that is answered without a task (see `gateway.turns`)."""

    __slots__ = ("_endpoint", "_error", "_exchange")

    def __init__(self, endpoint: "ModelEndpoint", exchange: Exchange, error: AnswerableError | None = None) -> None:
        """`error`: it is refused."""
        self._endpoint, self._exchange, self._error = endpoint, exchange, error

    def decide(self) -> None:
        """Decide on it, where that takes microseconds."""
        if self._error is None:
            try:
                self._endpoint.decide_begun(self._exchange)
            except Exception:  # noqa: BLE001 - the border of an endpoint
                self._error = self._endpoint.failed()

    def answer(self) -> Whole | None:
        """Its answer, or None: what has been found out stays in the scope, for the task that goes on with it."""
        exchange, answer = self._exchange, None
        if self._error is None:
            try:
                answer = self._endpoint.answer_begun(exchange)
            except Exception:  # noqa: BLE001 - the border of an endpoint
                self._error = self._endpoint.failed()
        if self._error is not None:
            answer = self._endpoint.refused(exchange, self._error)
        if answer is not None:
            # The two hold each other: let go, they are gone at once, and not when the collector next looks.
            exchange.scope.pop(BEGUN, None)
        return answer


def _wants_arguments(reply: Answer) -> bool:
    return reply.kind is AnswerKind.TOOL and reply.arguments is None
