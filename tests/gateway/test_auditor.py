"""Audits against a teacher on a real socket, beside the calls of users through the same gateway."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from gateway.audit import Answered, Audit, Result
from gateway.auditor import Auditor
from gateway.epochs import Epochs
from gateway.wire import Surface
from policies.types import Answer, AnswerKind
from tests.scripted_teacher import ScriptedTeacher
from tests.serving import ThreadedGateway, make_settings

GRANTED = 5_000
# What the scripted teacher says it took: 9 tokens read, 2 written.
PRICES = {"price_input": 1_000.0, "price_output": 10_000.0}
COST = 0.029


class AuditedGateway:
    """A gateway that forwards everything, and an auditor in its event loop. `answers` are those handed on."""

    def __init__(self, folder: Path, tree: Mapping[str, Any], url: str | None = None) -> None:
        self.gateway = ThreadedGateway(make_settings(folder, tree, url), {"OTHER_KEY": "sk-other"})
        self.answers: list[tuple[Audit, Answer | None, Answered]] = []
        self.broken = False  # whoever compares

    def __enter__(self) -> Self:
        self.gateway.__enter__()
        services = self.gateway.services
        self.auditor = Auditor(
            services.settings,
            services.upstreams,
            services.places,
            services.metrics,
            self._on_answer,
            {name: Epochs() for name in services.settings.projects},
        )
        for budget in self.auditor.budgets.values():
            budget.grant(GRANTED)
        self._run(self.auditor.start())
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.gateway.stop()

    def stop(self) -> None:
        """Stop auditing; the gateway goes on."""
        self._run(self.auditor.stop())

    def offer(self, *audits: Audit) -> None:
        """Offer in one go, as calls that were handled together would."""

        async def offer() -> None:
            for audit in audits:
                self.auditor.offer(audit)

        self._run(offer())

    def throttled(self, upstream: str, seconds: float | None) -> None:
        """A user's call got a 429."""

        async def tell() -> None:
            self.auditor.throttled(upstream, seconds)

        self._run(tell())

    def ask(self, text: str, **headers: str) -> httpx.Response:
        """A user's own call, which is forwarded."""
        body = {"model": "tracer/bank", "messages": [{"role": "user", "content": text}]}
        return httpx.post(f"{self.gateway.base_url}/chat/completions", json=body, headers=headers, timeout=20)

    def counted(self, project: str = "bank") -> dict[str, int]:
        """How many audits came to which end."""
        found = {r: self.gateway.metric("tracer_audits_total", project=project, result=r) for r in Result}
        return {str(result): int(number) for result, number in found.items() if number}

    def _on_answer(self, audit: Audit, answer: Answer | None, answered: Answered) -> None:
        if self.broken:
            raise RuntimeError("scripted")
        self.answers.append((audit, answer, answered))

    def _run(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self.gateway._server.loop).result(10)


def _audited(folder: Path, teacher: ScriptedTeacher, audit: Mapping[str, Any] = {}, **tree: Any) -> AuditedGateway:
    projects = {"bank": {"policy": str(folder / "none"), "teacher": "gpt", "audit": {**PRICES, **audit}}}
    return AuditedGateway(folder, {"projects": projects, **tree}, teacher.url)


def _audit(text: str, *, script: str | None = None, **changes: Any) -> Audit:
    """An audit of a call that came just now. `script` is what the teacher is to do with it."""
    body = {"model": "tracer/bank", "stream": True, "messages": [{"role": "user", "content": text}]}
    headers = [(b"authorization", b"Bearer sk-client")]
    headers += [] if script is None else [(b"x-script", script.encode())]
    given = {
        "id": f"id of {text}",
        "project": "bank",
        "version": "v1",
        "label": "other",
        "text": text,
        "surface": Surface.CHAT,
        "model": "gpt",
        "body": json.dumps(body).encode(),
        "headers": headers,
        "upstream": "teacher",
        "probability": 0.1,
        "base": 0.02,
        "fingerprint": "f" * 16,
        "made_at": time.monotonic(),
        "ts": time.time(),
    }
    return Audit(**{**given, **changes})


