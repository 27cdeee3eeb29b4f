"""Retries, fallbacks and the breaker, over real sockets."""

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from policies.store import Store
from tests.raw_upstream import Connection, RawUpstream, answering, response, silent
from tests.scripted_teacher import ScriptedTeacher
from tests.serving import ThreadedGateway, make_settings

BODY = b'{ "model": "tracer/new",  "messages": [{"role": "user", "content": "hi"}], "temperature": 0 }'
KEYS = {"KEY": "sk-first", "OTHER": "sk-second"}
BUSY = response(503, b'{"error":"busy"}', b"Retry-After-Ms: 1\r\nX-Which: %b\r\n")


def _gateway(folder: Path, upstreams: dict[str, Any]) -> ThreadedGateway:
    """The first of `upstreams` is the teacher's."""
    tree = {
        "projects": {"new": {"policy": str(folder / "absent"), "teacher": "gpt"}},
        "upstreams": upstreams,
        "default_upstream": next(iter(upstreams)),
    }
    return ThreadedGateway(make_settings(folder, tree), KEYS)


def _ask(gateway: ThreadedGateway, path: str = "/chat/completions", **options: Any) -> httpx.Response:
    given: dict[str, Any] = {"content": BODY, "timeout": 20} | options
    return httpx.post(f"{gateway.base_url}{path}", **given)


def _unused_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
    return port


DEAD = {"base_url": f"http://127.0.0.1:{_unused_port()}/v1"}


def _traces(gateway: ThreadedGateway) -> int:
    gateway.stop()
    store = Store.open(gateway.services.settings.store.url)
    found = len(list(store.traces("new")))
    store.close()
    return found


def test_nothing_is_repeated_by_default(tmp_path: Path) -> None:
    """OpenAI's clients repeat calls themselves."""
    with RawUpstream(answering(BUSY)) as upstream, _gateway(tmp_path, {"a": {"base_url": upstream.url}}) as gateway:
        assert _ask(gateway).status_code == 503
        assert len(upstream.requests) == 1


def test_a_passing_failure_is_repeated_with_the_same_bytes(tmp_path: Path) -> None:
    """As often as `retries` says, over the same connection, and counted."""
    handler = answering(BUSY, BUSY, response(200, b"whole"))
    with (
        RawUpstream(handler) as upstream,
        _gateway(tmp_path, {"a": {"base_url": upstream.url, "retries": 2}}) as gateway,
    ):
        answer = _ask(gateway)
        assert (answer.status_code, answer.text) == (200, "whole")
        assert len(upstream.requests) == 3
        assert len(set(upstream.requests)) == 1
        assert upstream.accepted == 1
        assert gateway.metric("tracer_upstream_retries_total", upstream="a") == 2
        assert gateway.metric("tracer_upstream_errors_total", upstream="a", kind="status_5xx") == 2


def test_the_last_answer_is_passed_on_whole(tmp_path: Path) -> None:
    """When the retries are used up."""
    last = response(503, b"last", b"X-Kept: 1\r\n")
    with (
        RawUpstream(answering(BUSY, last)) as upstream,
        _gateway(tmp_path, {"a": {"base_url": upstream.url, "retries": 1}}) as gateway,
    ):
        answer = _ask(gateway)
        assert (answer.status_code, answer.text, answer.headers["x-kept"]) == (503, "last", "1")


@pytest.mark.parametrize(
    "refusal",
    [
        response(400),
        response(503, b"{}", b"X-Should-Retry: false\r\n"),
        response(429, b"{}", b"Retry-After: 60\r\n"),
    ],
)
def test_an_answer_that_forbids_it_goes_to_the_client(tmp_path: Path, refusal: bytes) -> None:
    """A lasting failure, a plain no, or a wait above `max_retry_wait`."""
    with (
        RawUpstream(answering(refusal)) as upstream,
        _gateway(tmp_path, {"a": {"base_url": upstream.url, "retries": 3}}) as gateway,
    ):
        assert _ask(gateway).status_code >= 400
        assert len(upstream.requests) == 1


