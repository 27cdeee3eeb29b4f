"""Room for bodies: what is held of them at a time, and what happens to one that finds none."""

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import orjson
import pytest

from tests.scripted_teacher import ScriptedTeacher
from tests.serving import ThreadedGateway, make_settings

KB = 1_000
# It comes in pieces: more than uvicorn reads at once.
BODY = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "a" * 900 * KB}]})


@contextlib.contextmanager
def _gateway(folder: Path, teacher: ScriptedTeacher, held: int, seconds: float) -> Iterator[ThreadedGateway]:
    server = {"max_held_bytes": held, "queue_timeout": seconds}
    with ThreadedGateway(make_settings(folder, {"server": server}, teacher.url)) as gateway:
        yield gateway


def _post(gateway: ThreadedGateway, body: bytes = BODY, script: str = "answer", timeout: float = 20) -> httpx.Response:
    url, headers = f"{gateway.base_url}/chat/completions", {"x-script": script}
    return httpx.post(url, content=body, headers=headers, timeout=timeout)


def _held(gateway: ThreadedGateway, pool: ThreadPoolExecutor) -> list[Future[httpx.Response]]:
    """Two calls that hold their bodies: the second has gone beyond the limit."""
    calls = []
    for number in (1, 2):
        calls.append(pool.submit(_post, gateway, BODY, "hang"))
        deadline = time.monotonic() + 10
        while gateway.metric("tracer_held_bytes") < number * len(BODY):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    return calls


def test_a_body_without_room_is_refused(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """After `queue_timeout`, with a 429 that says when to come again; small ones are none of this."""
    with _gateway(tmp_path, teacher, 1_500 * KB, 0.3) as gateway, ThreadPoolExecutor(2) as pool:
        held = _held(gateway, pool)
        refused = _post(gateway)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "gateway_overloaded")
        assert refused.headers["retry-after"] == "1"
        assert _post(gateway, b'{"model":"m","messages":[{"role":"user","content":"a"}]}').status_code == 200
        teacher.released.set()
        assert [call.result().status_code for call in held] == [200, 200]
        assert _post(gateway).status_code == 200
        assert gateway.metric("tracer_held_bytes") == 0


def test_a_body_waits_for_room(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """It is not read meanwhile, and answered in its turn."""
    with _gateway(tmp_path, teacher, 1_500 * KB, 10) as gateway, ThreadPoolExecutor(6) as pool:
        held = _held(gateway, pool)
        waiting = [pool.submit(_post, gateway) for _ in range(4)]
        time.sleep(0.3)
        assert not any(call.done() for call in waiting)
        assert gateway.metric("tracer_held_bytes") == 2 * len(BODY)
        teacher.released.set()
        assert [call.result().status_code for call in [*held, *waiting]] == [200] * 6
        assert gateway.metric("tracer_held_bytes") == 0


@pytest.mark.parametrize("held", [1, 500 * KB])
def test_a_limit_below_one_body_lets_one_at_a_time_through(tmp_path: Path, teacher: ScriptedTeacher, held: int) -> None:
    """`max_body_bytes` says how large one may be, this how many there are."""
    with _gateway(tmp_path, teacher, held, 10) as gateway, ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(_post, gateway) for _ in range(4)]
        assert [call.result().status_code for call in answers] == [200] * 4


def test_a_client_that_leaves_makes_room(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """It is seen to leave although its body came faster than it was read."""
    with _gateway(tmp_path, teacher, 500 * KB, 5) as gateway:
        for _ in range(3):
            with pytest.raises(httpx.ReadTimeout):
                _post(gateway, BODY, "hang", timeout=1)
        assert _post(gateway).status_code == 200
        assert gateway.metric("tracer_held_bytes") == 0
