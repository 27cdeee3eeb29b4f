"""Places for forwarded calls: how many, who waits, and that handled calls never do."""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from gateway.limits import room_aside
from tests.scripted_teacher import ScriptedTeacher
from tests.serving import ThreadedGateway, make_settings


def _gateway(folder: Path, policy: Path, teacher: ScriptedTeacher, **server: Any) -> ThreadedGateway:
    projects = {"bank": {"policy": str(policy), "teacher": "gpt"}}
    return ThreadedGateway(make_settings(folder, {"projects": projects, "server": server}, teacher.url))


def _eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def _ask(gateway: ThreadedGateway, text: str) -> httpx.Response:
    body = {"model": "tracer/bank", "messages": [{"role": "user", "content": text}]}
    return httpx.post(f"{gateway.base_url}/chat/completions", json=body, timeout=20)


def test_what_exceeds_the_places_waits_and_then_gets_a_429(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher, handled_text: str, deferred_text: str
) -> None:
    """One call with the upstream, one waiting, and the third is refused at once; a handled call passes all of them."""
    teacher.script = "hang"
    with (
        _gateway(tmp_path, policy_folder, teacher, max_concurrency=1, max_queue=1) as gateway,
        ThreadPoolExecutor() as pool,
    ):
        calls: list[Future[httpx.Response]] = []
        for gauge in ("tracer_forwards", "tracer_forwards_waiting"):
            calls.append(pool.submit(_ask, gateway, deferred_text))
            _eventually(lambda gauge=gauge: gateway.metric(gauge) == 1)  # type: ignore[misc]
        refused = _ask(gateway, deferred_text)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["error"]["code"] == "gateway_overloaded"
        assert refused.headers["x-tracer-decision"] == "deferred"
        with openai.OpenAI(base_url=gateway.base_url, api_key="k", max_retries=0) as client:
            with pytest.raises(openai.RateLimitError) as limited:
                client.chat.completions.create(model="gpt", messages=[{"role": "user", "content": "hi"}])
            assert limited.value.type == "requests"
        assert httpx.get(f"{gateway.base_url}/models").status_code == 429
        assert _ask(gateway, handled_text).headers["x-tracer-decision"] == "handled"
        assert teacher.most_at_once == 1
        teacher.released.set()
        assert [call.result(10).status_code for call in calls] == [200, 200]
        assert gateway.metric("tracer_forwards") == gateway.metric("tracer_forwards_waiting") == 0
        assert gateway.metric("tracer_errors_total", code="gateway_overloaded") == 3
        assert gateway.metric("tracer_upstream_errors_total", upstream="teacher", kind="unreachable") == 0


def test_nobody_waits_longer_than_the_queue_allows(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher, deferred_text: str
) -> None:
    """`server.queue_timeout`, then a 429."""
    teacher.script = "hang"
    with (
        _gateway(tmp_path, policy_folder, teacher, max_concurrency=1, queue_timeout=0.2) as gateway,
        ThreadPoolExecutor() as pool,
    ):
        first = pool.submit(_ask, gateway, deferred_text)
        _eventually(lambda: gateway.metric("tracer_forwards") == 1)
        refused = _ask(gateway, deferred_text)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "0.2 seconds" in refused.text
        teacher.released.set()
        assert first.result(10).status_code == 200


def test_a_waiting_client_that_leaves_gives_its_place_up(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher, deferred_text: str
) -> None:
    """Nothing of its call reaches the upstream."""
    teacher.script = "hang"
    with (
        _gateway(tmp_path, policy_folder, teacher, max_concurrency=1, max_queue=1) as gateway,
        ThreadPoolExecutor() as pool,
    ):
        first = pool.submit(_ask, gateway, deferred_text)
        _eventually(lambda: gateway.metric("tracer_forwards") == 1)
        body = {"model": "gpt", "messages": [{"role": "user", "content": "hi"}]}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{gateway.base_url}/chat/completions", json=body, timeout=0.3)
        _eventually(lambda: gateway.metric("tracer_forwards_waiting") == 0)
        next_one = pool.submit(_ask, gateway, deferred_text)
        _eventually(lambda: gateway.metric("tracer_forwards_waiting") == 1)
        teacher.released.set()
        assert [call.result(10).status_code for call in (first, next_one)] == [200, 200]
        assert len(teacher.chat_calls) == 2


@pytest.mark.parametrize("script", ["answer", "error", "hang_up", "cut_stream", "cut_body"])
def test_a_place_is_given_back_however_the_call_ends(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher, deferred_text: str, script: str
) -> None:
    """With one place, many calls in a row."""
    teacher.script = script
    body = json.dumps({"model": "tracer/bank", "messages": [{"role": "user", "content": deferred_text}]})
    with _gateway(tmp_path, policy_folder, teacher, max_concurrency=1, max_queue=0) as gateway:
        for _ in range(5):
            try:
                answer = httpx.post(f"{gateway.base_url}/chat/completions", content=body)
            except httpx.RemoteProtocolError:
                continue
            finally:
                _eventually(lambda: gateway.metric("tracer_forwards") == 0)
            assert answer.status_code != 429


def test_many_more_calls_than_places_are_all_answered(
    tmp_path: Path, policy_folder: Path, teacher: ScriptedTeacher, deferred_text: str
) -> None:
    """Never more of them with the upstream than there are places."""
    teacher.latency = 0.01
    with (
        _gateway(tmp_path, policy_folder, teacher, max_concurrency=3) as gateway,
        ThreadPoolExecutor(24) as pool,
    ):
        statuses = list(pool.map(lambda _: _ask(gateway, deferred_text).status_code, range(120)))
    assert set(statuses) == {200}
    assert teacher.most_at_once <= 3
    assert threading.active_count() < 50


@pytest.mark.parametrize(
    ("limit", "taken", "aside", "room"),
    [
        (1, 0, 0, False),
        (2, 0, 0, True),
        (2, 1, 0, False),
        (4, 1, 1, False),
        (8, 1, 1, True),
        (8, 2, 2, False),
        (1_000, 998, 3, True),
        (1_000, 999, 0, False),
    ],
)
def test_what_nobody_waits_for_gets_a_quarter_and_never_the_last(
    limit: int, taken: int, aside: int, room: bool
) -> None:
    """Of places and of connections alike."""
    assert room_aside(limit, taken, aside) is room