def test_a_connection_that_is_never_made_is_tried_again(tmp_path: Path) -> None:
    """Nobody can have worked on the call."""
    port = _unused_port()
    with _gateway(
        tmp_path, {"a": {"base_url": f"http://127.0.0.1:{port}/v1", "retries": 2, "max_retry_wait": 0.01}}
    ) as gateway:
        assert _ask(gateway).status_code == 502
        assert gateway.metric("tracer_upstream_retries_total", upstream="a") == 2


async def _reset(upstream: RawUpstream, connection: Connection) -> None:
    upstream.requests.append(await connection.request())


def test_a_call_that_was_sent_and_not_answered_is_not(tmp_path: Path) -> None:
    """It may have been worked on: a hang-up and a time-out are the client's to judge."""
    for handler, status in ((_reset, 502), (silent, 504)):
        upstream_settings = {"retries": 3, "read_timeout": 0.2, "max_retry_wait": 0.01}
        with (
            RawUpstream(handler) as upstream,
            _gateway(tmp_path, {"a": {"base_url": upstream.url, **upstream_settings}}) as gateway,
        ):
            assert _ask(gateway).status_code == status
            assert len(upstream.requests) == 1


def test_a_streamed_body_is_not_repeated(tmp_path: Path) -> None:
    """It is gone when it has been sent."""
    with (
        RawUpstream(answering(BUSY)) as upstream,
        _gateway(tmp_path, {"a": {"base_url": upstream.url, "retries": 3}}) as gateway,
    ):
        assert httpx.post(f"{gateway.base_url}/files", content=b"x" * 100).status_code == 503
        assert len(upstream.requests) == 1


def test_a_client_that_leaves_ends_the_wait(tmp_path: Path) -> None:
    """Nobody is asked for somebody who has gone."""
    later = response(503, b"{}", b"Retry-After: 1\r\n")
    with (
        RawUpstream(answering(later, response())) as upstream,
        _gateway(tmp_path, {"a": {"base_url": upstream.url, "retries": 1}}) as gateway,
    ):
        with pytest.raises(httpx.ReadTimeout):
            _ask(gateway, timeout=0.3)
        time.sleep(1.2)
        assert len(upstream.requests) == 1
        assert gateway.metric("tracer_disconnects_total") == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_fallback_answers_in_the_upstreams_place(tmp_path: Path, teacher: ScriptedTeacher, status: int) -> None:
    """With its own key and model and every other byte the same; the answer says who gave it and is no trace."""
    with RawUpstream(answering(response(status))) as first:
        upstreams = {
            "a": {"base_url": first.url, "fallbacks": [{"upstream": "b", "model": "small"}]},
            "b": {"base_url": teacher.url, "api_key_env": "OTHER"},
        }
        with _gateway(tmp_path, upstreams) as gateway:
            headers = {
                "authorization": "Bearer sk-client",
                "openai-organization": "org",
                "cookie": "a=b",
                "x-kept": "1",
            }
            answer = _ask(gateway, "/chat/completions?key=secret", headers=headers)
            assert answer.json()["model"] == "small"
            assert answer.headers["x-tracer-upstream"] == "b"
            (call,) = teacher.calls
            assert call.body == BODY.replace(b'"tracer/new"', b'"small"')
            assert call.header("authorization") == "Bearer sk-second"
            assert (call.header("openai-organization"), call.header("cookie"), call.query) == (None, None, b"")
            assert call.header("x-kept") == "1"
            assert gateway.metric("tracer_upstream_fallbacks_total", upstream="a", fallback="b") == 1
            assert _traces(gateway) == 0


