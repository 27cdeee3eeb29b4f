"""Chat completions through a gateway on a real socket: what is answered, what is forwarded, what is learned."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.decide import Decision
from policies.types import AnswerKind
from tests.scripted_teacher import ScriptedTeacher
from tests.serving import ThreadedGateway, make_settings

KEY = {"authorization": "Bearer sk-client"}


@pytest.fixture
def gateway(
    tmp_path: Path, policy_folder: Path, refused_folder: Path, teacher: ScriptedTeacher
) -> Iterator[ThreadedGateway]:
    """Three projects before one teacher: certified, refused, and without a policy."""
    projects = {
        "bank": {"policy": str(policy_folder), "teacher": "gpt-teacher"},
        "weak": {"policy": str(refused_folder), "teacher": "gpt-teacher"},
        "new": {"policy": str(tmp_path / "absent"), "teacher": "gpt-teacher"},
        "anonymous": {"policy": str(policy_folder)},
        "prompted": {"policy": str(policy_folder), "match": {"system_prompt": "Sort."}},
    }
    with ThreadedGateway(make_settings(tmp_path, {"projects": projects}, teacher.url)) as running:
        yield running


def _chat(gateway: ThreadedGateway, text: Any, model: str = "tracer/bank", **fields: Any) -> httpx.Response:
    headers = KEY | fields.pop("headers", {})
    messages = fields.pop("messages", [{"role": "user", "content": text}])
    return httpx.post(
        f"{gateway.base_url}/chat/completions", json={"model": model, "messages": messages} | fields, headers=headers
    )


def test_a_certain_call_is_handled_without_the_teacher(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, handled_text: str
) -> None:
    """The answer says so in its headers, its model and its usage."""
    answer = _chat(gateway, handled_text)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == teacher.label_of(handled_text)
    assert answer.json()["model"] == "tracer_surrogate"
    headers = answer.headers
    assert (headers["x-tracer-lane"], headers["x-tracer-decision"]) == ("surrogate", "handled")
    assert headers["x-tracer-project"] == "bank"
    assert 0 < float(headers["x-tracer-score"]) <= 1
    assert headers["x-tracer-policy"] == gateway.services.registry.serving("bank").version
    assert headers["x-tracer-reason"] == "none"
    assert answer.json()["id"] == f"chatcmpl-{headers['x-tracer-id']}"
    assert teacher.calls == []
    assert gateway.stored() == []


def test_an_uncertain_call_is_the_teachers(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, deferred_text: str
) -> None:
    """The teacher's own bytes and headers come back, with ours beside them."""
    answer = _chat(gateway, deferred_text)
    assert answer.json()["x_unknown"] == {"kept": True}
    assert answer.json()["model"] == "gpt-teacher"
    assert answer.headers["x-request-id"] == "req-scripted"
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
    headers = answer.headers
    assert (headers["x-tracer-lane"], headers["x-tracer-decision"]) == ("teacher", "deferred")
    assert headers["x-tracer-reason"] in {"uncertain", "novel"}
    assert "x-tracer-score" in headers
    assert teacher.chat_calls[0].header("authorization") == "Bearer sk-client"


def test_only_the_models_name_changes_on_its_way(gateway: ThreadedGateway, teacher: ScriptedTeacher) -> None:
    """Every other byte of the body arrives as it was sent."""
    body = b'{ "new_parameter": {"b":1.50}, "model":"tracer/bank",\n"messages":[{"role":"user","content":"\\u00e9"}]  }'
    httpx.post(f"{gateway.base_url}/chat/completions?beta=%2F1", content=body)
    assert teacher.calls[0].body == body.replace(b"tracer/bank", b"gpt-teacher")
    assert teacher.calls[0].query == b"beta=%2F1"
    assert teacher.calls[0].header("content-length") == str(len(teacher.calls[0].body))


