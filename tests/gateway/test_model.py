"""Answers in every form, on every surface that calls a model; and what one call may ask for in its headers."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Send

from policies.fitting import fit_policy
from policies.policy import Policy
from policies.settings import FitConfig
from policies.types import AnswerKind, Trace
from tests.scripted_teacher import BEHAVIOURS, JSON, Call, ScriptedTeacher, completion
from tests.serving import ThreadedGateway, make_settings
from tests.traces_maker import LABELS, make_traces

SCHEMA = {"type": "object", "properties": {"intent": {"enum": LABELS}, "lang": {"const": "en"}}, "required": ["intent"]}
NUMBER = {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}
TOOLS = [{"type": "function", "function": {"name": label, "parameters": NUMBER}} for label in LABELS]
FLAT_TOOLS = [{"type": "function", "name": label, "parameters": NUMBER} for label in LABELS]


def _as_json(trace: Trace) -> Trace:
    return replace(trace, teacher=f'{{ "intent": "{trace.teacher}", "lang":"en" }}')


def _as_fixed_call(trace: Trace) -> Trace:
    return replace(trace, kind=AnswerKind.TOOL, arguments='{"number": 7}')


def _as_open_call(trace: Trace) -> Trace:
    return replace(trace, kind=AnswerKind.TOOL, arguments=json.dumps({"number": random.Random(trace.input).random()}))


def _as_predicate(trace: Trace) -> Trace:
    return replace(trace, teacher="true" if trace.teacher in ("refund", "transfer", "loan", "balance") else "false")


FORMS: dict[str, Callable[[Trace], Trace]] = {
    "text": lambda trace: trace,
    "json": _as_json,
    "fixed": _as_fixed_call,
    "open": _as_open_call,
    "predicate": _as_predicate,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A certified policy of each form, all of one world."""
    root = tmp_path_factory.mktemp("forms")
    traces = make_traces(700, blur=0.15)
    for name, form in FORMS.items():
        fit_policy([form(trace) for trace in traces], root / name, FitConfig(target_teacher_agreement=0.85))
    return {name: root / name for name in FORMS}


@pytest.fixture(scope="module")
def known(folders: dict[str, Path]) -> Trace:
    """A text that every policy answers as its teacher would."""
    policies = {name: Policy.load(folder) for name, folder in folders.items()}
    for trace in make_traces(400, seed=1, blur=0.15):
        decisions = {name: policy.decide(trace.input) for name, policy in policies.items()}
        expected = {name: policies[name].label_of(FORMS[name](trace).answer) for name in FORMS}
        if all(decisions[name].label == expected[name] is not None for name in FORMS):
            return trace
    raise AssertionError("no text is answered by every policy")


@pytest.fixture
def gateway(tmp_path: Path, folders: dict[str, Path], teacher: ScriptedTeacher) -> Iterator[ThreadedGateway]:
    """A project of each form; `mini` is as `open`, with a mini to write arguments."""
    projects: dict[str, Any] = {name: {"policy": str(path), "teacher": "big"} for name, path in folders.items()}
    projects["mini"] = projects["open"] | {"mini": "small"}
    with ThreadedGateway(make_settings(tmp_path, {"projects": projects}, teacher.url)) as running:
        yield running


def _chat(gateway: ThreadedGateway, project: str, text: str, **fields: Any) -> httpx.Response:
    headers = fields.pop("headers", {})
    body = {"model": f"tracer/{project}", "messages": [{"role": "user", "content": text}]} | fields
    return httpx.post(f"{gateway.base_url}/chat/completions", json=body, headers=headers)