def _eventually(holds: Callable[[], object], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def test_an_audit_is_the_same_question_unstreamed(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """Asked of the teacher by its own name, with nothing of the client's headers but who asks; and paid for."""
    teacher.label_of = lambda _: "card_arrival"
    with _audited(tmp_path, teacher) as audited:
        offered = _audit("where is my card", query=b"api-version=1")
        audited.offer(offered)
        _eventually(lambda: audited.answers)
        ((audit, answer, answered),) = audited.answers
        assert (audit, answer) == (offered, Answer("card_arrival"))
        (call,) = teacher.calls
        assert (call.method, call.path, call.query) == ("POST", "/v1/chat/completions", b"api-version=1")
        assert call.json == {"model": "gpt", "messages": [{"role": "user", "content": "where is my card"}]}
        assert call.header("authorization") == "Bearer sk-client"
        assert json.loads(answered.body)["system_fingerprint"] == "fp_scripted"
        assert answered.usd == pytest.approx(COST)
        _eventually(lambda: audited.auditor.pending == 0)
        budget = audited.auditor.budgets["bank"]
        calls, usd = budget.take()
        assert calls == 1
        assert usd == pytest.approx(COST)
        assert budget.left == GRANTED - 1
        assert audited.gateway.metric("tracer_audit_usd_total", project="bank") == pytest.approx(COST)
        assert audited.counted() == {}  # agreed or not: whoever compares counts it


@pytest.mark.parametrize(
    ("surface", "body", "stored"),
    [
        (Surface.RESPONSES, {"model": "gpt-x", "input": "hi", "stream": True}, False),
        (Surface.DECISIONS, {"model": "gpt-x", "input": "hi", "questions": [{"type": "predicate"}]}, None),
    ],
)
def test_every_surface_is_audited(
    tmp_path: Path, teacher: ScriptedTeacher, surface: Surface, body: dict[str, Any], stored: bool | None
) -> None:
    """At its own path, in its own shape; a response is not kept."""
    teacher.label_of = lambda _: "true"
    with _audited(tmp_path, teacher) as audited:
        audited.offer(_audit("hi", surface=surface, body=json.dumps(body).encode()))
        _eventually(lambda: audited.answers)
        assert audited.answers[0][1] == Answer("true")
        (call,) = teacher.calls
        assert call.path == f"/v1{surface}"
        assert (call.json["model"], call.json.get("store"), "stream" in call.json) == ("gpt", stored, False)


def test_a_retry_is_audited_once(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """Whether it comes at once or after the answer."""
    with _audited(tmp_path, teacher) as audited:
        audited.offer(_audit("hi"), _audit("hi"))
        _eventually(lambda: audited.answers)
        audited.offer(_audit("hi"), _audit("last"))
        _eventually(lambda: len(audited.answers) == 2)
        assert [call.text for call in teacher.calls] == ["hi", "last"]
        assert audited.counted() == {}


def test_what_does_not_fit_is_dropped_and_counted(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """A thousand audits, those with the teacher included; offering more takes no time."""
    teacher.script = "hang"
    with _audited(tmp_path, teacher) as audited:
        audited.offer(*(_audit(f"text {n}") for n in range(1_100)))
        assert audited.counted() == {"dropped": 100}
        assert audited.auditor.budgets["bank"].left == GRANTED - 1_000
        assert audited.gateway.metric("tracer_audit_queue") == 1_000
        _eventually(lambda: teacher.most_at_once == 4)
        teacher.released.set()
        _eventually(lambda: len(audited.answers) == 1_000, 20)
        assert teacher.most_at_once == 4
        _eventually(lambda: audited.gateway.metric("tracer_audit_queue") == 0)
        assert audited.auditor.budgets["bank"].take()[0] == 1_000


def test_bodies_are_bounded_too(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """16 MB of them; what one leaves the next may have."""
    teacher.script = "hang"
    with _audited(tmp_path, teacher) as audited:
        audited.offer(*(_audit(f"{n} " + "x" * 1_048_000) for n in range(20)))
        assert audited.counted() == {"dropped": 4}
        teacher.released.set()
        _eventually(lambda: len(audited.answers) == 16, 10)
        audited.offer(_audit("y" * 1_048_000))
        _eventually(lambda: len(audited.answers) == 17)


def test_without_budget_nobody_is_asked(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """Calls are granted, and no more are made."""
    with _audited(tmp_path, teacher) as audited:
        budget = audited.auditor.budgets["bank"]
        assert budget.withdraw() == GRANTED
        budget.grant(2)
        audited.offer(*(_audit(f"text {n}") for n in range(5)))
        _eventually(lambda: len(audited.answers) == 2)
        assert audited.counted() == {"dropped": 3}
        assert len(teacher.calls) == 2


def test_with_a_rate_of_zero_the_teacher_sees_no_audit(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """Not even one that is offered."""
    with _audited(tmp_path, teacher, {"rate": 0.0}) as audited:
        assert not audited.auditor.budgets
        audited.offer(_audit("hi"))
        assert audited.ask("user").status_code == 200
        assert [call.text for call in teacher.calls] == ["user"]
        assert audited.auditor.pending == 0


def test_tools_that_the_provider_runs_are_never_asked_with(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """Such an audit is dropped, and costs nothing; functions are part of the decision, and only described."""
    function = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with _audited(tmp_path, teacher) as audited:
        for name, tools in (("search", [{"type": "web_search"}]), ("route", [function])):
            body = {"model": "gpt", "messages": [{"role": "user", "content": name}], "tools": tools}
            audited.offer(_audit(name, script="tool_call", body=json.dumps(body).encode()))
        _eventually(lambda: audited.answers)
        assert audited.answers[0][1] == Answer("f", AnswerKind.TOOL, "")
        assert audited.counted() == {"dropped": 1}
        assert [call.json["tools"] for call in teacher.calls] == [[function]]
        assert audited.auditor.budgets["bank"].left == GRANTED - 1


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        *((script, None) for script in ("truncated", "html", "raw", "two_choices", "unknown_encoding")),
        *(("long", AnswerKind.OTHER), ("refusal", AnswerKind.OTHER), ("gzip", AnswerKind.TEXT)),
    ],
)
def test_an_answer_is_read_as_a_traces_is(
    tmp_path: Path, teacher: ScriptedTeacher, script: str, kind: AnswerKind | None
) -> None:
    """What cannot be read is told, and counted as unread."""
    with _audited(tmp_path, teacher) as audited:
        audited.offer(_audit("hi", script=script))
        _eventually(lambda: audited.answers and audited.auditor.pending == 0)
        ((_, answer, _),) = audited.answers
        assert (None if answer is None else answer.kind) == kind
        assert audited.counted() == ({"unread": 1} if kind is None else {})
        assert audited.auditor.budgets["bank"].take()[0] == 1


@pytest.mark.parametrize("script", ["status_400", "status_401", "status_404", "redirect", "cut_body"])
def test_a_question_that_is_refused_or_broken_off_is_not_repeated(
    tmp_path: Path, teacher: ScriptedTeacher, script: str
) -> None:
    """It has failed, and counts against the budget."""
    with _audited(tmp_path, teacher) as audited:
        audited.offer(_audit("hi", script=script))
        _eventually(lambda: audited.counted() == {"failed": 1})
        assert audited.answers == []
        audited.offer(_audit("next"))
        _eventually(lambda: audited.answers)
        assert [call.text for call in teacher.calls] == ["hi", "next"]
        assert audited.auditor.budgets["bank"].take()[0] == 2


def test_an_answer_that_takes_too_long_is_given_up(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """The call is closed, and not made again: it may be paid for."""
    with _audited(tmp_path, teacher, {"timeout": 0.3}) as audited:
        audited.offer(_audit("hi", script="hang"))
        _eventually(lambda: audited.counted() == {"failed": 1})
        assert teacher.disconnected.wait(5)
        calls, usd = audited.auditor.budgets["bank"].take()
        assert calls == 1
        assert usd > 0  # what it was sent
        assert audited.gateway.metric("tracer_forwards") == 0


def test_after_a_429_audits_wait_and_users_do_not(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """For as long as it says; then one audit finds out whether it still does."""
    with _audited(tmp_path, teacher) as audited:
        teacher.script = "status_429_briefly"
        audited.offer(_audit("first"))
        _eventually(lambda: teacher.calls)
        limited = time.monotonic()
        teacher.script = "answer"
        audited.offer(*(_audit(f"text {n}") for n in range(8)))
        for n in range(5):
            started = time.monotonic()
            assert audited.ask(f"user {n}").status_code == 200
            assert time.monotonic() - started < 0.5
        assert time.monotonic() - limited < 0.9
        assert [call.text for call in teacher.calls] == ["first", *(f"user {n}" for n in range(5))]
        _eventually(lambda: len(audited.answers) == 9)
        assert time.monotonic() - limited >= 0.95
        assert teacher.most_at_once == 1
        assert audited.counted() == {}


def test_a_users_429_stops_audits_to_that_upstream(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """Those to another one go on."""
    with ScriptedTeacher() as other:
        upstreams = {"teacher": {"base_url": teacher.url}, "other": {"base_url": other.url}}
        with _audited(tmp_path, teacher, upstreams=upstreams, default_upstream="teacher") as audited:
            audited.throttled("teacher", 1.0)
            audited.throttled("unknown", 1.0)
            told = time.monotonic()
            audited.offer(_audit("waits"), _audit("goes", upstream="other"))
            _eventually(lambda: other.calls)
            assert teacher.calls == []
            _eventually(lambda: teacher.calls)
            assert time.monotonic() - told >= 0.95


def test_a_teacher_that_goes_on_saying_429_gets_no_answer_out_of_us(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """What has waited for too long is dropped as throttled, and its call can be made by another."""
    with _audited(tmp_path, teacher, {"expires": 1.5}) as audited:
        audited.offer(_audit("hi", script="rate_limited"), _audit("also", script="rate_limited"))
        _eventually(lambda: audited.counted() == {"throttled": 2})
        assert audited.answers == []
        assert audited.auditor.budgets["bank"].left == GRANTED
        assert len(teacher.calls) <= 2


@pytest.mark.parametrize("script", ["hang_up", "status_500", "status_503"])
def test_in_an_outage_audits_wait_for_the_teacher(tmp_path: Path, teacher: ScriptedTeacher, script: str) -> None:
    """It is asked ever more seldom, and all of them when it is back; nothing is made up meanwhile."""
    upstreams = {"teacher": {"base_url": teacher.url, "breaker_failures": 2, "breaker_seconds": 0.5}}
    with _audited(tmp_path, teacher, upstreams=upstreams, default_upstream="teacher") as audited:
        teacher.script = script
        audited.offer(*(_audit(f"text {n}") for n in range(10)))
        _eventually(lambda: len(teacher.calls) >= 5)
        assert len(teacher.calls) < 10
        assert audited.ask("user").status_code >= 500
        assert audited.gateway.metric("tracer_breaker_open", upstream="teacher") == 0
        assert audited.answers == []
        assert audited.auditor.pending == 10
        assert audited.counted() == {}
        teacher.script = "answer"
        _eventually(lambda: len(audited.answers) == 10, 10)
        assert {audit.text for audit, _, _ in audited.answers} == {f"text {n}" for n in range(10)}
        assert audited.auditor.budgets["bank"].take()[0] == 10


def test_an_audit_that_no_teacher_came_for_expires(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """It is counted, its call is given back, and it is not asked later."""
    teacher.stop()
    with _audited(tmp_path, teacher, {"expires": 1.5}) as audited:
        audited.offer(*(_audit(f"text {n}") for n in range(20)))
        _eventually(lambda: audited.counted() == {"expired": 20})
        assert audited.answers == []
        assert audited.auditor.pending == 0
        assert audited.auditor.budgets["bank"].left == GRANTED


def test_an_open_breaker_keeps_audits_back_and_they_do_not_hold_it_open(
    tmp_path: Path, teacher: ScriptedTeacher
) -> None:
    """Users' failures open it; an audit that is answered afterwards closes it, and no user waits for that."""
    upstreams = {"teacher": {"base_url": teacher.url, "breaker_failures": 2, "breaker_seconds": 1.0}}
    with _audited(tmp_path, teacher, upstreams=upstreams, default_upstream="teacher") as audited:
        for _ in range(2):
            assert audited.ask("user", **{"x-script": "hang_up"}).status_code == 502
        assert audited.gateway.metric("tracer_breaker_open", upstream="teacher") == 1
        audited.offer(_audit("hi", script="hang"))
        time.sleep(0.5)
        assert len(teacher.calls) == 2
        _eventually(lambda: len(teacher.calls) == 3)  # it has gone, and has no answer
        assert audited.ask("user").status_code == 200
        assert audited.gateway.metric("tracer_breaker_open", upstream="teacher") == 0
        teacher.released.set()
        _eventually(lambda: audited.answers)


def test_a_question_that_only_it_cannot_answer_does_not_hold_up_the_others(
    tmp_path: Path, teacher: ScriptedTeacher
) -> None:
    """After three 5xx, with others answered in between, it has failed."""
    with _audited(tmp_path, teacher) as audited:
        audited.offer(_audit("poison", script="error"))
        deadline, n = time.monotonic() + 15, 0
        while not audited.counted() and time.monotonic() < deadline:
            audited.offer(_audit(f"text {(n := n + 1)}"))
            time.sleep(0.05)
        assert audited.counted() == {"failed": 1}
        assert 3 <= sum(call.text == "poison" for call in teacher.calls) < 8
        assert len(audited.answers) > 3


def test_a_clients_key_travels_to_its_own_upstream_only(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """An upstream with a key of its own gets that, and no fallback is asked, nor anything twice."""
    with ScriptedTeacher() as other:
        upstreams = {
            "teacher": {"base_url": teacher.url, "retries": 3, "fallbacks": [{"upstream": "other"}]},
            "other": {"base_url": other.url, "api_key_env": "OTHER_KEY"},
        }
        with _audited(tmp_path, teacher, upstreams=upstreams, default_upstream="teacher") as audited:
            audited.offer(_audit("a"), _audit("b", script="status_503"), _audit("c", upstream="other"))
            _eventually(lambda: len(audited.answers) == 2 and len(teacher.calls) == 2)
            time.sleep(0.3)
            assert {call.header("authorization") for call in teacher.calls} == {"Bearer sk-client"}
            assert sorted(call.text for call in teacher.calls) == ["a", "b"]
            assert [(call.text, call.header("authorization")) for call in other.calls] == [("c", "Bearer sk-other")]
            assert audited.gateway.metric("tracer_upstream_retries_total", upstream="teacher") == 0


@pytest.mark.parametrize("limit", ["places", "connections"])
def test_audits_leave_room_for_users(tmp_path: Path, teacher: ScriptedTeacher, limit: str) -> None:
    """Of four places one at most, never the last, and none while a user waits for one."""
    tree: dict[str, Any] = {"server": {"max_concurrency": 4}}
    if limit == "connections":
        upstream = {"base_url": teacher.url, "max_connections": 4}
        tree = {"upstreams": {"teacher": upstream}, "default_upstream": "teacher"}
    teacher.script = "hang"
    with _audited(tmp_path, teacher, **tree) as audited:
        audited.offer(*(_audit(f"text {n}") for n in range(6)))
        _eventually(lambda: len(teacher.calls) == 1)
        time.sleep(0.3)
        assert len(teacher.calls) == 1
        for _ in range(3):
            assert audited.ask("user", **{"x-script": "answer"}).status_code == 200
        teacher.released.set()
        _eventually(lambda: len(audited.answers) == 6, 15)
        assert teacher.most_at_once <= 2
        assert audited.counted() == {}


def test_the_only_place_is_never_an_audits(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """With one place there are no audits, and they expire."""
    with _audited(tmp_path, teacher, {"expires": 0.5}, server={"max_concurrency": 1}) as audited:
        audited.offer(_audit("hi"))
        assert audited.ask("user").status_code == 200
        _eventually(lambda: audited.counted() == {"expired": 1})
        assert [call.text for call in teacher.calls] == ["user"]


def test_a_fault_of_whoever_compares_ends_one_audit(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """It is counted, and the next one is asked."""
    with _audited(tmp_path, teacher) as audited:
        audited.broken = True
        audited.offer(_audit("hi"))
        _eventually(lambda: audited.counted() == {"failed": 1})
        assert audited.gateway.metric("tracer_internal_errors_total", where="audit") == 1
        audited.broken = False
        audited.offer(_audit("next"))
        _eventually(lambda: len(audited.answers) == 1)
        _eventually(lambda: audited.auditor.pending == 0)
        assert audited.auditor.budgets["bank"].take()[0] == 2


def test_stopping_leaves_nothing_behind(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """No task, no connection, no place, no audit; what was under way counts as paid for, and all are counted."""
    with _audited(tmp_path, teacher) as audited:
        audited.stop()
        before = audited.gateway.tasks()
        audited._run(audited.auditor.start())
        audited.offer(*(_audit(f"text {n}", script="hang") for n in range(10)))
        _eventually(lambda: len(teacher.calls) == 4)
        assert audited.gateway.tasks() == before + 4
        audited.stop()
        _eventually(lambda: teacher.disconnects == 4)
        _eventually(lambda: audited.gateway.tasks() == before)
        assert audited.counted() == {"dropped": 10}
        assert audited.auditor.pending == 0
        assert audited.gateway.metric("tracer_forwards") == 0
        assert audited.auditor.budgets["bank"].take() == (4, 0.0)
        assert audited.auditor.budgets["bank"].left == GRANTED - 4
        audited.offer(_audit("too late"))
        assert audited.counted() == {"dropped": 11}
        assert audited.ask("user").status_code == 200
        assert len(teacher.calls) == 5


def test_an_audit_of_an_unknown_upstream_is_dropped(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """Offering never raises; a project without audits is none of ours."""
    with _audited(tmp_path, teacher) as audited:
        audited.offer(_audit("hi", upstream="nowhere"), _audit("ho", project="nobody"))
        assert audited.counted() == {"dropped": 1}
        assert audited.counted("nobody") == {}