def test_a_forwarded_call_becomes_a_trace(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, deferred_text: str
) -> None:
    """Input, label, where it came from and why; its id is the one in the header."""
    answer = _chat(gateway, deferred_text)
    (trace,) = gateway.stored()
    assert (trace.project, trace.input, trace.teacher) == ("bank", deferred_text, teacher.label_of(deferred_text))
    assert trace.id == answer.headers["x-tracer-id"]
    assert (trace.upstream, trace.teacher_model) == ("teacher", "gpt-teacher")
    assert trace.reason == answer.headers["x-tracer-reason"]
    assert trace.policy_version == answer.headers["x-tracer-policy"]
    assert trace.training_allowed
    assert trace.sampling_probability == 1.0
    assert len(trace.prompt_fingerprint) == 16


def test_whether_learning_is_allowed_is_the_upstreams_setting(
    tmp_path: Path, teacher: ScriptedTeacher, deferred_text: str
) -> None:
    """`training_allowed: false` is written beside the trace."""
    upstreams = {"teacher": {"base_url": teacher.url, "training_allowed": False}}
    projects = {"new": {"policy": str(tmp_path / "absent"), "teacher": "m"}}
    settings = make_settings(tmp_path, {"projects": projects, "upstreams": upstreams}, teacher.url)
    with ThreadedGateway(settings) as gateway:
        _chat(gateway, deferred_text, "tracer/new")
        assert [trace.training_allowed for trace in gateway.stored()] == [False]


@pytest.mark.parametrize(
    ("model", "text", "reason"),
    [
        ("tracer/new", "hello", "no_policy"),
        ("tracer/weak", "hello", "refused"),
        ("tracer/bank", " ", "empty"),
        ("tracer/bank", None, "no_input"),
        ("tracer/bank", [{"type": "image_url", "image_url": {"url": "x"}}], "image"),
        ("tracer/bank", "x" * 20_000, "too_long"),
    ],
)
def test_a_reason_is_on_the_response_and_in_the_metrics(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, model: str, text: Any, reason: str
) -> None:
    """Whatever the reason, the answer is the teacher's."""
    teacher.script = "error"
    answer = _chat(gateway, text, model)
    assert answer.json()["error"]["message"] == "boom"
    assert answer.headers["x-tracer-reason"] == reason
    assert answer.headers["x-tracer-decision"] == "deferred"
    assert answer.headers["x-tracer-score"] == "none"
    assert len(teacher.chat_calls) == 1
    project = model.removeprefix("tracer/")
    assert gateway.metric("tracer_requests_total", project=project, lane="teacher", reason=reason) == 1


def test_a_conversation_and_a_foreign_parameter_defer_and_are_not_learned(
    gateway: ThreadedGateway, handled_text: str
) -> None:
    """Their answer hangs on more than the input."""
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": handled_text},
    ]
    assert _chat(gateway, None, messages=turns).headers["x-tracer-reason"] == "conversation"
    assert _chat(gateway, handled_text, n=2).headers["x-tracer-reason"] == "n"
    assert gateway.stored() == []