def _post(gateway: ThreadedGateway, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{gateway.base_url}/{path}", json=body)


def test_json_is_answered_in_the_teachers_own_formatting(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, known: Trace
) -> None:
    """Key order and white space included, where the client's schema allows it; else the teacher answers."""
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA, "strict": True}}
    answer = _chat(gateway, "json", known.input, response_format=form)
    assert answer.headers["x-tracer-lane"] == "surrogate"
    assert answer.json()["choices"][0]["message"]["content"] == _as_json(known).teacher
    narrow = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"required": ["urgency"]}}}
    assert _chat(gateway, "json", known.input, response_format=narrow).headers["x-tracer-reason"] == "response_format"
    assert len(teacher.chat_calls) == 1


def test_the_decision_servers_label_is_what_the_teacher_says(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, known: Trace
) -> None:
    """`/classify`, `/predict` and `/predict_batch`: JSON as the teacher writes it, a tool by its name."""
    for project, said in (("json", _as_json(known).teacher), ("fixed", known.teacher), ("text", known.teacher)):
        asked = {"input": known.input, "project": project}
        assert httpx.post(f"{gateway.url}/{project}/classify", json=asked).json()["label"] == said
        assert httpx.post(f"{gateway.url}/predict", json=asked).json()["label"] == said
        batch = httpx.post(f"{gateway.url}/predict_batch", json={"inputs": [known.input, ""], "project": project})
        assert batch.json()["labels"] == [said, None]
    assert teacher.calls == []
    # Deferred: an object with its keys in another order is given in the usual writing, and an unknown one as it is.
    strange = {"input": "qqq zzz", "messages": [{"role": "user", "content": "qqq zzz"}]}
    teacher.label_of = lambda _: f'{{"lang": "en", "intent": "{known.teacher}"}}'
    found = httpx.post(f"{gateway.url}/json/classify", json=strange).json()
    assert (found["decision"], found["label"]) == ("deferred", _as_json(known).teacher)
    teacher.label_of = lambda _: '{"intent":  "new"}'
    assert httpx.post(f"{gateway.url}/json/classify", json=strange).json()["label"] == '{"intent":  "new"}'


def test_a_tool_call_is_answered_with_its_arguments(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, known: Trace
) -> None:
    """The finish reason is the one that the client's tool_choice gives."""
    named = {"type": "function", "function": {"name": known.teacher}}
    for choice, finish in (("auto", "tool_calls"), ("required", "tool_calls"), (named, "stop")):
        (said,) = _chat(gateway, "fixed", known.input, tools=TOOLS, tool_choice=choice).json()["choices"]
        (call,) = said["message"]["tool_calls"]
        assert call["function"] == {"name": known.teacher, "arguments": '{"number": 7}'}
        assert (said["message"]["content"], said["finish_reason"]) == (None, finish)
    assert teacher.chat_calls == []
    assert _chat(gateway, "fixed", known.input).headers["x-tracer-reason"] == "tools"
    assert _chat(gateway, "fixed", known.input, tools=TOOLS, tool_choice="none").headers["x-tracer-reason"] == (
        "tool_choice"
    )


