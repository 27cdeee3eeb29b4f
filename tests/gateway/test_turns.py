"""Requests that came at once take each step together."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.asgi import Whole
from gateway.endpoints.chat import Chat
from gateway.turns import Turns
from tests.scripted_teacher import ScriptedTeacher
from tests.serving import ThreadedGateway, make_settings


class _Turn:
    def __init__(self, name: str, log: list[str]) -> None:
        self._name, self._log = name, log

    def decide(self) -> None:
        self._log.append(f"decide {self._name}")

    def answer(self) -> Whole | None:
        self._log.append(f"answer {self._name}")
        return 200, [], self._name.encode()


async def _take(number: int) -> list[str]:
    log: list[str] = []
    turns, loop = Turns(), asyncio.get_running_loop()
    for i in range(number):
        turns.take(loop, _Turn(str(i), log), lambda answer: log.append(f"done {answer and answer[2].decode()}"))
    assert log == []
    loop.call_soon(log.append, "the loop goes on")
    for _ in range(number + 2):
        await asyncio.sleep(0)
    return log


def test_all_are_decided_on_before_the_first_is_answered() -> None:
    """In the order in which they came."""
    assert asyncio.run(_take(2)) == [
        *("decide 0", "decide 1"),
        *("answer 0", "done 0", "answer 1", "done 1"),
        "the loop goes on",
    ]


def test_a_crowd_does_not_keep_the_loop() -> None:
    """It looks at what else there is after a few dozen."""
    log = asyncio.run(_take(100))
    assert log.index("the loop goes on") < 100
    assert [line for line in log if line.startswith("done")] == [f"done {i}" for i in range(100)]


@pytest.mark.parametrize("step", ["_call", "_decide_quickly", "answer"])
def test_a_fault_is_a_500_and_the_others_are_answered(
    tmp_path: Path,
    policy_folder: Path,
    handled_text: str,
    teacher: ScriptedTeacher,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    """In OpenAI's shape, logged and counted, on a connection that goes on."""
    right = getattr(Chat, step)

    def faulty(self: Chat, *given: Any) -> Any:
        if b"faulty" in (given[1] if step == "_call" else given[0].raw):
            raise ZeroDivisionError
        return right(self, *given)

    monkeypatch.setattr(Chat, step, faulty)
    tree = {"projects": {"topics": {"policy": str(policy_folder), "teacher": "gpt"}}}
    messages = [{"role": "user", "content": handled_text}]
    with (
        ThreadedGateway(make_settings(tmp_path, tree, teacher.url)) as gateway,
        httpx.Client(base_url=gateway.base_url) as client,
    ):
        good = {"model": "tracer/topics", "messages": messages}
        for body, status in ((good, 200), ({**good, "user": "faulty"}, 500), (good, 200)):
            answer = client.post("/chat/completions", content=json.dumps(body))
            assert answer.status_code == status
        assert gateway.metric("tracer_internal_errors_total", where="endpoint") == 1
        assert gateway.metric("tracer_errors_total", code="internal_error") == 1


def test_calls_side_by_side_get_their_own_answers(
    tmp_path: Path, policy_folder: Path, handled_text: str, deferred_text: str, teacher: ScriptedTeacher
) -> None:
    """Handled, deferred, refused and streamed ones, forty at a time."""
    tree = {"projects": {"topics": {"policy": str(policy_folder), "teacher": "gpt"}}}
    wrong: list[str] = []

    def ask(client: httpx.Client, number: int) -> None:
        kind = number % 4
        text = deferred_text if kind == 1 else handled_text
        body: dict[str, Any] = {"model": "tracer/nobody" if kind == 2 else "tracer/topics", "stream": kind == 3}
        body["messages"] = [{"role": "user", "content": text}]
        answer = client.post("/chat/completions", content=json.dumps(body))
        lane = answer.headers["x-tracer-lane"]
        expected = [(200, "surrogate"), (200, "teacher"), (404, "none"), (200, "surrogate")][kind]
        if (answer.status_code, lane) != expected or (kind == 3) != ("data: [DONE]" in answer.text):
            wrong.append(f"{number}: {answer.status_code} {lane}")

    with ThreadedGateway(make_settings(tmp_path, tree, teacher.url)) as gateway:

        def work(first: int) -> None:
            with httpx.Client(base_url=gateway.base_url, timeout=30) as client:
                for number in range(first, first + 20):
                    ask(client, number)

        threads = [threading.Thread(target=work, args=(first,)) for first in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert gateway.metric("tracer_requests_total", project="topics", lane="surrogate", reason="") == 400