def test_scoring_that_raises_ends_in_a_forward(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, handled_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client gets the teacher's answer; the fault is counted and no text is logged."""

    class Broken:
        version = "broken"

        def decide(self, _: str) -> Decision:
            raise RuntimeError(handled_text)

    serving = type(gateway.services.registry.serving("bank"))(Broken())  # type: ignore[arg-type]
    monkeypatch.setitem(gateway.services.registry._serving, "bank", serving)
    answer = _chat(gateway, handled_text)
    assert answer.headers["x-tracer-reason"] == "error"
    assert answer.json()["choices"][0]["message"]["content"] == teacher.label_of(handled_text)
    assert gateway.metric("tracer_internal_errors_total", where="decide") == 1


def test_a_header_or_a_prompt_names_the_project_and_leaves_the_model(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, handled_text: str, deferred_text: str
) -> None:
    """The model the client asked for is the one the teacher sees."""
    by_header = {"headers": {"x-tracer-project": "bank"}}
    assert _chat(gateway, handled_text, "gpt-mine", **by_header).headers["x-tracer-decision"] == "handled"
    _chat(gateway, deferred_text, "gpt-mine", **by_header)
    prompt = {"role": "system", "content": "Sort."}
    answer = _chat(gateway, None, "gpt-mine", messages=[prompt, {"role": "user", "content": handled_text}])
    assert answer.headers["x-tracer-project"] == "prompted"
    assert [call.json["model"] for call in teacher.calls] == ["gpt-mine"]
    assert teacher.calls[0].header("x-tracer-project") is None


def test_a_project_may_have_an_upstream_of_its_own(
    tmp_path: Path, teacher: ScriptedTeacher, deferred_text: str
) -> None:
    """Its calls go there, all others to the default one."""
    with ScriptedTeacher() as other:
        shared = {"policy": str(tmp_path / "absent"), "teacher": "m"}
        tree = {
            "upstreams": {"teacher": {"base_url": teacher.url}, "other": {"base_url": other.url}},
            "projects": {"own": shared | {"upstream": "other"}, "default": shared},
        }
        with ThreadedGateway(make_settings(tmp_path, tree, teacher.url)) as gateway:
            for model in ("tracer/own", "tracer/default", "gpt-4o"):
                assert _chat(gateway, deferred_text, model).status_code == 200
            assert (len(other.calls), len(teacher.calls)) == (1, 2)
            assert {trace.project: trace.upstream for trace in gateway.stored()} == {
                "own": "other",
                "default": "teacher",
            }


def test_a_call_of_no_project_is_relayed(gateway: ThreadedGateway, teacher: ScriptedTeacher, handled_text: str) -> None:
    """Untouched, unlearned, and marked as the teacher's."""
    answer = _chat(gateway, handled_text, "gpt-4o")
    assert answer.json()["model"] == "gpt-4o"
    assert (answer.headers["x-tracer-lane"], answer.headers["x-tracer-decision"]) == ("teacher", "deferred")
    assert [answer.headers[f"x-tracer-{name}"] for name in ("score", "reason", "policy", "project")] == ["none"] * 4
    assert len(teacher.calls) == 1
    assert gateway.stored() == []


def test_a_project_without_a_teacher_model_says_so(gateway: ThreadedGateway, deferred_text: str) -> None:
    """`tracer/<project>` is no model any upstream knows."""
    answer = _chat(gateway, deferred_text, "tracer/anonymous")
    assert answer.status_code == 400
    assert "no 'teacher' model configured" in answer.json()["error"]["message"]
    assert answer.headers["x-tracer-project"] == "anonymous"


def test_without_an_upstream_a_deferred_call_is_a_503(
    tmp_path: Path, policy_folder: Path, handled_text: str, deferred_text: str
) -> None:
    """A decision server still answers what it can."""
    settings = make_settings(tmp_path, {"projects": {"bank": {"policy": str(policy_folder)}}})
    with ThreadedGateway(settings) as gateway:
        assert _chat(gateway, handled_text).status_code == 200
        deferred = _chat(gateway, deferred_text)
        assert (deferred.status_code, deferred.json()["error"]["code"]) == (503, "no_upstream")
        assert deferred.headers["x-tracer-decision"] == "deferred"
        assert deferred.headers["x-tracer-reason"] in {"uncertain", "novel"}
        assert _chat(gateway, deferred_text, "gpt-4o").status_code == 503
        assert httpx.get(f"{gateway.base_url}/models").status_code == 503


@pytest.mark.parametrize(
    ("content", "status", "param"),
    [
        (b"{", 400, None),
        (b"[1]", 400, None),
        (b'{"model":"tracer/bank"}', 400, "messages"),
        (b'{"model":7,"messages":[]}', 400, "model"),
        (b'{"model":"tracer/nobody","messages":[{"role":"user","content":"a"}]}', 404, "model"),
    ],
)
def test_a_bad_request_is_an_openai_error(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, content: bytes, status: int, param: str | None
) -> None:
    """With the field at fault; the teacher is not asked, and the gateway goes on."""
    answer = httpx.post(f"{gateway.base_url}/chat/completions", content=content)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert answer.headers["x-tracer-decision"] == "none"
    assert teacher.calls == []
    assert httpx.get(f"{gateway.url}/healthz").status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_a_413(tmp_path: Path, teacher: ScriptedTeacher, chunked: bool) -> None:
    """Declared or found on the way, at the limit of `server.max_body_bytes`; one below it passes."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 500}]}).encode()
    content: Any = iter([body[:100], body[100:]]) if chunked else body
    with ThreadedGateway(
        make_settings(tmp_path, {"server": {"max_body_bytes": len(body) - 1}}, teacher.url)
    ) as gateway:
        answer = httpx.post(f"{gateway.base_url}/chat/completions", content=content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
        assert teacher.calls == []
        assert httpx.get(f"{gateway.url}/healthz").status_code == 200
    with ThreadedGateway(make_settings(tmp_path, {"server": {"max_body_bytes": len(body)}}, teacher.url)) as gateway:
        assert httpx.post(f"{gateway.base_url}/chat/completions", content=body).status_code == 200


def test_a_handled_call_streams_where_asked_to(gateway: ThreadedGateway, handled_text: str) -> None:
    """Server-sent events with the same headers."""
    answer = _chat(gateway, handled_text, stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["x-tracer-lane"] == "surrogate"
    assert answer.text.endswith("data: [DONE]\n\n")
    assert '"usage":{"prompt_tokens":0' in answer.text


def test_a_forwarded_stream_is_learned_when_it_is_whole(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, deferred_text: str
) -> None:
    """The events arrive as the teacher sent them; the label is their text."""
    answer = _chat(gateway, deferred_text, stream=True)
    assert answer.text.count("data: ") == 5
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert [trace.teacher for trace in gateway.stored()] == [teacher.label_of(deferred_text)]


@pytest.mark.parametrize("script", ["gzip", "deflate"])
def test_a_compressed_answer_is_relayed_compressed_and_learned(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, deferred_text: str, script: str
) -> None:
    """The client inflates what the teacher deflated."""
    teacher.script = script
    answer = _chat(gateway, deferred_text)
    assert answer.headers["content-encoding"] == script
    assert answer.json()["choices"][0]["message"]["content"] == teacher.label_of(deferred_text)
    assert len(gateway.stored()) == 1


@pytest.mark.parametrize(
    "script",
    [
        "truncated",
        "empty",
        "two_choices",
        "html",
        "error",
        "rate_limited",
        "redirect",
        "no_done",
        "stream_error",
        "unknown_encoding",
    ],
)
def test_what_is_no_complete_answer_is_relayed_and_not_learned(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, deferred_text: str, script: str
) -> None:
    """Nothing but a whole label becomes a trace."""
    teacher.script = script
    with httpx.stream(
        "POST",
        f"{gateway.base_url}/chat/completions",
        json={"model": "tracer/bank", "messages": [{"role": "user", "content": deferred_text}]},
    ) as answer:
        assert len(list(answer.iter_raw())) >= (0 if script == "redirect" else 1)
    assert gateway.stored() == []


@pytest.mark.parametrize(
    ("script", "kind", "said", "arguments"),
    [
        ("refusal", AnswerKind.OTHER, "I cannot help with that.", None),
        ("long", AnswerKind.OTHER, ("word " * 200)[:512], None),
        ("tool_call", AnswerKind.TOOL, "f", ""),
    ],
)
def test_whole_answers_that_are_no_text_are_recorded_as_what_they_are(
    gateway: ThreadedGateway,
    teacher: ScriptedTeacher,
    deferred_text: str,
    script: str,
    kind: AnswerKind,
    said: str,
    arguments: str | None,
) -> None:
    """A certificate that left them out would promise too much."""
    teacher.script = script
    _chat(gateway, deferred_text)
    (trace,) = gateway.stored()
    assert (trace.kind, trace.teacher, trace.arguments) == (kind, said, arguments)


def test_handled_and_deferred_calls_do_not_wait_for_each_other(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, handled_text: str, deferred_text: str
) -> None:
    """While the teacher thinks, the surrogate answers."""
    teacher.script = "hang"
    waiting = threading.Thread(target=_chat, args=(gateway, deferred_text))
    waiting.start()
    assert teacher.arrived.wait(5)
    assert _chat(gateway, handled_text).headers["x-tracer-lane"] == "surrogate"
    teacher.released.set()
    waiting.join(5)
    assert not waiting.is_alive()
