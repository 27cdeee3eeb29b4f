"""What the endpoints have in common: who may come in, and the border where errors become answers."""

from abc import ABC, abstractmethod
from time import monotonic, time
from typing import Any, ClassVar, NamedTuple

from prometheus_client import Counter, Histogram
from starlette.types import Receive, Scope, Send

from gateway.access import Caller
from gateway.asgi import LOCAL_HEADERS, Headers, Whole, error_answer, header, read_body, send_json, send_whole
from gateway.audit import Audit
from gateway.control import Mode, explanation, read_control
from gateway.decide import Decision, Lane, deferred
from gateway.draw import share
from gateway.errors import AnswerableError, ClientGone, ProjectNotAllowed, UnknownProject, UnsupportedEncoding
from gateway.exchange import BEGUN, Exchange
from gateway.headers import account_only
from gateway.large import AT_ONCE
from gateway.registry import Serving
from gateway.services import Services
from gateway.shapes import Shape
from gateway.wire import Surface, parse_object
from policies.prompts import Known
from policies.types import Reason

_UNKNOWN_KEY = Serving(None, Reason.KEY)


class Asked(NamedTuple):
    """The question that a handled call would have been to the teacher. `body` may be the client's own."""

    text: str
    surface: Surface
    model: str
    shape: Shape
    body: bytes


