"""The applications that are differenced: one a form of answer, with what it sends and what its teacher says."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from policies.fitting import fit_policy
from policies.policy import Policy
from policies.settings import FitConfig
from policies.types import AnswerKind, Trace
from tests.openai_answers import Said, said
from tests.traces_maker import LABELS, make_traces

MODEL = "gpt-scripted"
Topic = Literal["refund", "card_lost", "balance", "transfer", "password", "delivery", "loan", "complaint"]
_TRACES = 600
# Nothing of it is in any trace.
STRANGE = "zzyx qwv 0x77 kkjj"


class Intent(BaseModel):
    """One field to predict."""

    model_config = ConfigDict(extra="forbid")
    intent: Topic


class Ticket(BaseModel):
    """Two fields to predict, and one that is always the same."""

    model_config = ConfigDict(extra="forbid")
    intent: Topic
    polite: bool
    source: Literal["chat"]


class Sort(BaseModel):
    """Arguments of a tool that is called to say a label."""

    model_config = ConfigDict(extra="forbid")
    label: Topic


@dataclass(frozen=True)
class Form:
    """One application. `asks` holds what it sends beside model and messages, in chat's spelling.

    `label_of(topic, text)` is the teacher's answer in the scripted teacher's words; `parsed` is the pydantic model an
    application reads it into.
    """

    name: str
    asks: Mapping[str, Any]
    label_of: Callable[[str, str], str] = lambda topic, _: topic
    parsed: type[BaseModel] | None = None

    @property
    def prompt(self) -> str:
        """By which the gateway knows the application's calls."""
        return f"Sort the customer's message. Answer form: {self.name}."

    def chat(self, text: str) -> dict[str, Any]:
        """A chat completion request."""
        messages = [{"role": "system", "content": self.prompt}, {"role": "user", "content": text}]
        return {"model": MODEL, "messages": messages, **self.asks}

    def responses(self, text: str) -> dict[str, Any]:
        """The same question to `/v1/responses`."""
        asked: dict[str, Any] = {"model": MODEL, "instructions": self.prompt, "input": text, "store": False}
        if "tools" in self.asks:
            asked["tools"] = [{"type": "function", **tool["function"]} for tool in self.asks["tools"]]
        if "tool_choice" in self.asks:
            choice = self.asks["tool_choice"]
            asked["tool_choice"] = choice if isinstance(choice, str) else {"type": "function", **choice["function"]}
        if "response_format" in self.asks:
            wanted = self.asks["response_format"]
            asked["text"] = {"format": {"type": wanted["type"], **wanted.get("json_schema", {})}}
        return asked


def _json(model: type[BaseModel]) -> dict[str, Any]:
    schema = {"name": model.__name__, "strict": True, "schema": model.model_json_schema()}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _tool(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    closed = {"type": "object", "additionalProperties": False, **parameters}
    function = {"name": name, "description": f"For {name}.", "parameters": closed, "strict": True}
    return {"type": "function", "function": function}


def _ticket(topic: str, text: str) -> str:
    value = {"intent": topic, "polite": "please" in text.split(), "source": "chat"}
    return json.dumps(value, separators=(",", ":"))


_BARE = [_tool(label, {"properties": {}, "required": []}) for label in LABELS]
_QUEUE = {"properties": {"queue": {"type": "string"}, "notify": {"type": "boolean"}}, "required": ["queue", "notify"]}
_ROUTED = [_tool(label, _QUEUE) for label in LABELS]
_SORT = [_tool("sort", {"properties": {"label": {"type": "string", "enum": LABELS}}, "required": ["label"]})]


_OPEN = [_tool(label, {"properties": {"quote": {"type": "string"}}, "required": ["quote"]}) for label in LABELS]


def _routed(topic: str, _: str) -> str:
    return f'{topic} {{"queue":"{topic[:4]}","notify":{"true" if len(topic) % 2 else "false"}}}'


FORMS = {
    form.name: form
    for form in (
        Form("text", {"temperature": 0, "max_completion_tokens": 400}),
        Form("shouted", {}, lambda topic, _: f'"{topic.upper()}"'),
        Form("json", _json(Intent), parsed=Intent),
        Form("fields", _json(Ticket), _ticket, parsed=Ticket),
        Form("any_json", {"response_format": {"type": "json_object"}}),
        Form("tool", {"tools": _BARE}),
        Form("required_tool", {"tools": _BARE, "tool_choice": "required", "parallel_tool_calls": False}),
        Form("open_tool", {"tools": _OPEN}, lambda topic, text: f"{topic} {json.dumps({'quote': text})}"),
        Form("constant_tool", {"tools": _ROUTED}, _routed),
        Form(
            "enum_tool",
            {"tools": _SORT, "tool_choice": {"type": "function", "function": {"name": "sort"}}},
            parsed=Sort,
        ),
    )
}


@dataclass
class World:
    """The forms' truths. `known` and `strange` are the texts that a form's policy answers and does not."""

    topics: dict[str, str]
    known: dict[str, str] = field(default_factory=dict)

    def answer_of(self, text: str, body: Any) -> str:
        """What the teacher says, in the scripted teacher's words; the form is known by the prompt."""
        topic = self.topics.get(text, "loan")
        form = next((form for form in FORMS.values() if form.prompt in json.dumps(body)), None)
        return topic if form is None else form.label_of(topic, text)

    def said(self, form: Form, text: str) -> Said:
        """The teacher's answer to a form's chat."""
        return said(form.label_of(self.topics[text], text), form.chat(text))


def make_world(folder: Path) -> World:
    """Fit a policy for every form at `folder`/NAME, and find a text that each of them answers as its teacher would."""
    drawn = make_traces(_TRACES, blur=0.0)
    world = World({trace.input: trace.teacher for trace in drawn})
    for form in FORMS.values():
        traces = [_trace(world.said(form, trace.input), trace) for trace in drawn]
        fit_policy(traces, folder / form.name, FitConfig(target_teacher_agreement=0.85))
        world.known[form.name] = _known(Policy.load(folder / form.name), traces)
    return world


def projects(folder: Path) -> dict[str, Any]:
    """The forms' applications as the gateway's settings: known by their system prompt, so that none has to change."""
    return {
        form.name: {
            "policy": str(folder / form.name),
            "match": {"system_prompt": form.prompt},
            "teacher": MODEL,
            "prompt": form.prompt if form.name == "text" else None,
        }
        for form in FORMS.values()
    }


def _trace(answer: Said, drawn: Trace) -> Trace:
    if answer.calls:
        name, arguments = answer.calls[0]
        return Trace(drawn.input, name, kind=AnswerKind.TOOL, arguments=arguments)
    return Trace(drawn.input, answer.text or "")


def _known(policy: Policy, traces: list[Trace]) -> str:
    for trace in traces:
        decision = policy.decide(trace.input)
        if decision.handled and decision.label == policy.label_of(trace.answer) and len(trace.input) > 30:
            return trace.input
    raise AssertionError("the policy answers nothing as its teacher would")
