"""`POST /{project}/classify` through a gateway on a real socket."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from policies.types import AnswerKind
from tests.scripted_teacher import ScriptedTeacher
from tests.serving import ThreadedGateway, make_settings


@pytest.fixture
def gateway(tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher) -> Iterator[ThreadedGateway]:
    """`bank` asks the teacher with a prompt of its own; `silent` has none."""
    shared = {"policy": str(policy_folder), "teacher": "gpt-teacher"}
    projects = {"bank": shared | {"prompt": "Sort."}, "silent": shared}
    with ThreadedGateway(make_settings(tmp_path, {"projects": projects}, teacher.url)) as running:
        yield running


def _classify(gateway: ThreadedGateway, text: Any, project: str = "bank", **fields: Any) -> httpx.Response:
    headers = {"authorization": "Bearer sk-client", "x-mine": "1"}
    return httpx.post(f"{gateway.url}/{project}/classify", json={"input": text} | fields, headers=headers)


def test_a_handled_call_has_the_surrogates_label(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, handled_text: str
) -> None:
    """Four keys, and the same headers as a chat."""
    answer = _classify(gateway, handled_text)
    found = answer.json()
    assert set(found) == {"label", "decision", "accept_score", "model"}
    assert (found["label"], found["decision"]) == (teacher.label_of(handled_text), "handled")
    assert (found["model"], found["accept_score"] > 0) == ("tracer_surrogate", True)
    assert answer.headers["x-tracer-lane"] == "surrogate"
    assert teacher.calls == []


def test_more_is_said_when_asked(gateway: ThreadedGateway, deferred_text: str) -> None:
    """`explain` adds the reason and the policy's version."""
    found = _classify(gateway, deferred_text, "silent", explain=True).json()
    assert found["reason"] in {"uncertain", "novel"}
    assert found["policy"] == gateway.services.registry.serving("silent").version


def test_a_deferred_call_asks_the_teacher_with_the_projects_prompt(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, deferred_text: str
) -> None:
    """Its label is the teacher's, and it becomes a trace."""
    answer = _classify(gateway, deferred_text)
    label = teacher.label_of(deferred_text)
    assert answer.json() | {"accept_score": 0} == {
        "label": label,
        "decision": "deferred",
        "accept_score": 0,
        "model": "gpt-teacher",
    }
    (call,) = teacher.calls
    assert call.json["messages"] == [{"role": "system", "content": "Sort."}, {"role": "user", "content": deferred_text}]
    assert call.header("authorization") == "Bearer sk-client"
    assert call.header("x-mine") is None
    (trace,) = gateway.stored()
    assert (trace.input, trace.teacher, trace.id) == (deferred_text, label, answer.headers["x-tracer-id"])


def test_the_request_may_bring_its_own_messages(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, deferred_text: str
) -> None:
    """They are what the teacher is asked."""
    messages = [{"role": "user", "content": f"Sort: {deferred_text}"}]
    teacher.label_of = lambda text: f"label of {text}"
    assert (
        _classify(gateway, deferred_text, "silent", messages=messages).json()["label"]
        == f"label of Sort: {deferred_text}"
    )
    assert [trace.input for trace in gateway.stored()] == [deferred_text]


@pytest.mark.parametrize(
    "body",
    [
        b'{"input": "\\ud800 not heard of"}',
        b'{"input": "x", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"input": "x", "messages": [{"role": "user", "content": "x", "n": %b}]}' % (b"[" * 400 + b"]" * 400),
        b'{"input": "x", "messages": [{"role": "user", "content": "x", "n": %b}]}' % (b"9" * 40),
    ],
)
def test_whatever_can_be_read_can_be_asked(gateway: ThreadedGateway, teacher: ScriptedTeacher, body: bytes) -> None:
    """Lone surrogates, deep nesting and numbers of any size are for the teacher to judge."""
    answer = httpx.post(f"{gateway.url}/bank/classify", content=body)
    assert answer.status_code < 500
    assert len(teacher.chat_calls) == 1


def test_what_cannot_be_written_again_is_refused(gateway: ThreadedGateway) -> None:
    """A thousand levels can just be read."""
    deep = b"[" * 1_000 + b"]" * 1_000
    answer = httpx.post(
        f"{gateway.url}/bank/classify", content=b'{"input": "x", "messages": [{"role": "user", "n": %b}]}' % deep
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


def test_without_a_prompt_a_deferred_call_has_no_label(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, deferred_text: str
) -> None:
    """The caller asks its LLM itself."""
    found = _classify(gateway, deferred_text, "silent").json()
    assert (found["label"], found["decision"], found["model"]) == (None, "deferred", None)
    assert teacher.calls == []


def test_an_answer_that_is_no_label_leaves_it_null(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, deferred_text: str
) -> None:
    """A refusal is not a label; it is recorded as what it is."""
    teacher.script = "refusal"
    assert _classify(gateway, deferred_text).json()["label"] is None
    assert [trace.kind for trace in gateway.stored()] == [AnswerKind.OTHER]


@pytest.mark.parametrize(
    ("script", "status"), [("rate_limited", 429), ("error", 500), ("hang_up", 502), ("cut_body", 502)]
)
def test_the_teachers_failure_is_passed_on(
    gateway: ThreadedGateway, teacher: ScriptedTeacher, deferred_text: str, script: str, status: int
) -> None:
    """With the upstream's own status and body where it gave one."""
    teacher.script = script
    answer = _classify(gateway, deferred_text)
    assert answer.status_code == status
    assert "error" in answer.json()
    assert answer.headers["x-tracer-project"] == "bank"
    assert gateway.stored() == []


def test_an_input_no_policy_reads_is_not_learned(gateway: ThreadedGateway, teacher: ScriptedTeacher) -> None:
    """The teacher is asked all the same."""
    assert _classify(gateway, " ", explain=True).json()["reason"] == "empty"
    assert len(teacher.calls) == 1
    assert gateway.stored() == []


@pytest.mark.parametrize(
    ("project", "body", "status", "param"),
    [
        ("bank", {}, 400, "input"),
        ("bank", {"input": 3}, 400, "input"),
        ("bank", {"input": " ", "messages": "hi"}, 400, "messages"),
        ("nobody", {"input": "a"}, 404, "project"),
    ],
)
def test_a_bad_request_names_the_field(
    gateway: ThreadedGateway, project: str, body: dict[str, Any], status: int, param: str
) -> None:
    """In OpenAI's error shape."""
    answer = httpx.post(f"{gateway.url}/{project}/classify", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
