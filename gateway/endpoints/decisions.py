"""`POST /v1/decisions`: a typed question, answered with the policy's calibrated probabilities."""

from typing import Any

from gateway.decide import Decision
from gateway.encoding import JSON, encoded
from gateway.endpoints.model import LocalCall, ModelEndpoint
from gateway.reading import choice_label
from gateway.response import NO_TOKENS
from gateway.wire import ModelRequest, Surface, parse_decisions
from policies.types import Answer, AnswerKind, Reason

_SIDES = frozenset({"true", "false"})


class Decisions(ModelEndpoint):
    """The ASGI endpoint. One question is answered in-process: a choice, or a predicate; all else is forwarded."""

    surface = Surface.DECISIONS
    waits = True  # for the probabilities, which may need an encoder

    def parse(self, raw: bytes) -> ModelRequest:
        """A decisions request."""
        return parse_decisions(raw)

    def misfit(self, call: LocalCall, reply: Answer) -> Reason | None:
        """Every label must be one of the values that the question offers, and one only."""
        policy = call.serving.policy
        if policy is None or reply.kind is not AnswerKind.TEXT:
            return Reason.QUESTION
        (question,) = call.read().body["questions"]
        if question["type"] == "predicate":
            return None if set(policy.labels) <= _SIDES else Reason.QUESTION
        values = _values(question)
        # To the API "true" and true are two values, which no label tells apart.
        told_apart = len(values) == len(question["choices"])
        return None if told_apart and values.keys() >= set(policy.labels) else Reason.QUESTION

    async def decide(self, call: LocalCall) -> Decision:
        """As everywhere, and with probabilities: an answer that has none to give is the teacher's."""
        decision = await super().decide(call)
        policy = call.serving.policy
        if call.reply is None or policy is None:
            return decision
        text, agreement = call.found.text or "", call.control.agreement
        found = await self.services.decider.probabilities(call.serving, text, agreement, decision.stage)
        if found is None or decision.label is None:
            call.reply = None
            return decision.put_off(Reason.BUSY if policy.slow else Reason.ERROR)
        call.chosen = decision.label, found
        return decision

    def answer(self, call: LocalCall, _: Answer) -> tuple[bytes, bytes]:
        """The one answer, in the question's own values."""
        label, found = call.chosen or ("", {})
        (question,) = call.read().body["questions"]
        if question["type"] == "predicate":
            given: dict[str, Any] = {"type": "predicate", "probability": found.get("true", 0.0)}
        else:
            given = _choice(question, found, label)
        if question.get("name") is not None:
            given["name"] = question["name"]
        return JSON, encoded({"model": call.model, "answers": [given], "usage": NO_TOKENS})


def _values(question: dict[str, Any]) -> dict[str, str | bool]:
    """What may be chosen, by label."""
    return {choice_label(choice["value"]): choice["value"] for choice in question["choices"]}


def _choice(question: dict[str, Any], probabilities: dict[str, float], label: str) -> dict[str, Any]:
    values = _values(question)
    rows = [{"value": value, "probability": probabilities.get(name, 0.0)} for name, value in values.items()]
    return {
        "type": "choice",
        "choice": values[label],
        "confidence": probabilities.get(label, 0.0),
        "probabilities": rows,
    }
