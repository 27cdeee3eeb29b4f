"""`POST /{project}/classify`: one text in, one label out, without the shape of a chat."""

from typing import Any

from gateway.answer import SURROGATE_MODEL
from gateway.asgi import new_id, send_bytes, tracer_headers
from gateway.asking import ask
from gateway.control import Mode
from gateway.decide import Decision, Lane, deferred
from gateway.encoding import JSON, encoded
from gateway.endpoints.exchange import Asked, Endpoint, answer_json
from gateway.errors import InvalidRequest, UpstreamUnreachable
from gateway.exchange import Exchange
from gateway.learn import Forwarded, learn
from gateway.recognise import Recognised
from gateway.shapes import Shape
from gateway.wire import Surface, parse_chat
from policies.types import Answer, AnswerKind, Reason


class Classify(Endpoint):
    """The ASGI endpoint.

    A deferred call asks the teacher where the request brings `messages` or the project has a `prompt`; elsewhere its
    label is null.
    """

    async def serve(self, exchange: Exchange) -> None:
        """Answer one call."""
        project = self.services.recogniser.named(exchange.scope["path_params"]["project"], "project")
        self.admit(exchange, project)
        body = await self.object(exchange)
        text = body.get("input")
        if type(text) is not str:
            raise InvalidRequest("'input' should be a string.", param="input")
        call_id = new_id()
        serving = self.serving(project, exchange.caller)
        asked = self._question(project, text, body.get("messages"))
        stranger = None
        if asked is not None and serving.policy is not None:
            stranger = self.stranger(project, serving, asked.shape, asked.model)
        decision = await self.score(exchange, serving, text) if stranger is None else deferred(serving, stranger)
        if decision.label is not None and exchange.control.mode is Mode.SHADOW:
            decision = decision.put_off(Reason.ASKED)
        if decision.label is None and exchange.control.mode is Mode.LOCAL:
            decision = decision._replace(lane=Lane.NONE)
        self.count(project, decision.lane, decision.reason or "")
        exchange.headers = tracer_headers(project, decision, call_id)
        self.explain(exchange, decision, serving)
        if asked is not None and decision.label is not None:
            self.draw(exchange, project, decision, asked)
        if asked is None or decision.label is not None or decision.lane is Lane.NONE:
            model = SURROGATE_MODEL if decision.label is not None else None
            await answer_json(exchange, _answer(decision, serving.said(decision.label), model, body))
            return
        upstream = self.services.upstream_of(project)
        found = Recognised(project, text if self.services.recogniser.flaw(text) is None else None)
        call = Forwarded(call_id, found, decision, asked.surface, asked.shape, asked.model, upstream)
        outcome = await ask(self.services, exchange, upstream, asked.surface, asked.body)
        exchange.headers = [*exchange.headers, (b"x-tracer-upstream", outcome.upstream.encode())]
        if outcome.copy is None:
            raise UpstreamUnreachable(
                f"The answer of upstream {upstream.name!r} broke off, or is too long for a label."
            )
        if outcome.status != 200:
            content_type = dict(outcome.headers).get(b"content-type", JSON)
            await send_bytes(exchange.send, outcome.status, content_type, bytes(outcome.copy), exchange.headers)
            return
        answer = learn(self.services, call, outcome)
        label = None if answer is None else self._label(project, answer)
        await answer_json(exchange, _answer(decision, label, outcome.model or asked.model, body))

    def _label(self, project: str, answer: Answer) -> str | None:
        """The teacher's answer as the policy would give it, or else its text; None where it is no label."""
        if answer.kind is AnswerKind.OTHER:
            return None
        serving = self.services.registry.serving(project)
        label = None if serving.policy is None else serving.policy.label_of(answer)
        return serving.said(label) or answer.text

    def _question(self, project: str, text: str, messages: Any) -> Asked | None:
        """The chat call that asks the teacher, or None where nobody is to be asked."""
        settings = self.services.settings
        own = settings.projects[project]
        if messages is None and own.prompt is not None:
            messages = [{"role": "system", "content": own.prompt}, {"role": "user", "content": text}]
        if messages is None or own.teacher is None or settings.upstream_of(project) is None:
            return None
        request = parse_chat(encoded({"model": own.teacher, "messages": messages}))
        return Asked(text, Surface.CHAT, request.model, Shape(request, project), request.raw)


def _answer(decision: Decision, label: str | None, model: str | None, body: dict[str, Any]) -> dict[str, Any]:
    score = 0.0 if decision.accept_score is None else decision.accept_score
    found = {"label": label, "decision": decision.word, "accept_score": score, "model": model}
    if body.get("explain"):
        found |= {"reason": decision.reason, "policy": decision.policy_version}
    return found