async def _write(teacher: ScriptedTeacher, call: Call, _: Receive, send: Send) -> None:
    """Call the forced tool with what the script says, or the label's tool where none is forced."""
    asked = call.json
    forced = asked.get("tool_choice")
    name = forced["function"]["name"] if isinstance(forced, dict) else teacher.label_of(call.text)
    arguments = teacher.script.partition(":")[2] if isinstance(forced, dict) else '{"number": 1}'
    function = {"name": name, "arguments": arguments}
    message = {"content": None, "tool_calls": [{"id": "c1", "type": "function", "function": function}]}
    finish = "stop" if isinstance(forced, dict) else "tool_calls"
    body = json.dumps(completion("", asked["model"], message=message, finish_reason=finish)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": JSON})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def writing(teacher: ScriptedTeacher, monkeypatch: pytest.MonkeyPatch) -> ScriptedTeacher:
    """A teacher that calls tools; `script` is "write:" and the arguments of a forced call."""

    class Scripts(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            assert name.startswith("write:")
            return _write

    monkeypatch.setattr("tests.scripted_teacher.BEHAVIOURS", Scripts(BEHAVIOURS))
    return teacher


@pytest.mark.parametrize(("project", "lane", "model"), [("mini", "mini", "small"), ("open", "teacher", "big")])
@pytest.mark.parametrize("stream", [False, True])
def test_arguments_are_written_by_an_llm_that_sees_one_tool(
    gateway: ThreadedGateway,
    writing: ScriptedTeacher,
    known: Trace,
    project: str,
    lane: str,
    model: str,
    stream: bool,
) -> None:
    """The mini where there is one, else the teacher; the client cannot tell that the tool was forced."""
    writing.script = 'write:{"number": 42}'
    answer = _chat(gateway, project, known.input, tools=TOOLS, stream=stream, parallel_tool_calls=True, seed=3)
    headers = answer.headers
    assert [headers[f"x-tracer-{name}"] for name in ("lane", "decision", "reason")] == [lane, "handled", "arguments"]
    (call,) = writing.chat_calls
    assert [tool["function"]["name"] for tool in call.json["tools"]] == [known.teacher]
    assert call.json["tool_choice"] == {"type": "function", "function": {"name": known.teacher}}
    assert (call.json["model"], call.json["seed"], call.json.get("stream")) == (model, 3, None)
    if stream:
        assert '"arguments":"{\\"number\\": 42}"' in answer.text
        assert '"finish_reason":"tool_calls"' in answer.text
        assert answer.text.endswith("data: [DONE]\n\n")
    else:
        (said,) = answer.json()["choices"]
        assert said["message"]["tool_calls"][0]["function"]["arguments"] == '{"number": 42}'
        assert (said["finish_reason"], answer.json()["model"]) == ("tool_calls", model)
        assert answer.json()["usage"]["total_tokens"] == 11
    assert gateway.stored() == []


@pytest.mark.parametrize("arguments", ['{"number": "many"}', "{", "[]", ""])
def test_arguments_that_do_not_fit_bring_the_whole_call_to_the_teacher(
    gateway: ThreadedGateway, writing: ScriptedTeacher, known: Trace, arguments: str
) -> None:
    """As the client made it, and its answer is a trace."""
    writing.script = f"write:{arguments}"
    answer = _chat(gateway, "mini", known.input, tools=TOOLS)
    assert (answer.headers["x-tracer-lane"], answer.headers["x-tracer-reason"]) == ("teacher", "arguments")
    assert answer.json()["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == '{"number": 1}'
    first, second = writing.chat_calls
    assert (first.json["model"], second.json["model"], len(second.json["tools"])) == ("small", "big", len(TOOLS))
    (trace,) = gateway.stored()
    assert (trace.kind, trace.teacher, trace.arguments) == (AnswerKind.TOOL, known.teacher, '{"number": 1}')


def test_a_mini_that_fails_is_no_failure_of_the_call(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, known: Trace
) -> None:
    """The teacher is asked as if there were no mini."""
    teacher.script = "error"
    answer = _chat(gateway, "mini", known.input, tools=TOOLS)
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "boom")
    assert answer.headers["x-tracer-reason"] == "arguments"
    assert len(teacher.chat_calls) == 2


def test_a_response_is_recognised_answered_and_streamed(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, known: Trace
) -> None:
    """Text, JSON and tool calls, by model name."""
    text = _post(gateway, "responses", model="tracer/text", input=known.input).json()
    assert text["output"][0]["content"][0]["text"] == known.teacher
    form = {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}}
    said = [{"role": "user", "content": [{"type": "input_text", "text": known.input}]}]
    found = _post(gateway, "responses", model="tracer/json", input=said, text=form, instructions="Sort.").json()
    assert found["output"][0]["content"][0]["text"] == _as_json(known).teacher
    streamed = _post(gateway, "responses", model="tracer/fixed", input=known.input, tools=FLAT_TOOLS, stream=True)
    assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert streamed.text.count("event: ") == 7
    assert teacher.calls == []


def test_a_forwarded_response_becomes_a_trace(gateway: ThreadedGateway, teacher: ScriptedTeacher, known: Trace) -> None:
    """It travels as the client sent it, but for the model's name."""
    body = {"model": "tracer/text", "input": known.input, "store": True}
    answer = _post(gateway, "responses", **body)
    assert answer.headers["x-tracer-reason"] == "store"
    assert teacher.calls[0].json == body | {"model": "big"}
    said = answer.json()["output"][0]["content"][0]["text"]
    # What is to be stored at the provider is a call that no policy reads: nothing to learn from.
    assert (said, gateway.stored()) == (teacher.label_of(known.input), [])


def test_a_deferred_response_is_learned(gateway: ThreadedGateway, teacher: ScriptedTeacher) -> None:
    """Whole or streamed."""
    for stream in (False, True):
        assert _post(gateway, "responses", model="tracer/text", input="qqq zzz", stream=stream).status_code == 200
    traces = gateway.stored()
    assert {trace.input for trace in traces} == {"qqq zzz"}
    assert [trace.teacher for trace in traces] == [teacher.label_of("qqq zzz")] * 2


def test_a_choice_is_answered_with_calibrated_probabilities(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, known: Trace
) -> None:
    """In the question's own values, an extra one at nought; they sum to one."""
    choices = [{"value": label, "description": "..."} for label in [*LABELS, "none"]]
    question = {"type": "choice", "name": "intent", "instructions": "Which?", "choices": choices}
    body = {"model": "tracer/text", "input": known.input, "questions": [question]}
    (answer,) = _post(gateway, "decisions", **body).json()["answers"]
    shares = {row["value"]: row["probability"] for row in answer["probabilities"]}
    assert (answer["choice"], answer["name"]) == (known.teacher, "intent")
    assert answer["confidence"] == shares[known.teacher] == max(shares.values())
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["none"] == 0
    assert teacher.calls == []
    fewer = question | {"choices": choices[:2]}
    assert _post(gateway, "decisions", **body | {"questions": [fewer]}).headers["x-tracer-reason"] == "question"


def test_values_that_no_label_tells_apart_are_the_teachers(gateway: ThreadedGateway, known: Trace) -> None:
    """The text "true" and the boolean are two values of a choice; a value given twice is the teacher's to make out."""
    choices = [{"value": label} for label in [*LABELS, "true"]]
    for more in (True, LABELS[0]):
        question = {"type": "choice", "instructions": "Which?", "choices": [*choices, {"value": more}]}
        body = {"model": "tracer/text", "input": known.input, "questions": [question]}
        assert _post(gateway, "decisions", **body).headers["x-tracer-reason"] == "question"


def test_a_choice_without_probabilities_is_the_teachers(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, known: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong in scoring ends in a forward."""

    async def nothing(*_: object) -> None:
        return None

    monkeypatch.setattr(gateway.services.decider, "probabilities", nothing)
    question = {"type": "choice", "instructions": "Which?", "choices": [{"value": label} for label in LABELS]}
    answer = _post(gateway, "decisions", model="tracer/text", input=known.input, questions=[question])
    assert (answer.status_code, answer.headers["x-tracer-reason"]) == (200, "error")
    assert teacher.calls[-1].path == "/v1/decisions"


def test_a_predicate_is_answered_with_its_probability(gateway: ThreadedGateway, known: Trace) -> None:
    """That of "true"."""
    question = {"type": "predicate", "instructions": "Is it about money?"}
    body = {"model": "tracer/predicate", "input": known.input, "questions": [question]}
    (answer,) = _post(gateway, "decisions", **body).json()["answers"]
    assert (answer["probability"] > 0.5) == (_as_predicate(known).teacher == "true")


def test_the_teacher_can_be_asked_for(gateway: ThreadedGateway, teacher: ScriptedTeacher, known: Trace) -> None:
    """`teacher` does not even score; `shadow` shows what the policy would have said."""
    answer = _chat(gateway, "text", known.input, headers={"x-tracer-mode": "teacher"})
    assert (answer.headers["x-tracer-reason"], answer.headers["x-tracer-score"]) == ("asked", "none")
    headers = {"x-tracer-mode": "shadow", "x-tracer-explain": "true"}
    shadow = _chat(gateway, "text", known.input, headers=headers).headers
    assert (shadow["x-tracer-lane"], shadow["x-tracer-reason"]) == ("teacher", "asked")
    explained = json.loads(shadow["x-tracer-explain"])
    assert (explained["guess"], explained["state"], explained["would_answer"]) == (known.teacher, "live", True)
    assert explained["accept_score"] >= explained["threshold"]
    assert len(teacher.chat_calls) == 2
    assert all(not call.header("x-tracer-mode") for call in teacher.chat_calls)


def test_a_local_call_never_leaves(gateway: ThreadedGateway, teacher: ScriptedTeacher, known: Trace) -> None:
    """Answered, or a 422 that says why not."""
    local = {"x-tracer-mode": "local"}
    assert _chat(gateway, "text", known.input, headers=local).headers["x-tracer-lane"] == "surrogate"
    deferred = _chat(gateway, "text", "zzz unheard of qqq", headers=local)
    assert (deferred.status_code, deferred.json()["error"]["code"]) == (422, "deferred")
    assert deferred.headers["x-tracer-lane"] == "none"
    written = _chat(gateway, "open", known.input, tools=TOOLS, headers=local)
    assert (written.status_code, written.headers["x-tracer-reason"]) == (422, "arguments")
    assert _chat(gateway, "text", known.input, model="gpt-4o", headers=local).status_code == 422
    assert teacher.calls == []


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/v1/chat/completions", b"\x1f\x8b", {"content-encoding": "gzip"}),
        ("/v1/embeddings", b'{"model":"m","input":"a"}', {}),
        ("/v1/models", b"", {}),
        ("/v1/chat/completions", b'{"model":"tracer/text","messages":[' + b"{}," * 150_000 + b"{}]}", {}),
    ],
)
def test_a_local_call_of_no_project_never_leaves_either(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, path: str, body: bytes, headers: dict[str, str]
) -> None:
    """Compressed, relayed, or too intricate to be read."""
    answer = httpx.post(f"{gateway.url}{path}", content=body, headers=headers | {"x-tracer-mode": "local"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "deferred")
    assert teacher.calls == []


@pytest.mark.parametrize(("mode", "agreement"), [("teacher", None), ("shadow", None), (None, "1")])
def test_the_headers_hold_for_the_decision_servers_calls(
    gateway: ThreadedGateway, known: Trace, mode: str | None, agreement: str | None
) -> None:
    """`/classify`, `/predict` and `/predict_batch` defer what chat would."""
    given = {"x-tracer-mode": mode, "x-tracer-min-agreement": agreement}
    headers = {name: value for name, value in given.items() if value is not None}
    reason = "asked" if mode else "min_agreement"
    calls: list[tuple[str, dict[str, Any]]] = [
        ("text/classify", {"input": known.input}),
        ("predict", {"input": known.input, "project": "text"}),
    ]
    for path, body in calls:
        answer = httpx.post(f"{gateway.url}/{path}", json=body, headers=headers | {"x-tracer-explain": "1"})
        assert (answer.headers["x-tracer-decision"], answer.headers["x-tracer-reason"]) == ("deferred", reason)
        assert json.loads(answer.headers["x-tracer-explain"])["would_answer"] == (mode == "shadow")
    batch = {"inputs": [known.input] * 20, "project": "text"}
    assert httpx.post(f"{gateway.url}/predict_batch", json=batch, headers=headers).json()["handled"] == [False] * 20


def test_a_local_classification_asks_nobody(gateway: ThreadedGateway, teacher: ScriptedTeacher) -> None:
    """Its label is null, and no lane has answered."""
    body = {"input": "zzz unheard of qqq", "messages": [{"role": "user", "content": "zzz"}]}
    answer = httpx.post(f"{gateway.url}/text/classify", json=body, headers={"x-tracer-mode": "local"})
    assert (answer.status_code, answer.json()["label"], answer.headers["x-tracer-lane"]) == (200, None, "none")
    assert teacher.calls == []


def test_a_long_list_in_a_text_is_still_a_text(gateway: ThreadedGateway, teacher: ScriptedTeacher) -> None:
    """What stands in strings is not counted: the call is its project's, and the teacher is asked by its own name."""
    answer = _chat(gateway, "text", "1,2,3\n" * 60_000)
    assert (answer.headers["x-tracer-project"], answer.headers["x-tracer-reason"]) == ("text", "too_long")
    assert teacher.chat_calls[0].json["model"] == "big"


def test_a_body_that_takes_long_to_read_is_relayed_unread(gateway: ThreadedGateway, teacher: ScriptedTeacher) -> None:
    """Others need not wait for it; every byte arrives."""
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}],"metadata":{"a":[' + b"{}," * 150_000 + b"1]}}"
    answer = httpx.post(f"{gateway.base_url}/chat/completions", content=body)
    assert (answer.status_code, answer.headers["x-tracer-project"]) == (200, "none")
    assert teacher.chat_calls[0].body == body


def test_what_the_client_forced_is_not_the_teachers_decision(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, known: Trace
) -> None:
    """A tool named among several, or none allowed, is no trace; the only tool there is, is."""
    named = {"type": "function", "function": {"name": "loan"}}
    headers = {"x-tracer-mode": "teacher"}
    for choice in (named, "none"):
        _chat(gateway, "fixed", known.input, tools=TOOLS, tool_choice=choice, headers=headers)
    assert len(teacher.chat_calls) == 2
    _chat(gateway, "text", known.input, tool_choice="none", headers=headers)  # there is nothing that it could forbid
    only = [tool for tool in TOOLS if tool["function"]["name"] == "loan"]  # type: ignore[index]
    _chat(gateway, "fixed", known.input, tools=only, tool_choice=named, headers=headers)
    assert len(teacher.chat_calls) == 4
    assert [trace.project for trace in gateway.stored()] == ["text", "fixed"]


def test_a_response_that_would_be_kept_by_default_may_be_forwarded(
    tmp_path: Path, folders: dict[str, Path], teacher: ScriptedTeacher, known: Trace
) -> None:
    """`responses_default_store: forward`, for applications that retrieve or continue responses."""
    project = {"policy": str(folders["text"]), "teacher": "big", "responses_default_store": "forward"}
    with ThreadedGateway(make_settings(tmp_path, {"projects": {"text": project}}, teacher.url)) as gateway:
        kept = _post(gateway, "responses", model="tracer/text", input=known.input)
        assert kept.headers["x-tracer-reason"] == "store"
        unkept = _post(gateway, "responses", model="tracer/text", input=known.input, store=False)
        assert unkept.headers["x-tracer-decision"] == "handled"


def test_more_agreement_may_be_asked_for_than_was_fitted(gateway: ThreadedGateway, known: Trace) -> None:
    """What is not certified so far is the teacher's."""
    lower = _chat(gateway, "text", known.input, headers={"x-tracer-min-agreement": "0.5"})
    assert lower.headers["x-tracer-decision"] == "handled"
    most = _chat(gateway, "text", known.input, headers={"x-tracer-min-agreement": "1"})
    assert most.headers["x-tracer-reason"] == "min_agreement"


def test_a_header_that_means_nothing_is_refused(gateway: ThreadedGateway, known: Trace) -> None:
    """By its name."""
    answer = _chat(gateway, "text", known.input, headers={"x-tracer-mode": "fast"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-tracer-mode")