def test_the_upstreams_own_answer_is_a_trace(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """That it has fallbacks changes nothing while it answers."""
    upstreams = {
        "a": {"base_url": teacher.url, "fallbacks": [{"upstream": "b"}]},
        "b": {**DEAD, "api_key_env": "OTHER"},
    }
    with _gateway(tmp_path, upstreams) as gateway:
        assert _ask(gateway).headers["x-tracer-upstream"] == "a"
        assert _traces(gateway) == 1


def test_a_fallback_at_the_same_host_gets_the_clients_key(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """Another model of the same provider, for instance."""
    teacher.script = "rate_limited"
    upstreams = {"a": {"base_url": teacher.url, "fallbacks": [{"upstream": "a", "model": "small"}]}}
    with _gateway(tmp_path, upstreams) as gateway:
        answer = _ask(gateway, headers={"authorization": "Bearer sk-client"})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert [call.json["model"] for call in teacher.calls] == ["gpt", "small"]
    assert {call.header("authorization") for call in teacher.calls} == {"Bearer sk-client"}


@pytest.mark.parametrize("handler", [_reset, silent])
def test_an_upstream_that_gives_no_answer_is_replaced(tmp_path: Path, teacher: ScriptedTeacher, handler: Any) -> None:
    """Unreachable, or too slow to begin."""
    with RawUpstream(handler) as first:
        upstreams = {
            "a": {"base_url": first.url, "read_timeout": 0.2, "fallbacks": [{"upstream": "b"}]},
            "b": {"base_url": teacher.url, "api_key_env": "OTHER"},
        }
        with _gateway(tmp_path, upstreams) as gateway:
            assert _ask(gateway).headers["x-tracer-upstream"] == "b"
            kind = "timeout" if handler is silent else "unreachable"
            assert gateway.metric("tracer_upstream_errors_total", upstream="a", kind=kind) == 1


def test_fallbacks_are_asked_in_order(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """Until one succeeds; a refusal of theirs is no success."""
    with RawUpstream(answering(response(500))) as first, RawUpstream(answering(response(401))) as second:
        upstreams = {
            "a": {"base_url": first.url, "fallbacks": [{"upstream": "b"}, {"upstream": "c"}, {"upstream": "d"}]},
            "b": {"base_url": second.url, "api_key_env": "KEY"},
            "c": {**DEAD, "api_key_env": "KEY"},
            "d": {"base_url": teacher.url, "api_key_env": "KEY"},
        }
        with _gateway(tmp_path, upstreams) as gateway:
            assert _ask(gateway).headers["x-tracer-upstream"] == "d"
            assert len(second.requests) == 1
            assert gateway.metric("tracer_upstream_errors_total", upstream="c", kind="unreachable") == 1


def test_where_none_succeeds_the_first_failure_is_told(tmp_path: Path) -> None:
    """With all its bytes: it is what the client's own provider said."""
    limited = response(429, b"first" * 1000, b"Retry-After: 9\r\n")
    with RawUpstream(answering(limited)) as first, RawUpstream(answering(response(404))) as second:
        upstreams = {
            "a": {"base_url": first.url, "fallbacks": [{"upstream": "b"}, {"upstream": "c"}]},
            "b": {"base_url": second.url, "api_key_env": "KEY"},
            "c": {**DEAD, "api_key_env": "KEY"},
        }
        with _gateway(tmp_path, upstreams) as gateway:
            answer = _ask(gateway)
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "9")
            assert (answer.text, answer.headers["x-tracer-upstream"]) == ("first" * 1000, "a")
            assert gateway.metric("tracer_upstream_fallbacks_total", upstream="a", fallback="") == 1


def test_a_long_failure_is_told_whole_as_well(tmp_path: Path) -> None:
    """More of it than is kept while the others are asked."""
    with RawUpstream(answering(response(500, b"first" * 100_000))) as first:
        upstreams = {
            "a": {"base_url": first.url, "fallbacks": [{"upstream": "b"}]},
            "b": {**DEAD, "api_key_env": "KEY"},
        }
        with _gateway(tmp_path, upstreams) as gateway:
            assert _ask(gateway).text == "first" * 100_000
            first.wait_until(1)


@pytest.mark.parametrize("status", [400, 401, 404, 422, 307])
def test_a_refusal_is_an_answer(tmp_path: Path, teacher: ScriptedTeacher, status: int) -> None:
    """Another upstream would be asked the same wrong question."""
    with RawUpstream(answering(response(status))) as first:
        upstreams = {
            "a": {"base_url": first.url, "fallbacks": [{"upstream": "b"}]},
            "b": {"base_url": teacher.url, "api_key_env": "KEY"},
        }
        with _gateway(tmp_path, upstreams) as gateway:
            assert _ask(gateway).status_code == status
    assert teacher.calls == []


@pytest.mark.parametrize("path", ["/files", "/embeddings", "/models", "/batches"])
def test_only_what_another_model_can_answer_is_sent_to_another(
    tmp_path: Path, teacher: ScriptedTeacher, path: str
) -> None:
    """A file uploaded elsewhere, or an embedding of another model, would do harm."""
    upstreams = {
        "a": {**DEAD, "fallbacks": [{"upstream": "b"}]},
        "b": {"base_url": teacher.url, "api_key_env": "KEY"},
    }
    with _gateway(tmp_path, upstreams) as gateway:
        assert _ask(gateway, path).status_code == 502
    assert teacher.calls == []


def test_retries_come_before_fallbacks(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """The teacher's own answer is worth a wait."""
    with RawUpstream(answering(BUSY, response(200, b"first"))) as first:
        upstreams = {
            "a": {"base_url": first.url, "retries": 1, "fallbacks": [{"upstream": "b"}]},
            "b": {"base_url": teacher.url, "api_key_env": "KEY"},
        }
        with _gateway(tmp_path, upstreams) as gateway:
            assert _ask(gateway).text == "first"
    assert teacher.calls == []


def test_two_upstreams_may_stand_in_for_each_other(tmp_path: Path) -> None:
    """A fallback's own fallbacks are not followed, so nothing goes round in circles."""
    with RawUpstream(answering(response(500, b"one"))) as one, RawUpstream(answering(response(500, b"two"))) as two:
        upstreams = {
            "a": {"base_url": one.url, "api_key_env": "KEY", "fallbacks": [{"upstream": "b"}]},
            "b": {"base_url": two.url, "api_key_env": "KEY", "fallbacks": [{"upstream": "a"}]},
        }
        with _gateway(tmp_path, upstreams) as gateway:
            assert _ask(gateway).text == "one"
            assert (len(one.requests), len(two.requests)) == (1, 1)


def test_a_classify_call_is_answered_by_a_fallback_and_not_learned(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """Its label goes to the client with the name of who gave it."""
    upstreams = {
        "a": {**DEAD, "fallbacks": [{"upstream": "b"}]},
        "b": {"base_url": teacher.url, "api_key_env": "KEY"},
    }
    with _gateway(tmp_path, upstreams) as gateway:
        body = {"input": "hi", "messages": [{"role": "user", "content": "hi"}]}
        answer = httpx.post(f"{gateway.url}/new/classify", json=body)
        assert (answer.json()["label"], answer.headers["x-tracer-upstream"]) == ("other", "b")
        assert _traces(gateway) == 0


def test_the_breaker_leaves_an_upstream_alone_and_tries_again(tmp_path: Path) -> None:
    """Open it answers at once and says when to come back; one call that is answered closes it."""
    handler = answering(BUSY, BUSY, response(200, b"back"))
    settings = {"breaker_failures": 2, "breaker_seconds": 0.5}
    with (
        RawUpstream(handler) as upstream,
        _gateway(tmp_path, {"a": {"base_url": upstream.url, **settings}}) as gateway,
    ):
        assert gateway.metric("tracer_breaker_open", upstream="a") == 0
        assert [_ask(gateway).text for _ in range(2)] == ['{"error":"busy"}'] * 2
        assert gateway.metric("tracer_breaker_open", upstream="a") == 1
        answer = _ask(gateway)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        error = answer.json()["error"]
        assert (error["code"], error["type"], error["param"]) == ("upstream_unavailable", "server_error", None)
        assert len(upstream.requests) == 2
        time.sleep(0.5)
        assert [_ask(gateway).text for _ in range(2)] == ["back"] * 2
        assert gateway.metric("tracer_breaker_open", upstream="a") == 0


@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_an_upstream_that_answers_is_there(tmp_path: Path, status: int) -> None:
    """Errors that a working upstream gives do not open the breaker."""
    with (
        RawUpstream(answering(response(status))) as upstream,
        _gateway(tmp_path, {"a": {"base_url": upstream.url, "breaker_failures": 1}}) as gateway,
    ):
        assert [_ask(gateway).status_code for _ in range(3)] == [status] * 3


def test_the_breaker_opens_for_an_upstream_that_is_away(tmp_path: Path) -> None:
    """Refused connections count, retries too, and what is open is not tried again."""
    settings = {"breaker_failures": 2, "retries": 5, "max_retry_wait": 0.01}
    with _gateway(tmp_path, {"a": {**DEAD, **settings}}) as gateway:
        assert [_ask(gateway).status_code for _ in range(2)] == [502, 503]
        assert gateway.metric("tracer_upstream_errors_total", upstream="a", kind="unreachable") == 2


def test_a_client_that_leaves_is_no_failure(tmp_path: Path) -> None:
    """Nor is a full pool: neither says anything about the upstream."""
    settings = {"breaker_failures": 1, "max_connections": 1, "pool_timeout": 0.1}
    with (
        RawUpstream(silent) as upstream,
        _gateway(tmp_path, {"a": {"base_url": upstream.url, **settings}}) as gateway,
    ):

        async def leave() -> int:
            async with httpx.AsyncClient() as client:
                first = asyncio.create_task(client.post(f"{gateway.base_url}/chat/completions", content=BODY))
                assert await asyncio.to_thread(upstream.arrived.wait, 5)
                status = (await client.post(f"{gateway.base_url}/chat/completions", content=BODY)).status_code
                first.cancel()
                return status

        assert asyncio.run(leave()) == 504
        upstream.wait_until(0)
        upstream.handler = answering(response(200, b"there"))
        assert _ask(gateway).text == "there"


def test_an_open_breaker_sends_calls_to_the_fallback_at_once(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """Nobody waits for an upstream that is known to be away."""
    with RawUpstream(silent) as first:
        upstreams = {
            "a": {"base_url": first.url, "read_timeout": 0.2, "breaker_failures": 1, "fallbacks": [{"upstream": "b"}]},
            "b": {"base_url": teacher.url, "api_key_env": "KEY"},
        }
        with _gateway(tmp_path, upstreams) as gateway:
            assert [_ask(gateway).headers["x-tracer-upstream"] for _ in range(3)] == ["b"] * 3
            assert len(first.requests) == 1


def test_a_stream_of_a_fallback_is_a_stream(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """Byte for byte."""
    upstreams = {
        "a": {**DEAD, "fallbacks": [{"upstream": "b"}]},
        "b": {"base_url": teacher.url, "api_key_env": "KEY"},
    }
    body = json.loads(BODY) | {"stream": True}
    with _gateway(tmp_path, upstreams) as gateway:
        assert _ask(gateway, content=json.dumps(body).encode()).text.endswith("data: [DONE]\n\n")


def test_what_makes_something_is_sent_once(tmp_path: Path) -> None:
    """A thread may have been made before the answer went wrong; a list may be asked for again."""
    with (
        RawUpstream(answering(response(500))) as upstream,
        _gateway(tmp_path, {"a": {"base_url": upstream.url, "retries": 2, "max_retry_wait": 0.01}}) as gateway,
    ):
        assert httpx.post(f"{gateway.base_url}/threads").status_code == 500
        assert len(upstream.requests) == 1
        assert httpx.get(f"{gateway.base_url}/models").status_code == 500
        assert len(upstream.requests) == 4


@pytest.mark.parametrize(
    ("fields", "replaced"),
    [
        ({"store": False}, True),
        ({}, False),
        ({"store": False, "previous_response_id": "resp_a"}, False),
        ({"store": False, "conversation": "conv_a"}, False),
        ({"store": False, "background": True}, False),
    ],
)
def test_a_response_that_is_kept_is_not_made_elsewhere(
    tmp_path: Path, teacher: ScriptedTeacher, fields: dict[str, Any], replaced: bool
) -> None:
    """Nobody would find it there again, nor there what it goes on from. The upstream's own failure is told."""
    for handler, status in ((answering(response(503)), 503), (_reset, 502)):
        with RawUpstream(handler) as first:
            upstreams = {
                "a": {"base_url": first.url, "fallbacks": [{"upstream": "b"}]},
                "b": {"base_url": teacher.url, "api_key_env": "OTHER"},
            }
            with _gateway(tmp_path, upstreams) as gateway:
                body = json.dumps({"model": "gpt", "input": "hi", **fields}).encode()
                assert _ask(gateway, "/responses", content=body).status_code == (200 if replaced else status)
    assert len(teacher.calls) == 2 * replaced


def test_a_fallback_elsewhere_learns_nothing_of_the_client(tmp_path: Path, teacher: ScriptedTeacher) -> None:
    """Nor from headers that only the settings know as keys."""
    upstreams = {
        "a": {**DEAD, "fallbacks": [{"upstream": "b"}]},
        "b": {"base_url": teacher.url, "api_key_env": "OTHER"},
    }
    tree = {"upstreams": upstreams, "default_upstream": "a", "access": {"key_headers": ["x-custom-key"]}}
    headers = {"x-goog-api-key": "CANARY", "x-custom-key": "CANARY", "openai-project": "CANARY", "cookie": "CANARY"}
    with ThreadedGateway(make_settings(tmp_path, tree), KEYS) as gateway:
        assert _ask(gateway, content=BODY.replace(b"tracer/new", b"gpt"), headers=headers).status_code == 200
    assert "CANARY" not in repr(teacher.calls[0].headers)


async def _impatient(upstream: RawUpstream, connection: Connection) -> None:
    """Answers what is whole, and 503 or nothing to an upload that is not, as its path says."""
    head = await connection.reader.readuntil(b"\r\n\r\n")
    upstream.requests.append(head)
    if b"/files" in head:
        await asyncio.sleep(0.1)
        if b"/busy" in head:
            await connection.write(response(503))
    else:
        await connection.write(response(200, b"there"))


@pytest.mark.parametrize("path", ["/files", "/files/busy"])
def test_uploads_that_do_not_end_say_nothing_of_the_upstream(tmp_path: Path, path: str) -> None:
    """Or one client that announces more than it sends could close the upstream to all the others."""
    settings = {"breaker_failures": 2}
    with (
        RawUpstream(_impatient) as upstream,
        _gateway(tmp_path, {"a": {"base_url": upstream.url, **settings}}) as gateway,
    ):
        port = int(gateway.url.rpartition(":")[2])
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.settimeout(5)
                head = f"POST /v1{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc"
                connection.sendall(head.encode())
                assert connection.recv(12) in (b"HTTP/1.1 502", b"HTTP/1.1 503")
        assert gateway.metric("tracer_breaker_open", upstream="a") == 0
        assert httpx.get(f"{gateway.base_url}/models").text == "there"
        for _ in range(2):
            assert httpx.post(f"{gateway.base_url}{path}", content=b"whole").status_code >= 502
        assert gateway.metric("tracer_breaker_open", upstream="a") == 1