class Endpoint(ABC):
    """An ASGI endpoint: `serve` answers, and what it raises on purpose is answered here.

    Callers are checked before anything of the body is read, but where an endpoint is `public`.
    """

    public: ClassVar[bool] = False

    def __init__(self, services: Services) -> None:
        self.services = services
        self.metrics = services.metrics
        # Looking a series up by its labels costs more than counting.
        self._counters: dict[tuple[str, str, str], Counter] = {}
        self._clocks: dict[str, Histogram] = {}
        self.body_limit = services.settings.server.max_body_bytes
        self._body_seconds = services.settings.server.request_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        begun: Exchange | None = scope.pop(BEGUN, None)
        exchange = begun or Exchange(scope, LOCAL_HEADERS)
        exchange.receive, exchange.send = receive, send
        try:
            if begun is None and not self.public:
                self.enter(exchange)
            await self.serve(exchange)
        except ClientGone:
            self.metrics.disconnects.inc()
        except AnswerableError as error:
            await send_whole(send, self.refused(exchange, error))
        finally:
            if exchange.held:
                self.services.room.give_back(exchange)

    def enter(self, exchange: Exchange) -> None:
        """Who calls, and what for. Raises AnswerableError."""
        scope = exchange.scope
        exchange.caller = self.services.access.enter(scope)
        exchange.given = dict(scope["headers"])
        exchange.control = read_control(scope["headers"], exchange.given)

    def refused(self, exchange: Exchange, error: AnswerableError) -> Whole:
        """The answer that tells an error."""
        if isinstance(error, UnknownProject) and exchange.caller.projects is not None:
            error = _not_allowed(exchange.caller, None)  # whose key is for some is not told of the others
        self.metrics.errors.labels(error.code).inc()
        return error_answer(error, [*_closing(exchange.scope), *exchange.headers])

    @abstractmethod
    async def serve(self, exchange: Exchange) -> None:
        """Answer one call, or raise AnswerableError before anything has been sent."""

    async def body(self, exchange: Exchange) -> bytes:
        """The request's body, within the limit and not compressed."""
        if exchange.encoded:
            raise UnsupportedEncoding("The body is compressed; send it as it is.")
        room = self.services.room
        return await read_body(exchange.given, exchange.receive, self.body_limit, self._body_seconds, room, exchange)

    async def object(self, exchange: Exchange) -> dict[str, Any]:
        """The JSON object that is the request's body; raises InvalidRequest."""
        raw = await self.body(exchange)
        return parse_object(raw) if len(raw) <= AT_ONCE else await self.services.large.object(raw)

    def admit(self, exchange: Exchange, project: str | None) -> None:
        """Raise ProjectNotAllowed where the caller may not use a project, or calls of none (None)."""
        if not exchange.caller.may_use(project):
            raise _not_allowed(exchange.caller, project)

    def serving(self, project: str, caller: Caller) -> Serving:
        """What a project serves to this caller: nothing (Reason.KEY) until its upstream has accepted the caller's key.

        Nothing is scored then, so that a stranger learns no score, and the calls deferred are a fair sample.
        """
        serving = self.services.registry.serving(project)
        if serving.policy is None or self.services.access.accepts(self.services.settings.upstream_of(project), caller):
            return serving
        return _UNKNOWN_KEY

    async def score(self, exchange: Exchange, serving: Serving, text: str) -> Decision:
        """What the policy says of a text, as far as the caller wants it to be asked."""
        reason = self.unscored(exchange, serving, text)
        if reason is not None:
            return deferred(serving, reason)
        return await self.services.decider.decide(serving, text, exchange.control.agreement, exchange.watched)

    def unscored(self, exchange: Exchange, serving: Serving, text: str | None) -> Reason | None:
        """Why a text (None: an embedding) is not even scored, or None."""
        flaw = None if text is None else self.services.recogniser.flaw(text)
        if flaw is not None or serving.policy is None:
            return flaw or serving.reason
        return Reason.ASKED if exchange.control.mode is Mode.TEACHER else None

    def explain(self, exchange: Exchange, decision: Decision, serving: Serving) -> None:
        """Add the explanation that the caller asked for, if it did."""
        control = exchange.control
        if control.explain:
            told = explanation(decision, serving, control.agreement)
            exchange.headers = [*exchange.headers, (b"x-tracer-explain", told)]

    def stranger(self, project: str, serving: Serving, shape: Shape, model: str) -> Reason | None:
        """Why a policy is not certified for what is asked beside the text, or None."""
        if serving.family is not None:
            return _UNKNOWN[serving.family.knows(shape.prompt(model))]
        if not serving.trusting or serving.policy is None:
            return None  # nobody watches it
        known = self.services.watch.intakes[project].trusts(serving.policy.version, shape.prompt(model))
        return None if known else Reason.PROMPT

    def draw(self, exchange: Exchange, project: str, decision: Decision, asked: Asked) -> None:
        """Have the teacher asked about a handled call as well, where the draw falls so.

        Costs about two microseconds where it does not. A call that leaves the teacher no choice is not drawn.
        """
        draw, upstream, now = self.services.watch.draw, self.services.settings.upstream_of(project), time()
        if draw is None or upstream is None or not asked.model or not asked.shape.chosen_freely:
            return
        rate = self.services.watch.intakes[project].audit_rate(now)
        if not rate or decision.label is None:
            return
        fingerprint = asked.shape.fingerprint(asked.model)
        drawn = draw.id(project, fingerprint, asked.text, now)
        if share(drawn) >= rate:
            return
        scope = exchange.scope
        self.services.auditor.offer(
            Audit(
                id=drawn,
                project=project,
                version=decision.policy_version or "",
                label=decision.label,
                text=asked.text,
                surface=asked.surface,
                model=asked.model,
                body=asked.body,
                headers=account_only(scope["headers"], self.services.settings.access.account_headers),
                upstream=upstream,
                probability=rate,
                base=rate,
                fingerprint=fingerprint,
                made_at=monotonic(),
                ts=now,
                stretch=self.services.registry.serving(project).stretch,
                query=scope["query_string"] if asked.surface.value in scope["path"] else b"",
            )
        )

    def count(self, project: str, lane: Lane, reason: str = "", calls: int = 1) -> None:
        """Count calls, of a project or of none (""), under their lane and reason."""
        key = project, lane, reason
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = self.metrics.requests.labels(*key)
        counter.inc(calls)
        self.services.watch.count(project, reason, calls)

    def took(self, lane: Lane, seconds: float) -> None:
        """Take down how long a call took."""
        clock = self._clocks.get(lane)
        if clock is None:
            clock = self._clocks[lane] = self.metrics.request_seconds.labels(lane)
        clock.observe(seconds)


_UNKNOWN: dict[Known, Reason | None] = {Known.YES: None, Known.MODEL: Reason.MODEL, Known.NO: Reason.PROMPT}


def _not_allowed(caller: Caller, project: str | None) -> ProjectNotAllowed:
    allowed = ", ".join(sorted(caller.projects or ())) or "none"
    what = "calls of no project" if project is None else f"the project {project!r}"
    return ProjectNotAllowed(f"This key may not be used for {what}. Its projects: {allowed}.")


def _closing(scope: Scope) -> Headers:
    # A client that was to wait for a 100 may now send its body or leave it: only a new connection tells the two apart.
    return [] if header(scope, b"expect") is None else [(b"connection", b"close")]


async def answer_json(exchange: Exchange, value: Any) -> None:
    """End the exchange with a JSON answer."""
    await send_json(exchange.send, value, exchange.headers)
